"""Settings that measure nothing, refused before anything is written; nothing here imports jax."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.multi_source.paper_settings import RISING

_MOST = 10_000_000
_DIGITS = 10
_FEWEST_IMAGES = 174  # of a digit, in scikit-learn's set
_GROUPS = 20


def check_numbers(config: Any) -> None:
    """Refuse numbers out of range.

    Raises:
        ValueError: names the option, the range and the number.
    """
    for name, least in (
        ("replicates", 2 * _GROUPS),  # groups of at least 2
        ("test_points", 1),
        ("chunk", 1),
        ("bound_replicates", 100),
        ("sharing_replicates", 2 * _GROUPS),
        ("model_replicates", 8),
        ("network_seeds", 2),
        ("network_steps", 1),
    ):
        _check_between(name, getattr(config, name), least, _MOST)
    _check_rising("model_sources", config.model_sources, 2, 64)
    _check_rising("network_similarities", config.network_similarities, 0, 1)
    if len(config.model_sources) < 2:
        raise ValueError(f"--model-sources takes at least two numbers, got {list(config.model_sources)}")


def check_images(images: Any) -> None:
    """Refuse settings of the experiment on images.

    Raises:
        ValueError: names the option, the range and the number.
    """
    if images.data is None and images.schedule != "matched":
        raise ValueError(
            f"--images.schedule {images.schedule} trains on ImageNet, which does not travel with this package: name a "
            "folder or zip of its latents or images (image-net.org) with --images.data, or leave images out with --part"
        )
    for name in ("seeds", "steps", "batch_size", "sampling_steps", "features", "side", "accumulate"):
        _check_between(f"images.{name}", getattr(images, name), 1, _MOST)
    for name in ("learning_rate", "reference_batches"):
        if not 0 < getattr(images, name) < float("inf"):
            raise ValueError(f"--images.{_option(name)} must be above 0, got {getattr(images, name)}")
    if not 0 <= images.ramp_batches < float("inf"):
        raise ValueError(f"--images.ramp-batches must be at least 0, got {images.ramp_batches}")
    _check_rising("images.sources", images.sources, 2, _DIGITS if images.data is None else 1000)
    _check_rising("images.per_source", images.per_source, 2, _MOST)
    _check_rising("images.similarities", images.similarities, 0, 1)
    _check_class_lists(images.class_lists)
    _check_read(images)
    if images.batch_size % images.accumulate:
        raise ValueError(
            f"--images.accumulate must divide --images.batch-size {images.batch_size}, got {images.accumulate}"
        )
    least = fewest_images(images.features)
    if images.samples < least:
        raise ValueError(
            f"--images.samples must be at least {least} for {images.features} features, got {images.samples}"
        )
    held_out = images.held_out
    if images.data is None:
        held_out = min(held_out, _FEWEST_IMAGES - max(images.per_source))
    if held_out < least:
        raise ValueError(
            f"--images.per-source {max(images.per_source)} and --images.held-out {images.held_out} leave {held_out} "
            f"images of a source to compare with, and {images.features} features take at least {least}; lower "
            "--images.per-source or --images.features"
        )


def fewest_images(features: int) -> int:
    """Return how many images a debiased Fréchet distance on so many features takes.

    One of 20 groups is left out in turn, and more samples than dimensions have to remain.
    """
    return -(-20 * (features + 1) // 19) + 1


def _check_class_lists(lists: Sequence[str]) -> None:
    order = [name for name in ("first", *RISING) if name in lists]
    if not lists or list(lists) != order or ("first" in lists and len(lists) > 1):
        raise ValueError(
            f"--images.class-lists takes first alone, or some of {', '.join(RISING)} in this order, from different "
            f"classes to similar ones; got {' '.join(lists)}"
        )


def _check_read(images: Any) -> None:
    """Refuse options that the others make void."""
    defaults = {field.name: field.default for field in dataclasses.fields(images)}
    rates = ("steps", "batch_size", "learning_rate", "reference_batches", "ramp_batches")
    for names, void, why in (
        (("similarities",), images.data is not None, "is for the digits, and --images.data is given"),
        (("class_lists", "side"), images.data is None, "is for --images.data, which is not given"),
        (rates, images.schedule != "matched", f"is for matched arms, and --images.schedule is {images.schedule}"),
    ):
        for name in names:
            if void and getattr(images, name) != defaults[name]:
                raise ValueError(f"--images.{_option(name)} {why}; leave it out")


def _check_between(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"--{_option(name)} must lie between {least} and {most}, got {value}")


def _check_rising(name: str, values: Sequence[float], least: float, most: float) -> None:
    if not values or list(values) != sorted(set(values)):
        raise ValueError(f"--{_option(name)} must rise from number to number, got {list(values)}")
    for value in values:
        if not least <= value <= most:
            raise ValueError(f"--{_option(name)} must lie between {least} and {most}, got {value}")


def _option(name: str) -> str:
    return name.replace("_", "-")
