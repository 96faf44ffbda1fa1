"""The main job: conditional diffusion models of real handwritten digits, and every sampler on them.

Data: the 1,797 digits of 8 x 8 pixels that travel with scikit-learn (Alpaydin & Kaynak 1998, UCI, CC BY 4.0), 1,200 to
train on and 597 held out. Two small networks learn them, one to denoise (Karras et al. 2022), one the velocity of
straight paths (flow matching), and so does an EDM2 (Karras et al. 2024). Their samples are compared with the held-out
digits, beside real digits and beside one Gaussian per class, which a statistic has to tell apart to be worth reading.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Literal

from experiments.digits.claims import CLAIMS
from experiments.run_directory import RunDirectory

__all__ = ["CLAIMS", "PRESETS", "PRESET_NOTES", "Config", "check", "run"]


@dataclasses.dataclass(frozen=True)
class Convolutional:
    """The network that learns the images of --data."""

    width: int = 32
    """Features of the highest resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Features of each level over the width; from one level to the next the sides halve."""
    blocks: int = 1
    """Residual blocks of a level."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the products; the parameters are float32."""
    remat: bool = False
    """Compute the inside of a block again in the backward pass, which takes less memory."""


@dataclasses.dataclass(frozen=True)
class EDM2Sizes:
    """EDM2 (Karras et al. 2024), of the digits or of the images of --data."""

    width: int = 16
    """Features of the highest resolution."""
    multipliers: tuple[int, ...] = (1, 2)
    """Features of each level over the width; from one level to the next the sides halve."""
    blocks: int = 1
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_sides: tuple[int, ...] = (4,)
    """Sides of the resolutions whose blocks attend."""
    channels_per_head: int = 16
    """Features of an attention head."""
    dropout: float = 0.0
    """Rate of dropout inside the blocks."""
    steps: int = 2000
    """Training steps on the digits; on the images of --data, --steps counts."""
    batch_size: int = 64
    """Digits in a training step; of the images of --data, --batch-size counts."""
    learning_rate: float = 0.02
    """Learning rate before it decays."""
    reference_batches: float = 600.0
    """Training steps after which it decays, with the root of the images seen."""
    ramp_images: float = 6400.0
    """Images over which it rises from 0."""
    snapshots: int = 16
    """Snapshots of the averages in a training, from which --ema-width makes others."""
    sampling_steps: int = 32
    """Steps of Heun's method, and of every other sampler of EDM2 on the digits."""
    seeds: int = 4
    """Sampling seeds of its claim."""
    widths: tuple[float, ...] = (0.02, 0.1, 0.2)
    """Widths of the average that the Fréchet distance is drawn against, besides 0.05, as shares of the training."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a diffusion model on real handwritten digits; sample it by DDPM, DDIM, CFG, PCG and flow matching."""

    steps: int = 8000
    """Training steps of each of the two networks."""
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
    """Features of the residual stream of each network."""
    hidden: int = 512
    """Features inside a block."""
    blocks: int = 3
    """Residual blocks."""
    model: Literal["all", "small", "edm2"] = "all"
    """Networks: edm2, or small ones: two MLPs for the digits, a U-Net for --data; all, with --data, is the U-Net."""
    sampler: Literal["all", "ddim", "ddpm", "flow", "heun", "pcg"] = "all"
    """What to sample with: all measures the claims, one alone draws the images asked for below; --data has ddim, EDM2
    heun too."""
    gamma: float = 1.0
    """Guidance scale of the images asked for: 0 unconditional, 1 conditional, above 1 extrapolates."""
    samples: int = 64
    """Number of images asked for."""
    label: int | None = None
    """Digit (of --data: class, from 0 in the order of their names) asked for; every one in turn where left out."""
    sampling_steps: int = 100
    """Steps of every sampler of the small networks, except where their number is what is varied."""
    corrector_steps: int = 1
    """Langevin steps of PCG at each noise level."""
    seeds: int = 8
    """Sampling seeds of each claim, with as many images as are held out for each."""
    subsets: int = 20
    """Subsets of the training images, and as many draws of Gaussians, that the claims are printed beside."""
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
    """Guidance scales of the curve of quality against guidance."""
    step_counts: tuple[int, ...] = (5, 10, 20, 50, 100, 200)
    """Numbers of steps of the curve of quality against steps."""
    pair_seeds: int = 32
    """Sampling seeds of the comparison of PCG with DDPM, whose difference is small."""
    curve_seeds: int = 2
    """Sampling seeds of each point of these curves."""
    edm2: EDM2Sizes = EDM2Sizes()
    """Sizes and training of EDM2."""
    ema_width: float | None = None
    """Sample EDM2 with an average of this width, a share of the training, made from the run's snapshots; else 0.05."""
    data: Path | None = None
    """Folder of PNG or JPEG images (a sub-folder a class) or ArrayRecord files to learn instead of the digits."""
    side: Literal[32, 64] = 32
    """Pixels to which the images of --data are cut and scaled."""
    conv: Convolutional = Convolutional()
    """Sizes of that network."""
    mirror: bool = False
    """Mirror half of the images of --data, left for right."""
    accumulate: int = 1
    """Parts that the gradient of a batch of --data is computed in, to save memory."""
    workers: int = 0
    """Processes that read the images of --data; 0 reads in threads of this one."""
    steps_per_transfer: int = 8
    """Batches of --data that go to the devices at once."""


