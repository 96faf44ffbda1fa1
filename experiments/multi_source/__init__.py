"""A Theory for Conditional Generative Modeling on Multiple Data Sources, as claims that are measured.

One conditional model of K sources shares parameters between them, K models share none. For conditional Gaussians every
error is known exactly; for small autoregressive and energy-based models it is a finite sum; for images it is measured
on real handwritten digits with EDM2, where how much the sources have in common is a knob.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from experiments.multi_source import settings_check
from experiments.multi_source.claims import CLAIMS
from experiments.run_directory import RunDirectory

__all__ = ["CLAIMS", "PARTS", "PRESETS", "PRESET_NOTES", "Config", "check", "run"]


@dataclasses.dataclass(frozen=True)
class Images:
    """The experiment on images: one EDM2 of K sources against K of one source each, on the same images."""

    sources: tuple[int, ...] = (3,)
    """Numbers K of sources, each a digit, or a class of --images.data; rising."""
    per_source: tuple[int, ...] = (40, 90)
    """Numbers of training images of a source, drawn without replacement."""
    similarities: tuple[float, ...] = (0.5, 1.0)
    """Shares of a digit's pixels that lie alike in all sources, in [0, 1], rising; each source permutes the others its
    own way."""
    seeds: int = 3
    """Training seeds, each with sources, images, pixels, parameters and noise of its own; 3 at least for a verdict."""
    steps: int = 400
    """Training steps; in each, both arms see the same images with the same noise."""
    batch_size: int = 16
    """Images of each source in a step."""
    learning_rate: float = 0.02
    """Learning rate before it decays."""
    reference_batches: float = 300.0
    """Training steps after which it decays, with the root of the images seen."""
    ramp_batches: float = 40.0
    """Training steps over which it rises from 0."""
    width: int = 16
    """Features of the network's highest resolution."""
    multipliers: tuple[int, ...] = (1, 2)
    """Features of each level over the width; from one level to the next the sides halve."""
    blocks: int = 1
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_sides: tuple[int, ...] = (4,)
    """Sides of the resolutions whose blocks attend."""
    channels_per_head: int = 16
    """Features of an attention head."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the products; the parameters are float32."""
    samples: int = 120
    """Images drawn of each source and arm."""
    sampling_steps: int = 16
    """Steps of Heun's method."""
    features: int = 16
    """Principal components of held-out images that Fréchet distances are measured on."""
    held_out: int = 1000
    """Most images of a source that are held out to compare with; the digits leave about 85."""
    data: Path | None = None
    """Folder of PNG or JPEG images (a sub-folder a class), or folder or zip of stored latents, to take instead of the
    digits."""
    side: int = 32
    """Pixels to which the images of --images.data are cut and scaled; latents have sides of their own."""
    class_lists: tuple[Literal["first", "mixed", "mammals", "dogs"], ...] = ("first",)
    """Classes of --images.data: the first, or the paper's lists of ImageNet's classes in the order of rising
    similarity, mixed, mammals, dogs."""
    schedule: Literal["matched", "paper", "paper-nlr"] = "matched"
    """Steps and rates: alike in both arms as set above, or the paper's of each arm, which last differently; nlr is its
    slower one for 10 sources of 1,000 images."""
    accumulate: int = 1
    """Parts that a gradient is computed in, one after the other, to save memory; divides the batch."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure when one generative model of several sources beats one model each: theory, simulations and images."""

    replicates: int = 10_000
    """Data sets of each of the 15 cells of the Gaussian sweeps."""
    test_points: int = 500
    """Fresh points on which the paper's Monte-Carlo total variation of a replicate is taken."""
    chunk: int = 250
    """Replicates of one call of a compiled program, rounded up to 25 for each device; it changes no number."""
    bound_replicates: int = 10_000
    """Data sets on which violations of the bound are counted, for each finite family and level."""
    sharing_replicates: int = 10_000
    """Data sets of each point of the sweep of sources that differ where they are taken to agree."""
    model_sources: tuple[int, ...] = (2, 4, 8)
    """Numbers of sources of the autoregressive and energy-based models."""
    model_replicates: int = 1600
    """Data sets on which the convex models are fitted, for each number of sources."""
    network_seeds: int = 10
    """Laws, data sets and initial values of the same models as networks."""
    network_steps: int = 400
    """Training steps of these networks."""
    network_similarities: tuple[float, ...] = (0.0, 0.5, 1.0)
    """How alike the laws are that they learn: 0, drawn one by one, to 1, alike but for their condition embeddings."""
    images: Images = Images()
    """The experiment on images."""


