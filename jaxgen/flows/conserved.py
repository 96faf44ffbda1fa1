"""Quantities that gradient flow conserves, how far they drift, and their exact law under gradient descent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.typing import ArrayLike, Params, Scalar


def balance(a: Float[ArrayLike, "..."], b: Float[ArrayLike, "..."]) -> Float[Array, ""]:
    """Compute ||a||^2 - ||b||^2, conserved by the flow of any loss that a -> s a, b -> b / s leaves alone.

    That is the case where predictions are linear in a and in b, as those of a linear attention layer are in the
    key-query and in the value weights; equivalently <a, dL/da> = <b, dL/db> everywhere.

    Args:
        a: real array of any shape.
        b: real array of any shape.

    Example:
        >>> float(balance(jnp.array([2.0, 1.0]), jnp.float32(1.5)))
        2.75
    """
    return jnp.sum(jnp.square(jnp.asarray(a))) - jnp.sum(jnp.square(jnp.asarray(b)))


def column_balance(w32: Float[ArrayLike, "dim dim"], w12: Float[ArrayLike, "dim dim"]) -> Float[Array, " dim"]:
    """Compute (w32)_jj^2 - sum_k (w12)_kj^2 for each column j.

    Conserved by the flow where a loss sees w32 through its diagonal only and does not change under the scaling of
    (w32)_jj by s and of column j of w12 by 1 / s, as the autoregressive loss on sparse starts.

    Args:
        w32: key-query block, (dim, dim).
        w12: value block, (dim, dim).

    Example:
        >>> column_balance(2.0 * jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 1.0]])).tolist()
        [2.0, 3.0]
    """
    return jnp.square(jnp.diagonal(jnp.asarray(w32))) - jnp.sum(jnp.square(jnp.asarray(w12)), axis=0)


def drift(values: Float[ArrayLike, "times *shape"], scale: Scalar = 1.0) -> Float[Array, "*shape"]:
    """Find the largest deviation of a quantity from its first value, in units of `scale`.

    Args:
        values: the quantity along a flow, with time as the leading axis.
        scale: size against which a deviation counts, for example that of the terms whose difference is conserved;
            the conserved value itself may be zero.

    Example:
        >>> drift(jnp.array([1.0, 1.5, 0.75]), 2.0).tolist()
        0.25
    """
    values = jnp.asarray(values)
    return jnp.max(jnp.abs(values - values[:1]), axis=0) / scale


def descended_delta(
    delta: Float[ArrayLike, "*shape"], eta: Scalar, r: Float[ArrayLike, "*shape"]
) -> Float[Array, "*shape"]:
    """Compute a^2 - b^2 after one step of gradient descent on L(a, b) with dL/da = -b r, dL/db = -a r.

    The step a + eta b r, b + eta a r multiplies it by 1 - eta^2 r^2 exactly, whatever r is at this step; for the loss
    (c2 - c1 a b)^2 / (2 c1) it is r = c2 - c1 a b. The flow is the limit in which nothing changes.

    Args:
        delta: a^2 - b^2 before the step.
        eta: step size.
        r: residual before the step.

    Example:
        >>> float(descended_delta(jnp.float32(2.0), 0.5, jnp.float32(1.0)))
        1.5
    """
    return jnp.asarray(delta) * (1.0 - jnp.square(eta * jnp.asarray(r)))


def generator_defect(
    loss: Callable[[Params], Float[Array, ""]], params: Params, generator: Callable[[Params], Params]
) -> Float[Array, ""]:
    """Compute <grad L, generator> at `params`: the rate at which the loss changes along a one-parameter symmetry.

    It is zero at every point if and only if L does not change along x' = generator(x); one zero says so of one point.
    By itself this is no conserved quantity. Where the generator is linear and symmetric, x -> K x with K = K^T, the
    flow conserves <x, K x>, since its rate is -2 <K x, grad L>: (a, b) -> (a, -b) is that of `balance`. Where K is
    skew, as for a rotation, <x, K x> is zero and the invariance constrains the gradient alone.

    Args:
        loss: real function of the parameters.
        params: a pytree of real arrays.
        generator: from parameters to a pytree of their structure and shapes.

    Raises:
        ValueError: if the generator returns another structure or other shapes.

    Example:
        >>> rotation = lambda x: jnp.array([-x[1], x[0]])
        >>> float(generator_defect(lambda x: (x**2).sum(), jnp.array([1.0, 2.0]), rotation))
        0.0
        >>> float(generator_defect(lambda x: x[0], jnp.array([1.0, 2.0]), rotation))
        -2.0
    """
    slope, moved = jax.grad(loss)(params), generator(params)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (moved, params)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"generator must keep the structure and shapes of params, got {shapes[0]}, not {shapes[1]}")
    return sum(
        (jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(moved), strict=True)),
        start=jnp.zeros(()),
    )
