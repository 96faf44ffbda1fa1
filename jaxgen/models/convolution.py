"""Layers of convolutional networks with the logical name of each axis of their parameters."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

_NORM_EPSILON = 1e-6


def convolution(
    features: int, size: int, axes: tuple[str, str], name: str, dtype: str | None, *, kernel_init: Callable[..., Any]
) -> nn.Conv:
    """Build a convolution padded with zeros, with a bias that starts at zero.

    Args:
        features: number of outputs.
        size: rows and columns of the kernel.
        axes: logical names of inputs and outputs.
        name: of the layer, among those of the module that calls.
        dtype: type of the product; None promotes the types of parameters and inputs.
        kernel_init: how the kernel starts.
    """
    return nn.Conv(
        features,
        (size, size),
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(kernel_init, ("rows", "columns", *axes)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )


def group_norm(
    x: Float[Array, "count side side width"], name: str, *, axis: str = "width", affine: bool = True
) -> Float[Array, "count side side width"]:
    """Normalise over groups of at least 4 features where there are as many, at least in float32 (Wu & He 2018).

    Args:
        x: what is normalised.
        name: of the layer, among those of the module that calls.
        axis: logical name of the features.
        affine: whether each feature gets a scale and a shift.
    """
    return nn.GroupNorm(
        largest_divisor(x.shape[-1], min(32, x.shape[-1] // 4)),
        epsilon=_NORM_EPSILON,
        use_scale=affine,
        use_bias=affine,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (axis,)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis,)),
        use_fast_variance=False,
        name=name,
    )(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most `most`, and 1 where that is below 1."""
    return next(divisor for divisor in range(max(most, 1), 0, -1) if number % divisor == 0)
