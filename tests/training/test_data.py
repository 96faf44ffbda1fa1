import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.training import Batches, in_memory, make_mesh, permuted_index


def stream(batches, steps, offset=0):
    """The examples of the first steps; each step as a span of its own, or as the `offset`-th of a span."""
    select = jax.jit(lambda window: batches.select(window, jnp.asarray(offset)))
    return np.concatenate([select(batches.load(step - offset, offset + 1)) for step in range(offset, steps)])


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (1, 3), (7, 3), (12, 4), (13, 32), (50, 50)])
def test_every_epoch_holds_each_example_once(size, batch):
    steps = -(-3 * size // batch)
    seen = stream(in_memory(jnp.arange(size), batch, jax.random.key(0)), steps)[: 3 * size].reshape(3, size)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(size), (3, 1)))
    if size > 7:
        assert not np.array_equal(seen[0], seen[1])
        assert not np.array_equal(seen[0], np.arange(size))


def test_a_batch_depends_on_its_step_alone():
    batches = in_memory(jnp.arange(13), 4, jax.random.key(1))
    np.testing.assert_array_equal(stream(batches, 12, offset=2), stream(batches, 12)[8:])
    again = in_memory(jnp.arange(13), 4, jax.random.key(1))
    again.seek(batches.position(5))
    np.testing.assert_array_equal(stream(batches, 6), stream(again, 6))
    other = in_memory(jnp.arange(13), 4, jax.random.key(2))
    assert not np.array_equal(stream(other, 6), stream(batches, 6))


def test_without_shuffling_the_order_is_that_of_the_arrays():
    batches = in_memory({"x": jnp.arange(10.0), "y": jnp.arange(10)}, 4, jax.random.key(0), shuffle=False)
    batch = batches.select(batches.load(2, 1), jnp.asarray(0))
    np.testing.assert_array_equal(batch["y"], [8, 9, 0, 1])
    np.testing.assert_array_equal(batch["x"], [8.0, 9.0, 0.0, 1.0])


def test_orders_of_a_few_examples_are_uniform():
    epochs = 24_000
    index = jax.vmap(jax.vmap(permuted_index, (None, None, 0, None)), (None, 0, None, None))
    orders = np.asarray(jax.jit(index, static_argnums=3)(jax.random.key(3), jnp.arange(epochs), jnp.arange(4), 4))
    codes = {order: number for number, order in enumerate(itertools.permutations(range(4)))}
    counts = np.bincount([codes[tuple(order)] for order in orders], minlength=24)
    # A Feistel network of 8 rounds is close to uniform, not exactly: 1,000 expected in each of 24 cells.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbours_of_many_examples_are_far_apart_and_unrelated():
    size = 1797
    index = jax.jit(jax.vmap(permuted_index, (None, None, 0, None)), static_argnums=3)
    orders = [np.asarray(index(jax.random.key(0), epoch, jnp.arange(size), size)) for epoch in range(20)]
    ranks = [stats.spearmanr(orders[0], order).statistic for order in orders[1:]]
    assert stats.kstest(np.array(ranks) * np.sqrt(size - 1), "norm").pvalue > 1e-3
    steps = np.concatenate([np.diff(order) % size for order in orders])
    assert stats.chisquare(np.bincount(steps * 16 // size, minlength=16)).pvalue > 1e-3


@pytest.mark.parametrize("size", [2**31 - 1, 46_340**2 - 1, 46_340**2 + 1])
def test_the_largest_sizes_do_not_overflow(size):
    index = jnp.asarray(np.random.default_rng(0).choice(size, 4096, replace=False), jnp.int32)
    images = np.asarray(
        jax.jit(jax.vmap(permuted_index, (None, None, 0, None)), static_argnums=3)(jax.random.key(0), 0, index, size)
    )
    assert images.min() >= 0
    assert images.max() < size
    assert len(np.unique(images)) == 4096
    assert stats.kstest(images / size, "uniform").pvalue > 1e-3


def test_late_steps_of_long_runs_are_in_range():
    batches = in_memory(jnp.arange(7), 4, jax.random.key(0))
    late = 10**12
    first = 7 * (late // 7)  # a multiple of the period of 7 steps, so that an epoch begins here
    seen = np.concatenate([batches.select(batches.load(first + step, 1), jnp.asarray(0)) for step in range(7)])
    np.testing.assert_array_equal(np.sort(seen.reshape(4, 7), axis=1), np.tile(np.arange(7), (4, 1)))


def test_arrays_lie_on_every_device_of_the_mesh():
    batches = in_memory(jnp.arange(8), 4, jax.random.key(0), mesh=make_mesh("data=4"))
    assert len(batches.load(0, 1).arrays.sharding.device_set) == 4
    assert isinstance(batches, Batches)


@pytest.mark.parametrize(
    ("arrays", "size", "named"),
    [
        ((np.zeros(3), np.zeros(4)), 2, "3, 4"),
        (np.zeros((0, 2)), 2, "at least 1"),
        (np.float32(1.0), 2, "leading length"),
        (np.zeros(3), 0, "batch_size"),
    ],
)
def test_arrays_that_cannot_be_batched_are_refused(arrays, size, named):
    with pytest.raises(ValueError, match=named):
        in_memory(arrays, size, jax.random.key(0))


def test_a_position_of_other_data_is_refused():
    position = in_memory(jnp.arange(8), 4, jax.random.key(0)).position(3)
    with pytest.raises(ValueError, match="size 9, but the checkpoint was made with 8"):
        in_memory(jnp.arange(9), 4, jax.random.key(0)).seek(position)
