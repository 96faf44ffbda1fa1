"""Guidance that keeps the spread of the conditional prediction."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from jaxgen.diffusion.guidance.classifier_free import LevelScale, PredictPair, combine, level_scale
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
    """A quantity that a network may predict.

    Attributes:
        target: reads the quantity off a prediction.
        read: maps (x, level, quantity) to the prediction, where the level allows it: `from_noise` asks for alpha > 0,
            `from_x0` for sigma > 0.
    """

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
        guided * (phi * std(conditional) / std(guided) + 1 - phi), with deviations over all axes of the sample. A
        guided quantity that is constant but for rounding is left as it is.
    """
    variance = jnp.var(guided)
    # The mean of equal numbers is rounded, so that their variance need not be 0.
    varies = variance > (8 * jnp.finfo(variance.dtype).eps) ** 2 * jnp.max(jnp.square(guided))
    ratio = _root(jnp.var(conditional) / jnp.where(varies, variance, 1.0))
    ratio = jnp.where(varies, ratio, 1.0)
    return guided * (share * ratio + 1.0 - share)


def _root(value: Array) -> Array:
    """Take the square root, with slope 0 at 0."""
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1.0)), 0.0)


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
    scale_at = level_scale(scale)
    if not isinstance(share, Tracer) and not 0.0 <= float(share) <= 1.0:
        raise ValueError(f"the share of the rescaling must lie in [0, 1], got {share}")

    def predict(x: Sample, level: Level) -> Prediction:
        conditional, unconditional = pair(x, level)
        guided = combine(conditional, unconditional, scale_at(level))
        return view.read(x, level, rescale(view.target(guided, level), view.target(conditional, level), share))

    return predict
