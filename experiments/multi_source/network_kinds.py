"""The two kinds of network of several sources, each on a support that can be summed over."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from experiments.multi_source.families import midpoints
from jaxgen.models import (
    AutoregressiveMLP,
    AutoregressiveMLPConfig,
    EnergyMLP,
    EnergyMLPConfig,
    Model,
    abstract_params,
)
from jaxgen.typing import Params, PRNGKey

_SIDE, _STRIDE = 128, 8


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A kind of network on a finite support.

    Attributes:
        name: what figures and claims call it.
        module: the network of one source.
        samples: n, of all sources together.
        field: maps one source's parameters to what the network says of the whole support: logits or energies.
        log_prob: maps such a field to the log probabilities of all states.
        data: maps states that were drawn from one source to what the likelihood needs of them.
        log_likelihood: maps one source's parameters, its data and the training step to the log-likelihood.
    """

    name: str
    module: Model
    samples: int
    field: Callable[[Params], Array]
    log_prob: Callable[[Array], Float[Array, " states"]]
    data: Callable[[Array], Array]
    log_likelihood: Callable[[Params, Array, Array], Float[Array, ""]]

    def init(self, key: PRNGKey) -> Params:
        """Draw the parameters of one source: normal, with the variances of the module's own initialisers.

        In one draw for all parameters, since the programs of many small ones take seconds to compile.
        """
        shapes = abstract_params(self.module)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        flat, unravel = ravel_pytree(zeros)
        drawn = unravel(jax.random.normal(key, flat.shape, flat.dtype))
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _scaled(path[-1].key, leaf), drawn)


def is_specific(path: str) -> bool:
    """Tell whether every source has a parameter of its own: the condition embedding alone."""
    return path == "condition"


@cache
def kinds() -> tuple[Kind, Kind]:
    """Return both kinds."""
    return _autoregressive(), _energy()


def _autoregressive() -> Kind:
    """Describe sequences of 6 tokens of 3: the network is asked once for each of the 364 beginnings."""
    config = AutoregressiveMLPConfig(tokens=3, length=6, embedding=8, width=32, layers=3)
    module = AutoregressiveMLP(config)
    states = np.array(list(itertools.product(range(config.tokens), repeat=config.length)))
    begun = [np.arange(config.tokens**t) for t in range(config.length)]
    # A beginning of t tokens is the number that they write in base M, after all shorter ones.
    offsets = np.cumsum([0, *(len(part) for part in begun[:-1])])
    places = config.tokens ** np.arange(config.length)
    positions = np.repeat(np.arange(config.length), [len(part) for part in begun])
    beginnings = np.concatenate([_digits(part, t, config.tokens, config.length) for t, part in enumerate(begun)])
    rows = np.stack([offsets[t] + states[:, :t] @ places[:t][::-1] for t in range(config.length)], axis=1)

    def field(params: Params) -> Array:
        return cast(Array, module.apply({"params": params}, beginnings, positions))

    def log_prob(logits: Array) -> Array:
        return jax.nn.log_softmax(logits)[rows, states].sum(axis=1)

    def data(drawn: Array) -> Array:
        counts = jnp.zeros((len(positions), config.tokens))
        return counts.at[jnp.asarray(rows)[drawn], jnp.asarray(states)[drawn]].add(1.0)

    def log_likelihood(params: Params, counts: Array, step: Array) -> Array:
        del step
        return jnp.sum(counts * jax.nn.log_softmax(field(params)))

    return Kind("autoregressive", module, 4000, field, log_prob, data, log_likelihood)


def _digits(numbers: np.ndarray, count: int, base: int, length: int) -> np.ndarray:
    """Write numbers with `count` digits, and zeros after them."""
    found = numbers[:, None] // base ** np.arange(count)[::-1][None] % base
    return np.pad(found, ((0, 0), (0, length - count)))


def _energy() -> Kind:
    """Describe laws on the midpoints of 128 x 128 cells of the unit square.

    In training the partition function is a sum over every 8th node in both directions and those that mirror them in
    their cells, 512 of the nodes, others in each step: between fixed ones a network would soon learn to hide mass.
    """
    module = EnergyMLP(EnergyMLPConfig(dimension=2, embedding=4, width=64, layers=2))
    nodes = jnp.asarray(midpoints(_SIDE), jnp.float32)
    grid = np.arange(_SIDE**2).reshape(_SIDE // _STRIDE, _STRIDE, _SIDE // _STRIDE, _STRIDE)
    lattices = grid.transpose(1, 3, 0, 2).reshape(_STRIDE**2, -1)
    # A lattice that lies to one side of its cells is mirrored by another, so that the sum is off by second order only.
    pairs = np.concatenate([lattices, lattices[::-1]], axis=1)[: _STRIDE**2 // 2]
    # Neighbouring lattices tell much the same: an order of chance takes them far apart.
    pairs = jnp.asarray(np.random.default_rng(0).permutation(pairs))

    def energies(params: Params, points: Array) -> Array:
        return cast(Array, module.apply({"params": params}, points))

    def log_likelihood(params: Params, points: Array, step: Array) -> Array:
        # One call for both, since a product of many rows is faster than two of fewer.
        found = energies(params, jnp.concatenate([points, nodes[pairs[step % len(pairs)]]]))
        return jnp.sum(-found[: len(points)] - jax.nn.logsumexp(-found[len(points) :]))

    return Kind(
        "energy-based",
        module,
        2000,
        field=lambda params: energies(params, nodes),
        log_prob=lambda found: jax.nn.log_softmax(-found),
        data=lambda drawn: nodes[drawn],
        log_likelihood=log_likelihood,
    )


def _scaled(name: str, leaf: Array) -> Array:
    if name == "kernel":
        return leaf * np.sqrt(2 / leaf.shape[0]).astype(leaf.dtype)
    if name == "mixing":
        return jnp.full_like(leaf, 1 / np.sqrt(leaf.shape[0]))
    return jnp.zeros_like(leaf) if name == "bias" else leaf