PRESETS: Mapping[str, Config] = {
    "ci": Config(
        replicates=200,
        chunk=100,
        bound_replicates=2000,
        sharing_replicates=1000,
        model_sources=(2, 8),
        model_replicates=40,
        network_seeds=3,
        network_steps=150,
        network_similarities=(0.0, 1.0),
        images=Images(
            per_source=(90,),
            seeds=1,
            steps=30,
            samples=60,
            sampling_steps=8,
            multipliers=(1,),
            attention_sides=(),
            held_out=80,
        ),
    ),
    "default": Config(),
    "gpu": Config(
        replicates=20_000,
        chunk=1000,
        model_replicates=6400,
        network_seeds=20,
        network_steps=2000,
        images=Images(
            sources=(3, 10),
            per_source=(40, 100),
            seeds=3,
            steps=3000,
            width=32,
            channels_per_head=32,
            reference_batches=1500.0,
            ramp_batches=150.0,
            samples=1000,
            sampling_steps=32,
        ),
    ),
    "paper": Config(
        replicates=20_000,
        chunk=1000,
        images=Images(
            sources=(3, 10),
            per_source=(500, 1000),
            seeds=3,
            width=128,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention_sides=(16, 8),
            channels_per_head=64,
            dtype="bfloat16",
            samples=5000,
            sampling_steps=32,
            features=64,
            held_out=300,
            class_lists=("mixed", "dogs"),
            schedule="paper",
            accumulate=16,
        ),
    ),
}
PRESET_NOTES = {
    "ci": "less than two minutes on 2 CPU cores: few seeds, and one training seed on images, which decides nothing",
    "default": "a quarter of an hour on 2 CPU cores: three training seeds of two small networks on images",
    "gpu": "the full grid on images: 3 or 10 digits, 40 or 100 images of each, two similarities; in parts",
    "paper": "EDM2-XS on classes of ImageNet: --images.data takes latents (stabilityai/sd-vae-ft-mse, as EDM2's "
    "dataset_tool.py writes them) or images; about 1e21 operations, for a cluster",
}
PARTS = {
    "gaussian": "conditional Gaussians: sources, samples and similarity swept, beside the exact curves",
    "bound": "the bound: bracketing numbers, how often it is violated, and where it says nothing",
    "sharing": "when sharing hurts: sources that differ where they are taken to agree",
    "models": "autoregressive and energy-based models in both arms, with exact total variation",
    "images": "EDM2 on images: one network of K sources against K networks",
}
_MODULES = {
    "gaussian": "sweeps",
    "bound": "bounds",
    "sharing": "sharing",
    "models": "likelihood_models",
    "images": "images",
}


def check(config: Config, run: RunDirectory) -> None:
    """Refuse, before anything is written, what measures nothing, and networks that were trained otherwise."""
    settings_check.check_numbers(config)
    if run.part in (None, "images"):
        settings_check.check_images(config.images)
        from experiments.multi_source import image_networks

        image_networks.check(config, run)


def run(config: Config, run: RunDirectory) -> None:
    """Measure the claims part by part."""
    for part, module in _MODULES.items():
        if run.part in (None, part):
            importlib.import_module(f"experiments.multi_source.{module}").measure(config, run)
