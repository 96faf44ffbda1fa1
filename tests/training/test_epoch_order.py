import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxgen.training.epoch_order import EpochOrder, permuted


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (1, 3), (2, 5), (7, 3), (12, 4), (13, 32), (50, 50), (1000, 7)])
def test_every_epoch_holds_each_example_once(size, batch):
    order = EpochOrder(size, batch, 3, True)
    steps = range(-(-3 * size // batch))
    seen = np.concatenate([order.batch(step, np.arange(batch)) for step in steps])[: 3 * size].reshape(3, size)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(size), (3, 1)))
    if size > 7:
        assert not np.array_equal(seen[0], seen[1])
        assert not np.array_equal(seen[0], np.arange(size))
        assert not np.array_equal(EpochOrder(size, batch, 4, True).batch(0, np.arange(batch)), seen.ravel()[:batch])


def test_some_rows_of_a_batch_are_those_of_the_whole():
    order, rows = EpochOrder(13, 32, 0, True), np.array([3, 4, 30, 31])
    np.testing.assert_array_equal(order.batch(7, rows), order.batch(7, np.arange(32))[rows])


def test_without_shuffling_the_order_is_that_of_the_examples():
    np.testing.assert_array_equal(EpochOrder(10, 4, 0, False).batch(2, np.arange(4)), [8, 9, 0, 1])


def test_late_steps_of_long_runs_are_in_range():
    order = EpochOrder(7, 4, 0, True)
    first = 7 * (10**18 // 7)  # an epoch begins here
    seen = np.concatenate([order.batch(first + step, np.arange(4)) for step in range(7)])
    np.testing.assert_array_equal(np.sort(seen.reshape(4, 7), axis=1), np.tile(np.arange(7), (4, 1)))


def test_orders_of_a_few_examples_are_uniform():
    codes = {order: number for number, order in enumerate(itertools.permutations(range(4)))}
    orders = [tuple(permuted(np.arange(4), 4, 1, epoch).tolist()) for epoch in range(6000)]
    # A Feistel network of 8 rounds is close to uniform, not exactly: 250 expected in each of 24 cells.
    assert stats.chisquare(np.bincount([codes[order] for order in orders], minlength=24)).pvalue > 1e-3


def test_neighbours_of_many_examples_are_far_apart_and_unrelated():
    size = 1797
    orders = [permuted(np.arange(size), size, 0, epoch) for epoch in range(20)]
    ranks = [stats.spearmanr(orders[0], order).statistic for order in orders[1:]]
    assert stats.kstest(np.array(ranks) * np.sqrt(size - 1), "norm").pvalue > 1e-3
    steps = np.concatenate([np.diff(order) % size for order in orders])
    assert stats.chisquare(np.bincount(steps * 16 // size, minlength=16)).pvalue > 1e-3


@pytest.mark.parametrize("size", [2**31 - 1, 46_340**2 - 1, 46_340**2 + 1])
def test_the_largest_sizes_do_not_overflow(size):
    index = np.random.default_rng(0).choice(size, 4096, replace=False)
    images = permuted(index, size, 0, 0)
    assert images.min() >= 0
    assert images.max() < size
    assert len(np.unique(images)) == 4096
    assert stats.kstest(images / size, "uniform").pvalue > 1e-3


def slowly_permuted(place, size, seed, epoch):
    """The same network in Python's integers, for one place at a time."""
    keys = [int(key) for key in np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(8)]
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)

    def mix(value):
        value = (value ^ value >> 16) * 0x85EBCA6B % 2**32
        value = (value ^ value >> 13) * 0xC2B2AE35 % 2**32
        return value ^ value >> 16

    while True:
        left, right = divmod(place, columns)
        for number in range(0, 8, 2):
            left = (left + mix(right ^ keys[number]) % rows) % rows
            right = (right + mix(left ^ keys[number + 1]) % columns) % columns
        place = left * columns + right
        if place < size:
            return place


@pytest.mark.parametrize(("size", "seed", "epoch"), [(3, 0, 0), (1000, 1, 7), (1_281_167, 2**40 + 5, 2**33 + 1)])
def test_the_order_is_that_of_a_slow_implementation(size, seed, epoch):
    places = np.arange(min(size, 200))
    expected = [slowly_permuted(place, size, seed, epoch) for place in places.tolist()]
    np.testing.assert_array_equal(permuted(places, size, seed, epoch), expected)


def test_the_order_is_the_same_in_every_release():
    """A checkpoint names the seed and the step; the order that follows from them must never change."""
    np.testing.assert_array_equal(permuted(np.arange(8), 8, 5, 0), [5, 3, 2, 4, 7, 6, 1, 0])
