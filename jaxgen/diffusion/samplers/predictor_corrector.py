"""Predictor-corrector sampling, and the guidance that is one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.samplers.base import Sampler, State
from jaxgen.diffusion.samplers.ddim import ddim
from jaxgen.diffusion.samplers.langevin import ChooseLevel, StepSize, at_next, langevin, path_step_size
from jaxgen.typing import PRNGKey, Sample


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

    return Sampler(lambda x: Pair(x, predictor.init(x), corrector.init(x)), step)


def pcg(
    conditional: Denoiser,
    guided: Denoiser,
    num_steps: int = 1,
    *,
    predictor: Callable[[Denoiser], Sampler] = ddim,
    step_size: StepSize = path_step_size,
    evaluate_at: ChooseLevel = at_next,
    clean_score: Callable[[Sample], Sample] | None = None,
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
        step_size: as in `langevin`; the default is infinite on a grid that starts at alpha = 0.
        evaluate_at: as in `langevin`: whether the corrector works at the new level or at the old one.
        clean_score: score of the guided law at sigma = 0; without it no correction is made there.

    Raises:
        ValueError: if `num_steps` is negative or not an integer.
    """
    corrector = langevin(guided, num_steps, step_size=step_size, evaluate_at=evaluate_at, clean_score=clean_score)
    return predictor_corrector(predictor(conditional), corrector)
