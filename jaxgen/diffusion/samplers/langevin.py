"""Unadjusted Langevin dynamics at one noise level."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.grids import check_falling, check_signal
from jaxgen.diffusion.levels import Level, noise_ratio
from jaxgen.diffusion.predictions import score_target
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.typing import PRNGKey, Sample, Scalar

StepSize: TypeAlias = Callable[[Level, Level], Scalar]
Adaptation: TypeAlias = Callable[[Scalar, Sample, Sample], Scalar]
ChooseLevel: TypeAlias = Callable[[Level, Level], Level]


class LangevinInfo(NamedTuple):
    """How large the steps were.

    Attributes:
        step_size: epsilon of x' = x + epsilon / 2 * score + sqrt(epsilon) * z, in squared units of the data; of the
            last step where it is adapted.
        stiffness: step_size / sigma^2 at the level of the step. Where the law at this level is as narrow as its noise
            (a point mass, or a manifold, across it), the iteration diverges from 4 on.
        unstable: whether step_size times the curvature of -log p is 4 or more, with the `curvature` that `langevin` was
            told, or else with the largest one possible for a law of data without guidance, 1 / sigma^2: then a warning,
            not a verdict. False where no step is taken.
    """

    step_size: Scalar
    stiffness: Scalar
    unstable: Bool[Array, ""]


def path_step_size(now: Level, next: Level) -> Scalar:
    """Return alpha'^2 (rho^2 - rho'^2) with rho = sigma / alpha: beta dt in the limit, on any path.

    Infinite at alpha = 0, where no Langevin step matches the predictor's.
    """
    return next.alpha**2 * (noise_ratio(now) ** 2 - noise_ratio(next) ** 2)


def fixed_step_size(epsilon: Scalar) -> StepSize:
    """Take steps of one size at every level, in squared units of the data. May be traced.

    Raises:
        ValueError: if `epsilon` is known and not positive and finite.
    """
    if not isinstance(epsilon, Tracer) and not 0.0 < float(epsilon) < float("inf"):
        raise ValueError(f"a step size must be positive and finite, got {epsilon}")
    return lambda now, next: jnp.asarray(epsilon)


def signal_to_noise(ratio: Scalar = 0.16) -> Adaptation:
    """Adapt a step so that its drift has `ratio` times the length of its noise (Song et al. 2021, algorithms 4 and 5).

    epsilon = 4 (ratio |z| / |score|)^2 with the norms of this one sample, so that no sample depends on others of a
    batch, as means over a batch would have it. (Song et al. write h = epsilon / 2.)

    Raises:
        ValueError: if `ratio` is known and not positive and finite.
    """
    if not isinstance(ratio, Tracer) and not 0.0 < float(ratio) < float("inf"):
        raise ValueError(f"a signal-to-noise ratio must be positive and finite, got {ratio}")

    def adapt(epsilon: Scalar, score: Sample, noise: Sample) -> Scalar:
        del epsilon
        squared = jnp.sum(score**2)
        return 4.0 * ratio**2 * jnp.sum(noise**2) / jnp.maximum(squared, jnp.finfo(squared.dtype).tiny)

    return adapt


def at_next(now: Level, next: Level) -> Level:
    """Correct at the level that the predictor has reached."""
    del now
    return next


def at_now(now: Level, next: Level) -> Level:
    """Correct at the level that the predictor has left: another sampler, with the same limit of small steps."""
    del next
    return now


def guided_curvature(scale: Scalar) -> Callable[[Level], Scalar]:
    """Bound the curvature of -log p(x | c)^scale p(x)^(1 - scale) at a level, where both laws are log-concave there.

    That of either then lies between 0 and 1 / sigma^2, and the guided one below scale / sigma^2 for scales above 1,
    1 / sigma^2 for those in [0, 1], (1 - scale) / sigma^2 below.
    """
    return lambda level: (jnp.maximum(scale, 0.0) + jnp.maximum(1.0 - scale, 0.0)) / level.sigma**2


def langevin(
    model: Denoiser,
    num_steps: int = 1,
    *,
    step_size: StepSize = path_step_size,
    adapt: Adaptation | None = None,
    evaluate_at: ChooseLevel = at_next,
    clean_score: Callable[[Sample], Sample] | None = None,
    curvature: Callable[[Level], Scalar] | None = None,
) -> Sampler:
    """Take Langevin steps at the NEXT level, towards the law whose score the model knows.

    x <- x + epsilon / 2 * score(x) + sqrt(epsilon) * z, `num_steps` times with the score computed anew.

    Args:
        model: the denoiser; `num_steps` evaluations, the first of which advances its memory.
        num_steps: K; 0 leaves the sample as it is.
        step_size: maps (now, next) to epsilon.
        adapt: maps (epsilon, score, noise) of each step to the epsilon that is taken, for example `signal_to_noise()`.
        evaluate_at: chooses the level of the steps, `at_next` or `at_now`.
        clean_score: the score of the target law at sigma = 0, if it has a density. Without it nothing is done there.
        curvature: largest curvature of -log p of the target at a level, for the warning of `LangevinInfo.unstable`:
            `guided_curvature(scale)` under guidance.

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
        taken = epsilon if adapt is None else jnp.asarray(adapt(epsilon, slope, noise), epsilon.dtype)
        return Markov(state.x + 0.5 * taken * slope + jnp.sqrt(taken) * noise, memory), taken

    def run(key, state, level, epsilon):
        first, taken = move(jax.random.fold_in(key, 0), state, level, epsilon)

        def body(carried, k):
            moved, taken = move(jax.random.fold_in(key, k), Markov(carried[0], first.memory), level, epsilon)
            return (moved.x, taken), None

        x, taken = (
            (first.x, taken) if num_steps == 1 else jax.lax.scan(body, (first.x, taken), jnp.arange(1, num_steps))[0]
        )
        return Markov(x, first.memory), taken

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, LangevinInfo]:
        level = evaluate_at(now, next)
        epsilon = jnp.asarray(step_size(now, next), state.x.dtype)
        if num_steps == 0:
            taken = epsilon
        elif clean_score is not None:
            state, taken = run(key, state, level, epsilon)
        else:
            state, taken = jax.lax.cond(
                level.sigma > 0, lambda state: run(key, state, level, epsilon), lambda state: (state, epsilon), state
            )
        stiffness = taken / level.sigma**2
        bound = stiffness if curvature is None else taken * curvature(level)
        # Without noise there is no bound for data, and without a clean score there is no step.
        acts = num_steps > 0 if None not in (clean_score, curvature) else (num_steps > 0) & (level.sigma > 0)
        return state, LangevinInfo(taken, stiffness, (bound >= 4.0) & acts)

    # The step of the path itself has no size at alpha = 0, and none on a rising grid.
    follows_path = num_steps > 0 and step_size is path_step_size and adapt is None

    def check(grid: Level) -> None:
        if follows_path:
            check_falling(grid)
            check_signal(grid)

    return Sampler(lambda x: Markov(x, model.init(x)), step, check)
