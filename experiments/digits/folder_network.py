"""The network that learns the images of `--data`: a U-Net or EDM2, its recipe, and what a later run has to share."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import configuration
from experiments.digits import edm2
from experiments.run_directory import RunDirectory
from jaxgen.models import EDM2, ImageConv, ImageConvConfig
from jaxgen.pipelines import EDMObjective, Recipe, TrainingRecipe
from jaxgen.training import Snapshots

_COMMON = ("steps", "batch_size", "label_dropout", "side", "mirror")
_TRAINED = {"small": (*_COMMON, "learning_rate", "ema_half_life", "conv"), "edm2": (*_COMMON, "edm2")}
# What EDM2Sizes says of the digits alone, or of what comes after the training.
_NOT_TRAINED = ("steps", "batch_size", "sampling_steps", "seeds", "widths")
_LEVELS = 8
# Denoisers of colour images in [-1, 1] (Karras et al. 2022, table 1; 2024, table 6).
OBJECTIVES = {"small": EDMObjective(), "edm2": EDMObjective(log_sigma_mean=-0.8, log_sigma_std=1.6)}


def compare(config: Any, source: Path) -> None:
    """Refuse to take the network of `source` where it is none of images, or was trained with other settings.

    Raises:
        ValueError: names the option and both values.
    """
    stored = configuration.read_run(source)["config"]
    if stored.get("data") is None:
        raise ValueError(f"--from {source} has networks of the digits, not of images of --data; drop one of the two")
    asked = configuration.to_json(config)
    if ("edm2" if stored.get("model") == "edm2" else "small") != kind(config):
        raise ValueError(f"--from {source} has the network of --model {stored.get('model')}, got {config.model}")
    if found := configuration.differences(_of_training(config, stored), _of_training(config, asked)):
        raise ValueError(f"--from {source} takes its network as it is, but {'; '.join(found)}")


def settings(config: Any, run: RunDirectory, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what a resumed run must share; where the files lie and how they are read may change."""
    return {**_of_training(config, configuration.to_json(config)), "classes": list(classes), "seed": run.seed}


def _of_training(config: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the network of `config` is trained with, out of a configuration as JSON."""
    found = {name: asked.get(name) for name in _TRAINED[kind(config)]}
    if isinstance(sizes := found.get("edm2"), Mapping):
        found["edm2"] = {name: value for name, value in sizes.items() if name not in _NOT_TRAINED}
        found["conv.dtype"] = asked.get("conv", {}).get("dtype")
    return found


def kind(config: Any) -> str:
    """Return which network learns: the small one unless EDM2 is named."""
    return "edm2" if config.model == "edm2" else "small"


def level_edges(config: Any) -> tuple[float, ...]:
    """Return the values of ln sigma between which the loss is told apart, for EDM2 alone."""
    return OBJECTIVES["edm2"].level_edges(_LEVELS) if kind(config) == "edm2" else ()


def snapshots(config: Any, folder: Path) -> contextlib.AbstractContextManager:
    """Open the folder of the averages of EDM2, and nothing for another network."""
    if kind(config) == "edm2":
        return Snapshots(folder, widths=edm2.WIDTHS)
    return contextlib.nullcontext()


def snapshot_every(config: Any) -> int | None:
    """Return the updates between two snapshots of the averages, None for a network without."""
    return max(config.steps // config.edm2.snapshots, 1) if kind(config) == "edm2" else None


def model(config: Any, num_classes: int) -> ImageConv | EDM2:
    """Build the network."""
    shape, conv = (config.side, config.side, 3), config.conv
    dtype = None if conv.dtype == "float32" else conv.dtype
    if kind(config) == "edm2":
        return edm2.network(config, shape, num_classes, dtype=dtype, remat=conv.remat)
    return ImageConv(
        ImageConvConfig(
            shape,
            num_classes,
            width=conv.width,
            multipliers=tuple(conv.multipliers),
            blocks=conv.blocks,
            dtype=dtype,
            remat=conv.remat,
        )
    )


def recipe(config: Any) -> TrainingRecipe:
    """Build its recipe."""
    if kind(config) == "edm2":
        return edm2.recipe(
            config,
            steps=config.steps,
            batch_size=config.batch_size,
            mirror=config.mirror,
            accumulate=config.accumulate,
        )
    return Recipe(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        ema_half_life=config.ema_half_life,
        label_dropout=config.label_dropout,
        largest_shift=0.0,
        mirror=config.mirror,
        accumulate=config.accumulate,
    )
