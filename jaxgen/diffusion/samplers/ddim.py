"""Denoising diffusion implicit models."""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.grids import check_falling
from jaxgen.diffusion.levels import Level, corrupt, shrinkage
from jaxgen.diffusion.predictions import Prediction
from jaxgen.diffusion.samplers.base import Markov, Sampler, any_grid
from jaxgen.typing import PRNGKey, Scalar


def ddim(model: Denoiser, eta: Scalar = 0.0) -> Sampler:
    """Follow the probability-flow ODE with the prediction held fixed (Song et al. 2021, eq. 12).

    Args:
        model: the denoiser; one evaluation a step.
        eta: fresh noise, in units of the posterior's standard deviation: 0 (the default) is deterministic and draws
            nothing, 1 is ancestral sampling. May be traced.

    Raises:
        ValueError: if `eta` is known and lies outside [0, 1].
    """
    known = not isinstance(eta, Tracer)
    if known and not 0.0 <= float(eta) <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}; 0 is the ODE, 1 ancestral sampling")
    deterministic = known and float(eta) == 0.0

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        predicted, memory = model.apply(state.memory, state.x, now)
        if deterministic:
            return Markov(corrupt(predicted.x0, predicted.noise, next), memory), predicted
        r = shrinkage(now, next)
        # 1 - eta^2 (1 - r^2), in a form that keeps a small r, and whose root has a finite slope where it is 0.
        kept = (1.0 - eta) * (1.0 + eta) + (eta * r) ** 2
        noise = jnp.where(kept > 0, jnp.sqrt(jnp.where(kept > 0, kept, 1.0)), 0.0) * predicted.noise
        noise += eta * jnp.sqrt(1.0 - r**2) * jax.random.normal(key, state.x.shape, state.x.dtype)
        return Markov(corrupt(predicted.x0, noise, next), memory), predicted

    check = any_grid if deterministic or not known else check_falling
    return Sampler(lambda x: Markov(x, model.init(x)), step, check)
