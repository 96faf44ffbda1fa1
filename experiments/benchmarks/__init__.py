"""Speed and memory against the best peers, as ratios measured in one run.

Each group is a module with `measure(config, run)` and a name in `PARTS`, and has its sizes in a field of `Config`.
"""

import dataclasses
import importlib
from collections.abc import Mapping

from experiments.benchmarks.claims import CLAIMS
from experiments.run_directory import RunDirectory

__all__ = [
    "CLAIMS",
    "PARTS",
    "PRESETS",
    "PRESET_NOTES",
    "Config",
    "FlowSizes",
    "SamplerSizes",
    "SimulationSizes",
    "check",
    "run",
]


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
class FlowSizes:
    """Sizes of the sweeps that train a linear attention layer."""

    sequences: int = 10_000
    """Sequences of the training set."""
    timed_sequences: int = 2_500
    """Sequences that what takes time in proportion is timed on, a multiple of `block`."""
    check: bool = True
    """Whether both sides are timed once on all sequences as well."""
    length: int = 100
    """Tokens of a sequence."""
    dimension: int = 5
    """Coordinates of a token."""
    epochs: int = 200
    """Epochs of a sweep; of the peer two are timed."""
    block: int = 100
    """Sequences whose features jaxgen holds at once."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads that torch is timed with; the fastest counts."""


@dataclasses.dataclass(frozen=True)
class SimulationSizes:
    """Sizes of the simulations of conditional Gaussians."""

    replicates: int = 500
    """Data sets that jaxgen draws, fits and measures at once, a multiple of 25."""
    points: int = 500
    """Points that a total variation is estimated on."""
    timed_points: int = 500
    """Points that the peer, whose time grows with them in proportion, is timed on."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure jaxgen against diffusers, k-diffusion, hackable_diffusion, MesaOpt and Multi-Souce-GM, as ratios."""

    repetitions: int = 12
    """Ratios measured of each comparison, at least 8: the units of its test."""
    isolated: bool = True
    """Whether each of these is measured in a process of its own, or all in this one, whose layout they then share."""
    seconds: float = 1.0
    """Time that one ratio is measured for, in seconds."""
    samplers: SamplerSizes = SamplerSizes()
    flows: FlowSizes = FlowSizes()
    simulations: SimulationSizes = SimulationSizes()


PRESETS: Mapping[str, Config] = {
    "ci": Config(
        repetitions=8,
        isolated=False,
        seconds=0.1,
        flows=FlowSizes(timed_sequences=400, check=False),
        simulations=SimulationSizes(replicates=50, timed_points=20),
    ),
    "default": Config(),
    "gpu": Config(repetitions=8),
}
PRESET_NOTES = {
    "ci": "a minute on 2 CPU cores: samplers at the sizes of default, fewer and shorter repetitions, in one process",
    "default": "eleven minutes on 2 CPU cores, which nothing else may use; on the CPU, also where there is a GPU",
    "gpu": "four minutes on one GPU: the comparisons of the samplers there",
}
PARTS = {
    "samplers": "sampling loops: time a step, memory, compilations",
    "flows": "training a linear attention layer from several starts: time of the sweep",
    "total_variation": "simulations of conditional Gaussians: time a data set",
}


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
    _check_flows(config.flows)
    for name, count in dataclasses.asdict(config.simulations).items():
        if not 2 <= count <= 100_000:
            raise ValueError(f"--simulations.{name.replace('_', '-')} must lie between 2 and 100000, got {count}")
    if (replicates := config.simulations.replicates) % 25:
        raise ValueError(f"--simulations.replicates must be a multiple of 25, got {replicates}")
    if run.preset == "gpu":
        import jax

        if (found := jax.devices()[0].platform) != "gpu":
            raise ValueError(f"the preset gpu measures a GPU, and jax sees a {found} here; use --preset default")


def _check_flows(sizes: FlowSizes) -> None:
    # Of 8 d^3 features every pair has a correlation, which must fit into memory.
    least, most = {"length": 3}, {"dimension": 6, "threads": 1024}
    for name, value in dataclasses.asdict(sizes).items():
        found, option = value if isinstance(value, tuple) else (value,), f"--flows.{name.replace('_', '-')}"
        low, high = least.get(name, 1), most.get(name, 100_000)
        if name != "check" and not (found and low <= min(found) <= max(found) <= high):
            raise ValueError(f"{option} must lie between {low} and {high}, got {value}")
        if name.endswith("sequences") and found[0] % sizes.block:
            raise ValueError(f"{option} must be a multiple of --flows.block, which is {sizes.block}, got {value}")


def run(config: Config, run: RunDirectory) -> None:
    """Measure the groups that are asked for, one after the other."""
    for group in PARTS if run.part is None else (run.part,):
        importlib.import_module(f"experiments.benchmarks.{group}").measure(config, run)
