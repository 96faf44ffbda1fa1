"""Laws on a line: a density on equal cells, its moments, and its share of each part of the line."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Mean, in units of the data, variance, in their square, and skewness of a law on a line."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    skewness: Float[Array, ""]


class Density(NamedTuple):
    """A density on equal cells of a line.

    Attributes:
        x: middles of the cells, in units of the data.
        density: mean density in each cell, in 1 / units of the data.
    """

    x: Float[Array, " cells"]
    density: Float[Array, " cells"]


def weighted_moments(x: Float[Array, " points"], weights: Float[Array, " points"]) -> Moments:
    """Return the moments of points with weights, which need not sum to 1; of a Density as `weighted_moments(*law)`."""
    shares = weights / jnp.sum(weights)
    mean = jnp.dot(shares, x)
    variance = jnp.dot(shares, (x - mean) ** 2)
    return Moments(mean, variance, jnp.dot(shares, (x - mean) ** 3) / variance**1.5)


def shares(law: Density, edges: Float[Array, " edges"]) -> Float[Array, " parts"]:
    """Return the probability of each interval that the edges cut the line into, one more than edges.

    Args:
        law: the density.
        edges: rising, in units of the data.
    """
    width = law.x[1] - law.x[0]
    ends = jnp.concatenate([law.x[:1] - 0.5 * width, law.x + 0.5 * width])
    below = jnp.concatenate([jnp.zeros(1, law.x.dtype), jnp.cumsum(law.density) * width])
    cumulative = jnp.interp(jnp.asarray(edges, law.x.dtype), ends, below)
    return jnp.diff(cumulative, prepend=0.0, append=1.0)
