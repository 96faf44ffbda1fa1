"""Correlations of a linear attention layer's features over sequences that were drawn.

They take one matrix product, after which no sample is looked at again.

With the sequences split over the devices of a mesh the sums over them are made by the compiler.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from jaxgen.flows.assumptions import check_length
from jaxgen.flows.correlations import Correlations
from jaxgen.typing import ArrayLike, PRNGKey

_product = partial(jnp.matmul, precision="highest")


def sample_features(
    x: Inexact[ArrayLike, "batch time dim"], *, full: bool = False
) -> Inexact[Array, "batch positions features"]:
    """Return S_kmn(t) at t = 2 ... T-1 of each sequence.

    Args:
        x: sequences.
        full: of all blocks, 8 d^3 features, and not of W32 and W12 alone, d^3.

    Raises:
        ValueError: sequences have fewer than 3 tokens.
    """
    values, keys, queries = _tokens(x, full)
    outer = values[..., :, None] * keys.conj()[..., None, :]
    steps = jnp.arange(1, x.shape[1] - 1, dtype=outer.real.dtype)  # t - 1 for t = 2 ... T-1
    means = jnp.cumsum(outer, axis=1)[:, 1:-1] / steps[None, :, None, None]
    features = means[..., None] * queries[:, 1:-1, None, None, :]
    return features.reshape(*features.shape[:2], -1)


@partial(jax.jit, static_argnames=("full",))
def sample_correlations(x: Inexact[ArrayLike, "batch time dim"], *, full: bool = False) -> Correlations:
    """Return the correlations over the given sequences, as means over them.

    The features are held for all sequences at once: many go through `mean_over_draws`, block by block.

    Args:
        x: sequences.
        full: of all blocks of the parameters, and not of W32 and W12 alone.

    Raises:
        ValueError: sequences have fewer than 3 tokens.
    """
    features = sample_features(x, full=full)
    rows, goals = features.reshape(-1, features.shape[-1]), jnp.asarray(x)[:, 2:].reshape(-1, x.shape[-1])
    gram = _product(rows.real.T, rows.real) + _product(rows.imag.T, rows.imag)
    cross = _product(goals.real.T, rows.real) + _product(goals.imag.T, rows.imag)
    constant = 0.5 * (goals.real**2 + goals.imag**2).sum()
    return Correlations(gram / x.shape[0], cross / x.shape[0], constant / x.shape[0])


def last_ratio(
    x: Inexact[ArrayLike, "batch time dim"], *, full: bool = False, floor: float = 0.0
) -> tuple[Float[Array, "dim features"], Float[Array, " dim"]]:
    """Return what the mean ratio of prediction to target at the last position is, which is linear in the weights.

    Of targets with a density at 0 the ratio has a mean where the weights are diagonal, and none where they are not: a
    weight between two coordinates adds x_k^3 / x_j, and 1 / |x_j| has no mean. A floor gives it one.

    Args:
        x: sequences.
        full: of all blocks.
        floor: targets that are no larger count as 0.

    Returns:
        The mean over sequences of Re(S_F(T-1) / x_{T,j}), in which what has a target of 0 counts as 0: the ratio is the
        sum of the layer's weights times it. And the share of the other targets, by which to divide where these alone
        are to count.

    Raises:
        ValueError: sequences have fewer than 3 tokens.
    """
    values, keys, queries = (part[:, :-1] for part in _tokens(x, full))
    outer = jnp.einsum("nik,nim->nkm", values, keys.conj(), precision="highest") / (x.shape[1] - 2)
    features = (outer[..., None] * queries[:, -1, None, None, :]).reshape(x.shape[0], -1)
    target = jnp.asarray(x)[:, -1]
    present = jnp.abs(target) > floor
    inverse = jnp.where(present, 1.0, 0.0) / jnp.where(present, target, 1.0)
    found = _product(inverse.real.T, features.real) - _product(inverse.imag.T, features.imag)
    return found / x.shape[0], present.astype(found.dtype).mean(axis=0)


def mean_over_draws(
    statistic: Callable[[Array], PyTree],
    key: PRNGKey,
    draw: Callable[[PRNGKey, int, Array], Array],
    count: int,
    *,
    block: int = 250,
    sharding: Any = None,
) -> PyTree:
    """Draw sequences in blocks and return the mean of a statistic over them, whose sums are double where enabled.

    Args:
        statistic: maps a block of sequences to means over it.
        key: consumed.
        draw: maps (key, block, first) to the sequences first ... first + block - 1.
        count: number of sequences, a multiple of `block`.
        block: sequences that are held at once.
        sharding: of the sequences of a block over a mesh, or None.

    Raises:
        ValueError: `count` is not a positive multiple of `block`.
    """
    if count < 1 or block < 1 or count % block:
        raise ValueError(f"count must be a positive multiple of the block of {block} sequences, got {count}")

    def of_block(first: Array) -> PyTree:
        x = draw(key, block, first)
        x = x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), statistic(x))

    def body(total: PyTree, first: Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, of_block(first)), None

    shapes = jax.eval_shape(of_block, jax.ShapeDtypeStruct((), jnp.int32))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(body, zero, block * jnp.arange(count // block, dtype=jnp.int32))
    return jax.tree.map(lambda leaf: leaf / (count // block), total)


def one_hot_correlations(x: Inexact[ArrayLike, "batch time dim"], *, full: bool = False) -> Correlations:
    """Return `sample_correlations` of sequences of one coordinate each, from those of sequences with d = 1.

    Features of several coordinates vanish: a sequence adds to the 8 features of its coordinate alone, 1 in the sector.

    Raises:
        ValueError: a sequence has not exactly one coordinate that is not 0.
    """
    x = jnp.asarray(x)
    present = np.abs(np.asarray(x[:, 0])) > 0
    if (present.sum(axis=1) != 1).any():
        raise ValueError("every sequence must have exactly one coordinate that is not 0; use sample_correlations")
    place = jnp.asarray(present.argmax(axis=1))
    return _place_one_hot(jnp.take_along_axis(x, place[:, None, None], axis=2), place, x.shape[-1], full)


@partial(jax.jit, static_argnames=("d", "full"))
def _place_one_hot(alone: Array, place: Array, d: int, full: bool) -> Correlations:
    """Add up the correlations of sequences of one coordinate each, `[batch, time, 1]`, at the features of theirs."""
    each = jax.vmap(lambda one: sample_correlations(one[None], full=full))(alone)
    by_place = jax.tree.map(lambda leaf: jax.ops.segment_sum(leaf, place, d) / len(place), each)
    n = 2 * d if full else d
    own = np.array([[j, d + j] if full else [j] for j in range(d)])
    at = (own[:, :, None, None] * n**2 + own[:, None, :, None] * n + own[:, None, None, :]).reshape(d, -1)
    gram = jnp.zeros((n**3, n**3)).at[at[:, :, None], at[:, None, :]].set(by_place.gram)
    cross = jnp.zeros((d, n**3)).at[np.arange(d)[:, None], at].set(by_place.cross[:, 0])
    return Correlations(gram, cross, by_place.constant.sum())


def _tokens(x: Inexact[ArrayLike, "batch time dim"], full: bool) -> tuple[Array, Array, Array]:
    """Return the parts of the tokens that are read as values, as keys and as queries."""
    chex.assert_rank(x, 3)
    check_length(x.shape[1])
    x = jnp.asarray(x)
    before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    both = jnp.concatenate([x, before], axis=-1)
    return (both, both, both) if full else (x, before, x)
