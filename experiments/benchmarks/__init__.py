"""Speed and memory against the best peers, as ratios measured in one run.

Each group is a module with `measure(config, run)` and a name in `PARTS`, and has its sizes in a field of `Config`.
"""

import dataclasses
import importlib
from collections.abc import Mapping

from experiments.benchmarks.claims import CLAIMS
from experiments.run_directory import RunDirectory

__all__ = ["CLAIMS", "PARTS", "PRESETS", "PRESET_NOTES", "Config", "SamplerSizes", "check", "run"]


@dataclasses.dataclass(frozen=True)
class SamplerSizes:
    """Sizes of what the samplers are timed on."""

    steps: int = 50
    """Steps of a run of each sampler, except where a network of real size is what takes the time."""
    width: int = 64
    """Features of the small network, which has two hidden layers."""
    batch_size: int = 16
    """Samples drawn at once with the small network."""
    free_batch_size: int = 256
    """Samples drawn at once with the denoiser that costs nothing."""
    digits_batch_size: int = 256
    """Images drawn at once with the network of the digits."""
    digits_steps: int = 10
    """Steps with the network of the digits."""
    guided_batch_size: int = 16
    """Images drawn at once under guidance, where the batch is what is compared."""
    memory_steps: tuple[int, ...] = (10, 30, 100, 300, 1000)
    """Numbers of steps of the curve of memory; the last is the one of the claim."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure speed and memory against diffusers, k-diffusion and hackable_diffusion; a ratio above 1: jaxgen wins."""

    repetitions: int = 12
    """Ratios measured of each comparison, at least 8: the units of its test."""
    isolated: bool = True
    """Whether each of these is measured in a process of its own, or all in this one, whose layout they then share."""
    seconds: float = 1.0
    """Time that one ratio is measured for, in seconds."""
    samplers: SamplerSizes = SamplerSizes()


PRESETS: Mapping[str, Config] = {
    "ci": Config(repetitions=8, isolated=False, seconds=0.1),
    "default": Config(),
    "gpu": Config(repetitions=8),
}
PRESET_NOTES = {
    "ci": "half a minute on 2 CPU cores, at the sizes of default: fewer and shorter repetitions, in one process",
    "default": "four minutes on 2 CPU cores, which nothing else may use; on the CPU, also where there is a GPU",
    "gpu": "four minutes on one GPU: the same comparisons there",
}
PARTS = {"samplers": "sampling loops: time a step, memory, compilations"}


def check(config: Config, run: RunDirectory) -> None:
    """Refuse sizes that nothing can be measured on, and the preset of a GPU where there is none."""
    if not 8 <= config.repetitions <= 1000:
        raise ValueError(f"--repetitions must lie between 8 and 1000, got {config.repetitions}")
    if not 0 < config.seconds <= 60:
        raise ValueError(f"--seconds must lie in (0, 60], got {config.seconds:g}")
    for name, value in dataclasses.asdict(config.samplers).items():
        sizes, least = value if isinstance(value, tuple) else (value,), 2 if name.endswith("steps") else 1
        option = f"--samplers.{name.replace('_', '-')}"
        if not sizes or not least <= min(sizes) <= max(sizes) <= 100_000:
            raise ValueError(f"{option} must lie between {least} and 100000, got {value}")
    if run.preset == "gpu":
        import jax

        if (found := jax.devices()[0].platform) != "gpu":
            raise ValueError(f"the preset gpu measures a GPU, and jax sees a {found} here; use --preset default")


def run(config: Config, run: RunDirectory) -> None:
    """Measure the groups that are asked for, one after the other."""
    for group in PARTS if run.part is None else (run.part,):
        importlib.import_module(f"experiments.benchmarks.{group}").measure(config, run)
