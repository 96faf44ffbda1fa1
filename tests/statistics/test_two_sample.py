import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from jaxgen.statistics.two_sample import (
    classifier_accuracy,
    mean_nearest_neighbor_distance,
    nearest_neighbor_accuracy,
)


def accuracy_by_loops(first, second):
    """The share of nearest others that lie in the own set, averaged over the pooled samples."""
    pooled = [(tuple(x), 0) for x in first] + [(tuple(x), 1) for x in second]
    scores = []
    for i, (point, own) in enumerate(pooled):
        others = [
            (sum((a - b) ** 2 for a, b in zip(point, x, strict=True)), s) for j, (x, s) in enumerate(pooled) if j != i
        ]
        nearest = [s for distance, s in others if distance == min(others)[0]]
        scores.append(nearest.count(own) / len(nearest))
    return np.mean(scores)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_accuracy_matches_leave_one_out_of_sklearn_at_any_block(block):
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((31, 4)), 0.5 + rng.standard_normal((31, 4))
    classifier = KNeighborsClassifier(1)
    labels = np.repeat([0, 1], 31)
    expected = cross_val_score(classifier, np.concatenate([first, second]), labels, cv=LeaveOneOut()).mean()
    measured = nearest_neighbor_accuracy(first.astype(np.float32), second.astype(np.float32), block=block)
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=24, max_size=24))
def test_accuracy_on_a_coarse_lattice_shares_ties_and_is_symmetric(values):
    # 12 points on a lattice of 25 sites: duplicates within and across the sets, and ties at every distance.
    first, second = np.float32(values).reshape(2, 6, 2)
    measured = nearest_neighbor_accuracy(first, second)
    np.testing.assert_allclose(measured, accuracy_by_loops(first.tolist(), second.tolist()), rtol=1e-6)
    np.testing.assert_allclose(nearest_neighbor_accuracy(second, first), measured, rtol=1e-6)
    np.testing.assert_allclose(nearest_neighbor_accuracy(first[::-1], second), measured, rtol=1e-6)


def test_accuracy_of_copies_apart_equal_and_collapsed_sets():
    rng = np.random.default_rng(1)
    first, second = (rng.standard_normal((400, 3)).astype(np.float32) for _ in range(2))
    assert nearest_neighbor_accuracy(first, first) == 0.0  # each sample's nearest other is its own copy
    assert nearest_neighbor_accuracy(first, first + 100) == 1.0
    np.testing.assert_allclose(nearest_neighbor_accuracy(first, second), 399 / 799, atol=0.06)  # 3 errors of 0.018
    # All samples at one point: every other one is nearest, and 3 of the 7 others lie in the own set.
    np.testing.assert_allclose(nearest_neighbor_accuracy(jnp.ones((4, 2)), jnp.ones((4, 2))), 3 / 7, rtol=1e-6)


def test_mean_distance_matches_sklearn():
    rng = np.random.default_rng(2)
    samples, reference = rng.standard_normal((70, 5)), rng.standard_normal((33, 5))
    expected = NearestNeighbors(n_neighbors=1).fit(reference).kneighbors(samples)[0].mean()
    with jax.enable_x64(True):
        measured = mean_nearest_neighbor_distance(samples, reference)
        assert measured.dtype == jnp.float64
        np.testing.assert_allclose(measured, expected, rtol=1e-12)
        assert mean_nearest_neighbor_distance(reference[:3], reference) == 0.0


def test_a_sample_that_is_not_finite_gives_nan_never_a_score():
    good, bad = jnp.zeros((4, 2)).at[:, 0].set(jnp.arange(4.0)), jnp.zeros((4, 2)).at[1, 1].set(jnp.nan)
    assert jnp.isnan(nearest_neighbor_accuracy(good, bad))
    assert jnp.isnan(mean_nearest_neighbor_distance(bad, good))
    assert jnp.isnan(mean_nearest_neighbor_distance(good, bad))
    with pytest.raises(ValueError, match="samples must be finite, got 1 entries"):
        classifier_accuracy(good, bad, folds=2)


def test_classifier_tells_a_shift_and_not_equal_laws_or_counts():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((300, 2)), rng.standard_normal((900, 2))
    # Accuracy without balance would be 0.75 here. The tolerances are 3 errors of the smaller set's half.
    np.testing.assert_allclose(classifier_accuracy(first, second, gamma=0.5), 0.5, atol=0.05)
    # The best classifier of N(0, 1) against N(1, 1) along one axis is right with probability Phi(1/2) = 0.691; one that
    # is trained on the counts as they are would be right with (Phi(-0.6) + Phi(1.6)) / 2 = 0.61.
    shifted = classifier_accuracy(first, second + np.array([[1.0, 0.0]]), gamma=0.5)
    np.testing.assert_allclose(shifted, 0.691, atol=0.04)
    assert classifier_accuracy(first, second + 100, gamma=0.5) == 1.0


def test_unequal_counts_and_small_sets_are_refused():
    with pytest.raises(ValueError, match="both sets must have the same count, got 4 and 5: draw equally many"):
        nearest_neighbor_accuracy(jnp.zeros((4, 2)), jnp.zeros((5, 2)))
    with pytest.raises(ValueError, match="at least 5 samples are needed, got 4"):
        classifier_accuracy(np.zeros((9, 2)), np.zeros((4, 2)))


def test_sklearn_is_imported_only_when_a_classifier_is_asked_for():
    code = "import sys, jaxgen.statistics.two_sample; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
