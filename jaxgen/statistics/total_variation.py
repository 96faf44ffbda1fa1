r"""Total variation, TV(p, q) = 1/2 int |p - q|: in closed form, by finite sums, and from densities at random points.

The Monte-Carlo estimators read log densities of a fitted law p_hat and of the true law p, so that densities that would
underflow do no harm. With D = log p_hat - log p,

- `tv_mc_ratio`: points from p, mean of |e^D - 1| / 2, what the paper's code reports; its terms have no upper bound;
- `tv_mc_bounded`: points from p, mean of 1 - min(1, e^D), terms in [0, 1];
- `tv_mc_mixture`: points from (p + p_hat) / 2, mean of |tanh(D / 2)|, terms in [0, 1] and the lowest variance.

For conditional laws, with labels from p_Y and each point from its label's law, the same means estimate the average over
the sources. The mixture is then one of each label's own pair.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxgen.statistics.power import Number
from jaxgen.typing import ArrayLike


class TotalVariation(NamedTuple):
    """An estimate from independent points.

    Attributes:
        value: the mean.
        stderr: its standard error, from the spread of the terms.
        lower: end of the interval that holds the truth with at least the asked probability, by Hoeffding's inequality.
        upper: its other end.
    """

    value: Float[Array, "*batch"]
    stderr: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]


def tv_gaussian(distance: Real[ArrayLike, "*batch"] | Number) -> Float[Array, "*batch"]:
    r"""Return the total variation of two Gaussians of unit covariance whose means lie `distance` apart.

    $2 \Phi(\|\Delta\| / 2) - 1 = \mathrm{erf}(\|\Delta\| / (2 \sqrt 2))$.

    Args:
        distance: between the means; of a negative number, as of a difference along a line, the size counts.

    >>> print(round(float(tv_gaussian(1)), 6))
    0.382925
    """
    distance = jnp.asarray(distance)
    distance = distance.astype(jnp.result_type(distance, float))
    # Not the absolute value, whose derivative at 0 is 0: this one is that from the right.
    distance = jnp.where(distance < 0, -distance, distance)
    return jax.scipy.special.erf(distance / math.sqrt(8))


def tv_enumerated(
    log_p: Float[ArrayLike, "*batch states"], log_q: Float[ArrayLike, "*batch states"]
) -> Float[Array, "*batch"]:
    """Sum the total variation of two laws over all states.

    Args:
        log_p: log probabilities of all states, on the last axis; -inf where a state does not occur.
        log_q: those of the other law.

    Raises:
        ValueError: there is no axis of states, or its lengths differ.

    >>> print(tv_enumerated(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.75, 0.25]))))
    0.25
    """
    _check_pair("log_p", log_p, "log_q", log_q, "states", at_least=1)
    return jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1) / 2


def tv_quadrature(
    log_p: Float[ArrayLike, "*batch nodes"],
    log_q: Float[ArrayLike, "*batch nodes"],
    weights: Float[ArrayLike, " nodes"],
) -> Float[Array, "*batch"]:
    """Integrate the total variation of two densities by quadrature.

    Args:
        log_p: log densities at the nodes, on the last axis.
        log_q: those of the other law.
        weights: of the nodes; their sum is the volume.

    Raises:
        ValueError: there is no axis of nodes, or the lengths differ.
    """
    _check_pair("log_p", log_p, "log_q", log_q, "nodes", at_least=1)
    if jnp.shape(weights) != jnp.shape(log_p)[-1:]:
        raise ValueError(f"weights must be one for each of {jnp.shape(log_p)[-1]} nodes, got {jnp.shape(weights)}")
    # As a product with a vector, so that any number of batch axes meets the weights; in full precision on every device.
    gap = jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))
    return jnp.matmul(gap, jnp.asarray(weights), precision=jax.lax.Precision.HIGHEST) / 2


def tv_mc_ratio(
    log_p_hat: Float[ArrayLike, "*batch points"], log_p: Float[ArrayLike, "*batch points"]
) -> Float[Array, "*batch"]:
    """Estimate total variation as the paper's code does: the mean of |p_hat / p - 1| / 2 over points from p.

    Unbiased, but one point at which p_hat is far above p can outweigh all others: prefer `tv_mc_bounded`.

    Args:
        log_p_hat: log densities of the fitted law at points from p, on the last axis.
        log_p: log densities of p at the same points.

    Raises:
        ValueError: there is no axis of points, or its lengths differ.
    """
    _check_pair("log_p_hat", log_p_hat, "log_p", log_p, "points", at_least=1)
    return jnp.mean(jnp.abs(jnp.expm1(jnp.asarray(log_p_hat) - log_p)), axis=-1) / 2


def tv_mc_bounded(
    log_p_hat: Float[ArrayLike, "*batch points"],
    log_p: Float[ArrayLike, "*batch points"],
    *,
    level: Number = 0.95,
) -> TotalVariation:
    """Estimate total variation from points of p, by the mean of 1 - min(1, p_hat / p).

    Args:
        log_p_hat: log densities of the fitted law at points from p, on the last axis.
        log_p: log densities of p at the same points.
        level: probability with which the interval holds the truth, at least.

    Raises:
        ValueError: there are fewer than 2 points, their numbers differ, or `level` is not in (0, 1).
    """
    _check_pair("log_p_hat", log_p_hat, "log_p", log_p, "points", at_least=2)
    return _hoeffding(-jnp.expm1(jnp.minimum(jnp.asarray(log_p_hat) - log_p, 0)), level)


def tv_mc_mixture(
    log_p_hat: Float[ArrayLike, "*batch points"],
    log_p: Float[ArrayLike, "*batch points"],
    *,
    level: Number = 0.95,
) -> TotalVariation:
    """Estimate total variation from points of (p + p_hat) / 2, by the mean of |p_hat - p| / (p_hat + p).

    Args:
        log_p_hat: log densities of the fitted law at the points, on the last axis.
        log_p: log densities of p at the same points.
        level: probability with which the interval holds the truth, at least.

    Raises:
        ValueError: there are fewer than 2 points, their numbers differ, or `level` is not in (0, 1).
    """
    _check_pair("log_p_hat", log_p_hat, "log_p", log_p, "points", at_least=2)
    return _hoeffding(jnp.abs(jnp.tanh((jnp.asarray(log_p_hat) - log_p) / 2)), level)


def _hoeffding(terms: Float[Array, "*batch points"], level: Number) -> TotalVariation:
    """Return the mean of terms in [0, 1] with P(|mean - truth| >= t) <= 2 exp(-2 count t^2) turned into an interval."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}: it is the probability of the interval")
    count = terms.shape[-1]
    value = jnp.mean(terms, axis=-1)
    half = (jnp.log(2 / (1 - level)) / (2 * count)) ** 0.5
    half = half.astype(value.dtype)
    stderr = jnp.std(terms, axis=-1, ddof=1) / count**0.5
    return TotalVariation(value, stderr, jnp.maximum(value - half, 0), jnp.minimum(value + half, 1))


def _check_pair(first: str, left: ArrayLike, second: str, right: ArrayLike, axis: str, *, at_least: int) -> None:
    shapes = jnp.shape(left), jnp.shape(right)
    if not shapes[0] or shapes[0] != shapes[1] or shapes[0][-1] < at_least:
        raise ValueError(
            f"{first} and {second} must have one shape [..., {axis}] with at least {at_least} {axis}, got "
            f"{list(shapes[0])} and {list(shapes[1])}"
        )
