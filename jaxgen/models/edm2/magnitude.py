"""Operations that keep the mean square of their inputs (Karras et al. 2024, section 2.5 and appendix B)."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.typing import ArrayLike

_SILU_MAGNITUDE = 0.596
"""Root mean square of SiLU under a standard normal input, as published (it is 0.5964692)."""


def normalize(x: Float[ArrayLike, "..."], axes: Sequence[int], epsilon: float = 1e-4) -> Float[Array, "..."]:
    """Divide by epsilon plus the root mean square over some axes, which thereby becomes nearly 1.

    Over the channels of a pixel it is pixel normalisation, over the inputs of a filter the normalisation of
    weights (eq. 47). The gradient at 0 is that of x / epsilon.

    Args:
        x: what to normalise.
        axes: those that the mean is taken over.
        epsilon: bounds the factor where `x` is small.

    Returns:
        The shape and dtype of `x`; the sum is taken in float32 at least.
    """
    single = _in_single(x)
    mean_square = jnp.mean(single**2, tuple(axes), keepdims=True)
    # The slope of a square root at 0 is infinite, and times the slope 0 of the square it would be NaN.
    positive = mean_square > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, mean_square, 1.0)), 0.0)
    return (single / (epsilon + root)).astype(x.dtype)


def mp_silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Apply SiLU, scaled so that standard normal inputs keep their mean square (eq. 81)."""
    return _scaled(nn.silu(x), 1 / _SILU_MAGNITUDE)


def mp_sum(a: Float[Array, "..."], b: Float[Array, "..."], t: float) -> Float[Array, "..."]:
    """Interpolate from `a` at t = 0 to `b` at t = 1, scaled to keep the mean square of uncorrelated inputs (eq. 88)."""
    mixed = (1 - t) * _in_single(a) + t * _in_single(b)
    return _scaled(mixed, 1 / math.hypot(1 - t, t)).astype(jnp.result_type(a, b))


def mp_cat(a: Float[Array, "... first"], b: Float[Array, "... second"], t: float) -> Float[Array, "... both"]:
    """Concatenate features so that `b` makes up t^2 / (t^2 + (1 - t)^2) of the square, whatever the widths (eq. 103).

    Args:
        a: features on the last axis.
        b: features on the last axis.
        t: weight of `b`, in [0, 1].

    Returns:
        The features of `a` and of `b`, of mean square 1 where both have it.
    """
    first, second = a.shape[-1], b.shape[-1]
    scale = math.sqrt(first + second) / math.hypot(1 - t, t)
    scaled_a = _scaled(a, scale * (1 - t) / math.sqrt(first))
    return jnp.concatenate([scaled_a, _scaled(b, scale * t / math.sqrt(second))], axis=-1)


def _scaled(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    # A factor rounded to bfloat16 would be off by up to 0.4 %, and in every block the same way.
    return (factor * _in_single(x)).astype(x.dtype)


def _in_single(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
