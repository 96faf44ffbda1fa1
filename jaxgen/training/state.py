"""The state of a training run as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from jaxgen.typing import Params


class TrainState(NamedTuple):
    """Everything that a step of training changes.

    A state may be stacked over seeds: every field but `step` then has a leading seed axis (see `SEED_AXES`). The axes
    of a `vmap` over a state have the same form, hence `Any`.
    """

    step: Int[Array, ""] | Any
    """The next step to run, which is the number of steps done; `fit` advances it."""
    params: Params
    """What the gradient is taken of."""
    variables: PyTree
    """Other collections of the network, such as running statistics."""
    opt_state: PyTree
    """State of the optimiser; hyperparameters injected into it may change without a new compilation."""
    ema: PyTree
    """Averages of the parameters."""
    extra: PyTree
    """State of the algorithm itself."""
    key: Key[Array, "..."] | Any
    """The key of the run, never advanced: a step draws from `fold_in(key, step)`."""


SEED_AXES = TrainState(step=None, params=0, variables=0, opt_state=0, ema=0, extra=0, key=0)
"""Axes for `jax.vmap` over the seeds of a stacked state, as `in_axes` and as `out_axes`."""


def create(
    key: Key[Array, "..."],
    params: Params,
    opt_state: PyTree = (),
    *,
    variables: PyTree = (),
    ema: PyTree = (),
    extra: PyTree = (),
) -> TrainState:
    """Put a state together at step 0.

    Args:
        key: typed key of the run, or one per seed.
        params: parameters.
        opt_state: what the optimiser's `init(params)` returned.
        variables: other collections of the network.
        ema: averages of the parameters.
        extra: state of the algorithm.

    >>> state = create(jax.random.key(0), {"w": jnp.ones(3)})
    >>> int(state.step), state.params["w"].shape
    (0, (3,))
    """
    return TrainState(jnp.zeros((), jnp.int32), params, variables, opt_state, ema, extra, key)


def owned(state: TrainState, *others: PyTree) -> TrainState:
    """Make every leaf of a state an array that can be donated and that keeps its type from step to step.

    Copied are arrays that occur twice in the state (an average that starts as the parameters themselves) or in
    `others` (a reference policy that is the initial one), and the key, which callers tend to use again. Python
    numbers, and arrays made from them, lose their weak type, which the first step would change and compile again for.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves((others, state.key))}

    def own(leaf):
        array = leaf if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else _strong(leaf)
        if id(array) in seen:
            return jnp.copy(array)
        seen.add(id(array))
        return array

    return jax.tree.map(own, state)


def unshared(state: TrainState, *others: PyTree) -> TrainState:
    """Copy every array of a state whose memory another of its arrays, or one of `others`, uses as well.

    Placing an array makes a new one, but may leave its memory where it was; what is donated twice, or donated and
    passed on, would be freed under the other.
    """
    seen = set().union(*(_buffers(leaf) for leaf in jax.tree.leaves(others)))

    def own(leaf):
        if _buffers(leaf) & seen:
            leaf = jnp.copy(leaf)
        seen.update(_buffers(leaf))
        return leaf

    return jax.tree.map(own, state)


def _buffers(leaf) -> set[int]:
    # Keys are copied by `owned`, and say nothing of their memory.
    if not isinstance(leaf, jax.Array) or not leaf.size or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return set()
    return {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}


def _strong(leaf):
    return jnp.asarray(leaf, jnp.result_type(leaf))
