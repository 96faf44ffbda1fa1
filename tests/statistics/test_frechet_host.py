import jax
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.statistics.frechet import Moments, frechet_distance
from jaxgen.statistics.frechet_host import frechet_distance_float64, sample_frechet_distance


def random_moments(seed, dim=6):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((dim, 3 * dim))
    return Moments(rng.standard_normal(dim), factor @ factor.T / dim)


def numpy_moments(samples):
    return Moments(samples.mean(0), np.cov(samples.T))


GOLDEN = [
    # By hand: 1 + 4 + (1 - 3)^2 + (2 - 1)^2.
    (([0, 0], [[1, 0], [0, 4]]), ([1, 2], [[9, 0], [0, 1]]), 10.0),
    # In two dimensions tr M^1/2 = (tr M + 2 det M^1/2)^1/2, with M = C1 C2.
    (([0.1, -0.2], [[2, 0.5], [0.5, 1]]), ([0.4, 0.3], [[1, -0.3], [-0.3, 3]]), 1.269311854967775),
]


@pytest.mark.parametrize(("first", "second", "value"), GOLDEN)
def test_distances_that_are_known_in_closed_form(first, second, value):
    first, second = (Moments(*(np.array(part, np.float64) for part in law)) for law in (first, second))
    product = first.covariance @ second.covariance
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    closed = np.sum((first.mean - second.mean) ** 2) + np.trace(first.covariance + second.covariance) - 2 * overlap
    np.testing.assert_allclose(closed, value, rtol=1e-14)
    assert not jax.config.read("jax_enable_x64")
    np.testing.assert_allclose(frechet_distance_float64(first, second), value, rtol=1e-13)
    with jax.enable_x64(True):
        np.testing.assert_allclose(frechet_distance(first, second), value, rtol=1e-13)


def test_matches_scipy_matrix_root_on_well_conditioned_covariances():
    for seed in range(20):
        first, second = random_moments(2 * seed), random_moments(2 * seed + 1)
        root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
        expected = np.sum((first.mean - second.mean) ** 2)
        expected += np.trace(first.covariance + second.covariance - 2 * root)
        np.testing.assert_allclose(frechet_distance_float64(first, second), expected, rtol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_is_symmetric_invariant_to_motions_and_scales_with_the_squared_unit(seed, unit, shift):
    rng = np.random.default_rng(seed)
    first, second = random_moments(seed), random_moments(seed + 1)
    distance = frechet_distance_float64(first, second)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    moved = [
        Moments(unit * rotation @ m.mean + shift, unit**2 * rotation @ m.covariance @ rotation.T)
        for m in (first, second)
    ]
    assert distance > 0
    np.testing.assert_allclose(frechet_distance_float64(second, first), distance, rtol=1e-11)
    # A shift of 1e6 times the unit leaves 10 digits of the difference of means.
    np.testing.assert_allclose(frechet_distance_float64(*moved), unit**2 * distance, rtol=1e-8)
    np.testing.assert_allclose(frechet_distance_float64(first, first), 0, atol=1e-9)


@pytest.mark.parametrize(("counts", "dim"), [((7, 12), 40), ((30, 200), 40), ((150, 200), 40), ((2, 2), 3)])
def test_samples_of_any_rank_agree_with_their_moments(counts, dim):
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((count, dim)) * 0.9 ** np.arange(dim) + 3 for count in counts)
    exact = sample_frechet_distance(first, second)
    assert np.isfinite(exact)
    np.testing.assert_allclose(frechet_distance_float64(numpy_moments(first), numpy_moments(second)), exact, rtol=1e-9)
    # The nuclear norm of A B^T by its definition, as the sum of roots of eigenvalues of A B^T B A^T.
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (first, second))
    product = a @ b.T
    overlap = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(product @ product.T), 0)))
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * overlap
    np.testing.assert_allclose(exact, expected, rtol=1e-5)  # roots of eigenvalues that should be 0


def test_distance_to_itself_is_zero_for_singular_and_regular_laws():
    for count in (2, 5, 30, 300):
        samples = 100 * np.random.default_rng(count).standard_normal((count, 30)) + 1e3
        assert sample_frechet_distance(samples, samples) < 1e-9
        assert frechet_distance_float64(numpy_moments(samples), numpy_moments(samples)) < 1e-9
    assert frechet_distance_float64(Moments(np.ones(3), np.zeros((3, 3))), Moments(np.ones(3), np.zeros((3, 3)))) == 0


def test_asymmetry_of_rounding_does_not_matter():
    first, second = random_moments(0), random_moments(1)
    bent = first.covariance + 1e-6 * np.triu(np.ones((6, 6)), 1)
    distances = [frechet_distance_float64(first._replace(covariance=c), second) for c in (bent, bent.T)]
    np.testing.assert_allclose(distances[0], distances[1], rtol=1e-12)


def test_singular_covariances_give_the_exact_distance_where_a_general_root_loses_digits():
    # Two rank-1 laws along directions at 60 degrees: 1 + 4 - 2 * 1 * 2 * cos 60.
    u, v = np.zeros(50), np.zeros(50)
    u[0], v[0], v[1] = 1, 0.5, np.sqrt(0.75)
    laws = Moments(np.zeros(50), np.outer(u, u)), Moments(np.zeros(50), 4 * np.outer(v, v))
    np.testing.assert_allclose(frechet_distance_float64(*laws), 3.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (Moments(np.zeros(2), np.eye(2)), Moments(np.zeros(3), np.eye(3)), "must share one dimension, got 2 and 3"),
        (Moments(np.zeros(2), np.eye(2)), Moments(np.zeros(2), np.diag([1.0, np.nan])), "finite, got 1 entries"),
        (Moments(np.zeros(2), np.eye(2)), Moments(np.zeros(2), np.diag([1.0, -0.5])), "no negative eigenvalue, got -0"),
    ],
)
def test_unsound_moments_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance_float64(first, second)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((1, 2)), np.ones((5, 2)), "at least 2 samples are needed, got 1"),
        (np.ones((5, 2)), np.full((5, 2), np.inf), "samples must be finite, got 10 entries"),
    ],
)
def test_unsound_samples_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        sample_frechet_distance(first, second)
