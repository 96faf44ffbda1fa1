"""A noise level, and a grid of them."""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Float

from jaxgen.typing import ArrayLike, Sample

Coefficient: TypeAlias = Float[ArrayLike, "*grid"] | float


class Level(NamedTuple):
    """A noise level: x = alpha * x0 + sigma * noise. A grid of N steps is a Level whose leaves have N + 1 entries.

    Attributes:
        time: what the network is told; the path's own time, 0 for data and 1 for noise.
        alpha: scale of the data, dimensionless.
        sigma: standard deviation of the noise, in units of the data.
    """

    time: Coefficient
    alpha: Coefficient
    sigma: Coefficient


def corrupt(x0: Sample, noise: Sample, level: Level) -> Sample:
    """Put a clean sample at a noise level: alpha * x0 + sigma * noise, of the shape of `x0`."""
    return level.alpha * x0 + level.sigma * noise


def noise_ratio(level: Level) -> Coefficient:
    """Return sigma / alpha: the noise level of x / alpha, on which alone DDIM, DDPM and Langevin steps depend.

    Infinite at alpha = 0.
    """
    return jnp.divide(level.sigma, level.alpha)


def half_log_snr(level: Level) -> Coefficient:
    """Return ln(alpha / sigma): half the logarithm of the signal-to-noise ratio; infinite at either end."""
    return jnp.log(jnp.divide(level.alpha, level.sigma))


def shrinkage(now: Level, next: Level) -> Coefficient:
    """Return r = (sigma' / alpha') / (sigma / alpha), written so that alpha = 0 is allowed.

    Between 0 (`next` is clean) and 1 on a falling grid.
    """
    return (now.alpha * next.sigma) / (next.alpha * now.sigma)
