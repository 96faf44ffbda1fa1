"""The classes and durations of the paper's experiment on ImageNet, from the authors' code."""

from typing import NamedTuple

CLASS_LISTS = {
    "dogs": (171, 182, 198, 208, 215, 231, 236, 244, 245, 258),
    "mammals": (171, 269, 279, 283, 294, 330, 340, 366, 370, 386),
    "mixed": (171, 1, 18, 31, 46, 532, 579, 609, 849, 980),
}
"""ImageNet's class numbers, the most alike first; fewer sources take the first ones."""
RISING = ("mixed", "mammals", "dogs")
"""The lists from different classes to similar ones."""


class Duration(NamedTuple):
    """How long a network was trained, and how fast.

    Attributes:
        images: that it saw.
        learning_rate: before it falls.
        reference_batches: batches after which it falls.
    """

    images: int
    learning_rate: float
    reference_batches: float


BATCH_SIZE = 2048
MULTIPLE = 128  # of images of a source in a step: what any number of devices and of parts divides
RAMP_IMAGES = 10e6
DURATIONS = {
    (1, 100): Duration(50_331_648, 0.0040, 4000),
    (1, 500): Duration(134_217_728, 0.0040, 2000),
    (1, 1000): Duration(184_549_376, 0.0050, 2500),
    (3, 100): Duration(67_108_864, 0.0020, 2000),
    (3, 500): Duration(67_108_864, 0.0020, 2500),
    (3, 1000): Duration(67_108_864, 0.0020, 2500),
    (5, 100): Duration(67_108_864, 0.0040, 4000),
    (5, 500): Duration(134_217_728, 0.0060, 4000),
    (5, 1000): Duration(100_663_296, 0.0060, 4000),
    (10, 100): Duration(67_108_864, 0.0030, 3000),
    (10, 500): Duration(100_663_296, 0.0030, 3000),
    (10, 1000): Duration(402_653_184, 0.0060, 3000),
}
"""By the number of sources of a network and the images of each."""
SLOWER = {(10, 1000): Duration(1_610_612_736, 0.0040, 6000)}
"""What the code calls `nlr`: four times as long, at a lower rate."""


def duration(sources: int, per_source: int, *, slower: bool = False) -> Duration:
    """Return how the paper trained a network of so many sources, `slower` where it did so in two ways.

    Raises:
        ValueError: it trained none of that size.
    """
    if (sources, per_source) not in DURATIONS:
        known = ", ".join(f"K = {k} with {n}" for k, n in DURATIONS)
        raise ValueError(
            f"--images.schedule paper knows networks of {known} images of each source, not K = {sources} with "
            f"{per_source}; choose among them, or --images.schedule matched"
        )
    known_ones = {**DURATIONS, **SLOWER} if slower else DURATIONS
    return known_ones[sources, per_source]
