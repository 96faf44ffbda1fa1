"""Guidance: rules that combine the predictions under a condition and without it.

A `PredictPair` gives both; every rule is built on one, so that with `batched_pair` each of them makes one evaluation of
the network on a batch of two. Scale 0 is unconditional, 1 conditional, above 1 extrapolates.
"""

from jaxgen.diffusion.guidance.classifier_free import (
    LevelScale,
    PredictGiven,
    PredictPair,
    autoguidance,
    batched_pair,
    check_scale,
    classifier_free,
    combine,
    guide,
    guide_pair,
    interval_scale,
    separate_pair,
)
from jaxgen.diffusion.guidance.plus_plus import cfg_plus_plus
from jaxgen.diffusion.guidance.projected import projected_guidance
from jaxgen.diffusion.guidance.rescaled import View, noise_view, rescale, rescaled_guidance, v_view, x0_view

__all__ = [
    "LevelScale",
    "PredictGiven",
    "PredictPair",
    "View",
    "autoguidance",
    "batched_pair",
    "cfg_plus_plus",
    "check_scale",
    "classifier_free",
    "combine",
    "guide",
    "guide_pair",
    "interval_scale",
    "noise_view",
    "projected_guidance",
    "rescale",
    "rescaled_guidance",
    "separate_pair",
    "v_view",
    "x0_view",
]
