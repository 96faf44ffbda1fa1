"""Adaptive projected guidance: a clipped, projected and inert difference of the predictions."""

import math

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.guidance.classifier_free import LevelScale, PredictPair, check_shapes, level_scale
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Prediction, from_x0
from jaxgen.typing import Sample, Scalar


def projected_guidance(
    pair: PredictPair,
    scale: Scalar | LevelScale,
    *,
    parallel: Scalar = 0.0,
    norm_threshold: Scalar = math.inf,
    momentum: Scalar = 0.0,
) -> Denoiser:
    """Guide by the part of the difference that is orthogonal to the conditional prediction (Sadat et al. 2024, APG).

    With the predicted clean samples c and u: d = c - u + momentum m, where m is the d of the step before (of this
    sample alone); d is shortened to the threshold, split along c, and x0 = c + (scale - 1) (d_orthogonal + parallel
    d_parallel). At momentum 0, parallel 1 and an infinite threshold it is classifier-free guidance.

    Args:
        pair: the predictions with and without the condition.
        scale: guidance scale, a number or a function of the level.
        parallel: eta, the share of the parallel part that is kept.
        norm_threshold: r, the largest norm of the difference, in units of the data over the whole sample.
        momentum: beta, negative to push away from the direction of the step before.

    Returns:
        A denoiser whose memory is m. All numbers may be traced.

    Raises:
        ValueError: if a number is known and not finite, the threshold is known and not positive, or the predictions
            have different shapes.
    """
    scale_at = level_scale(scale)
    for name, value in (("parallel", parallel), ("momentum", momentum)):
        if not isinstance(value, Tracer) and not math.isfinite(float(value)):
            raise ValueError(f"{name} of projected guidance must be finite, got {value}")
    if not isinstance(norm_threshold, Tracer) and not float(norm_threshold) > 0:
        raise ValueError(f"norm_threshold must be positive, got {norm_threshold}; infinity clips nothing")

    def apply(memory: Sample, x: Sample, level: Level) -> tuple[Prediction, Sample]:
        conditional, unconditional = pair(x, level)
        check_shapes(conditional, unconditional)
        difference = conditional.x0 - unconditional.x0 + momentum * memory
        length = _length(difference)
        # Not min(1, threshold / length), whose gradient is inf * 0 at an infinite threshold.
        clipped = difference * (jnp.minimum(length, norm_threshold) / length)
        direction = conditional.x0 / _length(conditional.x0)
        along = jnp.sum(clipped * direction) * direction
        x0 = conditional.x0 + (scale_at(level) - 1.0) * (clipped - along + parallel * along)
        # At sigma = 0 nothing can be read off x; the conditional noise is what guidance leaves there.
        noisy = jnp.asarray(level.sigma) > 0
        read = from_x0(x, level._replace(sigma=jnp.where(noisy, level.sigma, 1.0)), x0)
        return Prediction(x0, jnp.where(noisy, read.noise, conditional.noise)), difference

    return Denoiser(jnp.zeros_like, apply)


def _length(vector: Sample) -> Array:
    """Return the norm over all axes; 1 for a vector of zeros, which has no direction, with slope 0."""
    squared = jnp.sum(jnp.square(vector))
    positive = squared > jnp.finfo(squared.dtype).tiny
    return jnp.sqrt(jnp.where(positive, squared, 1.0))
