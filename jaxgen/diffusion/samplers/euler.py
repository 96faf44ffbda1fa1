"""Explicit Euler on the probability flow of a path."""

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Prediction, velocity_target
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.diffusion.schedules import RectifiedFlow, Schedule
from jaxgen.typing import PRNGKey


def euler(model: Denoiser, schedule: Schedule | None = None) -> Sampler:
    """Follow the marginal velocity by Euler steps in time (Step-by-Step Diffusion, pseudocode 5).

    Args:
        model: the denoiser; one evaluation a step.
        schedule: the path whose time the grid carries; rectified flow by default, on which the step is DDIM's.
    """
    velocity = velocity_target(RectifiedFlow() if schedule is None else schedule)

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        del key
        predicted, memory = model.apply(state.memory, state.x, now)
        return Markov(state.x + (next.time - now.time) * velocity(predicted, now), memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step)
