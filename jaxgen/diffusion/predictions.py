"""What a network knows about x, in the two views from which every other follows affinely.

Targets: noise, x0, score = -noise / sigma, v = alpha * noise - sigma * x0 (Salimans & Ho 2022), and the velocity
dx/dt = alpha' * x0 + sigma' * noise of a path. `from_*` turn a network's output into a `Prediction`; the others read
that quantity off one, and off the truth `Prediction(x0, noise)` just as well.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.diffusion.levels import Level, noise_ratio
from jaxgen.diffusion.schedules import Schedule, rates
from jaxgen.typing import Sample


class Prediction(NamedTuple):
    """What a network knows about x: E[x0 | x] and E[noise | x], each with the shape of x."""

    x0: Sample
    noise: Sample


Predict: TypeAlias = Callable[[Sample, Level], Prediction]
Target: TypeAlias = Callable[[Prediction, Level], Sample]


def from_noise(x: Sample, level: Level, noise: Sample) -> Prediction:
    """Read a predicted noise; undefined at alpha = 0 (`check_grid(..., divides_by_alpha=True)` refuses it)."""
    return Prediction((x - level.sigma * noise) / level.alpha, noise)


def from_x0(x: Sample, level: Level, x0: Sample) -> Prediction:
    """Read a predicted clean sample; undefined at sigma = 0."""
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def from_score(x: Sample, level: Level, score: Sample) -> Prediction:
    """Read a predicted score, the gradient of the log-density at this level; undefined at alpha = 0."""
    return from_noise(x, level, -level.sigma * score)


def from_v(x: Sample, level: Level, v: Sample) -> Prediction:
    """Read a predicted v = alpha * noise - sigma * x0, on any path (Salimans & Ho 2022: alpha^2 + sigma^2 = 1)."""
    norm = level.alpha**2 + level.sigma**2
    return Prediction((level.alpha * x - level.sigma * v) / norm, (level.sigma * x + level.alpha * v) / norm)


def from_velocity(x: Sample, level: Level, velocity: Sample, schedule: Schedule) -> Prediction:
    """Read a predicted velocity dx/dt of the path `schedule`, at times where its slopes are finite."""
    alpha_rate, sigma_rate = rates(schedule, level.time)
    wronskian = level.alpha * sigma_rate - alpha_rate * level.sigma
    return Prediction(
        (sigma_rate * x - level.sigma * velocity) / wronskian,
        (level.alpha * velocity - alpha_rate * x) / wronskian,
    )


def x0_target(prediction: Prediction, level: Level) -> Sample:
    """Return the clean sample of a prediction."""
    del level
    return prediction.x0


def noise_target(prediction: Prediction, level: Level) -> Sample:
    """Return the noise of a prediction."""
    del level
    return prediction.noise


def score_target(prediction: Prediction, level: Level) -> Sample:
    """Return the score -noise / sigma of a prediction; undefined at sigma = 0."""
    return -prediction.noise / level.sigma


def v_target(prediction: Prediction, level: Level) -> Sample:
    """Return v = alpha * noise - sigma * x0 of a prediction."""
    return level.alpha * prediction.noise - level.sigma * prediction.x0


def velocity_target(schedule: Schedule) -> Target:
    """Build the target dx/dt = alpha' * x0 + sigma' * noise along `schedule`."""

    def target(prediction: Prediction, level: Level) -> Sample:
        alpha_rate, sigma_rate = rates(schedule, level.time)
        return alpha_rate * prediction.x0 + sigma_rate * prediction.noise

    return target


def edm_condition(level: Level) -> Float[Array, "*grid"]:
    """Return c_noise = ln(sigma / alpha) / 4, what a network preconditioned as in EDM is told; finite at sigma = 0."""
    ratio = jnp.asarray(noise_ratio(level))
    return 0.25 * jnp.log(jnp.maximum(ratio, jnp.finfo(ratio.dtype).tiny))


def edm_preconditioned(
    network: Callable[[Sample, Sample], Sample], x: Sample, level: Level, data_std: float
) -> Prediction:
    """Read a network preconditioned as in EDM, on any path through x / alpha (Karras et al. 2022, section 5).

    Args:
        network: maps the scaled input `c_in * x / alpha` (shape of x) and c_noise = ln(sigma / alpha) / 4 (scalar)
            to F, of the shape of x.
        x: sample at `level`.
        level: where x is; alpha must not be 0. At sigma = 0 the prediction of x0 is x / alpha.
        data_std: standard deviation of the data, in its units.
    """
    ratio = noise_ratio(level)
    scaled = x / level.alpha
    scale = jnp.sqrt(ratio**2 + data_std**2)
    output = network(scaled / scale, edm_condition(level))
    x0 = (data_std / scale) ** 2 * scaled + (ratio * data_std / scale) * output
    # (x - alpha * x0) / sigma with the division carried out by hand: no cancellation as sigma goes to 0.
    noise = ratio / scale**2 * scaled - data_std / scale * output
    return Prediction(x0, noise)
