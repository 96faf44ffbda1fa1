import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.statistics.samples import check_samples, squared_distances


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ([np.zeros((3, 2, 2))], r"samples must have shape \[count, dim\], got \(3, 2, 2\): flatten each sample first"),
        ([np.zeros(3)], r"samples must have shape \[count, dim\], got \(3,\)"),
        ([np.zeros((3, 2), int)], "samples must be real floating point, got int64: convert them first"),
        ([np.zeros((3, 2), complex)], "samples must be real floating point, got complex128"),
        ([np.zeros((1, 2))], "at least 2 samples are needed, got 1: draw more"),
        ([np.zeros((3, 2)), np.zeros((0, 2))], "at least 2 samples are needed, got 0"),
        ([np.zeros((3, 2)), np.zeros((3, 5))], "samples must share one dimension, got 2 and 5"),
    ],
)
def test_unusable_samples_are_refused_in_one_sentence(sets, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_samples(*sets, minimum=2)


def test_sets_of_different_counts_and_precisions_are_accepted():
    check_samples(jnp.zeros((2, 3)), np.zeros((7, 3)), jnp.zeros((5, 3), jnp.bfloat16), minimum=2)


def test_duplicates_far_from_the_origin_are_at_distance_zero():
    point = jnp.array([1e4, -1e4, 1.0])
    assert squared_distances(point, jnp.stack([point, point + 1])).tolist() == [0.0, 3.0]
