"""Each parametric test against scipy, and the interval against the p-values that it summarises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxgen.statistics import confidence

# Numbers as experiments give them: rounded to 1e-3, so that shifts and scales cannot drown their spread in rounding.
VALUES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=3, max_size=10).filter(
    lambda values: len(set(values)) > 1
)
BOUNDS = st.integers(-1500, 1500).map(lambda n: n / 1000)
FIRST, SECOND = [3.1, 2.9, 3.3, 3.0, 3.2], [3.6, 3.4, 3.7, 3.5, 3.9]


@given(VALUES, BOUNDS)
def test_t_mean_is_scipys_one_sample_t_test(values, bound):
    found = confidence.t_mean(values)
    for alternative in ("less", "greater"):
        expected = stats.ttest_1samp(values, bound, alternative=alternative).pvalue
        assert getattr(found, alternative)(bound) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(VALUES, BOUNDS)
def test_t_mean_on_negated_data_exchanges_less_and_greater(values, bound):
    mirrored = confidence.t_mean([-value for value in values])
    assert confidence.t_mean(values).less(bound) == pytest.approx(mirrored.greater(-bound), rel=1e-9)


@given(VALUES, BOUNDS, st.floats(0.01, 100), st.floats(-10, 10))
def test_t_mean_does_not_depend_on_the_unit_or_the_origin(values, bound, scale, shift):
    moved = confidence.t_mean([scale * value + shift for value in values])
    # The shift costs up to 3 digits of the spread.
    assert moved.less(scale * bound + shift) == pytest.approx(confidence.t_mean(values).less(bound), rel=1e-6, abs=1e-9)


def test_welch_less_on_the_check_value():
    assert confidence.welch(FIRST, SECOND).less(0.0) == pytest.approx(8.843e-4, rel=1e-4)


@given(VALUES, VALUES, BOUNDS)
def test_welch_is_scipys(first, second, bound):
    found = confidence.welch(first, second)
    shifted = [value - bound for value in first]
    for alternative in ("less", "greater"):
        expected = stats.ttest_ind(shifted, second, equal_var=False, alternative=alternative).pvalue
        assert getattr(found, alternative)(bound) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_clopper_pearson_on_the_check_value():
    assert confidence.clopper_pearson(47, 50).limits(0.95) == pytest.approx((0.8345, 0.9875), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (1, 20), (13, 20), (20, 20), (500, 512)])
def test_clopper_pearson_is_scipys(successes, trials):
    found = confidence.clopper_pearson(successes, trials)
    for bound in (0.0, 0.02, 0.5, 0.97, 1.0):
        for alternative in ("less", "greater"):
            expected = stats.binomtest(successes, trials, bound, alternative=alternative).pvalue
            assert getattr(found, alternative)(bound) == pytest.approx(expected, rel=1e-9)
    expected = stats.binomtest(successes, trials).proportion_ci(0.9, method="exact")
    assert found.limits(0.9) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_a_proportion_needs_no_evidence_to_lie_below_a_bound_beyond_one():
    certain = confidence.clopper_pearson(50, 50)
    assert (certain.less(1.05), certain.greater(-0.05), certain.less(1.0)) == (0.0, 0.0, 1.0)


def test_fisher_z_is_scipys_interval_of_a_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    values = 0.6 * x + rng.normal(size=30)
    found, expected = confidence.fisher_z(x, values), stats.pearsonr(x, values)
    interval = expected.confidence_interval(0.9)
    assert found.estimate == pytest.approx(expected.statistic, rel=1e-12)
    assert found.limits(0.9) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.less(float(interval.high)) == pytest.approx(0.05, rel=1e-6)
    assert (found.less(1.0), found.greater(1.0), found.greater(-1.0)) == (0.0, 1.0, 0.0)


def test_regression_has_the_coverage_of_its_interval():
    x, rng, hits = np.array([10.0, 20.0, 40.0, 80.0, 160.0]), np.random.default_rng(1), 0
    for _ in range(400):
        low, high = confidence.t_regression(x, 3 * x**-0.5 * np.exp(0.1 * rng.normal(size=5))).limits(0.9)
        hits += low < -0.5 < high
    assert abs(hits / 400 - 0.9) < 3 * 0.015  # three standard errors of 400 draws


def test_log_log_slopes_recover_the_exponent_of_every_unit():
    x, exponents = np.array([1.0, 2.0, 5.0, 9.0]), np.array([-1.0, 0.5, 2.0])
    curves = np.array([[3.0], [0.2], [7.0]]) * x ** exponents[:, None]
    np.testing.assert_allclose(confidence.log_log_slopes(x, curves), exponents, atol=1e-12)


@pytest.mark.parametrize(
    "found",
    [
        confidence.t_mean([0.2, 0.5, 0.4, 0.9]),
        confidence.welch(FIRST, SECOND),
        confidence.clopper_pearson(13, 20),
        confidence.fisher_z([1.0, 2.0, 3.0, 5.0, 4.0], [1.0, 3.0, 2.0, 4.0, 6.0]),
        confidence.t_regression([1.0, 2.0, 4.0, 8.0], [1.0, 2.2, 3.9, 8.3]),
    ],
)
def test_the_ends_of_the_90_percent_interval_have_one_sided_p_values_of_5_percent(found):
    low, high = found.limits(0.9)
    assert (found.greater(low), found.less(high)) == pytest.approx((0.05, 0.05), rel=1e-9)


def test_deterministic_is_certain_outside_its_error_and_silent_inside():
    found = confidence.deterministic(2.0, 0.5)
    assert [found.less(bound) for bound in (1.4, 2.4, 2.6)] == [1.0, 1.0, 0.0]
    assert [found.greater(bound) for bound in (1.4, 1.6, 2.6)] == [0.0, 1.0, 1.0]
    assert found.limits(0.9) == (1.5, 2.5)
    assert not found.random


@pytest.mark.parametrize(
    ("found", "defect"),
    [
        (confidence.t_mean([0.3, 0.3, 0.3]), "the seeds have no effect"),
        (confidence.welch([0.3, 0.3], [0.4, 0.4]), "the seeds have no effect"),
        (
            confidence.fisher_z([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 5.0]),
            "a variable without spread has no correlation",
        ),
    ],
)
def test_data_without_spread_decide_nothing_and_say_why(found, defect):
    assert found.defect == defect
    assert [found.less(bound) for bound in (-9.0, 0.0, 9.0)] == [found.greater(bound) for bound in (-9.0, 0.0, 9.0)]
    assert found.less(9.0) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: confidence.t_mean([1.0]), "values must be one row of at least 2 numbers, got shape (1,)"),
        (
            lambda: confidence.t_mean([1.0, np.nan]),
            "values must be finite and at most 1e+100 in size, got nan: it crashed",
        ),
        (lambda: confidence.clopper_pearson(3, 2), "successes must lie in [0, trials] with trials >= 1, got 3 of 2"),
        (lambda: confidence.deterministic(1.0, -1.0), "the error bound must be finite and at least 0, got -1.0"),
        (lambda: confidence.t_regression([1.0, 2.0], [1.0, 2.0]), "a regression needs at least 3 points, got 2"),
        (lambda: confidence.log_log_slopes([1.0, 2.0], [[1.0, 0.0]]), "an exponent needs positive x and values"),
        (lambda: confidence.log_log_slopes([2.0, 2.0], [[1.0, 3.0]]), "an exponent needs at least two different x"),
        (
            lambda: confidence.log_log_slopes([2.0, 3.0], [[1.0, 3.0, 4.0]]),
            "x and values must have one length, got 2 and 3",
        ),
    ],
)
def test_data_that_no_test_can_read_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
