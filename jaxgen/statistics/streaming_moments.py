"""Mean and covariance of samples that arrive in batches, stable where the mean is large beside the spread.

Sums of centred products are merged (Chan, Golub & LeVeque 1979); raw sums of squares would cancel. The four functions
stand alone badly, so import the module: `streaming_moments.init`, `.update`, `.merge`, `.moments`.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, DTypeLike, Float, Int

from jaxgen.statistics.samples import check_samples
from jaxgen.typing import ArrayLike


class Moments(NamedTuple):
    """The mean [dim] and the covariance [dim, dim] of a law."""

    mean: Float[ArrayLike, " dim"]
    covariance: Float[ArrayLike, "dim dim"]


class MomentState(NamedTuple):
    """What is kept of the samples seen so far; a pytree that may be a scan's carry or part of a checkpoint.

    Attributes:
        count: how many samples, int32 scalar.
        mean: their mean [dim].
        scatter: the sum over samples of (x - mean)(x - mean)^T, [dim, dim].
    """

    count: Int[ArrayLike, ""]
    mean: Float[ArrayLike, " dim"]
    scatter: Float[ArrayLike, "dim dim"]


def init(dim: int, dtype: DTypeLike = np.float32) -> MomentState:
    """Return the state of no samples.

    Args:
        dim: components of a sample, at least 1.
        dtype: what is accumulated in. A float64 state stays float64 for samples that are numpy arrays, whatever jax's
            x64 setting; under `jax.jit` it needs `jax.enable_x64`.

    Raises:
        ValueError: `dim` is below 1.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    return MomentState(np.zeros((), np.int32), np.zeros(dim, dtype), np.zeros((dim, dim), dtype))


def update(
    state: MomentState, samples: Float[ArrayLike, "count dim"], mask: Bool[ArrayLike, " count"] | None = None
) -> MomentState:
    """Add a batch of samples.

    Numpy arrays are added by numpy, on the host; all else by jax, under `jax.jit` too, where the samples may be
    sharded along their first axis over a mesh with automatic axes.

    Args:
        state: of the samples before these.
        samples: the batch, possibly padded; converted to the dtype of the state.
        mask: true for the samples that count. What stands in the other rows does not matter, NaN included.

    Raises:
        ValueError: the samples are not real numbers [count, dim] of the state's dim, the mask has another length, or
            the state is float64 where jax, asked to compute, has only float32.

    >>> state = update(init(1), np.array([[1.0], [3.0], [100.0]]), np.array([True, True, False]))
    >>> print(state.count, state.mean, state.scatter)
    2 [2.] [[2.]]
    """
    check_samples(samples, minimum=0)
    if samples.shape[1] != state.mean.shape[0]:
        raise ValueError(f"samples must have the dimension of the state, {state.mean.shape[0]}, got {samples.shape[1]}")
    xp = _namespace(state, samples, mask)
    values = xp.asarray(samples, state.mean.dtype)
    keep = xp.ones(values.shape[0], bool) if mask is None else xp.asarray(mask)
    if keep.shape != values.shape[:1]:
        raise ValueError(f"mask must have one entry a sample, {values.shape[0]}, got {keep.shape[0]}")
    count = xp.asarray(xp.sum(keep, dtype=np.int32))
    weights = keep.astype(values.dtype)
    divisor = xp.maximum(count, 1).astype(values.dtype)
    values = xp.where(keep[:, None], values, xp.zeros((), values.dtype))
    rough = _matmul(xp, weights, values) / divisor
    # The rough mean errs by the rounding of its sum, which its residuals show: without the second look, float32
    # scatter of a mean of 1e4 carries that error squared, times the count.
    residuals = (values - rough[None]) * weights[:, None]
    correction = _matmul(xp, weights, residuals) / divisor
    centred = (residuals - correction[None]) * weights[:, None]
    return merge(state, MomentState(count, rough + correction, _matmul(xp, centred.T, centred)))


def merge(first: MomentState, second: MomentState) -> MomentState:
    """Return the state of the samples of both, in either order up to rounding.

    Raises:
        ValueError: the states have different dimensions.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"states must share one dimension, got {first.mean.shape[0]} and {second.mean.shape[0]}")
    xp = _namespace(first, *second)
    count = xp.asarray(first.count + second.count)
    ours, theirs, total = (xp.asarray(n).astype(first.mean.dtype) for n in (first.count, second.count, count))
    share = theirs / xp.maximum(total, 1)
    apart = second.mean - first.mean
    scatter = first.scatter + second.scatter + (ours * share) * (apart[:, None] * apart[None, :])
    return MomentState(count, first.mean + share * apart, scatter)


def moments(state: MomentState) -> Moments:
    """Return the mean and the unbiased covariance (divisor count - 1) of what was added.

    Raises:
        ValueError: fewer than 2 samples; under `jax.jit`, where the count is not known, the covariance is not finite.
    """
    if not isinstance(state.count, Tracer) and state.count < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {int(state.count)}: add more")
    return Moments(state.mean, state.scatter / (state.count - 1).astype(state.scatter.dtype))


def _namespace(state: MomentState, *others: ArrayLike | None) -> ModuleType:
    """Return numpy if it made every array, else jax.numpy, which must then hold the dtype of the state."""
    # Sums and ratios of numpy's 0-d arrays are numpy scalars.
    if all(array is None or isinstance(array, np.ndarray | np.generic) for array in (*state, *others)):
        return np
    if jax.dtypes.canonicalize_dtype(state.mean.dtype) != state.mean.dtype:
        raise ValueError(
            f"a {state.mean.dtype} state needs numpy arrays or jax.enable_x64(True), got arrays of jax without it: "
            "pass np.asarray(samples)"
        )
    return jnp


def _matmul(xp: ModuleType, a: Float[ArrayLike, "..."], b: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
    """Multiply at the precision of the inputs on accelerators too, where the default is bfloat16 or TF32."""
    return a @ b if xp is np else jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
