import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.models import check_labels, drop_labels


def test_drop_labels_drops_at_the_rate_and_keeps_the_rest():
    labels = jnp.arange(20_000) % 10
    dropped = drop_labels(jax.random.key(0), labels, 0.15, 10)
    gone = np.asarray(dropped) == 10
    assert stats.binomtest(int(gone.sum()), gone.size, 0.15).pvalue > 1e-3
    np.testing.assert_array_equal(np.asarray(dropped)[~gone], np.asarray(labels)[~gone])
    assert dropped.dtype == labels.dtype


def test_drop_labels_at_rate_zero_and_one_and_under_a_traced_rate():
    labels = jnp.arange(50) % 10
    drop = jax.jit(lambda rate: drop_labels(jax.random.key(0), labels, rate, 10))
    np.testing.assert_array_equal(drop(0.0), labels)
    np.testing.assert_array_equal(drop(1.0), jnp.full(50, 10))
    assert drop._cache_size() == 1


def test_labels_in_range_pass():
    check_labels(np.array([0, 9, 10]), 10)
    check_labels(3, 10)


@pytest.mark.parametrize(("labels", "shown"), [(-1, "-1"), (np.array([[0, 11]]), "11"), (np.array([1.0]), "float64")])
def test_labels_out_of_range_are_refused_by_value(labels, shown):
    with pytest.raises(ValueError, match=shown):
        check_labels(labels, 10)
