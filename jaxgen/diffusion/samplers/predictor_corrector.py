"""Predictor-corrector sampling, and the guidance that is one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.samplers.base import Sampler, State
from jaxgen.diffusion.samplers.ddim import ddim
from jaxgen.diffusion.samplers.langevin import (
    Adaptation,
    ChooseLevel,
    StepSize,
    at_next,
    langevin,
    path_step_size,
)
from jaxgen.typing import PRNGKey, Sample, Scalar


class Pair(NamedTuple):
    """The states of both kernels; `x` is the sample after the corrector, which both start from next."""

    x: Sample
    predictor: State
    corrector: State


class PairInfo(NamedTuple):
    """The diagnostics of both kernels."""

    predictor: Any
    corrector: Any


def predictor_corrector(predictor: Sampler, corrector: Sampler) -> Sampler:
    """Alternate one step of each of two kernels, of which each keeps its own state (Song et al. 2021, algorithm 1)."""

    def step(key: PRNGKey, state: Pair, now: Level, next: Level) -> tuple[Pair, PairInfo]:
        predict_key, correct_key = jax.random.split(key)
        moved, predicted = predictor.step(predict_key, state.predictor._replace(x=state.x), now, next)
        mended, corrected = corrector.step(correct_key, state.corrector._replace(x=moved.x), now, next)
        return Pair(mended.x, moved, mended), PairInfo(predicted, corrected)

    def check(grid: Level) -> None:
        predictor.check(grid)
        corrector.check(grid)

    return Sampler(lambda x: Pair(x, predictor.init(x), corrector.init(x)), step, check)


def repeat(sampler: Sampler, times: int) -> Sampler:
    """Take a kernel's step between the same two levels several times, as correctors do that keep a state of their own.

    Repetition k uses `fold_in(key, k)`. A denoiser's memory advances each time; `langevin(model, num_steps)` advances
    it once.

    Args:
        sampler: the kernel.
        times: how often; the info is that of the last time.

    Raises:
        ValueError: if `times` is not an integer of at least 1.
    """
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise ValueError(f"times must be an integer of at least 1, got {times!r}")

    def step(key: PRNGKey, state: State, now: Level, next: Level) -> tuple[State, Any]:
        state, info = sampler.step(jax.random.fold_in(key, 0), state, now, next)

        def again(carried: tuple, k: Int[Array, ""]) -> tuple[tuple, None]:
            return sampler.step(jax.random.fold_in(key, k), carried[0], now, next), None

        return jax.lax.scan(again, (state, info), jnp.arange(1, times))[0]

    return sampler._replace(step=step)


def pcg(
    conditional: Denoiser,
    guided: Denoiser,
    num_steps: int = 1,
    *,
    predictor: Callable[[Denoiser], Sampler] = ddim,
    step_size: StepSize = path_step_size,
    adapt: Adaptation | None = None,
    evaluate_at: ChooseLevel = at_next,
    clean_score: Callable[[Sample], Sample] | None = None,
    curvature: Callable[[Level], Scalar] | None = None,
) -> Sampler:
    """Sample by predictor-corrector guidance (Bradley & Nakkiran 2024, algorithm 1).

    A DDIM step of the conditional law, then `num_steps` Langevin steps at the new level towards the guided law
    p(x | c)^scale p(x)^(1 - scale). With one Langevin step it is, in the limit of small steps, DDPM under
    classifier-free guidance at (1 + scale) / 2: the scale of `guided` is the corrector's, not the one that matches.

    Args:
        conditional: denoiser of p(x | c).
        guided: denoiser under guidance, for example `denoiser(classifier_free(predict, label, null, scale))`.
        num_steps: Langevin steps K; 0 is DDIM of the conditional.
        predictor: builds the predictor of the conditional; the paper's own theory takes Euler steps in time.
        step_size: as in `langevin`; the default is infinite on a grid that starts at alpha = 0, which is refused.
        adapt: as in `langevin`.
        evaluate_at: as in `langevin`: whether the corrector works at the new level or at the old one.
        clean_score: score of the guided law at sigma = 0; without it no correction is made there.
        curvature: largest curvature of -log p of the guided law at a level, for the warning of `LangevinInfo.unstable`.
            Guidance multiplies that of narrow data, see `guided_curvature`.

    Raises:
        ValueError: if `num_steps` is negative or not an integer.
    """
    corrector = langevin(
        guided,
        num_steps,
        step_size=step_size,
        adapt=adapt,
        evaluate_at=evaluate_at,
        clean_score=clean_score,
        curvature=curvature,
    )
    return predictor_corrector(predictor(conditional), corrector)
