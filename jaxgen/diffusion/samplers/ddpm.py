"""Denoising diffusion probabilistic models."""

import jax
import jax.numpy as jnp

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.levels import Level, shrinkage
from jaxgen.diffusion.predictions import Prediction
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.typing import PRNGKey


def ddpm(model: Denoiser) -> Sampler:
    """Draw from the Gaussian posterior q(x' | x, x0) at the predicted x0 (Ho et al. 2020, eq. 6 and 7).

    With r = (sigma' / alpha') / (sigma / alpha), the posterior has mean r (sigma' / sigma) x + alpha' (1 - r^2) x0 and
    standard deviation sigma' sqrt(1 - r^2), on any path. One evaluation a step.
    """

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        predicted, memory = model.apply(state.memory, state.x, now)
        r = shrinkage(now, next)
        mean = r * next.sigma / now.sigma * state.x + next.alpha * (1.0 - r**2) * predicted.x0
        std = next.sigma * jnp.sqrt(1.0 - r**2)
        return Markov(mean + std * jax.random.normal(key, state.x.shape, state.x.dtype), memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step)
