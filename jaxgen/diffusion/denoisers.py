"""The interface between a network and a sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Predict, Prediction
from jaxgen.typing import Sample

Memory: TypeAlias = Any


class Denoiser(NamedTuple):
    """A network with a memory, for one sample of any shape.

    Attributes:
        init: maps a sample to the memory before the first step (a pytree; `()` for the common, memoryless case).
        apply: maps (memory, x, level) to (Prediction, memory). A sampler that evaluates several times in a step keeps
            the memory of the first evaluation, so that it advances once a step.
    """

    init: Callable[[Sample], Memory]
    apply: Callable[[Memory, Sample, Level], tuple[Prediction, Memory]]


def denoiser(predict: Predict) -> Denoiser:
    """Lift a plain function `predict(x, level) -> Prediction` to a denoiser without memory."""
    return Denoiser(lambda x: (), lambda memory, x, level: (predict(x, level), memory))
