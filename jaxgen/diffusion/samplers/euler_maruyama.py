"""The reverse SDE of a path, discretised by Euler and Maruyama."""

import jax
import jax.numpy as jnp

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.grids import check_falling, check_signal
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Prediction
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.diffusion.schedules import Schedule, drift_and_diffusion
from jaxgen.typing import PRNGKey


def euler_maruyama(model: Denoiser, schedule: Schedule) -> Sampler:
    """Step through dx = (f x - g^2 score) dt + g dw backwards in time (Song et al. 2021, eq. 6), coefficients held.

    This is not ancestral sampling (`ddpm`): the two have one limit, but differ in every step, and this one depends on
    the path's time and not on sigma / alpha alone.

    Args:
        model: the denoiser; one evaluation a step.
        schedule: the path whose time the grid carries; its f and g^2 must be finite at every level but the last.
    """

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        predicted, memory = model.apply(state.memory, state.x, now)
        drift, diffusion = drift_and_diffusion(schedule, now.time)
        duration = now.time - next.time
        pull = diffusion * predicted.noise / now.sigma  # -g^2 score
        noise = jax.random.normal(key, state.x.shape, state.x.dtype)
        moved = state.x - duration * (drift * state.x + pull) + jnp.sqrt(diffusion * duration) * noise
        return Markov(moved, memory), predicted

    def check(grid: Level) -> None:
        check_falling(grid)
        check_signal(grid)

    return Sampler(lambda x: Markov(x, model.init(x)), step, check)
