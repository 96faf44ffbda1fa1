"""Parameters of several sources as vectors, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.statistics.source_params import SourceParams, of_each_source, separate
from jaxgen.statistics.source_vectors import flatten_sources

PARAMS = SourceParams(
    {"table": np.arange(6.0, dtype=np.float32).reshape(2, 3), "own": None, "scale": np.float32(7.0)},
    {"table": None, "own": np.arange(8.0, dtype=np.float32).reshape(4, 2), "scale": None},
)


@pytest.mark.parametrize("arm", [lambda params: params, separate])
def test_vectors_are_restored_and_those_of_a_source_give_its_whole_tree(arm):
    params = arm(PARAMS)
    flat = flatten_sources(params)
    restored = flat.restore(flat.shared, flat.specific)
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    whole = of_each_source(params)
    for source in range(4):
        one = flat.whole(jnp.concatenate([flat.shared, flat.specific[source]]))
        jax.tree.map(lambda left, right, k=source: np.testing.assert_array_equal(left, right[k]), one, whole)


def test_sizes_are_those_of_both_parts_and_nothing_shared_is_an_empty_vector():
    flat, alone = flatten_sources(PARAMS), flatten_sources(separate(PARAMS))
    assert (flat.shared.shape, flat.specific.shape) == ((7,), (4, 2))
    assert (alone.shared.shape, alone.specific.shape) == ((0,), (4, 9))
    with jax.enable_x64(True):
        assert flatten_sources(separate(PARAMS)).shared.dtype == jnp.float32


def test_parameters_that_are_no_real_numbers_are_refused():
    with pytest.raises(ValueError, match="parameters must be real floating arrays, got complex64"):
        flatten_sources(SourceParams(None, jnp.ones((2, 3), jnp.complex64)))
