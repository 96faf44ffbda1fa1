"""Step-by-Step Diffusion, an elementary tutorial, as claims that are measured.

Everything in it is exactly solvable on points and Gaussians: reverse kernels, DDPM, DDIM and flow matching are held
against closed forms. Two small networks do the rest: one learns a spiral from few points, one flows onto it from an
annulus. The algorithms are the tutorial's own listings.
"""

import dataclasses
from collections.abc import Mapping

from experiments.run_directory import RunDirectory
from experiments.step_by_step.claims import CLAIMS

__all__ = ["CLAIMS", "PRESETS", "PRESET_NOTES", "Config", "check", "run"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure what an elementary tutorial on diffusion says: reverse kernels, DDPM, DDIM, flows, and a spiral."""

    steps: int = 20_000
    """Training steps of the networks of the spiral, one for each seed and training set, all trained at once."""
    flow_steps: int = 20_000
    """Training steps of the flows from the annulus, one for each seed."""
    batch_size: int = 128
    """Draws of each network of the spiral in a training step."""
    flow_batch_size: int = 256
    """Draws of each flow in a training step."""
    learning_rate: float = 1e-3
    """Adam's, at first; it falls to 0 along a cosine."""
    width: int = 128
    """Features of a hidden layer."""
    layers: int = 3
    """Layers of each network."""
    sigma_q: float = 1.0
    """Noise at t = 1 of the spiral's networks, in standard deviations of the spiral."""
    sizes: tuple[int, ...] = (10, 20, 40)
    """Points of the spiral that a network sees, rising; the first and the last are compared."""
    seeds: int = 28
    """Seeds of each training, with training sets of their own."""
    flow_points: int = 5000
    """Points of annulus and spiral that a flow sees."""
    sampling_steps: int = 100
    """Steps of every sampler of a network."""
    samples: int = 2000
    """Samples of each network."""
    block_size: int = 500
    """Samples in one call of the program."""
    radius: float = 0.05
    """Distance to a training point below which a sample counts as memorised, in standard deviations of the spiral."""
    particles: int = 50_000
    """Samples of a seed on N(0, 1)."""
    law_steps: int = 1000
    """Steps of DDPM and DDIM on N(0, 1)."""
    law_seeds: int = 8
    """Seeds on N(0, 1)."""


PRESETS: Mapping[str, Config] = {
    "ci": Config(
        steps=2000,
        flow_steps=2000,
        batch_size=32,
        flow_batch_size=128,
        seeds=2,
        samples=500,
        particles=5000,
        law_steps=500,
        law_seeds=4,
    ),
    "default": Config(),
}
PRESET_NOTES = {
    "ci": "half a minute on 2 CPU cores: networks that are trained for a tenth of the time, two seeds",
    "default": "nine to twelve minutes on 2 CPU cores",
}
_MOST = 10_000_000


def check(config: Config, run: RunDirectory) -> None:
    """Refuse, before anything is written, what measures nothing, and runs whose networks were trained otherwise."""
    _check_numbers(config)
    from experiments.step_by_step import networks

    networks.check(config, run)


def run(config: Config, run: RunDirectory) -> None:
    """Measure what is exactly solvable, train the networks or take those of another run, and measure these."""
    from experiments.step_by_step import annulus, gaussians, identities, kernels, networks, spirals

    for part in (kernels, identities, gaussians):
        part.measure(config, run)
    trained = networks.obtain(config, run)
    for part in (spirals, annulus):
        part.measure(config, run, trained)


def _check_numbers(config: Config) -> None:
    for field in dataclasses.fields(Config):
        value, option = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        least = 2 if field.name in ("seeds", "law_seeds") else 1
        if isinstance(value, int) and not least <= value <= _MOST:
            raise ValueError(f"{option} must lie between {least} and {_MOST}, got {value}")
        if isinstance(value, float) and value <= 0:
            raise ValueError(f"{option} must be above 0, got {value:g}")
    if config.sampling_steps % 20:
        raise ValueError(f"--sampling-steps must be a multiple of 20, got {config.sampling_steps}: t = .05 is drawn")
    if len(config.sizes) < 2 or min(config.sizes) < 1 or list(config.sizes) != sorted(set(config.sizes)):
        raise ValueError(f"--sizes must be at least two rising numbers of points, got {list(config.sizes)}")
