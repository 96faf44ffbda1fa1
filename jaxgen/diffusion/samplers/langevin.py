"""Unadjusted Langevin dynamics at one noise level."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.levels import Level, noise_ratio
from jaxgen.diffusion.predictions import score_target
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.typing import PRNGKey, Sample, Scalar

StepSize: TypeAlias = Callable[[Level, Level], Scalar]


class LangevinInfo(NamedTuple):
    """How large the steps were.

    Attributes:
        step_size: epsilon of x' = x + epsilon / 2 * score + sqrt(epsilon) * z, in squared units of the data.
        stiffness: step_size / sigma'^2. Where the law at this level is as narrow as its noise (a point mass, or a
            manifold, across it), the iteration diverges from 4 on.
    """

    step_size: Scalar
    stiffness: Scalar


def path_step_size(now: Level, next: Level) -> Scalar:
    """Return alpha'^2 (rho^2 - rho'^2) with rho = sigma / alpha: beta dt in the limit, on any path.

    Infinite at alpha = 0, where no Langevin step matches the predictor's.
    """
    return next.alpha**2 * (noise_ratio(now) ** 2 - noise_ratio(next) ** 2)


def langevin(
    model: Denoiser,
    num_steps: int = 1,
    *,
    step_size: StepSize = path_step_size,
    clean_score: Callable[[Sample], Sample] | None = None,
) -> Sampler:
    """Take Langevin steps at the NEXT level, towards the law whose score the model knows.

    x <- x + epsilon / 2 * score(x) + sqrt(epsilon) * z, `num_steps` times with the score computed anew.

    Args:
        model: the denoiser; `num_steps` evaluations, the first of which advances its memory.
        num_steps: K; 0 leaves the sample as it is.
        step_size: maps (now, next) to epsilon.
        clean_score: the score of the target law at sigma = 0, if it has a density. Without it nothing is done there.

    Raises:
        ValueError: if `num_steps` is negative or not an integer.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps of Langevin dynamics must be an integer of at least 0, got {num_steps!r}")

    def noisy_score(memory, x, level):
        predicted, memory = model.apply(memory, x, level)
        return score_target(predicted, level), memory

    def score(memory, x, level):
        if clean_score is None:
            return noisy_score(memory, x, level)
        known: Callable = clean_score
        return jax.lax.cond(level.sigma > 0, noisy_score, lambda memory, x, level: (known(x), memory), memory, x, level)

    def move(key, state, level, epsilon):
        slope, memory = score(state.memory, state.x, level)
        noise = jax.random.normal(key, state.x.shape, state.x.dtype)
        return Markov(state.x + 0.5 * epsilon * slope + jnp.sqrt(epsilon) * noise, memory)

    def run(key, state, level, epsilon):
        first = move(jax.random.fold_in(key, 0), state, level, epsilon)

        def body(x, k):
            return move(jax.random.fold_in(key, k), Markov(x, first.memory), level, epsilon).x, None

        x = first.x if num_steps == 1 else jax.lax.scan(body, first.x, jnp.arange(1, num_steps))[0]
        return Markov(x, first.memory)

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, LangevinInfo]:
        epsilon = step_size(now, next)
        info = LangevinInfo(epsilon, epsilon / next.sigma**2)
        if num_steps == 0:
            return state, info
        if clean_score is not None:
            return run(key, state, next, epsilon), info
        corrected = jax.lax.cond(
            next.sigma > 0, lambda state: run(key, state, next, epsilon), lambda state: state, state
        )
        return corrected, info

    return Sampler(lambda x: Markov(x, model.init(x)), step)
