import numpy as np
import pytest

from jaxgen.statistics.feature_distance import FrechetDistance, fd
from jaxgen.statistics.feature_functions import INCEPTION_ID
from jaxgen.statistics.feature_moments import FeatureMoments, Features, moments_of_features


def draw(seed, count, dim=4, feature_id="mine"):
    return Features(np.random.default_rng(seed).standard_normal((count, dim)) + seed, feature_id)


def test_a_distance_says_its_features_counts_and_rank():
    first = FeatureMoments(np.array([0.1, -0.2]), np.array([[2, 0.5], [0.5, 1]]), 500, "pca-2")
    second = FeatureMoments(np.array([0.4, 0.3]), np.array([[1, -0.3], [-0.3, 3]]), 2, "pca-2")
    found = fd(first, second)
    np.testing.assert_allclose(found.value, 1.269311854967775, rtol=1e-13)  # closed form in two dimensions
    assert found == FrechetDistance(found.value, "fd[pca-2]", (500, 2), singular=True)
    assert not fd(first, second._replace(num_images=3)).singular


def test_features_and_their_moments_are_at_one_distance():
    first, second = draw(0, 50), draw(1, 70)
    exact = fd(first, second).value
    pairs = [(first, moments_of_features(second)), (moments_of_features(first), moments_of_features(second))]
    for pair in pairs:
        np.testing.assert_allclose(fd(*pair).value, exact, rtol=1e-12)
    assert fd(first, moments_of_features(first)).value < 1e-9


def test_the_name_fid_is_that_of_inception_alone():
    inception = Features(np.random.default_rng(0).standard_normal((3, 2048)), INCEPTION_ID)
    found = fd(inception, inception)
    assert found.name == "fid"
    assert found.singular
    assert found.value < 1e-9
    assert fd(draw(0, 5, feature_id="inception"), draw(1, 5, feature_id="inception")).name == "fd[inception]"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (draw(0, 9), draw(1, 9, feature_id="other"), "features of one function can be compared, got mine and other"),
        (draw(0, 9), moments_of_features(draw(1, 9, dim=3)), "must share one dimension, got 4 and 3"),
        (draw(0, 9), draw(1, 1), "needs at least 2 images, got 1"),
        (draw(0, 9), Features(np.full((9, 4), np.nan), "mine"), "features must be finite, got 36 entries"),
        (draw(0, 9), FeatureMoments(np.zeros(4), np.eye(4), 1, "mine"), "num_images must be at least 2, got 1"),
        (draw(0, 9, 64, INCEPTION_ID), draw(0, 9, 64, INCEPTION_ID), "kept for Inception's 2048 pool features, got 64"),
    ],
)
def test_distances_that_mean_nothing_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        fd(first, second)
