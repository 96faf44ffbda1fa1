"""Bounds and rates: numbers of the dossier, where the bound says nothing, and its failures on a finite family."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.statistics.bracketing import ArmSize, EbmSize, log_bracket_gaussian
from jaxgen.statistics.tv_bounds import (
    rate_arm,
    rate_ebm,
    rate_gaussian,
    rate_ratio,
    similarity,
    tv_bound,
    tv_bound_sharp,
    vacuous_below,
)

ARM = ArmSize(depth=3, width=64, nonzero=1000, bound=1.0, length=16, categories=32, embedding=8)
EBM = EbmSize(depth=3, width=64, nonzero=1000, bound=1.0, embedding=8)


def test_bounds_at_known_numbers():
    assert tv_bound(10.0, 100, 0.05) == pytest.approx(1.0814878199128546, rel=1e-14)
    assert tv_bound_sharp(10.0, 100, 0.05) == pytest.approx(0.5258303166084278, rel=1e-14)
    known = {(500, False): 3.02799517, (500, True): 2.35006854, (10**6, False): 0.08946704, (10**6, True): 0.06937864}
    for (n, shared), value in known.items():
        log_bracket = log_bracket_gaussian(5, 5, 5, 5.0, 1 / n, shared=shared)
        assert tv_bound(log_bracket, n) == pytest.approx(value, abs=5e-9)


def test_the_sharp_bound_is_smaller_everywhere():
    ratios = [
        tv_bound_sharp(math.log(size), n, delta) / tv_bound(math.log(size), n, delta)
        for n in (1, 2, 3, 5, 10, 100, 10**4, 10**8)
        for delta in (0.5, 0.1, 0.01)
        for size in (1.0, 2.0, 10.0, 1e5, 1e30)
    ]
    assert max(ratios) <= 0.958


@pytest.mark.parametrize(("shared", "first"), [(True, 3269), (False, 5678)])
def test_below_how_many_samples_the_bound_says_nothing(shared, first):
    def log_bracket(n):
        return log_bracket_gaussian(5, 5, 5, 5.0, 1 / n, shared=shared)

    assert vacuous_below(log_bracket) == first
    assert tv_bound(log_bracket(first - 1), first - 1) > 1 >= tv_bound(log_bracket(first), first)


def test_a_family_of_one_law_is_known_after_a_few_samples():
    # 3 sqrt(log(20) / n) <= 1 from n = 9 log 20 = 26.96
    assert vacuous_below(lambda n: 0.0) == 27
    with pytest.raises(ValueError, match="log_bracket must grow slower than n"):
        vacuous_below(lambda n: float(n))


def test_ratios_of_the_rates():
    known = {(5, 0.5): 0.7745966692414834, (10, 0.5): 0.7416198487095663, (5, 1.0): 0.44721359549995787}
    known[3, 0.3] = 0.8944271909999159
    for (sources, beta), value in known.items():
        assert rate_ratio(sources, beta) == pytest.approx(value, rel=1e-14)
    pairs = [[rate(10**4, 5, size, shared=shared) for shared in (True, False)] for rate, size in _networks()]
    assert pairs[0] == pytest.approx([0.6572670690061994, 1.453272169966796], rel=1e-14)
    assert pairs[1] == pytest.approx([0.5585696017507576, 1.2296340919151518], rel=1e-14)
    betas = [similarity(size.shared, size.specific) for _, size in _networks()]
    assert betas == pytest.approx([0.9943181818181818, 0.9920634920634921], rel=1e-14)
    for (together, apart), beta in zip(pairs, betas, strict=True):
        assert together / apart == pytest.approx(rate_ratio(5, beta), rel=1e-13)
    assert pairs[0][0] / pairs[0][1] == pytest.approx(0.4522670168666455, rel=1e-14)


def _networks():
    return (rate_arm, ARM), (rate_ebm, EBM)


@given(st.integers(1, 30), st.integers(0, 20), st.integers(0, 20), st.integers(1, 10**6))
def test_the_ratio_of_gaussian_rates_is_that_of_the_similarity(sources, own, common, n):
    if own + common == 0:
        return
    together, apart = (rate_gaussian(n, sources, own, common, shared=shared) for shared in (True, False))
    assert together / apart == pytest.approx(rate_ratio(sources, similarity(common, own)), rel=1e-12)


def test_maximum_likelihood_over_a_finite_family_keeps_the_bound():
    rng, n, delta, replicates = np.random.default_rng(0), 60, 0.5, 2000
    truth, far = np.array([0.6, 0.3, 0.1]), np.array([[0.02, 0.03, 0.95], [0.01, 0.2, 0.79]])
    near = truth + np.array([[0.05, -0.05, 0], [-0.05, 0.05, 0], [0, 0.05, -0.05], [-0.1, 0, 0.1], [0.1, -0.1, 0]])
    p = np.concatenate([truth[None], near, far])
    distances, log_size = np.abs(p - truth).sum(1) / 2, math.log(len(p))
    log_likelihood = rng.multinomial(n, truth, replicates) @ np.log(p).T
    errors, of_the_worst = (distances[pick(log_likelihood, axis=1)] for pick in (np.argmax, np.argmin))
    assert np.mean(errors > 0) > 0.2  # often another member than the truth is the most likely
    for bound in (tv_bound, tv_bound_sharp):
        at = bound(log_size, n, delta)
        assert np.sum(distances > at) == len(far)
        assert np.mean(of_the_worst > at) > delta  # so that what fits wrongly does not pass
        assert np.mean(errors > at) <= delta


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: tv_bound(1.0, 10, 0.0), r"delta must lie in \(0, 1/2\], got 0.0"),
        (lambda: tv_bound_sharp(1.0, 10, 0.51), r"delta must lie in \(0, 1/2\], got 0.51"),
        (lambda: tv_bound(1.0, 0), "n must be at least 1, got 0"),
        (lambda: tv_bound(-1.0, 10), "log_bracket must be finite and at least 0, got -1.0"),
        (lambda: rate_ratio(5, 1.1), r"beta must lie in \[0, 1\], got 1.1"),
        (lambda: rate_ratio(0, 0.5), "num_sources must be at least 1, got 0"),
        (lambda: similarity(0, 0), "at least 0 with a positive sum"),
        (lambda: rate_gaussian(0, 5, 1, 1, shared=True), "n must be at least 1, got 0"),
        (lambda: rate_arm(10, 5, ARM._replace(depth=0), shared=True), "depth must be at least 1, got 0"),
        (lambda: rate_ebm(10, 0, EBM, shared=True), "num_sources must be at least 1, got 0"),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call()
