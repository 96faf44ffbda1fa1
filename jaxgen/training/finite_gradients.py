"""Gradients whose entries that are not finite are set to zero, and counted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxgen.typing import Params


class NonfiniteState(NamedTuple):
    """How many entries were set to zero; over stacked seeds, one number each."""

    last: Int[Array, "..."]
    """In the last gradient."""
    total: Int[Array, "..."]
    """In all of them, at most the largest int32."""


def zero_nonfinite(gradient: Params) -> tuple[Params, Int[Array, ""]]:
    """Set the entries of a gradient that are NaN or infinite to zero, and leave the others to the bit.

    For recipes that ask for it: the published code of Karras et al. 2024, whose networks compute in half precision,
    does so before each step of Adam. The count tells what it hides.

    Args:
        gradient: a tree of arrays.

    Returns:
        The gradient, and how many entries were set to zero, as an int32.

    >>> gradient, count = zero_nonfinite({"w": jnp.array([1.0, jnp.nan, -jnp.inf])})
    >>> gradient["w"].tolist(), int(count)
    ([1.0, 0.0, 0.0], 2)
    """
    finite = jax.tree.map(jnp.isfinite, gradient)
    mended = jax.tree.map(lambda good, leaf: jnp.where(good, leaf, jnp.zeros_like(leaf)), finite, gradient)
    counts = [jnp.sum(~good, dtype=jnp.int32) for good in jax.tree.leaves(finite)]
    return mended, sum(counts, start=jnp.zeros((), jnp.int32))


def zeroing_nonfinite() -> optax.GradientTransformation:
    """Return `zero_nonfinite` as the first link of an optax chain, whose state counts the entries.

    >>> optimiser = optax.chain(zeroing_nonfinite(), optax.scale(2.0))
    >>> update, state = optimiser.update(jnp.array([1.0, jnp.nan]), optimiser.init(jnp.zeros(2)))
    >>> update.tolist(), int(state[0].last)
    ([2.0, 0.0], 1)
    """

    def init(params):
        del params
        return NonfiniteState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        updates, last = zero_nonfinite(updates)
        # A sum that stops at the largest number instead of wrapping round.
        return updates, NonfiniteState(last, last + jnp.minimum(state.total, jnp.iinfo(jnp.int32).max - last))

    return optax.GradientTransformation(init, update)
