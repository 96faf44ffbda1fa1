"""Encode a sample as noise: DDIM run backwards on a rising grid."""

import jax

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.levels import Level, corrupt
from jaxgen.diffusion.predictions import Prediction, v_target
from jaxgen.diffusion.samplers.base import Markov, Sampler
from jaxgen.typing import PRNGKey, Sample


def ddim_inversion(model: Denoiser) -> Sampler:
    """Encode a sample as noise: DDIM run backwards on a rising grid (Song et al. 2021, section 4.3).

    The sample is still at `now` while the network is told the time of `next`, the pairing under which DDIM on the
    reversed grid retraces the step to first order.
    """

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        del key
        predicted, memory = model.apply(state.memory, state.x, Level(next.time, now.alpha, now.sigma))
        return Markov(corrupt(predicted.x0, predicted.noise, next), memory), predicted

    return Sampler(lambda x: Markov(x, model.init(x)), step)


def ddim_inversion_fixed_point(model: Denoiser, iterations: int = 5) -> Sampler:
    """Encode a sample as the noise from which DDIM comes back to it, found by iteration (Pan et al. 2023, AIDI).

    DDIM takes x' = alpha' x0 + sigma' e at `next` to x = alpha x0 + sigma e at `now`. Written in the angle between the
    levels that is x' = ((alpha'^2 + sigma'^2) x + (alpha sigma' - alpha' sigma) v(x')) / (alpha alpha' + sigma sigma')
    with v = alpha' e - sigma' x0, which is well-posed from clean data to pure noise, and is iterated from the plain
    inversion; the error shrinks by a constant factor each time, the smaller the shorter the step.

    Args:
        model: the denoiser; one evaluation an iteration, and one for the start, which advances its memory.
        iterations: of each step; 0 is `ddim_inversion`.

    Raises:
        ValueError: if `iterations` is negative or not an integer.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations of an inversion must be an integer of at least 0, got {iterations!r}")
    plain = ddim_inversion(model)

    def step(key: PRNGKey, state: Markov, now: Level, next: Level) -> tuple[Markov, Prediction]:
        first, predicted = plain.step(key, state, now, next)

        def again(x: Sample, _: None) -> tuple[Sample, None]:
            v = v_target(model.apply(first.memory, x, next)[0], next)
            return (norm * state.x + (now.alpha * next.sigma - next.alpha * now.sigma) * v) / inner, None

        norm = next.alpha**2 + next.sigma**2
        inner = now.alpha * next.alpha + now.sigma * next.sigma
        return Markov(jax.lax.scan(again, first.x, None, length=iterations)[0], first.memory), predicted

    return Sampler(plain.init, step)
