"""Gaussian mixtures, for which everything a network learns is known exactly, at every noise level."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Prediction
from jaxgen.pytrees import register_dataclass
from jaxgen.typing import ArrayLike, PRNGKey, Scalar


@register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions whose components carry class labels.

    Built by `gaussian_mixture` (any covariances), `low_rank_mixture` or `diagonal_mixture`. The covariance of a
    component is U diag(eigenvalues) U^T + floor (1 - U U^T) with R principal axes U, or diag(eigenvalues) without any.
    Stacked mixtures of one shape have leading axes, to be mapped over.

    Attributes:
        log_weights: logarithms of the weights.
        means: in units of the data.
        eigenvalues: variances along the principal axes of each component; along those of the space without any.
        eigenvectors: principal axes, as columns; None for diagonal covariances.
        floor: variance across all principal axes; None where they span the space.
        labels: class of each component.
    """

    log_weights: Float[Array, "*stack K"]
    means: Float[Array, "*stack K D"]
    eigenvalues: Float[Array, "*stack K R"]
    eigenvectors: Float[Array, "*stack K D R"] | None
    floor: Float[Array, "*stack K"] | None
    labels: Int[Array, "*stack K"]


def gaussian_mixture(
    weights: ArrayLike | list,
    means: ArrayLike | list,
    covariances: ArrayLike | list,
    labels: ArrayLike | list | None = None,
) -> GaussianMixture:
    """Build a mixture from weights `[K]`, means `[K, D]`, covariances `[K, D, D]` and labels `[K]` (all 0 without).

    The arrays take jax's default float type at the time of the call: float64 under `jax.enable_x64`.

    Raises:
        ValueError: if shapes disagree, weights are negative or do not sum to 1, a mean or a covariance is
            not finite, or a covariance is not symmetric and positive definite.
    """
    weights, means, covariances = _floats(weights, means, covariances)
    count, dimension = _sizes(means)
    _check_shapes(weights, means, covariances, (count, dimension, dimension), "covariances [K, D, D]")
    eigenvalues, eigenvectors = np.linalg.eigh(covariances)
    asymmetry = np.abs(covariances - covariances.swapaxes(1, 2)).max()
    if not asymmetry <= 1e-5 * np.abs(covariances).max() or eigenvalues.min() <= 0:
        raise ValueError(
            f"covariances must be symmetric and positive definite, got a smallest eigenvalue of {eigenvalues.min():g}"
        )
    return _mixture(weights, means, eigenvalues, eigenvectors, None, labels)


def diagonal_mixture(
    weights: ArrayLike | list,
    means: ArrayLike | list,
    variances: ArrayLike | list,
    labels: ArrayLike | list | None = None,
) -> GaussianMixture:
    """Build a mixture whose coordinates are independent within a component: nothing in it is `[D, D]`.

    Args:
        weights: `[K]`.
        means: `[K, D]`.
        variances: `[K, D]`, positive.
        labels: `[K]`, all 0 without.

    Raises:
        ValueError: as `gaussian_mixture`, and if a variance is not positive.

    >>> law = diagonal_mixture([0.5, 0.5], [[-1.0], [1.0]], [[0.1], [0.1]])
    >>> law.means.shape
    (2, 1)
    """
    weights, means, variances = _floats(weights, means, variances)
    _check_shapes(weights, means, variances, _sizes(means), "variances [K, D]")
    _check_variances(variances)
    return _mixture(weights, means, variances, None, None, labels)


def low_rank_mixture(
    weights: ArrayLike | list,
    means: ArrayLike | list,
    factors: ArrayLike | list,
    variances: ArrayLike | list,
    labels: ArrayLike | list | None = None,
) -> GaussianMixture:
    """Build a mixture of probabilistic principal components: covariances F F^T + variance (Tipping & Bishop 1999).

    Time and memory of every function are of the order K D R.

    Args:
        weights: `[K]`.
        means: `[K, D]`.
        factors: F, `[K, D, R]` with R at most D, in units of the data.
        variances: of what the factors leave, `[K]`, positive.
        labels: `[K]`, all 0 without.

    Raises:
        ValueError: as `gaussian_mixture`, for more factors than dimensions, and if a variance is not positive.
    """
    weights, means, factors, variances = _floats(weights, means, factors, variances)
    count, dimension = _sizes(means)
    rank = factors.shape[-1] if factors.ndim == 3 else -1
    _check_shapes(weights, means, factors, (count, dimension, rank), "factors [K, D, R]")
    if not 1 <= rank <= dimension:
        raise ValueError(f"factors must be of a rank between 1 and {dimension}, got shape {factors.shape}")
    if variances.shape != (count,):
        raise ValueError(f"variances need one entry for each of the {count} components, got shape {variances.shape}")
    _check_variances(variances)
    vectors, lengths, _ = np.linalg.svd(factors, full_matrices=False)
    return _mixture(weights, means, lengths**2 + variances[:, None], vectors, variances, labels)


