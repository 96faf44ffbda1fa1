"""Power against the noncentral t, against tables, and against simulation."""

import numpy as np
import pytest
from scipy import stats

from jaxgen.statistics import confidence, power

# Power of TOST at alpha = .05 and true difference 0, by margin in standard deviations.
TABLE = {3: (0.12, 0.33, 0.55, 0.87), 5: (0.30, 0.73, 0.95, 1.0), 8: (0.63, 0.97, 1.0, 1.0)}


@pytest.mark.parametrize("units", TABLE)
def test_tost_power_meets_the_table(units):
    found = [power.tost_power(margin, units) for margin in (1.0, 1.5, 2.0, 3.0)]
    # The table was simulated and rounded to two digits.
    assert found == pytest.approx(TABLE[units], abs=0.012)


@pytest.mark.parametrize(("margin", "units", "difference"), [(1.0, 3, 0.0), (1.2, 6, 0.5), (0.8, 10, -0.3)])
def test_tost_power_is_the_rate_of_a_simulation(margin, units, difference):
    draws = np.random.default_rng(0).normal(difference, 1, (40_000, units))
    mean, stderr = draws.mean(axis=1), draws.std(axis=1, ddof=1) / np.sqrt(units)
    critical = stats.t.ppf(0.95, units - 1)
    rate = np.mean((mean + critical * stderr < margin) & (mean - critical * stderr > -margin))
    expected = power.tost_power(margin, units, difference=difference)
    assert abs(rate - expected) < 3 * np.sqrt(expected * (1 - expected) / 40_000)


@pytest.mark.parametrize("df", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize("effect", [-1.0, 0.0, 0.7, 3.0, 8.0])
def test_one_sided_power_is_the_tail_of_the_noncentral_t(df, effect):
    found = power.t_power(-np.inf, 0.0, mean=-effect, stderr=1.0, df=df)
    assert found == pytest.approx(stats.nct.sf(stats.t.ppf(0.95, df), df, effect), abs=2e-9)


def test_normal_power_is_the_limit_of_many_degrees_of_freedom():
    many = power.t_power(-0.4, 0.5, mean=0.1, stderr=0.15, df=1e7)
    assert power.normal_power(-0.4, 0.5, mean=0.1, stderr=0.15) == pytest.approx(many, abs=1e-6)


@pytest.mark.parametrize(("lower", "upper", "rate"), [(0.9, 1.1, 0.97), (-0.1, 0.2, 0.1), (0.4, 0.6, 0.5)])
def test_binomial_power_counts_the_outcomes_that_decide(lower, upper, rate):
    expected = 0.0
    for count in range(81):
        found = confidence.clopper_pearson(count, 80)
        if max(found.less(upper), found.greater(lower)) < 0.05:
            expected += stats.binom.pmf(count, 80, rate)
    assert power.binomial_power(lower, upper, rate=rate, trials=80) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_power_refuses_what_has_no_spread():
    with pytest.raises(ValueError, match="stderr and df must be positive, got 0 and 3"):
        power.t_power(-1.0, 1.0, mean=0.0, stderr=0, df=3)
    with pytest.raises(ValueError, match="needs a positive margin and at least 2 units, got 0 and 8"):
        power.tost_power(0, 8)
