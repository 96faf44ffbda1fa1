"""Full-batch gradient descent under one `lax.scan`: the discretisation of gradient flow, with any optax optimiser."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxgen.flows.arguments import apply_mask, check_loss, check_mask, checked_params
from jaxgen.typing import Params


class Descent(NamedTuple):
    """A finished descent; epoch k is after k updates. Under `jax.vmap` every field has the batch in front."""

    params: Params
    """Parameters after the last update."""
    opt_state: optax.OptState
    """State of the optimiser then, with which a further descent goes on."""
    losses: Float[Array, "*batch epochs"]
    """Loss at the epochs 0 ... num_steps."""
    observed: Params
    """The parameters, or what `observe` returned, at the epochs 0, every, 2 every, ...; these along the first axis."""
    first_bad: Int[Array, "*batch"]
    """First epoch whose loss is not finite, -1 if there is none."""


class _Carry(NamedTuple):
    params: Params
    opt_state: optax.OptState
    observed: Params


def gradient_descent(
    loss: Callable[[Params], Float[Array, ""]],
    params: Params,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    mask: Params | None = None,
    observe: Callable[[Params], Params] | None = None,
    every: int = 1,
    start: optax.OptState | None = None,
) -> Descent:
    """Take `num_steps` steps of an optimiser down the whole loss.

    Pure: call it inside `jax.jit`, with the optimiser made there from traced numbers, so that another step size does
    not compile again and a sweep over step sizes is a `jax.vmap`. `optax.sgd(step_size)` is the explicit Euler method
    for the gradient flow. A descent that is cut in two, the second given the first's `params` and `opt_state`, is
    equal to the whole one to the bit.

    Args:
        loss: real function of the parameters.
        params: where to start, a pytree of real arrays.
        optimizer: any `optax.GradientTransformation`.
        num_steps: updates.
        mask: zeros and ones of the structure and shapes of `params`, multiplied onto the gradient before the
            optimiser sees it. An optimiser that moves what has no gradient, by weight decay, still moves it.
        observe: function of the parameters whose values are kept in their place.
        every: epochs between two that are kept.
        start: state of the optimiser from an earlier descent; None starts afresh.

    Returns:
        The `Descent`; `require_finite` turns a loss that is not finite into an error on the host.

    Raises:
        ValueError: for numbers out of their ranges, parameters that are not real, a loss that is not one number, or a
            mask of another structure.

    Example:
        >>> descent = gradient_descent(lambda x: 0.5 * x**2, jnp.float32(1.0), optax.sgd(0.5), 3)
        >>> descent.observed.tolist(), descent.losses.tolist()
        ([1.0, 0.5, 0.25, 0.125], [0.5, 0.125, 0.03125, 0.0078125])
    """
    for name, value in (("num_steps", num_steps), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    params = checked_params(params)
    check_loss(loss, params)
    check_mask(mask, params)
    observe = (lambda params: params) if observe is None else observe
    rows = num_steps // every + 1
    observed = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), jax.eval_shape(observe, params))

    def body(carry: _Carry, epoch: Int[Array, ""]) -> tuple[_Carry, Float[Array, ""]]:
        value, gradient = jax.value_and_grad(loss)(carry.params)

        def keep(observed):
            return jax.tree.map(lambda row, new: row.at[epoch // every].set(new), observed, observe(carry.params))

        observed = jax.lax.cond(epoch % every == 0, keep, lambda observed: observed, carry.observed)
        updates, opt_state = optimizer.update(apply_mask(mask, gradient), carry.opt_state, carry.params)
        moved = _Carry(optax.apply_updates(carry.params, updates), opt_state, observed)
        stayed = carry._replace(observed=observed)
        return jax.tree.map(lambda new, old: jnp.where(epoch < num_steps, new, old), moved, stayed), value

    # One turn more than updates: the last loss comes from the same instructions as the others, and so does the first
    # of a descent that goes on from here.
    start = optimizer.init(params) if start is None else start
    carry, losses = jax.lax.scan(body, _Carry(params, start, observed), jnp.arange(num_steps + 1))
    bad = ~jnp.isfinite(losses)
    first_bad = jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)
    return Descent(carry.params, carry.opt_state, losses, carry.observed, first_bad)


def require_finite(descent: Descent, *, settings: str = "") -> Descent:
    """Return a descent, or batch of descents, whose losses are all finite; on the host.

    Args:
        descent: what `gradient_descent` returned.
        settings: what the error shall name, for example "sgd, step size 1e-3".

    Raises:
        FloatingPointError: if a loss is not finite; names the epoch, the member of a batch and the settings.
    """
    first_bad = np.asarray(descent.first_bad)
    for index in np.argwhere(first_bad >= 0)[:1]:
        member = f" (member {', '.join(map(str, index.tolist()))})" if index.size else ""
        where = f" with {settings}" if settings else ""
        raise FloatingPointError(
            f"the loss is not finite at epoch {first_bad[tuple(index)]}{member}{where}: lower the step size"
        )
    return descent
