"""DPM-Solver++: a multistep method in the half log-SNR, exact for a constant prediction of the clean sample."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.diffusion.denoisers import Denoiser, Memory
from jaxgen.diffusion.grids import check_falling
from jaxgen.diffusion.levels import Level, shrinkage
from jaxgen.diffusion.predictions import Prediction
from jaxgen.diffusion.samplers.base import Sampler
from jaxgen.typing import PRNGKey, Sample, Scalar


class Multistep(NamedTuple):
    """The state of a two-step method.

    Attributes:
        x: the sample.
        x0: the clean sample predicted in the step before.
        length: of the step before, in ln(alpha / sigma); 0 where there was none or it was infinite.
        memory: of the denoiser.
    """

    x: Sample
    x0: Sample
    length: Scalar
    memory: Memory


def dpm_solver_pp_2m(model: Denoiser) -> Sampler:
    """Follow the probability-flow ODE by DPM-Solver++ (2M): second order for one evaluation a step.

    With h = ln(alpha' / sigma') - ln(alpha / sigma), x' = sigma' / sigma x + alpha' (1 - e^-h) D, where D extrapolates
    the predicted clean sample linearly from this step and the one before (Lu et al. 2022b, algorithm 2). The first
    step, and one to sigma = 0, take D as predicted: they are those of DDIM.

    Args:
        model: the denoiser; one evaluation a step.
    """

    def move(key: PRNGKey, x: Sample, x0: Sample, r: Scalar, now: Level, next: Level) -> Sample:
        del key
        return next.sigma / now.sigma * x + next.alpha * (1.0 - r) * x0

    return _multistep(model, move)


def dpm_solver_pp_2m_sde(model: Denoiser) -> Sampler:
    """Follow the reverse SDE by the stochastic form of DPM-Solver++ (2M) (Lu et al. 2022b, appendix; midpoint form).

    x' = sigma' / sigma e^-h x + alpha' (1 - e^-2h) D + sigma' sqrt(1 - e^-2h) z, with h and D as in `dpm_solver_pp_2m`.
    With D as predicted it is DDPM.

    Args:
        model: the denoiser; one evaluation a step.
    """

    def move(key: PRNGKey, x: Sample, x0: Sample, r: Scalar, now: Level, next: Level) -> Sample:
        mean = r * next.sigma / now.sigma * x + next.alpha * (1.0 - r**2) * x0
        return mean + next.sigma * jnp.sqrt(1.0 - r**2) * jax.random.normal(key, x.shape, x.dtype)

    return _multistep(model, move)._replace(check=check_falling)


def _multistep(model: Denoiser, move: Callable[[PRNGKey, Sample, Sample, Scalar, Level, Level], Sample]) -> Sampler:
    """Build a two-step method from its step at a given clean sample."""

    def init(x: Sample) -> Multistep:
        return Multistep(x, jnp.zeros_like(x), jnp.zeros((), x.dtype), model.init(x))

    def step(key: PRNGKey, state: Multistep, now: Level, next: Level) -> tuple[Multistep, Prediction]:
        predicted, memory = model.apply(state.memory, state.x, now)
        r = shrinkage(now, next)
        # Both ends of a grid may be infinitely far away, where nothing can be extrapolated.
        length = jnp.where(r > 0, -jnp.log(jnp.where(r > 0, r, 1.0)), 0.0)
        known = state.length > 0
        weight = jnp.where(known, 0.5 * length / jnp.where(known, state.length, 1.0), 0.0)
        x0 = predicted.x0 + weight * (predicted.x0 - state.x0)
        return Multistep(move(key, state.x, x0, r, now, next), predicted.x0, length, memory), predicted

    return Sampler(init, step)
