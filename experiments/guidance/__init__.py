"""Classifier-free guidance as a predictor-corrector: which law guided sampling reaches, and how PCG explains it.

The problems go from Gaussians and clusters, for which every score is known, to one Gaussian per handwritten digit in 64
dimensions and to a network trained on real digits. Guidance scales are total weights: 1 is the conditional model.
"""

import dataclasses
from collections.abc import Mapping

from experiments.guidance.claims import CLAIMS
from experiments.run_directory import RunDirectory

__all__ = ["CLAIMS", "PRESETS", "PRESET_NOTES", "Config", "check", "run"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure which laws guided DDIM, guided DDPM and predictor-corrector guidance (PCG) sample."""

    particles: int = 49_152
    """Samples of one seed on the Gaussian problem."""
    cluster_particles: int = 32_768
    """Samples of one seed on two clusters; three times as many on three, where few samples fall between them."""
    seeds: int = 16
    """Independent seeds of each claim on these problems and on the Gaussians of digits; three times as many for D5."""
    exact_steps: int = 250
    """Steps of the coarser of two runs whose results are extrapolated to small steps; the finer takes twice as many."""
    scan_steps: int = 800
    """Steps of the runs with several corrections at each level; on three clusters 3 times with 1, twice with 2."""
    corrections: tuple[int, ...] = (1, 2, 3, 5, 10, 20)
    """Numbers of corrections of these runs, 1, 2 and 20 among them."""
    cells: int = 800
    """Cells of the grid on which Fokker-Planck equations are solved; half as many bound the error."""
    scan_particles: int = 12_288
    """Samples of one seed in these runs; on three clusters 3 times with 1 correction, twice with 2."""
    learned_sizes: tuple[int, ...] = (20, 200)
    """Points under the condition that small networks learn three clusters from."""
    learned_seeds: int = 8
    """Networks for each of these numbers of points, each with points of its own."""
    learned_steps: int = 4000
    """Training steps of these networks, which are trained all at once."""
    learned_samples: int = 4096
    """Samples of each of these networks and scales."""
    orders: tuple[int, ...] = (20, 40, 80, 160)
    """Numbers of steps over which the order of the variance's error is fitted."""
    strong_orders: tuple[int, ...] = (50, 100, 200, 400, 800)
    """Numbers of steps over which the order of the distance under the same noise is fitted."""
    strong_particles: int = 3000
    """Samples of one seed in this fit."""
    smc_particles: int = 16_384
    """Weighted particles of one run of sequential Monte Carlo."""
    class_samples: int = 1350
    """Samples of one seed from the Gaussian of a digit in 64 dimensions; half of them by DDIM and PCG at gamma."""
    class_steps: int = 400
    """Steps of these runs."""
    class_scales: tuple[float, ...] = (2.0, 4.0)
    """Guidance scales of these runs."""
    class_label: int = 3
    """Digit of these runs, 0 to 9."""
    digit_scales: tuple[float, ...] = (3.0, 5.0)
    """Guidance scales of the comparison on real digits."""
    digit_seeds: int = 20
    """Sampling seeds of this comparison."""
    digit_samples: int = 250
    """Images of one seed."""
    digit_steps: int = 100
    """Predictor steps of PCG; guided DDPM takes twice as many."""
    fidelity_steps: int = 200
    """Predictor steps of PCG where scales and numbers of corrections are compared by a classifier."""
    fidelity_samples: int = 30
    """Images of one seed in this comparison."""
    permutations: int = 999
    """Permutations of each kernel test."""
    grid_scales: tuple[float, ...] = (1.0, 3.0, 5.0, 9.0)
    """Scales of PCG in the picture of scale against corrections."""
    grid_corrections: tuple[int, ...] = (1, 2, 5, 10)
    """Numbers of corrections in this picture."""
    steps: int = 8000
    """Training steps of the network."""
    batch_size: int = 256
    """Images in a training step."""
    learning_rate: float = 2e-3
    """Peak of the learning rate, reached after 100 steps and falling to 0 along a cosine."""
    ema_half_life: float = 200.0
    """Half-life of the average of the parameters, in training steps."""
    label_dropout: float = 0.15
    """Share of labels hidden in training, in [0, 1): what makes guidance possible."""
    largest_shift: float = 1.0
    """Pixels by which training images are shifted at most, told to the network; 0 for no shifts."""
    width: int = 256
    """Features of the residual stream of the network."""
    hidden: int = 512
    """Features inside a block."""
    blocks: int = 3
    """Residual blocks."""


PRESETS: Mapping[str, Config] = {
    "ci": Config(
        particles=16_384,
        cluster_particles=4096,
        seeds=4,
        exact_steps=100,
        scan_steps=100,
        scan_particles=1024,
        corrections=(1, 2, 20),
        cells=400,
        learned_seeds=4,
        learned_steps=500,
        learned_samples=512,
        orders=(20, 80),
        strong_orders=(50, 200),
        strong_particles=2000,
        smc_particles=4096,
        class_samples=200,
        class_steps=50,
        class_scales=(4.0,),
        digit_scales=(4.0,),
        digit_seeds=4,
        digit_samples=120,
        digit_steps=20,
        fidelity_steps=20,
        fidelity_samples=60,
        permutations=199,
        grid_scales=(1.0, 5.0),
        grid_corrections=(1, 5),
        steps=400,
        width=128,
        hidden=256,
    ),
    "default": Config(),
}
PRESET_NOTES = {
    "ci": "a minute on 2 CPU cores: fewer samples and a small network, many rows stay open",
    "default": "14 to 15 minutes on 2 CPU cores: enough seeds for verdicts that survive Holm's correction",
}


def check(config: Config, run: RunDirectory) -> None:
    """Refuse, before anything is written, what measures nothing, and runs whose network was trained otherwise."""
    _check_numbers(config)
    from experiments.guidance import digits

    digits.check(config, run)


def run(config: Config, run: RunDirectory) -> None:
    """Measure the claims on known scores, then on Gaussians of digits, then on a network trained on digits."""
    from experiments.guidance import class_gaussians, correctors, digits, equivalence, laws, learned, yardstick

    for part in (laws, learned, equivalence, correctors, yardstick, class_gaussians, digits):
        part.measure(config, run)


def _check_numbers(config: Config) -> None:
    for name in ("seeds", "learned_seeds", "digit_seeds"):
        if getattr(config, name) < 2:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 2, got {getattr(config, name)}")
    for name in dataclasses.fields(Config):
        value, option = getattr(config, name.name), f"--{name.name.replace('_', '-')}"
        if name.type in ("int", int) and name.name != "class_label" and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
        if isinstance(value, tuple) and not value:
            raise ValueError(f"{option} takes at least one value")
    for name in ("orders", "strong_orders", "grid_corrections", "learned_sizes"):
        if min(getattr(config, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {min(getattr(config, name))}")
    for name in ("orders", "strong_orders"):
        if len(set(getattr(config, name))) < 2:
            raise ValueError(f"--{name.replace('_', '-')} takes at least two different numbers of steps")
    for name in ("class_scales", "digit_scales"):
        if min(getattr(config, name)) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} must lie above 1, where guidance does something")
    if not {1, 2, 20} <= set(config.corrections):
        raise ValueError(f"--corrections must hold 1, 2 and 20, got {config.corrections}")
    if config.class_samples < 4:
        raise ValueError(f"--class-samples must be at least 4, got {config.class_samples}")
    if config.cells < 8:
        raise ValueError(f"--cells must be at least 8, got {config.cells}")
    if not 0 <= config.class_label <= 9:
        raise ValueError(f"--class-label must be a digit from 0 to 9, got {config.class_label}")
