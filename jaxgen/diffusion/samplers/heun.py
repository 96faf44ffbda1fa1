"""Heun's method: two evaluations a step, second order in the step size."""

import jax

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.levels import Level, corrupt
from jaxgen.diffusion.predictions import Prediction, velocity_target
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.diffusion.schedules import RectifiedFlow, Schedule
from jaxgen.typing import PRNGKey, Sample


def heun(model: Denoiser) -> Sampler:
    """Follow the probability-flow ODE of x / alpha in sigma / alpha by Heun's method (Karras et al. 2022, algorithm 1).

    A DDIM step, then a second one whose noise is the mean of those predicted at both ends. A step to sigma = 0, where
    no noise is predicted, and one from alpha = 0, from where the step is infinite, stay those of DDIM.

    Args:
        model: the denoiser; two evaluations a step, of which the first advances its memory.
    """

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        del key
        predicted, memory = model.apply(state.memory, state.x, now)

        def average(moved: Sample) -> Sample:
            again, _ = model.apply(memory, moved, next)
            return moved + 0.5 * (next.sigma - next.alpha * now.sigma / now.alpha) * (again.noise - predicted.noise)

        moved = corrupt(predicted.x0, predicted.noise, next)
        inside = (next.sigma > 0) & (now.alpha > 0)
        return Markov(jax.lax.cond(inside, average, lambda moved: moved, moved), memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step)


def heun_flow(model: Denoiser, schedule: Schedule | None = None) -> Sampler:
    """Follow the marginal velocity by Heun's method in the path's own time; a step to sigma = 0 is Euler's.

    Args:
        model: the denoiser; two evaluations a step, of which the first advances its memory.
        schedule: the path whose time the grid carries; rectified flow by default.
    """
    velocity = velocity_target(RectifiedFlow() if schedule is None else schedule)

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        del key
        predicted, memory = model.apply(state.memory, state.x, now)
        slope, duration = velocity(predicted, now), next.time - now.time

        def average(moved: Sample) -> Sample:
            again, _ = model.apply(memory, moved, next)
            return moved + 0.5 * duration * (velocity(again, next) - slope)

        moved = state.x + duration * slope
        return Markov(jax.lax.cond(next.sigma > 0, average, lambda moved: moved, moved), memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step)
