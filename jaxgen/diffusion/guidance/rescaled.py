"""Guidance that keeps the spread of the conditional prediction."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.core import Tracer

from jaxgen.diffusion.guidance.classifier_free import LevelScale, PredictPair, combine, guide_pair
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import (
    Predict,
    Prediction,
    Target,
    from_noise,
    from_v,
    from_x0,
    noise_target,
    v_target,
    x0_target,
)
from jaxgen.typing import Sample, Scalar


class View(NamedTuple):
    """A quantity that a network may predict: how it is read off a prediction, and how a prediction is read off it."""

    target: Target
    read: Callable[[Sample, Level, Sample], Prediction]


noise_view = View(noise_target, from_noise)
v_view = View(v_target, from_v)
x0_view = View(x0_target, from_x0)


def rescale(guided: Sample, conditional: Sample, share: Scalar) -> Sample:
    """Bring the spread of a guided quantity back to that of the conditional one (Lin et al. 2024, section 3.4).

    Args:
        guided: of one sample, any shape.
        conditional: the same quantity without guidance.
        share: phi, 0 leaves the guided one as it is, 1 gives it the standard deviation of the conditional one.

    Returns:
        guided * (phi * std(conditional) / std(guided) + 1 - phi), with deviations over all axes of the sample.
    """
    spread = jnp.std(guided)
    ratio = jnp.where(spread > 0, jnp.std(conditional) / jnp.where(spread > 0, spread, 1.0), 1.0)
    return guided * (share * ratio + 1.0 - share)


def rescaled_guidance(
    pair: PredictPair, scale: Scalar | LevelScale, share: Scalar = 0.7, *, view: View = noise_view
) -> Predict:
    """Guide a pair of predictions, and `rescale` one view of the result (Lin et al. 2024, section 3.4).

    Unlike plain guidance, the result depends on the view that is rescaled.

    Args:
        pair: the predictions with and without the condition.
        scale: guidance scale, a number or a function of the level.
        share: phi in [0, 1]; may be traced.
        view: the rescaled quantity; the noise by default, which asks for alpha > 0.

    Raises:
        ValueError: if `scale` is known and not finite, or `share` is known and lies outside [0, 1].
    """
    guide_pair(pair, scale)  # checks the scale
    if not isinstance(share, Tracer) and not 0.0 <= float(share) <= 1.0:
        raise ValueError(f"the share of the rescaling must lie in [0, 1], got {share}")

    def predict(x: Sample, level: Level) -> Prediction:
        conditional, unconditional = pair(x, level)
        guided = combine(conditional, unconditional, scale(level) if callable(scale) else scale)
        return view.read(x, level, rescale(view.target(guided, level), view.target(conditional, level), share))

    return predict
