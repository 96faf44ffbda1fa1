"""The points of the toy problems: a spiral, the annulus that flows onto it, one point and two."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

TURNS = 1.5
_INNER = 0.1  # where the radius begins, as a share of where it ends
_ANNULUS = (1.5, 2.0)
_DENSE = 40_001


class Ends(NamedTuple):
    """Samples of both ends of a flow, float32 `[..., count, 2]`: the base at t = 1 and the data at t = 0."""

    base: np.ndarray
    target: np.ndarray


# The settings of the training were chosen on the sets from 0 on; those that are judged were drawn after the choice.
_FIRST_SET = 1_000_000


def _raw(u: Float[np.ndarray, "*lead"]) -> Float[np.ndarray, "*lead 2"]:
    radius = _INNER + (1.0 - _INNER) * u
    angle = 2.0 * np.pi * TURNS * radius
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


@functools.cache
def _middle_and_scale() -> tuple[np.ndarray, float]:
    """Return mean and root mean square of the coordinates under uniform u."""
    fine = _raw((np.arange(20_000) + 0.5) / 20_000)
    middle = fine.mean(axis=0)
    return middle, float(np.sqrt(np.mean((fine - middle) ** 2)))


def spiral(u: Float[np.ndarray, "*lead"]) -> Float[np.ndarray, "*lead 2"]:
    """Return the points of the spiral at u in [0, 1], from its middle outwards: mean 0 and variance 1 a coordinate."""
    middle, scale = _middle_and_scale()
    return (_raw(np.asarray(u, np.float64)) - middle) / scale


def spiral_samples(seed: int, count: int) -> Float[np.ndarray, "count 2"]:
    """Draw points of the spiral with u uniform in [0, 1], float32; the first of many are those of few."""
    return spiral(np.random.default_rng(seed).uniform(size=count)).astype(np.float32)


def annulus_samples(seed: int, count: int) -> Float[np.ndarray, "count 2"]:
    """Draw points uniformly from an annulus around the spiral, in its units, float32."""
    random = np.random.default_rng(seed)
    inner, outer = _ANNULUS
    radius = np.sqrt(random.uniform(inner**2, outer**2, count))
    angle = random.uniform(0.0, 2.0 * np.pi, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).astype(np.float32)


def distances(points: Float[np.ndarray, "count 2"], targets: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " count"]:
    """Return the distance of each point to the nearest target."""
    return KDTree(targets).query(points)[0]


def distances_to_spiral(points: Float[np.ndarray, "count 2"]) -> Float[np.ndarray, " count"]:
    """Return the distance of each point to the spiral, to 3e-4: the spiral is taken as a dense row of points."""
    return _dense_spiral().query(points)[0]


@functools.cache
def _dense_spiral() -> KDTree:
    return KDTree(spiral(np.linspace(0.0, 1.0, _DENSE)))


def training_sets(sizes: tuple[int, ...], seeds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the training sets of every seed and size, padded to one length.

    Sets of one seed are nested: the larger ones begin with the smaller.

    Returns:
        Points `[seeds, sizes, largest, 2]`, float32, whose entries beyond the size are 0, and counts `[seeds, sizes]`.
    """
    points = np.zeros((seeds, len(sizes), max(sizes), 2), np.float32)
    for number in range(seeds):
        drawn = spiral_samples(_FIRST_SET + 1000 * seed + number, max(sizes))
        for index, size in enumerate(sizes):
            points[number, index, :size] = drawn[:size]
    return points, np.broadcast_to(np.asarray(sizes, np.int32), (seeds, len(sizes))).copy()


def flow_ends(seeds: int, count: int, seed: int) -> Ends:
    """Draw what the flow of each seed learns from: `count` points of the annulus and of the spiral, `[seeds, ...]`."""
    numbers = range(1000 * seed + 500, 1000 * seed + 500 + seeds)
    return Ends(*(np.stack([draw(n, count) for n in numbers]) for draw in (annulus_samples, spiral_samples)))
