"""Guidance of mixtures of equal isotropic components, in the variables in which its flow has no singularity.

With components N(m_k, s^2), noise of variance tau added, r = s / sqrt(s^2 + tau) in (0, 1] and y = x r / s, let M(y, r)
be the mean of m_k / s under the posterior of the components. Every law of guidance by M_gamma = gamma M_c +
(1 - gamma) M_u depends on the path through r alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.diffusion.guidance.classifier_free import check_scale
from jaxgen.diffusion.laws.density import Density, Moments, weighted_moments
from jaxgen.pytrees import register_dataclass
from jaxgen.typing import ArrayLike, Scalar


@register_dataclass
@dataclasses.dataclass(frozen=True)
class CanonicalProblem:
    """Components of one isotropic variance, with their shares under a condition and without it.

    Attributes:
        centres: m_k / s.
        log_weights: of the components under the condition.
        unconditional_log_weights: of the components without it.
        std: s, in units of the data.
    """

    centres: Float[Array, "K D"]
    log_weights: Float[Array, " K"]
    unconditional_log_weights: Float[Array, " K"]
    std: Scalar


def canonical_problem(
    means: ArrayLike | list, std: float, weights: ArrayLike | list, unconditional_weights: ArrayLike | list
) -> CanonicalProblem:
    """Build a problem from means `[K, D]`, the common standard deviation, and both sets of weights `[K]`.

    Raises:
        ValueError: if shapes disagree, weights are negative or do not sum to 1, or `std` is not positive.
    """
    means, given = np.asarray(means, np.float64), [np.asarray(w, np.float64) for w in (weights, unconditional_weights)]
    if means.ndim != 2 or any(w.shape != means.shape[:1] for w in given):
        raise ValueError(
            f"a problem needs means [K, D] and weights [K], got shapes {means.shape}, {given[0].shape} and "
            f"{given[1].shape}"
        )
    if not 0.0 < std < np.inf:
        raise ValueError(f"std must be positive and finite, got {std}")
    for w in given:
        if not (w.min() >= 0 and abs(w.sum() - 1.0) <= 1e-6):
            raise ValueError(f"weights must be non-negative and sum to 1, got {w.tolist()}")
    with np.errstate(divide="ignore"):
        logs = [jnp.asarray(np.log(w)) for w in given]
    return CanonicalProblem(jnp.asarray(means / std), logs[0], logs[1], jnp.asarray(std, logs[0].dtype))


def two_clusters(mu: float) -> CanonicalProblem:
    """Build N(-mu, 1) and N(mu, 1) in equal shares, conditioned on the second."""
    return canonical_problem([[-mu], [mu]], 1.0, [0.0, 1.0], [0.5, 0.5])


def three_clusters() -> CanonicalProblem:
    """Build N(-3, 1), N(0, 1), N(3, 1) in equal shares, conditioned on shares of .05, .15 and .80."""
    return canonical_problem([[-3.0], [0.0], [3.0]], 1.0, [0.05, 0.15, 0.80], [1 / 3, 1 / 3, 1 / 3])


def posterior_centre(
    problem: CanonicalProblem, log_weights: Float[Array, " K"], y: Float[Array, " D"], r: Scalar
) -> Float[Array, " D"]:
    """Return M(y, r), the mean centre of the components given y, dimensionless."""
    squares = jnp.sum(problem.centres**2, axis=-1)
    return jax.nn.softmax(log_weights + r * (problem.centres @ y) - 0.5 * r**2 * squares) @ problem.centres


def canonical_drift(problem: CanonicalProblem, scale: Scalar, y: Float[Array, " D"], r: Scalar) -> Float[Array, " D"]:
    """Return M_gamma(y, r) = gamma M_c + (1 - gamma) M_u, the velocity dy / dr of guided DDIM."""
    conditional = posterior_centre(problem, problem.log_weights, y, r)
    unconditional = posterior_centre(problem, problem.unconditional_log_weights, y, r)
    return jnp.asarray(scale * conditional + (1.0 - scale) * unconditional)


def powered_law(problem: CanonicalProblem, scale: Scalar, *, cells: int = 3208) -> Density:
    """Return the density of p(x | c)^scale p(x)^(1 - scale) on a line, normalised by the midpoint rule.

    Args:
        problem: the components.
        scale: guidance scale.
        cells: of the grid, which extends over every place where the law may lie.

    Raises:
        ValueError: if the problem has more than one dimension, `cells` is below 2, or the scale is known and not
            finite.
    """
    check_line(problem)
    check_scale(scale)
    if cells < 2:
        raise ValueError(f"cells must be at least 2, got {cells}")
    centres = problem.centres[:, 0]
    # Components of one variance: a power of their mixtures has tails like one component, wherever that may lie.
    reach = 12.0 + (2.0 * jnp.abs(scale) + 2.0) * jnp.max(jnp.abs(centres))
    width = 2.0 * reach / cells
    y = -reach + width * (jnp.arange(cells) + 0.5)
    distances = -0.5 * (y[:, None] - centres[None]) ** 2
    logs = [
        jax.nn.logsumexp(distances + weights[None], axis=-1)
        for weights in (problem.log_weights, problem.unconditional_log_weights)
    ]
    log_density = scale * logs[0] + (1.0 - scale) * logs[1]
    density = jnp.exp(log_density - jnp.max(log_density))
    return Density(jnp.asarray(problem.std * y), density / (jnp.sum(density) * width * problem.std))


def powered_moments(problem: CanonicalProblem, scale: Scalar) -> Moments:
    """Compute mean, variance and skewness of `powered_law`; errors as there."""
    return weighted_moments(*powered_law(problem, scale))


def check_line(problem: CanonicalProblem) -> None:
    """Refuse a problem of more than one dimension.

    Raises:
        ValueError: names the dimension.
    """
    if problem.centres.shape[-1] != 1:
        raise ValueError(f"this law is computed in one dimension, the problem has {problem.centres.shape[-1]}")
