"""Splitting parameters of any pytree into what sources share and what each has alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.statistics.source_params import (
    SourceParams,
    apply_sources,
    count_source_parameters,
    init_multi,
    init_single,
    merge,
    num_sources,
    of_each_source,
    separate,
    split_by_path,
)


class Pair(NamedTuple):
    mean: jax.Array
    rest: list


def tree(key):
    first, second, third = jax.random.split(key, 3)
    return {
        "pair": Pair(jax.random.normal(first, (2,)), [jax.random.normal(second, (3, 2)), jnp.ones(())]),
        "kernel": jax.random.normal(third, (4,)),
    }


def is_own(path):
    return path in ("pair/rest/0", "kernel")


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_split_tree_merges_to_itself_and_has_holes_where_the_other_part_has_leaves():
    params = tree(jax.random.key(0))
    shared, specific = split_by_path(params, is_own)
    assert specific["pair"].mean is None
    assert shared["kernel"] is None
    assert len(jax.tree.leaves(shared)) == len(jax.tree.leaves(specific)) == 2
    assert_same(merge(shared, specific), params)


def test_shared_parameters_are_drawn_once_and_specific_ones_for_each_source():
    params = init_multi(jax.random.key(1), tree, is_own, 3)
    assert num_sources(params) == 3
    assert params.shared["pair"].mean.shape == (2,)
    assert params.specific["kernel"].shape == (3, 4)
    whole = of_each_source(params)
    np.testing.assert_array_equal(whole["pair"].mean, np.tile(params.shared["pair"].mean, (3, 1)))
    assert len(np.unique(whole["kernel"])) == 12


def test_separate_models_are_the_split_with_nothing_shared():
    key = jax.random.key(2)
    single = init_single(key, tree, 3)
    assert jax.tree.leaves(single.shared) == []
    assert_same(single.specific, jax.vmap(tree)(jax.random.split(key, 3)))
    everything = init_multi(key, tree, lambda path: True, 3)
    assert jax.tree.structure(everything) == jax.tree.structure(single)


def test_separating_a_shared_model_leaves_every_law_as_it_is():
    params = init_multi(jax.random.key(3), tree, is_own, 2)
    law = lambda one, x: jnp.sum(one["kernel"] * x) + one["pair"].mean[0]  # noqa: E731
    x = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(apply_sources(law, params, x), apply_sources(law, separate(params), x))
    by_hand = [law(jax.tree.map(lambda leaf, k=k: leaf[k], of_each_source(params)), x[k]) for k in range(2)]
    np.testing.assert_allclose(apply_sources(law, params, x), by_hand, rtol=1e-6)


def test_gradients_of_shared_parameters_are_the_sum_over_sources():
    params = init_multi(jax.random.key(4), tree, is_own, 3)
    loss = lambda p: jnp.sum(apply_sources(lambda one: jnp.sum(one["pair"].mean ** 2), p))  # noqa: E731
    gradient = jax.grad(loss)(params)
    np.testing.assert_allclose(gradient.shared["pair"].mean, 6 * params.shared["pair"].mean, rtol=1e-6)
    assert gradient.shared["kernel"] is None


def test_parameters_are_counted_from_arrays_and_from_shapes():
    shapes = jax.eval_shape(lambda key: init_multi(key, tree, is_own, 5), jax.random.key(0))
    counts = count_source_parameters(shapes)
    assert counts == (3, 10, 5)
    assert counts.total == 53
    assert counts.similarity == 3 / 13
    assert count_source_parameters(jax.eval_shape(separate, shapes)).similarity == 0.0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: split_by_path({}, is_own), "params holds no array"),
        (lambda: split_by_path({"a": 1.0, "b": 2.0}, is_own), "True for at least one of the 2 parameters a, b$"),
        (lambda: merge({"a": 1.0}, {"a": 2.0}), "the parameter a is both shared and specific"),
        (lambda: init_multi(jax.random.key(0), tree, is_own, 0), "num_sources must be at least 1, got 0"),
        (lambda: init_single(jax.random.key(0), tree, 0), "num_sources must be at least 1, got 0"),
        (lambda: num_sources(SourceParams({"a": jnp.ones(2)}, {"a": None})), "one leading axis of sources"),
        (lambda: num_sources(SourceParams(None, {"a": jnp.ones(2), "b": jnp.ones(3)})), "one leading axis of sources"),
        (
            lambda: apply_sources(lambda p, x: x, SourceParams(None, jnp.ones((2, 1))), jnp.ones(3)),
            r"per_source must have a leading axis of 2 sources, got shape \(3,\)",
        ),
    ],
)
def test_bad_arguments_are_refused_with_one_sentence(call, error):
    with pytest.raises(ValueError, match=error):
        call()
