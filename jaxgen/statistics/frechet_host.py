"""Fréchet distances on the host in float64, whatever jax's x64 setting, from factors of the covariances.

A factor is any L with C = L L^T. The overlap tr (C1^1/2 C2 C1^1/2)^1/2 is the nuclear norm of L1^T L2 for every choice
of factors, so that samples, centred and divided by sqrt(count - 1), are one as they are: no root of a matrix is taken.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgen.statistics.samples import check_samples
from jaxgen.statistics.streaming_moments import Moments
from jaxgen.typing import ArrayLike

# A covariance of float32 sums has eigenvalues down to about -1e-6 of the largest; a matrix that is not a covariance,
# far lower ones.
_INDEFINITE = 1e-4


class Factored(NamedTuple):
    """A law's mean [dim] and a factor [dim, rank] of its covariance, in float64."""

    mean: Float[np.ndarray, " dim"]
    factor: Float[np.ndarray, "dim rank"]


def frechet_distance_float64(first: Moments, second: Moments) -> float:
    """Measure the squared Fréchet distance between the Gaussians with these moments, as `frechet_distance` does.

    On the host in float64, which jax has only under `jax.enable_x64`. Eigenvalues of no more than rounding, dim times
    2e-16 of the largest, count as 0: left in, their roots err by 1e-8 each. The distance of a law from itself is below
    1e-12 of its trace.

    Args:
        first: moments of one law; the covariance is symmetric and positive semi-definite.
        second: moments of the other, of the same dimension.

    Returns:
        The distance, at least 0, in the squared unit of the samples.

    Raises:
        ValueError: the dimensions differ, an entry is not finite, or a covariance has a negative eigenvalue.

    >>> frechet_distance_float64(Moments(np.zeros(1), np.eye(1)), Moments(np.ones(1), 4 * np.eye(1)))
    2.0
    """
    return factored_distance(factor_moments(first), factor_moments(second))


def sample_frechet_distance(first: Float[ArrayLike, "first dim"], second: Float[ArrayLike, "second dim"]) -> float:
    """Measure the squared Fréchet distance between the Gaussians with the moments of two sets of samples, exactly.

    The unbiased covariances are never formed, so the error is a few roundings in float64 at any rank: of fewer samples
    than dimensions, too, where the distance of moments loses half the digits of each zero eigenvalue. The value is
    biased upwards by finite samples: see `frechet_bias`.

    Raises:
        ValueError: a set has fewer than 2 samples, is not real and finite [count, dim], or the dimensions differ.
    """
    check_samples(first, second, minimum=2)
    return factored_distance(factor_samples(first), factor_samples(second))


def factor_moments(moments: Moments) -> Factored:
    """Factor a covariance by its eigenvectors, without those whose eigenvalue is no more than rounding.

    Raises:
        ValueError: an entry is not finite, or an eigenvalue is negative beyond rounding.
    """
    mean, covariance = (_finite("moments", part) for part in moments)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -_INDEFINITE * abs(values[-1]):
        raise ValueError(
            f"a covariance has no negative eigenvalue, got {values[0]:.3g} with {values[-1]:.3g} as the largest: "
            "recompute it from the samples"
        )
    kept = values > values[-1] * values.size * np.finfo(np.float64).eps
    return Factored(mean, vectors[:, kept] * np.sqrt(values[kept])[None])


def factor_samples(samples: Float[ArrayLike, "count dim"]) -> Factored:
    """Factor the unbiased covariance of samples: what is centred, or its triangle where there are more than dim.

    Raises:
        ValueError: an entry is not finite.
    """
    values = _finite("samples", samples)
    count, dim = values.shape
    mean = np.mean(values, axis=0)
    centred = (values - mean[None]) / np.sqrt(count - 1)
    factor = np.asarray(np.linalg.qr(centred, mode="r")) if count > dim else centred
    return Factored(mean, factor.T)


def factored_distance(first: Factored, second: Factored) -> float:
    """Measure the squared Fréchet distance between two Gaussians from factors of their covariances.

    Raises:
        ValueError: the dimensions differ.
    """
    overlap = np.sum(overlap_spectrum(first, second))
    # Traces of what was factored, so that a law is at 0 from itself whatever the factor left out.
    traces = np.sum(first.factor**2) + np.sum(second.factor**2)
    return max(float(np.sum((first.mean - second.mean) ** 2) + traces - 2 * overlap), 0.0)


def overlap_spectrum(first: Factored, second: Factored) -> Float[np.ndarray, " rank"]:
    """Return the roots of the eigenvalues of C1^1/2 C2 C1^1/2 that may differ from 0.

    Raises:
        ValueError: the dimensions differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"laws must share one dimension, got {first.mean.shape[0]} and {second.mean.shape[0]}")
    return np.linalg.svd(first.factor.T @ second.factor, compute_uv=False)


def _finite(name: str, array: ArrayLike) -> np.ndarray:
    values = np.asarray(array, np.float64)
    wild = np.sum(~np.isfinite(values))
    if wild:
        raise ValueError(f"{name} must be finite, got {wild} entries that are not: drop the samples they come from")
    return values
