"""Denoising diffusion probabilistic models."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.grids import check_falling
from jaxgen.diffusion.levels import Level, shrinkage
from jaxgen.diffusion.predictions import Prediction
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.typing import PRNGKey, Scalar

NoiseStd: TypeAlias = Callable[[Level, Level], Scalar]


def posterior_std(now: Level, next: Level) -> Scalar:
    """Return the standard deviation of q(x' | x, x0), sigma' sqrt(1 - r^2): "fixed small", exact for one point.

    0 where `next` is clean. r is (sigma' / alpha') / (sigma / alpha).
    """
    return next.sigma * jnp.sqrt(1.0 - shrinkage(now, next) ** 2)


def forward_std(now: Level, next: Level) -> Scalar:
    """Return the standard deviation of q(x | x'), sigma sqrt(1 - r^2): "fixed large", exact for broad data.

    It depends on the path, not on sigma / alpha alone, and is not 0 where `next` is clean: `quiet_end` makes it so.
    """
    return now.sigma * jnp.sqrt(1.0 - shrinkage(now, next) ** 2)


def quiet_end(std: NoiseStd) -> NoiseStd:
    """Leave out the noise of the step to sigma' = 0."""
    return lambda now, next: jnp.where(next.sigma > 0, std(now, next), 0.0)


def ddpm(model: Denoiser, *, std: NoiseStd = posterior_std) -> Sampler:
    """Draw from the Gaussian posterior q(x' | x, x0) at the predicted x0 (Ho et al. 2020, eq. 6 and 7).

    With r = (sigma' / alpha') / (sigma / alpha), the posterior has mean r (sigma' / sigma) x + alpha' (1 - r^2) x0, on
    any path. One evaluation a step.

    Args:
        model: the denoiser.
        std: standard deviation of the noise, a function of both levels (Ho et al. 2020, section 3.2, has both).
    """

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        predicted, memory = model.apply(state.memory, state.x, now)
        r = shrinkage(now, next)
        mean = r * next.sigma / now.sigma * state.x + next.alpha * (1.0 - r**2) * predicted.x0
        noise = jax.random.normal(key, state.x.shape, state.x.dtype)
        return Markov(mean + std(now, next) * noise, memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step, check_falling)
