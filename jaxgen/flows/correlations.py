"""Exact correlations of a linear attention layer's features over a population of sequences x_t = lambda^(t-1) x_1.

With e_i = (x_i, x_{i-1}) and x_0 = 0 the layer of Zheng et al. 2024, section 3.2 predicts

    y_{t,j} = sum over k, m, n of B_jk A_mn S_kmn(t),    S_kmn(t) = 1 / (t-1) sum_{i <= t} e_{i,k} conj(e_{i,m}) e_{t,n}

where B is the block of W^PV that reads values, and A that of W^KQ between keys (rows) and query (columns). The
expectation over the phases is 1 where the exponent of every lambda_c vanishes, and else 0, so that each correlation of
S is a moment of the first token times a weighted count of positions.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxgen.flows.assumptions import check_dimension, check_length
from jaxgen.flows.start_laws import StartLaw
from jaxgen.typing import ArrayLike

_LARGEST = {False: 10, True: 8}  # without and with all blocks: up to a gigabyte for tables of moments and counts


class Correlations(NamedTuple):
    """What the expected loss of a linear attention layer depends on, F features and d coordinates.

    Attributes:
        gram: sum over t of Re E[S S'^*], `[F, F]`.
        cross: sum over t of Re E[S conj(x_{t+1,j})], `[d, F]`.
        constant: half the sum over t of E|x_{t+1}|^2, which is the loss of predicting 0.
    """

    gram: Float[Array, "features features"]
    cross: Float[Array, "dim features"]
    constant: Float[Array, ""]


def population_correlations(law: StartLaw, length: int, dimension: int, *, full: bool = False) -> Correlations:
    """Return the correlations over the whole population of sequences with diagonal W.

    The cost is independent of any number of sequences and grows as length^2. The law's parameters may be traced.

    Args:
        law: of the first token.
        length: number of tokens T, at least 3.
        dimension: coordinates d of a token.
        full: take all blocks, F = 8 d^3 features, and not W32 and W12 alone, F = d^3.

    Raises:
        ValueError: length or dimension is too small, or the correlations would not fit into memory.

    >>> from jaxgen.flows import gaussian_start
    >>> found = population_correlations(gaussian_start(), 3, 1)
    >>> found.gram.tolist(), found.cross.tolist(), float(found.constant)
    ([[15.0]], [[3.0]], 0.5)
    """
    check_length(length)
    check_dimension(dimension)
    if dimension > _LARGEST[full]:
        raise ValueError(
            f"dimension must be at most {_LARGEST[full]}, whose {(8 if full else 1) * _LARGEST[full] ** 3} features "
            f"fit into memory, got {dimension}: rates() and limit_product() of the diagonal model know no limit"
        )
    places, blocks = _places(dimension), _blocks(full)
    gram_counts, cross_counts = _gram_counts(length, dimension, full), _cross_counts(length, dimension, full)
    moments = _known(law.moments(_exponents(_pairs(places), dimension))).reshape(len(places), len(places))
    gram = _interleave(moments[None, :, None, :] * gram_counts.astype(moments.dtype), blocks, dimension)
    moments = _known(law.moments(_exponents(_targets(places, dimension), dimension))).reshape(dimension, len(places))
    cross = _interleave(moments[:, None, :] * cross_counts.astype(moments.dtype), blocks, dimension)
    constant = 0.5 * (length - 2) * _known(law.moments(2 * np.eye(dimension, dtype=int))).sum()
    return Correlations(*(jnp.asarray(leaf, moments.dtype) for leaf in (gram, cross, constant)))


def _known(moments: Array) -> ArrayLike:
    """Bring moments to the host where they are not traced: what is done with them has a shape for each size."""
    return moments if isinstance(moments, Tracer) else np.asarray(moments)


def _blocks(full: bool) -> list[tuple[int, ...]]:
    """List the blocks of values, keys and queries: 0 for x_i, 1 for x_{i-1}."""
    # In the sector a value x_i meets the key x_{i-1} and the query x_t.
    return list(itertools.product((0, 1), repeat=3)) if full else [(0, 1, 0)]


def _places(dimension: int) -> Int[np.ndarray, "places 3"]:
    return np.array(list(itertools.product(range(dimension), repeat=3)))


def _pairs(places: Int[np.ndarray, "places 3"]) -> Int[np.ndarray, "pairs 6"]:
    return np.concatenate([np.repeat(places, len(places), axis=0), np.tile(places, (len(places), 1))], axis=1)


def _targets(places: Int[np.ndarray, "places 3"], dimension: int) -> Int[np.ndarray, "rows 4"]:
    targets = np.repeat(np.arange(dimension), len(places))[:, None]
    return np.concatenate([np.tile(places, (dimension, 1)), targets], axis=1)


# The counts are the same for every law, and take most of the time.
@functools.lru_cache(maxsize=8)
def _gram_counts(length: int, dimension: int, full: bool) -> Float[np.ndarray, "blocks places blocks places"]:
    """Count what survives in E[S S'], for every pair of features."""
    places, blocks, counter = _places(dimension), _blocks(full), _Counter(length)
    patterns, of_pair = np.unique(_canonical(_pairs(places)), axis=0, return_inverse=True)
    counts = np.array(
        [[[counter.pair(pattern, (*left, *right)) for right in blocks] for left in blocks] for pattern in patterns]
    )
    return counts[of_pair.reshape(len(places), len(places))].transpose(2, 0, 3, 1)


@functools.lru_cache(maxsize=8)
def _cross_counts(length: int, dimension: int, full: bool) -> Float[np.ndarray, "dim blocks places"]:
    """Count what survives in E[S conj(x_{t+1})], for every feature and coordinate."""
    places, blocks, counter = _places(dimension), _blocks(full), _Counter(length)
    patterns, of_pair = np.unique(_canonical(_targets(places, dimension)), axis=0, return_inverse=True)
    counts = np.array([[counter.target(pattern, block) for block in blocks] for pattern in patterns])
    return counts[of_pair.reshape(dimension, len(places))].transpose(0, 2, 1)


class _Counter:
    """Weighted counts of the positions at which a product of tokens does not average to 0."""

    def __init__(self, length: int):
        t = np.arange(2, length)
        self.length = length
        self.first, self.second = np.meshgrid(np.arange(1, length), np.arange(1, length), indexing="ij")
        # tails[s] is the weight of all t from s to length - 1.
        self.tails = np.zeros(length + 1)
        self.tails[2:length] = np.cumsum((1.0 / (t - 1.0) ** 2)[::-1])[::-1]
        self.tails[:2] = self.tails[2]
        self.known: dict = {}

    def pair(self, pattern: np.ndarray, shifts: Sequence[int]) -> float:
        """Sum 1 / (t-1)^2 over the t and i, i' <= t where e_i e_i^* e_t and the conjugate of its like survive."""
        k, m, n, k2, m2, n2 = shifts
        terms = ((1, 0, 0, -1 - k), (-1, 0, 0, 1 + m), (0, 0, 1, -1 - n))
        terms += ((0, -1, 0, 1 + k2), (0, 1, 0, -1 - m2), (0, 0, -1, 1 + n2))
        equations = _equations(pattern, terms)
        least = 1 + max(k, m), 1 + max(k2, m2)
        key = frozenset(equations), least
        if key not in self.known:
            self.known[key] = self._count(equations, least)
        return self.known[key]

    def target(self, pattern: np.ndarray, shifts: Sequence[int]) -> float:
        """Return the sum over t and i <= t of 1 / (t-1) where e_i e_i^* e_t conj(x_{t+1}) survives."""
        k, m, n = shifts
        equations = _equations(pattern, ((1, 0, 0, -1 - k), (-1, 0, 0, 1 + m), (0, 0, 1, -1 - n), (0, 0, -1, 0)))
        t, i = np.meshgrid(np.arange(2, self.length), np.arange(1, self.length), indexing="ij")
        kept = (i <= t) & (i >= 1 + max(k, m))
        for of_i, _, of_t, offset in equations:
            kept &= of_i * i + of_t * t + offset == 0
        return float((kept / (t - 1.0)).sum())

    def _count(self, equations: set, least: tuple[int, int]) -> float:
        i, j = self.first, self.second
        kept = (i >= least[0]) & (j >= least[1])
        solved = next((equation for equation in equations if equation[2]), None)
        if solved is None:
            for of_i, of_j, _, offset in equations:
                kept = kept & (of_i * i + of_j * j + offset == 0)
            return float(self.tails[np.maximum(i, j)[kept]].sum())
        # One equation holds t, which it gives for each (i, i').
        t = -(solved[0] * i + solved[1] * j + solved[3]) // solved[2]
        kept = kept & (t >= np.maximum(i, j)) & (t >= 2) & (t < self.length)
        for of_i, of_j, of_t, offset in equations:
            kept = kept & (of_i * i + of_j * j + of_t * t + offset == 0)
        return float((1.0 / (t[kept] - 1.0) ** 2).sum())


def _equations(pattern: np.ndarray, terms: Sequence[tuple[int, int, int, int]]) -> set[tuple[int, int, int, int]]:
    """Add up the exponents of the factors that share a coordinate; what vanishes identically says nothing."""
    totals: dict[int, np.ndarray] = {}
    for coordinate, term in zip(pattern.tolist(), terms, strict=True):
        totals[coordinate] = totals.get(coordinate, np.zeros(4, dtype=int)) + np.array(term)
    return {tuple(total.tolist()) for total in totals.values() if total.any()}


def _canonical(indices: Int[np.ndarray, "rows places"]) -> Int[np.ndarray, "rows places"]:
    """Number the coordinates of each row in the order of their first appearance."""
    same = indices[:, :, None] == indices[:, None, :]
    return same.argmax(axis=2)


def _exponents(indices: Int[np.ndarray, "rows places"], dimension: int) -> Int[np.ndarray, "rows dim"]:
    return (indices[:, :, None] == np.arange(dimension)).sum(axis=1)


def _interleave(array: ArrayLike, blocks: Sequence, dimension: int) -> ArrayLike:
    """Bring `[..., blocks, places]` axes into the order of features, k then m then n over all their blocks."""
    if len(blocks) == 1:
        features = dimension**3
        return array.reshape(features, features) if array.ndim == 4 else array.reshape(dimension, features)
    split = (2, 2, 2, dimension, dimension, dimension)
    order = (0, 3, 1, 4, 2, 5)
    features = 8 * dimension**3
    if array.ndim == 4:
        moved = array.reshape(*split, *split).transpose(*order, *(6 + place for place in order))
        return moved.reshape(features, features)
    return array.reshape(dimension, *split).transpose(0, *(1 + place for place in order)).reshape(dimension, features)