def _floats(*arrays: ArrayLike | list) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(value, np.float64) for value in arrays)


def _sizes(means: np.ndarray) -> tuple[int, int]:
    return means.shape if means.ndim == 2 else (-1, -1)


def _check_shapes(weights: np.ndarray, means: np.ndarray, spread: np.ndarray, shape: tuple, name: str) -> None:
    if means.ndim != 2 or not means.size or weights.shape != means.shape[:1] or spread.shape != shape:
        raise ValueError(
            f"a mixture needs weights [K], means [K, D] and {name}, got shapes {weights.shape}, {means.shape} and "
            f"{spread.shape}"
        )
    if not (weights.min() >= 0 and abs(weights.sum() - 1.0) <= 1e-6):
        raise ValueError(f"weights must be non-negative and sum to 1, got {weights.tolist()}")
    if not np.isfinite(means).all():
        raise ValueError(f"means must be finite, got {means.tolist()}")
    if not np.isfinite(spread).all():
        raise ValueError(f"{name} must be finite")


def _check_variances(variances: np.ndarray) -> None:
    if not (np.isfinite(variances).all() and variances.min() > 0):
        raise ValueError(f"variances must be positive and finite, got a smallest one of {variances.min():g}")


def _mixture(
    weights: np.ndarray,
    means: np.ndarray,
    eigenvalues: np.ndarray,
    eigenvectors: np.ndarray | None,
    floor: np.ndarray | None,
    labels: ArrayLike | list | None,
) -> GaussianMixture:
    classes = np.zeros(len(means), np.int32) if labels is None else np.asarray(labels)
    if not np.issubdtype(classes.dtype, np.integer) or (classes != classes.astype(np.int32)).any():
        raise ValueError(f"labels must be 32-bit integers, got {classes.tolist()}")
    if classes.shape != (len(means),):
        raise ValueError(f"labels need one entry for each of the {len(means)} components, got shape {classes.shape}")
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    leaves = (log_weights, means, eigenvalues, eigenvectors, floor, classes.astype(np.int32))
    return GaussianMixture(*jax.tree.map(jnp.asarray, leaves))


def condition(mixture: GaussianMixture, label: int | Int[ArrayLike, ""]) -> GaussianMixture:
    """Return the mixture of one class, of the same shape: components of other classes get weight 0.

    Raises:
        ValueError: if the label is known and no component of positive weight carries it.
    """
    chosen = (mixture.labels == label) & (mixture.log_weights > -jnp.inf)
    if not isinstance(chosen, Tracer) and not chosen.any():
        alive = np.asarray(mixture.log_weights) > -np.inf
        known = sorted(set(np.asarray(mixture.labels)[alive].tolist()))
        raise ValueError(f"no component carries the label {label}; the mixture has the labels {known}")
    log_weights = jnp.where(chosen, mixture.log_weights, -jnp.inf)
    return dataclasses.replace(mixture, log_weights=log_weights - jax.nn.logsumexp(log_weights))


def mean_and_covariance(mixture: GaussianMixture) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """Return the mean and the covariance of the whole mixture, in units of the data and their square."""
    weights = jnp.exp(mixture.log_weights)
    mean = weights @ mixture.means
    centred = mixture.means - mean[None]
    between = jnp.einsum("k,kd,ke->de", weights, centred, centred)
    vectors, floor = mixture.eigenvectors, mixture.floor
    if vectors is None:
        return mean, between + jnp.diag(weights @ mixture.eigenvalues)
    above = mixture.eigenvalues if floor is None else mixture.eigenvalues - floor[:, None]
    within = jnp.einsum("k,kdr,kr,ker->de", weights, vectors, above, vectors)
    rest = 0.0 if floor is None else jnp.dot(weights, floor)
    return mean, between + within + rest * jnp.eye(len(mean), dtype=mean.dtype)


