"""Convex autoregressive and energy-based models: exponential families whose errors are finite sums.

Maximum likelihood is a concave problem in both, so that Newton's method finds it to the last digits, and the law of the
error is known to leading order. One source's parameters are `{"shared": ..., "own": ...}`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.typing import Params, PRNGKey

_SPREAD = 0.5  # standard deviation of true parameters
_TOKENS, _LENGTH = 3, 4
_SIDE = 24
_SHARED_WAVES = ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1))
_OWN_WAVES = ((1, 2), (2, 2))


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A convex family of laws on a finite support.

    Attributes:
        name: what figures and claims call it.
        log_prob: maps one source's parameters to the log density at every node of the support.
        weights: of the nodes; densities times weights sum to 1.
        shapes: of the shared and the own parameters.
        samples: n, of all sources together.
        ranks: how many directions of the shared and of the own parameters of a source the data see.
    """

    name: str
    log_prob: Callable[[Params], Float[Array, " nodes"]]
    weights: Float[np.ndarray, " nodes"]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    samples: int
    ranks: tuple[int, int]

    def draw(self, key: PRNGKey) -> Params:
        """Draw the true parameters of one source."""
        size = math.prod(self.shapes[0])
        drawn = _SPREAD * jax.random.normal(key, (size + math.prod(self.shapes[1]),))
        return {"shared": drawn[:size].reshape(self.shapes[0]), "own": drawn[size:].reshape(self.shapes[1])}

    def rank_of_multi(self, num_sources: int) -> int:
        """Return the rank of the Fisher information of one model of all sources."""
        return self.ranks[0] + num_sources * self.ranks[1]

    def rank_of_single(self, num_sources: int) -> int:
        """Return the rank of the Fisher information of separate models."""
        return num_sources * sum(self.ranks)

    def rank_ratio(self, num_sources: int) -> float:
        """Return the ratio of errors that counting parameters predicts, sqrt(rank_multi / rank_single)."""
        return float(np.sqrt(self.rank_of_multi(num_sources) / self.rank_of_single(num_sources)))


def is_own(path: str) -> bool:
    """Tell whether a parameter is a source's own."""
    return path == "own"


@cache
def families() -> tuple[Family, Family]:
    """Return both families."""
    return autoregressive_family(), energy_family()


def autoregressive_family() -> Family:
    """Describe sequences of 4 tokens of 3, whose logits are a table by position and previous token plus an own shift.

    The last logit is 0. A common shift of all sources' own parameters can be undone by the table, so that the data see
    2 directions of the shared parameters less: c (M - 1) + (K - 1) (M - 1) in all, c = 1 + (D - 1) M contexts.
    """
    sequences, contexts = _sequences(_TOKENS, _LENGTH)
    count, free = 1 + (_LENGTH - 1) * _TOKENS, _TOKENS - 1

    def log_prob(params: Params) -> Float[Array, " nodes"]:
        logits = params["shared"] + params["own"][None]
        table = jax.nn.log_softmax(jnp.concatenate([logits, jnp.zeros((count, 1), logits.dtype)], axis=1))
        return table[contexts, sequences].sum(axis=1)

    weights, shapes = np.ones(len(sequences)), ((count, free), (free,))
    return Family("autoregressive", log_prob, weights, shapes, 4000, (count * free - free, free))


def energy_family() -> Family:
    """Describe densities on the unit square, exponentials of six shared and two own products of cosines."""
    nodes = midpoints(_SIDE)
    shared, own = (np.stack([_wave(nodes, *pair) for pair in pairs], axis=1) for pairs in (_SHARED_WAVES, _OWN_WAVES))

    def log_prob(params: Params) -> Float[Array, " nodes"]:
        dtype = params["shared"].dtype
        exponent = jnp.asarray(shared, dtype) @ params["shared"] + jnp.asarray(own, dtype) @ params["own"]
        return exponent - jax.nn.logsumexp(exponent) + np.log(len(nodes))

    sizes = shared.shape[1], own.shape[1]
    weights = np.full(len(nodes), 1 / len(nodes))
    return Family("energy-based", log_prob, weights, ((sizes[0],), (sizes[1],)), 2000, sizes)


def sample_counts(key: PRNGKey, mass: Float[Array, "sources nodes"], count: int) -> Float[Array, "sources nodes"]:
    """Draw samples of sources and nodes together, and count how often each pair comes.

    Args:
        key: typed key, consumed.
        mass: probability of each pair; all of them sum to 1.
        count: samples of all sources together.
    """
    cumulative = jnp.cumsum(mass.reshape(-1))
    drawn = jnp.searchsorted(cumulative, cumulative[-1] * jax.random.uniform(key, (count,), mass.dtype), side="right")
    return jnp.zeros(mass.size, mass.dtype).at[drawn].add(1.0).reshape(mass.shape)


def midpoints(side: int) -> Float[np.ndarray, "nodes 2"]:
    """Return the midpoints of side x side equal cells of the unit square."""
    centres = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2)


def _sequences(tokens: int, length: int) -> tuple[Int[np.ndarray, "nodes length"], Int[np.ndarray, "nodes length"]]:
    """Return all sequences, and at each position the row of a table by position and previous token."""
    sequences = np.array(list(itertools.product(range(tokens), repeat=length)))
    contexts = np.zeros_like(sequences)
    contexts[:, 1:] = 1 + tokens * np.arange(length - 1)[None] + sequences[:, :-1]
    return sequences, contexts


def _wave(points: Float[np.ndarray, "nodes 2"], first: int, second: int) -> Float[np.ndarray, " nodes"]:
    """Return a product of cosines of mean square 1 on the unit square."""
    scale = np.sqrt(2.0) if 0 in (first, second) else 2.0
    return scale * np.cos(np.pi * first * points[:, 0]) * np.cos(np.pi * second * points[:, 1])
