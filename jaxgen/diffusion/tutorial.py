"""The algorithms of Step-by-Step Diffusion as its listings state them (Nakkiran et al. 2024, pseudocodes 1 to 7).

The path is x_t = x_0 + N(0, sigma_q^2 t), `Tutorial(sigma_q)`, and the regression function of DDPM is that of the
previous point, f(x, t) = E[x_{t - dt} | x_t = x]. Pseudocodes 4 and 5 are `flow_matching`.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.grids import check_falling
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Prediction
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.typing import PRNGKey, Sample, Scalar

Regression: TypeAlias = Callable[[Sample, Scalar], Sample]
"""Maps (x, t) to an estimate of the shape of x."""


def ddpm_loss(f: Regression, key: PRNGKey, x0: Sample, sigma_q: Scalar, dt: Scalar) -> Scalar:
    """Compute the squared error of the previous point of one sample (pseudocode 1).

    t is uniform in [0, 1 - dt], so that f is never asked beyond t = 1 (the listing draws from [0, 1]). A mean over the
    entries of the sample.

    Args:
        f: the network; it is given (x_{t + dt}, t + dt).
        key: consumed for the time and both noises.
        x0: one clean sample of any shape.
        sigma_q: standard deviation of the noise at t = 1, in units of the data.
        dt: step of time in (0, 1).
    """
    time_key, now_key, next_key = jax.random.split(key, 3)
    t = jax.random.uniform(time_key, dtype=x0.dtype) * (1.0 - dt)
    x = x0 + sigma_q * jnp.sqrt(t) * jax.random.normal(now_key, x0.shape, x0.dtype)
    later = x + sigma_q * jnp.sqrt(dt) * jax.random.normal(next_key, x0.shape, x0.dtype)
    return jnp.mean((f(later, t + dt) - x) ** 2)


def x0_loss(g: Regression, key: PRNGKey, x0: Sample, sigma_q: Scalar) -> Scalar:
    """Compute the squared error of the clean sample at a time uniform in [0, 1] (pseudocode 6).

    Arguments as `ddpm_loss`; g is given (x_t, t).
    """
    time_key, noise_key = jax.random.split(key)
    t = jax.random.uniform(time_key, dtype=x0.dtype)
    x = x0 + sigma_q * jnp.sqrt(t) * jax.random.normal(noise_key, x0.shape, x0.dtype)
    return jnp.mean((g(x, t) - x0) ** 2)


def previous_point(x0: Sample, x: Sample, now: Level, next: Level) -> Sample:
    """Turn an estimate of x_0 into that of the previous point, (dt / t) x_0 + (1 - dt / t) x (claim 2).

    dt / t is written as the share of the variance that the step takes away, on grids of any spacing.
    """
    share = 1.0 - (next.sigma / now.sigma) ** 2
    return share * x0 + (1.0 - share) * x


def tutorial_ddpm(model: Denoiser) -> Sampler:
    """Step to the expected previous point and add noise of variance sigma_q^2 dt (pseudocodes 2 and 7).

    The mean is that of ancestral sampling, `ddpm`; the noise is larger by t / (t - dt), and is added in the last step
    too. It is `ddpm` with `forward_std`.

    Args:
        model: the denoiser; one evaluation a step.
    """

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        predicted, memory = model.apply(state.memory, state.x, now)
        noise = jax.random.normal(key, state.x.shape, state.x.dtype)
        std = jnp.sqrt(now.sigma**2 - next.sigma**2)
        return Markov(previous_point(predicted.x0, state.x, now, next) + std * noise, memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step, check_falling)


def tutorial_ddim(model: Denoiser) -> Sampler:
    """Step by the share lambda = sqrt(t) / (sqrt(t) + sqrt(t - dt)) to the expected previous point (pseudocode 3).

    lambda is 1 in the last step, from dt to 0, and about 1/2 in others. It is `ddim` on this path for every dt, and
    exact for a single point.

    Args:
        model: the denoiser; one evaluation a step.
    """

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        del key
        predicted, memory = model.apply(state.memory, state.x, now)
        share = now.sigma / (now.sigma + next.sigma)
        moved = state.x + share * (previous_point(predicted.x0, state.x, now, next) - state.x)
        return Markov(moved, memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step)