def draw_from(key: PRNGKey, mixture: GaussianMixture) -> Float[Array, " D"]:
    """Draw one clean sample."""
    component_key, noise_key = jax.random.split(key)
    k = jax.random.categorical(component_key, mixture.log_weights)
    noise = jax.random.normal(noise_key, mixture.means.shape[1:], mixture.means.dtype)
    std = jnp.sqrt(mixture.eigenvalues[k])
    if mixture.eigenvectors is None:
        return mixture.means[k] + std * noise
    vectors = mixture.eigenvectors[k]
    if mixture.floor is None:
        return mixture.means[k] + vectors @ (std * noise)
    floor = jnp.sqrt(mixture.floor[k])
    return mixture.means[k] + floor * noise + vectors @ ((std - floor) * (vectors.T @ noise))


class _Offset(NamedTuple):
    """x less the mean of each component: along its principal axes, [K, R], and what is across them, [K, D]."""

    along: Array
    across: Array | None


def _offsets(mixture: GaussianMixture, x: Array, level: Level) -> _Offset:
    whole, axes = jnp.asarray(x[None] - level.alpha * mixture.means), mixture.eigenvectors
    if axes is None:
        return _Offset(whole, None)
    along = jnp.einsum("kdr,kd->kr", axes, whole)
    # Split before anything is divided by a small floor: the part along the axes may be far larger than the rest.
    return _Offset(along, None if mixture.floor is None else whole - jnp.einsum("kdr,kr->kd", axes, along))


def _spectral(mixture: GaussianMixture, offset: _Offset, function: Callable[[Array], Array]) -> Array:
    """Apply a function of the clean variances, so of the covariance, to the offset of each component, [K, D]."""
    along = function(mixture.eigenvalues) * offset.along
    if mixture.eigenvectors is not None:
        along = jnp.einsum("kdr,kr->kd", mixture.eigenvectors, along)
    if mixture.floor is None or offset.across is None:
        return along
    return along + function(mixture.floor)[:, None] * offset.across


def _log_normals(mixture: GaussianMixture, offset: _Offset, level: Level) -> Array:
    """Return the log-density of each component, [K]."""
    dimension, rank = mixture.means.shape[-1], mixture.eigenvalues.shape[-1]
    along = _variances(mixture.eigenvalues, level)
    terms = jnp.sum(offset.along**2 / along + jnp.log(along), axis=-1)
    if mixture.floor is not None and offset.across is not None:
        across = _variances(mixture.floor, level)
        terms += jnp.sum(offset.across**2, axis=-1) / across + (dimension - rank) * jnp.log(across)
    return -0.5 * (terms + dimension * math.log(2.0 * math.pi))


def _variances(clean: Array, level: Level) -> Array:
    return jnp.asarray(level.alpha**2 * clean + level.sigma**2)


def _at_level(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> tuple[_Offset, Array, Array]:
    """Return the offsets, covariance^-1 of each at `level`, [K, D], and the joint log-densities, [K]."""
    offset = _offsets(mixture, x, level)
    whitened = _spectral(mixture, offset, lambda clean: 1.0 / _variances(clean, level))
    return offset, whitened, mixture.log_weights + _log_normals(mixture, offset, level)


def log_density(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Float[Array, ""]:
    """Return log p(x) of the mixture corrupted to `level`, sigma = 0 included."""
    return jax.nn.logsumexp(_at_level(mixture, x, level)[2])


def score(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Float[Array, " D"]:
    """Return the gradient of `log_density` in x, in units of 1 / data; sigma = 0 included."""
    _, whitened, log_joint = _at_level(mixture, x, level)
    return -jax.nn.softmax(log_joint) @ whitened


def responsibilities(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Float[Array, " K"]:
    """Return the posterior probability of each component given x at `level`."""
    return jax.nn.softmax(_at_level(mixture, x, level)[2])


def predict_exactly(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Prediction:
    """Return E[x0 | x] and E[noise | x], by posterior means that divide by neither alpha nor sigma."""
    offset, whitened, log_joint = _at_level(mixture, x, level)
    weights = jax.nn.softmax(log_joint)
    shifts = _spectral(mixture, offset, lambda clean: jnp.asarray(level.alpha * clean / _variances(clean, level)))
    return Prediction(weights @ (mixture.means + shifts), jnp.asarray(level.sigma * (weights @ whitened)))


def powered_log_density(
    conditional: GaussianMixture, unconditional: GaussianMixture, scale: Scalar, x: Float[Array, " D"], level: Level
) -> Float[Array, ""]:
    """Return the logarithm of p(x | c)^scale p(x)^(1 - scale) at `level`, not normalised."""
    weighted = scale * log_density(conditional, x, level) + (1.0 - scale) * log_density(unconditional, x, level)
    return jnp.asarray(weighted)
