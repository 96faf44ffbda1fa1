"""Verdicts against the check values, against their own intervals, and against the rate of false ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.statistics import confidence, power, resampling, verdicts

HOLDS = (0.52, 0.49, 0.55, 0.50, 0.54)
REFUTED = (0.62, 0.59, 0.65, 0.60, 0.64)
OPEN = (0.52, 0.49, 0.65, 0.40, 0.64)
VALUES = st.lists(st.integers(-100, 100).map(lambda n: n / 100), min_size=3, max_size=8).filter(
    lambda values: len(set(values)) > 1
)


def test_equal_holds_on_the_check_value():
    found = verdicts.equal(confidence.t_mean(HOLDS), 0.5, 0.05)
    assert (found.verdict, found.p_holds) == ("holds", pytest.approx(0.02906, abs=5e-6))
    assert confidence.t_mean(HOLDS).limits(0.9) == pytest.approx((0.4957, 0.5443), abs=5e-5)


def test_equal_is_refuted_on_the_check_value():
    found = verdicts.equal(confidence.t_mean(REFUTED), 0.5, 0.05)
    assert (found.verdict, found.p_refuted) == ("refuted", pytest.approx(0.00357, abs=5e-6))


def test_equal_is_inconclusive_on_the_check_value():
    found = verdicts.equal(confidence.t_mean(OPEN), 0.5, 0.05)
    assert (found.verdict, found.p_holds) == ("inconclusive", pytest.approx(0.4213, abs=1.1e-4))


def test_holm_on_the_check_value():
    found = verdicts.holm([0.001, 0.012, 0.02, 0.04, 0.30])
    assert found == pytest.approx([0.005, 0.048, 0.06, 0.08, 0.30])


@given(st.lists(st.floats(0, 1), max_size=7))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    order = np.argsort(p_values, kind="stable")
    rejected = set()
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) >= 0.05:
            break
        rejected.add(int(index))
    assert {i for i, p in enumerate(verdicts.holm(p_values)) if p < 0.05} == rejected


def test_false_verdicts_on_the_margin_come_at_their_nominal_rates():
    draws, margin = 6_000, 1.5
    units = np.random.default_rng(0).normal(margin, 1, (draws, 8))
    p = np.array([verdicts.p_values(confidence.t_mean(row), -margin, margin) for row in units])
    hold, refute = np.mean(p < verdicts.ALPHA, axis=0)
    # The truth on the margin: "holds" at the level of one test, "refuted" at half of it, less the other test's share.
    expected = power.tost_power(margin, 8, difference=margin)
    assert abs(hold - expected) < 3 * np.sqrt(expected * (1 - expected) / draws)
    assert abs(refute - 0.025) < 3 * np.sqrt(0.025 * 0.975 / draws)
    # The published rates are .047 and .030, from a simulation of some 2,000 draws.
    assert abs(hold - 0.047) < 3 * np.sqrt(0.047 * 0.953 / 2_000)
    assert abs(refute - 0.030) < 3 * np.sqrt(0.030 * 0.970 / 2_000)


@settings(max_examples=60)
@given(VALUES, st.integers(-100, 100), st.integers(1, 60))
def test_equal_holds_where_the_90_percent_interval_lies_within_the_margin(values, reference, margin):
    evidence, reference, margin = confidence.t_mean(values), reference / 100, margin / 100
    low, high = evidence.limits(0.9)
    inside = reference - margin < low and high < reference + margin
    assert (verdicts.p_values(evidence, reference - margin, reference + margin)[0] < 0.05) == inside


@settings(max_examples=20, deadline=None)
@given(VALUES, st.integers(-100, 100))
def test_less_and_greater_are_mirror_images(values, bound):
    first = verdicts.less(confidence.t_mean(values), bound / 100)
    second = verdicts.greater(confidence.t_mean([-value for value in values]), -bound / 100)
    assert first.verdict == second.verdict
    assert (first.p_holds, first.p_refuted) == pytest.approx((second.p_holds, second.p_refuted))


@settings(max_examples=10, deadline=None)
@given(VALUES, st.integers(-100, 100), st.integers(1, 60), st.sampled_from([0.25, 8.0]), st.integers(-4, 4))
def test_equal_does_not_depend_on_the_unit_or_the_origin(values, reference, margin, scale, shift):
    first = verdicts.equal(confidence.t_mean(values), reference / 100, margin / 100)
    moved = confidence.t_mean([scale * value + shift for value in values])
    second = verdicts.equal(moved, scale * reference / 100 + shift, scale * margin / 100)
    assert (second.p_holds, second.p_refuted) == pytest.approx((first.p_holds, first.p_refuted), rel=1e-6, abs=1e-9)
    assert second.excess == pytest.approx(first.excess, rel=1e-6, abs=1e-9)


def test_one_sided_claims_are_refuted_at_the_doubled_opposite_p_value():
    evidence = confidence.t_mean(REFUTED)
    assert verdicts.less(evidence, 0.5).verdict == "refuted"
    assert verdicts.less(evidence, 0.5).p_refuted == pytest.approx(2 * evidence.greater(0.5))
    assert verdicts.greater(evidence, 0.5).verdict == "holds"


def test_seeds_without_effect_are_inconclusive():
    found = verdicts.equal(confidence.t_mean([0.5] * 8), 0.5, 0.05)
    assert (found.verdict, found.reason, found.units_needed) == ("inconclusive", "the seeds have no effect", None)


def test_deterministic_numbers_hold_fail_or_stay_open_by_their_error():
    def verdict(value):
        return verdicts.equal(confidence.deterministic(value, 0.02), 1.0, 0.1).verdict

    assert [verdict(value) for value in (1.05, 1.09, 1.11, 1.13)] == [
        "holds",
        "inconclusive",
        "inconclusive",
        "refuted",
    ]


def test_a_perfect_proportion_holds_against_a_reference_of_one():
    assert verdicts.equal(confidence.clopper_pearson(512, 512), 1.0, 0.01).verdict == "holds"
    assert verdicts.equal(confidence.clopper_pearson(12, 12), 1.0, 0.01).verdict == "inconclusive"


def test_units_needed_are_the_fewest_with_a_power_of_80_percent():
    evidence = confidence.t_mean(OPEN)
    found = verdicts.equal(evidence, 0.5, 0.05)
    deviation = np.std(OPEN, ddof=1)
    margin, difference = 0.05 / deviation, (evidence.estimate - 0.5) / deviation
    assert found.units_needed is not None
    assert power.tost_power(margin, found.units_needed, difference=difference) >= 0.8
    assert power.tost_power(margin, found.units_needed - 1, difference=difference) < 0.8
    assert found.reason == f"about {found.units_needed} units would decide it, 5 were measured"


def test_units_needed_outside_the_range_are_those_that_refute():
    deviation, shift = np.std(OPEN, ddof=1), 0.08
    evidence = confidence.t_mean([value + shift for value in OPEN])
    needed = verdicts.equal(evidence, 0.5, 0.05).units_needed
    effect = (evidence.estimate - 0.55) / deviation

    def chance(units):
        return power.t_power(0.0, np.inf, mean=effect, stderr=1 / np.sqrt(units), df=units - 1, alpha=0.025)

    assert needed is not None
    assert chance(needed) >= 0.8 > chance(needed - 1)


def test_an_estimate_on_the_end_of_the_range_is_never_decided():
    found = verdicts.less(confidence.t_mean([0.4, 0.6, 0.5, 0.45, 0.55]), 0.5)
    assert (found.verdict, found.units_needed) == ("inconclusive", None)
    assert found.reason.startswith("not even 10000 units would decide it")
    many = verdicts.less(confidence.clopper_pearson(6_000, 12_000), 0.5)
    assert many.reason.startswith("not even 120000 units would decide it")


def test_more_units_than_the_usual_limit_can_be_asked_for():
    found = verdicts.less(confidence.clopper_pearson(5_950, 12_000), 0.5)
    assert found.units_needed is not None
    assert found.units_needed > 12_000


@pytest.mark.parametrize(
    "evidence",
    [
        resampling.sign_flips(OPEN, seed=0),
        resampling.bootstrap_mean(OPEN, seed=0),
        confidence.clopper_pearson(11, 20),
        confidence.fisher_z([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 5.0, 1.5]),
    ],
)
def test_every_test_says_how_many_units_would_decide(evidence):
    found = verdicts.equal(evidence, 0.5, 0.2 if evidence.units == 20 else 0.05)
    assert found.verdict == "inconclusive"
    assert found.units_needed is not None
    assert found.units_needed > evidence.units


def test_exact_compares_every_case_within_both_tolerances():
    targets = [1.0, -100.0, 0.0]
    good, worst = verdicts.exact([1.001, -100.9, 0.001], targets, atol=0.001, rtol=0.01)
    assert (good.verdict, good.random, worst) == ("holds", False, 2)
    bad, worst = verdicts.exact([1.001, -101.1, 0.001], targets, atol=0.001, rtol=0.01)
    assert (bad.verdict, worst) == ("refuted", 1)
    assert bad.reason == "1 of 3 cases miss their target, the worst by 1.1"
    assert verdicts.exact([np.nan], [0.0], atol=1.0)[0].verdict == "refuted"


def decision(p_holds, p_refuted, random=True):
    verdict = "holds" if p_holds < 0.05 else "refuted" if p_refuted < 0.05 else "inconclusive"
    return verdicts.Decision(verdict, p_holds, p_refuted, 0.0, random, "", None)


@pytest.mark.parametrize(
    ("cells", "verdict", "p_holds", "p_refuted", "worst"),
    [
        ([decision(0.01, 1), decision(0.04, 1)], "holds", 0.04, 1, 1),  # the largest p, uncorrected
        ([decision(0.01, 1), decision(0.06, 1)], "inconclusive", 0.06, 1, 1),
        ([decision(0.01, 1), decision(1, 0.02)], "refuted", 1, 0.04, 1),
        ([decision(0.01, 1), decision(0.01, 1), decision(1, 0.02)], "inconclusive", 1, 0.06, 2),  # lost to Holm
        ([decision(1, 0.03), decision(1, 0.001)], "refuted", 1, 0.002, 1),
        ([decision(0, 1, False), decision(0.01, 1)], "holds", 0.01, 1, 1),
        ([decision(0, 1, False), decision(1, 0.04)], "refuted", 1, 0.04, 1),  # certain cells do not enlarge the family
        ([decision(1, 0, False), decision(0.01, 1)], "refuted", 1, 0, 0),
    ],
)
def test_a_row_is_the_intersection_of_its_cells(cells, verdict, p_holds, p_refuted, worst):
    found = verdicts.combine(cells)
    assert (found.verdict, found.worst) == (verdict, worst)
    assert (found.p_holds, found.p_refuted) == pytest.approx((p_holds, p_refuted))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: verdicts.equal(confidence.t_mean(HOLDS), 0.5, 0.0),
            "equality needs a margin above 0 and finite, got 0.0",
        ),
        (lambda: verdicts.combine([]), "a row needs at least one cell, got none"),
        (lambda: verdicts.exact([1.0], [1.0, 2.0], atol=0.0), "values and targets must be rows of one length"),
        (lambda: verdicts.exact([1.0], [1.0], atol=-1.0), "tolerances must be at least 0 and targets finite"),
    ],
)
def test_claims_that_no_data_can_show_are_refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
