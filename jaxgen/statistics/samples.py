"""What every two-sample statistic asks of its samples, and the distance between them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.typing import ArrayLike


def check_samples(*sets: ArrayLike, minimum: int) -> None:
    """Refuse sets of samples that cannot be compared; shapes alone are read, so it works under `jax.jit` too.

    Args:
        *sets: arrays of shape [count, dim].
        minimum: the smallest count that the statistic is defined for.

    Raises:
        ValueError: a set is not two-dimensional, not of a real floating type, too small, or of another `dim`.
    """
    for samples in sets:
        if samples.ndim != 2:
            raise ValueError(f"samples must have shape [count, dim], got {samples.shape}: flatten each sample first")
        if not jnp.issubdtype(samples.dtype, jnp.floating):
            raise ValueError(f"samples must be real floating point, got {samples.dtype}: convert them first")
        if samples.shape[0] < minimum:
            raise ValueError(f"at least {minimum} samples are needed, got {samples.shape[0]}: draw more")
        if samples.shape[1] != sets[0].shape[1]:
            raise ValueError(f"samples must share one dimension, got {sets[0].shape[1]} and {samples.shape[1]}")


def squared_distances(point: Float[Array, " dim"], samples: Float[Array, "count dim"]) -> Float[Array, " count"]:
    """Measure the squared Euclidean distance of one point to each sample.

    From differences, not from |a|^2 + |b|^2 - 2 a.b: that form cancels, so that exact duplicates would not be at 0.
    """
    return jnp.sum((samples - point[None]) ** 2, axis=1)
