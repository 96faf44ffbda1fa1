"""Gaussian mixtures, for which everything a network learns is known exactly, at every noise level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Prediction
from jaxgen.typing import ArrayLike, PRNGKey


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions whose components carry class labels; build it by `gaussian_mixture`.

    Stacked mixtures of one shape have leading axes, to be mapped over.

    Attributes:
        log_weights: logarithms of the weights.
        means: in units of the data.
        eigenvalues: variances along the principal axes of each component.
        eigenvectors: principal axes, as columns.
        labels: class of each component.
    """

    log_weights: Float[Array, "*stack K"]
    means: Float[Array, "*stack K D"]
    eigenvalues: Float[Array, "*stack K D"]
    eigenvectors: Float[Array, "*stack K D D"]
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
        ValueError: if shapes disagree, weights are negative or do not sum to 1, a mean is not finite, or a covariance
            is not symmetric and positive definite.
    """
    weights, means, covariances = (np.asarray(value, np.float64) for value in (weights, means, covariances))
    count, dimension = means.shape if means.ndim == 2 else (-1, -1)
    if weights.shape != (count,) or covariances.shape != (count, dimension, dimension):
        raise ValueError(
            f"a mixture needs weights [K], means [K, D] and covariances [K, D, D], got shapes {weights.shape}, "
            f"{means.shape} and {covariances.shape}"
        )
    if not (weights.min() >= 0 and abs(weights.sum() - 1.0) <= 1e-6):
        raise ValueError(f"weights must be non-negative and sum to 1, got {weights.tolist()}")
    if not np.isfinite(means).all():
        raise ValueError(f"means must be finite, got {means.tolist()}")
    labels = np.zeros(count, np.int32) if labels is None else np.asarray(labels, np.int32)
    if labels.shape != (count,):
        raise ValueError(f"labels need one entry for each of the {count} components, got shape {labels.shape}")
    eigenvalues, eigenvectors = np.linalg.eigh(covariances)
    if not np.allclose(covariances, covariances.swapaxes(1, 2)) or eigenvalues.min() <= 0:
        raise ValueError(
            f"covariances must be symmetric and positive definite, got a smallest eigenvalue of {eigenvalues.min():g}"
        )
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    log_weights, means, eigenvalues, eigenvectors = map(jnp.asarray, (log_weights, means, eigenvalues, eigenvectors))
    return GaussianMixture(log_weights, means, eigenvalues, eigenvectors, jnp.asarray(labels))


def condition(mixture: GaussianMixture, label: int | Int[ArrayLike, ""]) -> GaussianMixture:
    """Return the mixture of one class, of the same shape: components of other classes get weight 0.

    Raises:
        ValueError: if the label is known and no component carries it.
    """
    chosen = mixture.labels == label
    if not isinstance(chosen, Tracer) and not chosen.any():
        known = sorted(set(np.asarray(mixture.labels).tolist()))
        raise ValueError(f"no component carries the label {label}; the mixture has the labels {known}")
    log_weights = jnp.where(chosen, mixture.log_weights, -jnp.inf)
    return dataclasses.replace(mixture, log_weights=log_weights - jax.nn.logsumexp(log_weights))


def draw_from(key: PRNGKey, mixture: GaussianMixture) -> Float[Array, " D"]:
    """Draw one clean sample."""
    component_key, noise_key = jax.random.split(key)
    k = jax.random.categorical(component_key, mixture.log_weights)
    noise = jax.random.normal(noise_key, mixture.means.shape[1:], mixture.means.dtype)
    return mixture.means[k] + mixture.eigenvectors[k] @ (jnp.sqrt(mixture.eigenvalues[k]) * noise)


def _at_level(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> tuple[Array, Array, Array]:
    """Return principal coordinates of x about each component, their variances (both [K, D]), joint log-densities."""
    offsets = jnp.einsum("kde,kd->ke", mixture.eigenvectors, x[None] - level.alpha * mixture.means)
    variances = jnp.asarray(level.alpha**2 * mixture.eigenvalues + level.sigma**2)
    log_normals = -0.5 * jnp.sum(offsets**2 / variances + jnp.log(2.0 * jnp.pi * variances), axis=-1)
    return offsets, variances, mixture.log_weights + log_normals


def log_density(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Float[Array, ""]:
    """Return log p(x) of the mixture corrupted to `level`, sigma = 0 included."""
    return jax.nn.logsumexp(_at_level(mixture, x, level)[2])


def score(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Float[Array, " D"]:
    """Return the gradient of `log_density` in x, in units of 1 / data; sigma = 0 included."""
    offsets, variances, log_joint = _at_level(mixture, x, level)
    responsibilities = jax.nn.softmax(log_joint)
    return -jnp.einsum("k,kde,ke->d", responsibilities, mixture.eigenvectors, offsets / variances)


def responsibilities(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Float[Array, " K"]:
    """Return the posterior probability of each component given x at `level`."""
    return jax.nn.softmax(_at_level(mixture, x, level)[2])


def predict_exactly(mixture: GaussianMixture, x: Float[Array, " D"], level: Level) -> Prediction:
    """Return E[x0 | x] and E[noise | x], by posterior means that divide by neither alpha nor sigma."""
    offsets, variances, log_joint = _at_level(mixture, x, level)
    weights = jax.nn.softmax(log_joint)
    gains = level.alpha * mixture.eigenvalues / variances
    shifts = jnp.einsum("k,kde,ke->d", weights, mixture.eigenvectors, gains * offsets)
    noise = level.sigma * jnp.einsum("k,kde,ke->d", weights, mixture.eigenvectors, offsets / variances)
    return Prediction(weights @ mixture.means + shifts, noise)
