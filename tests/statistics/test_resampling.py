"""Resampling tests against scipy, against enumeration, and against the rate of their errors."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxgen.statistics import confidence, resampling

FIRST, SECOND = [3.1, 2.9, 3.32, 3.05, 3.21], [3.6, 3.15, 3.7, 3.5]


def permutation_p(data, alternative, kind):
    return stats.permutation_test(
        data,
        lambda *groups, axis: np.mean(groups[0], axis=axis) - (np.mean(groups[1], axis=axis) if groups[1:] else 0.0),
        permutation_type=kind,
        alternative=alternative,
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue


@pytest.mark.parametrize("alternative", ["less", "greater"])
@pytest.mark.parametrize("bound", [2.95, 3.11, 3.4])
def test_sign_flips_are_scipys_exact_permutation_test(alternative, bound):
    found = getattr(resampling.sign_flips(FIRST, seed=0), alternative)(bound)
    assert found == pytest.approx(permutation_p((np.array(FIRST) - bound,), alternative, "samples"), rel=1e-12)


@pytest.mark.parametrize("alternative", ["less", "greater"])
@pytest.mark.parametrize("bound", [-0.613, -0.371, 0.0])
def test_group_permutations_are_scipys_exact_permutation_test(alternative, bound):
    found = getattr(resampling.group_permutations(FIRST, SECOND, seed=0), alternative)(bound)
    data = (np.array(FIRST) - bound, np.array(SECOND))
    assert found == pytest.approx(permutation_p(data, alternative, "independent"), rel=1e-12)


@pytest.mark.parametrize("test", ["sign_flips", "group_permutations"])
def test_random_relabellings_agree_with_the_t_test_where_there_are_too_many_to_list(test):
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    data = (first,) if test == "sign_flips" else (first, second)
    parametric = confidence.t_mean(*data) if test == "sign_flips" else confidence.welch(*data)
    found = getattr(resampling, test)(*data, seed=0)
    # 10,000 draws have a standard error of .003 at p = .1; the t-test itself is off by as much on 40 normal units.
    assert found.less(0.4) == pytest.approx(parametric.less(0.4), abs=0.02)
    assert found.limits(0.9) == pytest.approx(parametric.limits(0.9), abs=0.03)


def test_bootstrap_mean_is_the_studentised_law_over_all_resamples():
    data = np.array([0.2, 0.5, 0.9, 1.4])
    stderr = data.std(ddof=1) / 2
    studentised = []
    for chosen in itertools.product(data, repeat=4):
        spread = np.std(chosen, ddof=1) / 2
        deviation = np.mean(chosen) - data.mean()
        studentised.append(deviation / spread if len(set(chosen)) > 1 else np.inf * np.sign(deviation))
    found = resampling.bootstrap_mean(data, seed=0, draws=40_000)
    for bound in (0.1, 0.6, 1.1, 1.9):
        expected = np.mean(np.array(studentised) <= (data.mean() - bound) / stderr)
        assert found.less(bound) == pytest.approx(expected, abs=0.0075)  # three standard errors of 40,000 draws


def test_bootstrap_difference_agrees_with_welch_on_many_normal_units():
    rng = np.random.default_rng(5)
    first, second = rng.normal(1, 1, 60), rng.normal(0.8, 2, 50)
    found, parametric = resampling.bootstrap_difference(first, second, seed=1), confidence.welch(first, second)
    assert found.limits(0.9) == pytest.approx(parametric.limits(0.9), abs=0.05)
    assert found.estimate == pytest.approx(first.mean() - second.mean())


def test_bootstrap_covers_skewed_means_better_than_percentiles_do():
    rng, covered, by_percentiles = np.random.default_rng(2), 0, 0
    for seed in range(300):
        data = rng.exponential(1, 12)
        low, high = resampling.bootstrap_mean(data, seed=seed, draws=499).limits(0.9)
        covered += low < 1 < high
        means = data[rng.integers(0, 12, (499, 12))].mean(axis=1)
        by_percentiles += np.quantile(means, 0.05) < 1 < np.quantile(means, 0.95)
    assert abs(covered / 300 - 0.9) < 3 * 0.017  # three standard errors of 300 draws
    assert covered > by_percentiles


TESTS = [
    lambda seed: resampling.bootstrap_mean(FIRST, seed=seed, draws=499),
    lambda seed: resampling.bootstrap_difference(FIRST, SECOND, seed=seed, draws=499),
    lambda seed: resampling.sign_flips(FIRST * 4, seed=seed, draws=499),
    lambda seed: resampling.group_permutations(FIRST * 4, SECOND * 4, seed=seed, draws=499),
]


@pytest.mark.parametrize("make", TESTS)
def test_the_seed_decides_every_draw(make):
    bounds = np.linspace(-1, 4, 50)
    same, again, other = ([make(seed).less(bound) for bound in bounds] for seed in (7, 7, 8))
    assert same == again
    assert same != other


@pytest.mark.parametrize("make", TESTS)
def test_the_interval_holds_exactly_the_bounds_that_neither_test_rejects(make):
    found = make(0)
    low, high = found.limits(0.9)
    step = 1e-9
    assert found.greater(low) >= 0.05 > found.greater(low - step)
    assert found.less(high) >= 0.05 > found.less(high + step)


@settings(max_examples=30)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8), st.integers(-60, 60))
def test_sign_flips_on_negated_data_exchange_less_and_greater(values, bound):
    data = [value / 8 for value in values]  # eighths, whose sums are exact: ties stay ties
    mirrored = resampling.sign_flips([-value for value in data], seed=0)
    assert resampling.sign_flips(data, seed=0).less(bound / 8) == pytest.approx(mirrored.greater(-bound / 8))


def test_too_few_units_decide_nothing():
    assert resampling.sign_flips([1.0, 1.1, 1.2, 0.9], seed=0).less(50.0) == 1 / 16
    assert resampling.sign_flips([1.0, 1.1, 1.2, 0.9], seed=0).limits(0.9) == (-np.inf, np.inf)
    assert resampling.bootstrap_mean([1.0, 1.2], seed=0).limits(0.9) == (-np.inf, np.inf)


def test_a_bootstrap_over_equal_values_has_nothing_to_resample():
    assert resampling.bootstrap_mean([0.5] * 8, seed=0).defect == "the seeds have no effect"
    assert resampling.bootstrap_difference([0.5] * 8, [0.1] * 8, seed=0).defect == "the seeds have no effect"
