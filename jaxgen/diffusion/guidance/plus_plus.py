"""CFG++: guide the clean sample, and add the unconditional noise back."""

from jax.core import Tracer

from jaxgen.diffusion.guidance.classifier_free import PredictPair, combine
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Predict, Prediction
from jaxgen.typing import Sample, Scalar


def cfg_plus_plus(pair: PredictPair, scale: Scalar) -> Predict:
    """Guide x0 at a scale in [0, 1] and leave the noise unconditional (Chung et al. 2024, algorithm 2).

    With `ddim` the step is x' = alpha' x0_guided + sigma' noise_unconditional. It is that of classifier-free guidance
    at the scale lambda rho / (rho - rho') with rho = sigma / alpha, which grows without bound as the steps shrink: it
    has no limit of small steps, and the number of steps is part of the guidance.

    Args:
        pair: the predictions with and without the condition.
        scale: lambda in [0, 1]; may be traced.

    Raises:
        ValueError: if `scale` is known and lies outside [0, 1].
    """
    if not isinstance(scale, Tracer) and not 0.0 <= float(scale) <= 1.0:
        raise ValueError(f"the scale of CFG++ must lie in [0, 1], got {scale}; 0 is unconditional, 1 conditional")

    def predict(x: Sample, level: Level) -> Prediction:
        conditional, unconditional = pair(x, level)
        return Prediction(combine(conditional, unconditional, scale).x0, unconditional.noise)

    return predict
