"""Data sets whose sources differ where a shared model takes them to agree, fitted in three ways."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.statistics.conditional_mle import gaussian_mle, sample_sources
from jaxgen.statistics.sharing import james_stein_means
from jaxgen.statistics.total_variation import tv_gaussian
from jaxgen.typing import PRNGKey

SPECIFIC, SHARED = 5, 5
MASK = np.arange(SPECIFIC + SHARED) >= SPECIFIC
WAYS = ("shared", "separate", "James-Stein")
GROUPS = 10
"""Disjoint groups of data sets, whose average errors are the units of every test; all have the same true means."""
SOURCES = 10
"""Rows of means and shares: fewer sources are followed by some that no sample falls on, for one program."""


class Errors(NamedTuple):
    """Means over groups of data sets.

    Attributes:
        squared: squared error of a source's means, averaged over the sources; columns in the order of WAYS.
        tv: total variation, averaged likewise.
    """

    squared: Float[np.ndarray, "groups cases 3"]
    tv: Float[np.ndarray, "groups cases 3"]


def spread_means(seed: int, sources: int, spreads: Float[np.ndarray, " spreads"]) -> Float[np.ndarray, "spreads K dim"]:
    """Return means that differ in the shared coordinates with exactly the asked variances, in one random pattern."""
    pattern = np.random.default_rng([seed, sources]).standard_normal((sources, SHARED))
    pattern = (pattern - pattern.mean(axis=0)) / pattern.std(axis=0)
    means = np.zeros((len(spreads), SOURCES, SPECIFIC + SHARED), np.float32)
    means[:, :sources, MASK] = np.sqrt(spreads)[:, None, None] * pattern
    return means


def padded(shares: Float[np.ndarray, "cases K"]) -> Float[np.ndarray, "cases sources"]:
    """Return shares, or weights, of SOURCES sources, of which the last have none."""
    return np.pad(np.asarray(shares, np.float32), [(0, 0), (0, SOURCES - np.shape(shares)[1])])


def simulate(
    key: PRNGKey,
    replicates: int,
    n: int,
    means: Float[np.ndarray, "cases sources dim"],
    p_y: Float[np.ndarray, "cases sources"],
    weights: Float[np.ndarray, "cases sources"],
) -> Errors:
    """Fit data sets of n samples in each case and average their errors over groups.

    A data set shares its random numbers with that of every other case, so that cases are compared in pairs.

    Args:
        key: one for all data sets.
        replicates: how many; what does not fill the last group is left out.
        n: samples of all sources in a data set.
        means: true means of each case.
        p_y: probabilities of the sources in each case.
        weights: of the sources in the errors.
    """
    numbers = jnp.arange(replicates // GROUPS * GROUPS).reshape(GROUPS, -1)
    found = _simulate(key, numbers, jnp.asarray(means), jnp.asarray(p_y), jnp.asarray(weights), n=n)
    return Errors(*(np.asarray(part, np.float64) for part in found))


@partial(jax.jit, static_argnames="n")
def _simulate(
    key: PRNGKey,
    numbers: Int[Array, "groups replicates"],
    means: Float[Array, "cases sources dim"],
    p_y: Float[Array, "cases sources"],
    weights: Float[Array, "cases sources"],
    *,
    n: int,
) -> tuple[Float[Array, "groups cases 3"], Float[Array, "groups cases 3"]]:
    def case(key: PRNGKey, means: Array, p_y: Array, weights: Array) -> tuple[Array, Array]:
        x, y = sample_sources(key, means, p_y, n)
        shared, separate = (gaussian_mle(x, y, SOURCES, MASK, shared=shared) for shared in (True, False))
        shrunk = james_stein_means(separate.means, separate.counts, MASK)
        squared = jnp.stack([jnp.sum((fit - means) ** 2, 1) for fit in (shared.means, separate.means, shrunk)])
        # A source that no sample fell on is unknown: the most that total variation can be.
        tv = jnp.where(separate.observed[None], tv_gaussian(jnp.sqrt(squared)), 1.0)
        return jnp.sum(squared * weights[None], axis=1), jnp.sum(tv * weights[None], axis=1)

    def add(total: Array, number: Int[Array, ""]) -> tuple[Array, None]:
        found = jax.vmap(case, (None, 0, 0, 0))(jax.random.fold_in(key, number), means, p_y, weights)
        return total + jnp.stack(found), None

    def group(numbers: Int[Array, " replicates"]) -> Array:
        # One data set after the other: all cases of one are work enough, and random numbers compile fastest so.
        start = jnp.zeros((2, len(means), len(WAYS)), means.dtype)
        return jax.lax.scan(add, start, numbers)[0] / len(numbers)

    squared, tv = jnp.moveaxis(jax.lax.map(group, numbers), 1, 0)
    return squared, tv
