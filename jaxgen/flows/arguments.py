"""What a flow and its discretisation ask of a loss, its parameters and a mask; asked once, before tracing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from jaxgen.typing import ArrayLike, Params, Scalar


def checked_params(params: Params) -> Params:
    """Make arrays of the leaves of `params`.

    Args:
        params: a pytree of real numbers or real arrays of any shape.

    Returns:
        The same pytree of arrays, none of them weakly typed.

    Raises:
        ValueError: if there is no leaf, or one is not of a real floating type.
    """
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("params must have at least one array, got none")
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"params must be real floating arrays, got {dtype}; split complex numbers into two parts")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)


def check_loss(loss: Callable[[Params], object], params: Params) -> None:
    """Refuse a loss that is not one real number.

    Raises:
        ValueError: if `loss(params)` is anything but a real floating array of shape ().
    """
    leaves = jax.tree.leaves(jax.eval_shape(loss, params))
    if len(leaves) != 1 or leaves[0].shape or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        got = ", ".join(f"shape {leaf.shape} of {leaf.dtype}" for leaf in leaves)
        raise ValueError(f"loss must return one real number of shape (), got {got or 'nothing'}")


def check_mask(mask: Params | None, params: Params) -> None:
    """Refuse a mask whose structure or shapes are not those of `params`; None passes.

    Raises:
        ValueError: if the structures or two shapes differ.
    """
    if mask is None:
        return
    if jax.tree.structure(mask) != jax.tree.structure(params):
        raise ValueError(
            f"mask must have the structure of params, got {jax.tree.structure(mask)}, "
            f"expected {jax.tree.structure(params)}"
        )
    for leaf, like in zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True):
        if jnp.shape(leaf) != like.shape:
            raise ValueError(f"mask must have the shapes of params, got {jnp.shape(leaf)}, expected {like.shape}")


def apply_mask(mask: Params | None, gradient: Params) -> Params:
    """Multiply a gradient by a mask of its structure, in the types of the gradient; None changes nothing."""
    if mask is None:
        return gradient
    return jax.tree.map(lambda leaf, kept: leaf * jnp.asarray(kept, leaf.dtype), gradient, mask)


def common_dtype(params: Params) -> np.dtype:
    """Return the one type of all arrays in `params`.

    Raises:
        ValueError: if it is neither float32 nor float64, or there are several.
    """
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    if dtypes not in (["float32"], ["float64"]):
        raise ValueError(f"params must be all float32 or all float64, got {', '.join(dtypes)}; convert them")
    return np.dtype(dtypes[0])


def check_times(t1: Scalar | int, save_at: Float[ArrayLike, " saves"] | None) -> None:
    """Refuse an end that is not positive and times that do not increase from 0 to it; traced ones pass.

    Raises:
        ValueError: if a known one is out of its range.
    """
    if is_known(t1) and not 0.0 < float(t1) < float("inf"):
        raise ValueError(f"t1 must be positive and finite, got {t1}")
    if save_at is None or not is_known(save_at):
        return
    times = np.asarray(save_at)
    if not times.size or not np.isfinite(times).all() or (np.diff(times) <= 0).any() or times[0] < 0:
        raise ValueError(f"save_at must be one or more increasing times from 0 on, got {times.tolist()}")
    if is_known(t1) and times[-1] > float(t1):
        raise ValueError(f"save_at must end at t1 = {t1} or before, got {times[-1]}")


def check_positive(**values: Scalar) -> None:
    """Refuse a number that is known and not positive and finite.

    Raises:
        ValueError: naming the first such.
    """
    for name, value in values.items():
        if is_known(value) and not 0.0 < float(value) < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def is_known(value: object) -> bool:
    """Say whether a value can be checked now: an argument of a compiled function has none yet."""
    return not isinstance(value, Tracer)
