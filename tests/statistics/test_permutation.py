"""The permutation test of the maximum mean discrepancy, against loops and by simulation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.statistics.kernel import polynomial_kernel, rbf_kernel, unbiased_mmd2
from jaxgen.statistics.permutation import mmd_permutation_test

KEY = jax.random.key(0)


def mmd2_by_loops(kernel, first, second):
    """Lemma 6 of Gretton et al. 2012, one pair at a time."""
    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(samples, 2)]) for samples in (first, second)]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in first for b in second])


def relabelled(points, count, permutations):
    """The two sets of each permutation p, drawn with fold_in(key, p)."""
    for p in range(permutations):
        chosen = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, p), jnp.arange(len(points)) < count))
        yield points[chosen], points[~chosen]


def test_matches_loops_over_the_same_permutations():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((7, 2)), 0.8 + rng.standard_normal((5, 2))
    kernel = lambda a, b: (np.dot(a, b) / 2 + 1) ** 3  # noqa: E731
    points = np.concatenate([first, second])
    null = np.array([mmd2_by_loops(kernel, *sets) for sets in relabelled(points, 7, 39)])
    with jax.enable_x64(True):
        found = mmd_permutation_test(polynomial_kernel(), first, second, KEY, permutations=39, block=8)
    expected = mmd2_by_loops(kernel, first, second)
    np.testing.assert_allclose(found.statistic, expected, rtol=1e-12)
    np.testing.assert_allclose(found.p_value, (1 + np.sum(null >= expected - 1e-12)) / 40, rtol=1e-12)
    # 40 / 20 = 2: p <= .05 for one of 39 that is as large, so the threshold is the second largest.
    np.testing.assert_allclose(found.null_quantile, np.sort(null)[-2], rtol=1e-12)


def test_ties_count_against_the_observed_split():
    # Four points in two pairs: 3 splits in two, one of which is the observed one, whichever set is named first.
    first, second = jnp.array([[0.0], [0.1]]), jnp.array([[3.0], [3.1]])
    found = mmd_permutation_test(rbf_kernel(1.0), first, second, KEY, permutations=299)
    # (1 + Binomial(299, 1 / 3)) / 300: its standard deviation is .027.
    assert abs(float(found.p_value) - 1 / 3) < 4 * 0.027
    found = mmd_permutation_test(rbf_kernel(1.0), jnp.ones((2, 1)), jnp.ones((2, 1)), KEY, permutations=299)
    assert float(found.p_value) == 1.0


def simulate(key, shift, *, draws, permutations):
    """P-values and whether the quantile is exceeded, for sets of 12 and 8 points of N(0, 1) and N(shift, 1)."""

    def one(key):
        data_key, key = jax.random.split(key)
        points = jax.random.normal(data_key, (20, 2))
        found = mmd_permutation_test(rbf_kernel(1.0), points[:12], points[12:] + shift, key, permutations=permutations)
        return found.p_value, found.statistic > found.null_quantile

    return jax.lax.map(one, jax.random.split(key, draws), batch_size=32)


def test_p_values_are_uniform_under_equal_laws_and_small_under_shifted_ones():
    draws = 400
    run = jax.jit(lambda key, shift: simulate(key, shift, draws=draws, permutations=99))
    p_values, exceeded = map(np.asarray, run(jax.random.key(1), 0.0))
    for level in (0.05, 0.1, 0.5):
        rejected = int(np.sum(p_values <= level + 1e-6))
        # Ranks of 100 exchangeable statistics: exactly `level`, but for ties. One test in 1,000 falls outside.
        assert stats.binomtest(rejected, draws, level).pvalue > 1e-3, (level, rejected)
    assert stats.kstest(p_values - 0.005, "uniform").pvalue > 1e-3  # a grid of 1 / 100 is coarser than nothing
    # The quantile is the value to be exceeded for a p-value of .05.
    np.testing.assert_array_equal(exceeded, p_values <= 0.05 + 1e-6)
    p_values, _ = run(jax.random.key(2), 1.5)
    assert np.mean(np.asarray(p_values) <= 0.05 + 1e-6) > 0.8


def test_shifted_gaussians_of_hundreds_of_samples_are_told_apart():
    first, second = np.random.default_rng(5).standard_normal((2, 300, 8)).astype(np.float32)
    test = lambda shift: mmd_permutation_test(rbf_kernel(3.0), first, second + np.float32(shift), KEY)  # noqa: E731
    found = test(0.3)
    assert float(found.p_value) == pytest.approx(1 / 1000)
    assert float(found.statistic) > float(found.null_quantile) > 0
    expected = unbiased_mmd2(rbf_kernel(3.0), first, second + np.float32(0.3))
    np.testing.assert_allclose(found.statistic, expected, atol=2e-6)  # roundings of sums of kernels of about 1 / 2
    assert float(test(0.0).p_value) > 0.05


def test_few_permutations_reject_nothing_at_five_percent():
    points = jnp.arange(8.0)[:, None]
    found = mmd_permutation_test(rbf_kernel(1.0), points, points + 100, KEY, permutations=18, block=18)
    assert float(found.null_quantile) == np.inf
    assert float(found.p_value) > 0.05


def test_bad_arguments_are_refused():
    points = jnp.zeros((3, 1))
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        mmd_permutation_test(rbf_kernel(1.0), points, points, KEY, permutations=0)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        mmd_permutation_test(rbf_kernel(1.0), points, points, KEY, block=0)
    with pytest.raises(ValueError, match="at least 2 samples are needed, got 1"):
        mmd_permutation_test(rbf_kernel(1.0), points, points[:1], KEY)
