"""Gradients of a mean over a batch that is too large for one pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxgen.typing import Params


def accumulated_gradient(
    loss: Callable[[Params, PyTree], Any], params: Params, batch: PyTree, parts: int = 1, *, has_aux: bool = False
) -> tuple[Any, Params]:
    """Compute a mean loss and its gradient part by part: the activations of one part are held at a time.

    Part i takes every `parts`-th example, beginning with the i-th, so that each device of a mesh, which holds
    neighbouring examples, goes on with its own and none has to be moved. Sums are in the dtype of the parameters.

    Args:
        loss: `loss(params, batch)`, the mean over the examples of a batch.
        params: parameters.
        batch: a pytree whose leaves have one leading axis of examples, keys of their randomness among them: which part
            an example is in changes nothing for it.
        parts: number of parts; 1 computes the gradient in one pass.
        has_aux: whether `loss` returns a pair of the loss and a pytree of other means over the examples.

    Returns:
        The mean loss of the batch, a pair with the other means where `has_aux` says so, and its gradient.

    Raises:
        ValueError: if `parts` is below 1 or does not divide the number of examples.

    >>> loss = lambda w, x: jnp.mean((w * x) ** 2)
    >>> [round(float(value), 3) for value in accumulated_gradient(loss, jnp.array(3.0), jnp.arange(4.0), parts=2)]
    [31.5, 21.0]
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    differentiate = jax.value_and_grad(loss, has_aux=has_aux)
    if parts == 1:
        return differentiate(params, batch)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % parts:
        raise ValueError(f"a batch of {size} cannot be split evenly into {parts} parts; choose a divisor")
    split = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 1, 0), batch)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, differentiate(params, part)), None

    first = jax.tree.map(lambda leaf: leaf[0], split)
    shapes = jax.eval_shape(differentiate, params, first)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, split)
    return jax.tree.map(lambda leaf: leaf / parts, total)