_MOST = 1_000_000
_OF_IMAGES = (
    *("side", "conv.width", "conv.multipliers", "conv.blocks", "conv.dtype", "conv.remat"),
    *("mirror", "accumulate", "workers", "steps_per_transfer"),
)
_OF_DIGITS = ("width", "hidden", "blocks", "largest_shift")
_OF_SMALL = (*_OF_DIGITS, "steps", "batch_size", "learning_rate", "ema_half_life", "sampling_steps")
_OF_U_NET = (
    *("learning_rate", "ema_half_life", "conv.width", "conv.multipliers", "conv.blocks"),
    *("edm2.steps", "edm2.batch_size", "edm2.seeds", "edm2.widths"),
)

PRESETS: Mapping[str, Config] = {
    "ci": Config(
        steps=300,
        width=128,
        hidden=256,
        seeds=2,
        subsets=3,
        scales=(3.0,),
        step_counts=(100,),
        pair_seeds=2,
        curve_seeds=1,
        edm2=EDM2Sizes(steps=60, ramp_images=1600.0, snapshots=2, sampling_steps=6, seeds=2, widths=()),
    ),
    "default": Config(),
}
PRESET_NOTES = {
    "ci": "one to two minutes on 2 CPU cores: smaller networks, digits that a person reads, too coarse for most gates",
    "default": "ten to fifteen minutes on 2 CPU cores: every gate is met; the stricter row M2 stays open",
}


def check(config: Config, run: RunDirectory) -> None:
    """Refuse, before anything is written, what cannot be trained or sampled, and runs that were trained otherwise."""
    _check_numbers(config)
    _check_heeded(config, model=run.source is None)
    from experiments.digits import edm2, folder, networks

    if config.data is not None:
        folder.check(config, run)
        return
    if _small(config):
        networks.check(config, run)
    if _edm2(config):
        edm2.check(config, run)


def run(config: Config, run: RunDirectory) -> None:
    """Train the networks or take those of another run, then measure the claims or draw the images asked for."""
    from experiments.digits import edm2, folder, measuring, networks, requested

    if config.data is not None:
        folder.run_folder(config, run)
        return
    small = networks.obtain(config, run) if _small(config) else None
    large = edm2.obtain(config, run) if _edm2(config) else None
    if config.sampler == "all":
        measuring.measure(config, run, small, large)
    else:
        requested.draw(config, run, small, large)


def _small(config: Config) -> bool:
    return config.model != "edm2"


def _edm2(config: Config) -> bool:
    """Return whether EDM2 is needed: images are asked of one network, the small one unless it is named."""
    return config.model == "edm2" or (config.model == "all" and config.sampler == "all")


def _check_numbers(config: Config) -> None:
    for name in ("steps", "batch_size", "samples", "sampling_steps", "corrector_steps", "curve_seeds"):
        if not 1 <= getattr(config, name) <= _MOST:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must lie between 1 and {_MOST}, got {getattr(config, name)}")
    for name in ("steps", "batch_size", "snapshots"):
        if getattr(config.edm2, name) < 1:
            raise ValueError(f"--edm2.{name.replace('_', '-')} must be at least 1, got {getattr(config.edm2, name)}")
    if config.edm2.seeds < 2:
        raise ValueError(f"--edm2.seeds must be at least 2, got {config.edm2.seeds}")
    if not 1 <= config.edm2.sampling_steps <= _MOST:
        raise ValueError(f"--edm2.sampling-steps must lie between 1 and {_MOST}, got {config.edm2.sampling_steps}")
    for name in ("seeds", "pair_seeds", "subsets"):
        if getattr(config, name) < 2:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 2, got {getattr(config, name)}")
    if config.sampler == "heun" and config.model != "edm2":
        raise ValueError("--sampler heun is for EDM2; add --model edm2")
    if config.sampler == "flow" and config.model == "edm2":
        raise ValueError("--sampler flow is for the small networks; EDM2 is a denoiser: heun, ddim, ddpm or pcg")
    if config.ema_width is not None and config.model != "edm2":
        raise ValueError("--ema-width is for EDM2, of which a run keeps snapshots; add --model edm2")
    if config.label_dropout == 0 and config.gamma != 1:
        raise ValueError(
            f"--gamma {config.gamma:g} takes a network that has seen hidden labels; drop --label-dropout 0"
        )
    if config.data is None and config.label is not None and not 0 <= config.label <= 9:
        raise ValueError(f"--label must be a digit from 0 to 9, got {config.label}")
    if not config.scales or not config.step_counts or min(config.step_counts) < 1:
        raise ValueError("--scales and --step-counts take at least one value, and a number of steps is at least 1")


def _check_heeded(config: Config, *, model: bool) -> None:
    """Refuse what was asked of a network or of data that this run does not have.

    Args:
        config: the settings.
        model: whether to look at the networks' own options too; those of another run come along with it.
    """
    if config.data is None:
        _refuse(config, _OF_IMAGES, [Config()], "images of your own; name their folder with --data, or drop it")
    else:
        # A preset sets some of the digits' sizes, which nobody has asked for.
        why = "the digits; drop it, the options --conv are for --data"
        _refuse(config, _OF_DIGITS, list(PRESETS.values()), why)
    if not model:
        return
    if config.model == "edm2":
        names = _OF_SMALL if config.data is None else _OF_U_NET
        _refuse(config, names, list(PRESETS.values()), "the small networks; see --edm2, or drop --model edm2")
    elif config.model == "small" or config.data is not None:
        names = [f"edm2.{field.name}" for field in dataclasses.fields(EDM2Sizes)]
        _refuse(config, names, list(PRESETS.values()), "EDM2; add --model edm2, or drop it")


def _refuse(config: Config, names: Sequence[str], base: Sequence[Config], why: str) -> None:
    for name in names:
        field = attrgetter(name)
        if field(config) not in [field(preset) for preset in base]:
            raise ValueError(f"--{name.replace('_', '-')} is for {why}")
