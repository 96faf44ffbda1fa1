"""Many steps of training as one compiled program."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from jaxgen.training.mesh import check_batch
from jaxgen.training.state import TrainState

Metrics: TypeAlias = Mapping[str, Any]
Update: TypeAlias = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5), donate_argnums=6)
def run_span(
    update: Update,
    select: Callable[[PyTree, Int[Array, ""]], PyTree],
    length: int | None,
    layout: tuple[NamedSharding, ...] | None,
    sharding: NamedSharding | None,
    watch: str,
    state: TrainState,
    constants: PyTree,
    payload: PyTree,
    count: Int[Array, ""],
) -> tuple[TrainState, PyTree]:
    """Run `count` of at most `length` steps; returns the state and the metrics, of which the first `count` are set.

    A length of None runs one step with no loop around it.
    """

    @jax.jit
    def step(state, offset):
        batch = select(payload, offset)
        if sharding is not None:
            for leaf in jax.tree.leaves(batch):
                check_batch(leaf.shape[0], sharding.mesh)
            batch = jax.lax.with_sharding_constraint(batch, sharding)
        after, metrics = update(state, constants, batch)
        if watch not in metrics:
            raise ValueError(f"the update must return the watched metric {watch!r}, got {sorted(metrics)}")
        return laid_out(after._replace(step=state.step + 1)), metrics

    def laid_out(state):
        if layout is None:
            return state
        return jax.lax.with_sharding_constraint(state, jax.tree.unflatten(jax.tree.structure(state), layout))

    def body(offset, carry):
        state, history = carry
        state, metrics = step(state, offset)
        return state, jax.tree.map(lambda rows, row: rows.at[offset].set(row), history, metrics)

    zero = jnp.zeros((), jnp.int32)
    # `step` is jitted so that asking for the shapes of its metrics and running it share one trace.
    if length is None:
        state, metrics = step(state, zero)
        history = jax.tree.map(lambda metric: metric[None], metrics)
    else:
        shapes = jax.eval_shape(step, state, zero)[1]
        history = jax.tree.map(lambda metric: jnp.zeros((length, *metric.shape), metric.dtype), shapes)
        # A loop with a traced bound, not a scan: one program serves every number of steps.
        state, history = jax.lax.fori_loop(zero, count, body, (state, history))
    if sharding is not None:
        # Every process reads the metrics, and an array of several can be read only where it is whole.
        whole = NamedSharding(sharding.mesh, PartitionSpec())
        history = jax.lax.with_sharding_constraint(history, jax.tree.map(lambda _: whole, history))
    # Once more, since the compiler lays out what leaves a loop as it likes, and the next call starts from it.
    return laid_out(state), history
