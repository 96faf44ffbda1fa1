"""The sliced Wasserstein distance, against exact transport and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from jaxgen.statistics.sliced_wasserstein import sliced_wasserstein2

KEY = jax.random.key(0)


def w2(first, second):
    """The 2-Wasserstein distance on the line: both samples repeated to a common count, then paired in order."""
    common = np.lcm(len(first), len(second))
    first, second = (np.sort(np.repeat(x, common // len(x))) for x in (first, second))
    return np.sqrt(np.mean((first - second) ** 2))


@pytest.mark.parametrize(("first", "second"), [(6, 6), (6, 4), (7, 5), (1, 9)])
def test_is_exact_in_one_dimension_for_any_counts(first, second):
    rng = np.random.default_rng(first)
    a, b = rng.standard_normal(first), 2 + rng.standard_normal(second)
    with jax.enable_x64(True):
        found = [float(sliced_wasserstein2(KEY, x[:, None], y[:, None], projections=3)) for x, y in ((a, b), (b, a))]
    np.testing.assert_allclose(found, w2(a, b), rtol=1e-13)


def test_small_cases_are_exact():
    column = lambda *values: jnp.array(values)[:, None]  # noqa: E731
    for first, second, squared in (
        (column(0.0, 1.0), column(1.0, 0.0), 0.0),
        (column(0.0), column(1.0, -1.0), 1.0),
        # Quantiles 0, 3 on halves against 0, 0, 3 on thirds: they differ by 3 on (1 / 2, 2 / 3).
        (column(0.0, 3.0), column(0.0, 0.0, 3.0), 9 / 6),
    ):
        found = sliced_wasserstein2(KEY, first, second, projections=2)
        np.testing.assert_allclose(found**2, squared, rtol=1e-5, atol=1e-12)


def test_matches_projections_one_by_one():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((9, 4)), 1 + rng.standard_normal((6, 4))
    with jax.enable_x64(True):
        directions = np.asarray(jax.random.normal(KEY, (40, 4), jnp.float64))
        found = sliced_wasserstein2(KEY, first, second, projections=40, block=7)
    squares = [w2(first @ d, second @ d) ** 2 for d in directions / np.linalg.norm(directions, axis=1, keepdims=True)]
    np.testing.assert_allclose(found, np.sqrt(np.mean(squares)), rtol=1e-12)


def test_gaussians_meet_their_closed_forms():
    # W2^2 of N(m, s^2) and N(n, t^2) is (m - n)^2 + (s - t)^2; equal quantiles of both stand in for draws.
    z = ndtri((np.arange(20_000) + 0.5) / 20_000)[:, None]
    with jax.enable_x64(True):
        found = sliced_wasserstein2(KEY, 1 + 0.5 * z, -0.2 + 2 * z, projections=1)
    # The midpoints leave out 2e-4 of the variance, which lies in the tails.
    np.testing.assert_allclose(found**2, 1.2**2 + 1.5**2, rtol=2e-4)


def test_a_shift_is_at_its_length_over_the_root_of_the_dimension():
    dimension, projections = 5, 4000
    samples = np.random.default_rng(2).standard_normal((10, dimension)).astype(np.float32)
    shift = np.array([3.0, 0.0, -4.0, 0.0, 0.0], np.float32)
    found = float(sliced_wasserstein2(KEY, samples, samples + shift, projections=projections))
    # (direction . shift)^2 / |shift|^2 is Beta(1 / 2, 2): mean 1 / 5, variance 2 (d - 1) / (d^2 (d + 2)) = .0457.
    spread = np.sqrt(2 * (dimension - 1) / (dimension**2 * (dimension + 2)) / projections)
    assert abs(found**2 / 25 - 1 / dimension) < 4 * spread


def test_bad_arguments_are_refused():
    points = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="projections and block must be at least 1, got 0 and 32"):
        sliced_wasserstein2(KEY, points, points, projections=0)
    with pytest.raises(ValueError, match="at least 1 samples are needed, got 0"):
        sliced_wasserstein2(KEY, points, points[:0])
