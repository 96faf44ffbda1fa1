"""Similarity of sources from errors, and the ratio that it predicts."""

import numpy as np
import pytest

from jaxgen.statistics.source_similarity import estimated_similarity, predicted_ratio


@pytest.mark.parametrize("similarity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sources", [2, 5, 10])
def test_the_ratio_that_a_similarity_predicts_gives_it_back(similarity, sources):
    single = np.array([0.4, 0.5, 0.6])
    multi = single * predicted_ratio(similarity, sources)
    found = estimated_similarity(multi, single, sources, seed=0, draws=199)
    np.testing.assert_allclose(found, [similarity] * 3, atol=1e-12)  # no spread, so no interval


def test_ratios_are_those_of_the_theory():
    table = {(5, 0.5): 0.7745966692414834, (10, 0.5): 0.7416198487095663, (5, 1.0): 0.44721359549995787}
    for (sources, similarity), ratio in table.items():
        assert float(predicted_ratio(similarity, sources)) == pytest.approx(ratio, abs=1e-12)
    # Estimates may leave [0, 1]; beyond K / (K - 1) nothing is left of the error.
    np.testing.assert_allclose(predicted_ratio(np.array([-1.0, 3.0]), 2), [np.sqrt(1.5), 0.0])


def test_the_interval_covers_the_truth_as_often_as_it_says_and_uses_the_pairs():
    random, truth, covered = np.random.default_rng(0), 0.6, 0
    for trial in range(200):
        common = random.normal(1.0, 0.15, 60)
        single = common + random.normal(0.0, 0.03, 60)
        multi = predicted_ratio(truth, 4) * (common + random.normal(0.0, 0.03, 60))
        found = estimated_similarity(multi, single, 4, seed=trial, draws=399)
        covered += found.lower <= truth <= found.upper
        assert found.lower < found.value < found.upper
    assert 180 <= covered <= 199  # binomial(200, .95): 4 standard deviations are 12
    unpaired = estimated_similarity(np.roll(multi, 1), single, 4, seed=0, draws=399)
    assert unpaired.upper - unpaired.lower > 2 * (found.upper - found.lower)


def test_sharing_that_hurts_has_a_negative_similarity():
    assert estimated_similarity([2.0, 2.2], [1.0, 1.1], 3, seed=0, draws=199).value == pytest.approx(-4.5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_sources": 1}, "num_sources must be at least 2, got 1: one source has nothing to share"),
        ({"tv_multi": [0.1, 0.2, 0.3]}, "must be of the same data sets, got 3 and 2"),
        ({"tv_single": [0.1, 0.0]}, "above 0 for separate models, got 0.0"),
        ({"tv_multi": [-0.1, 0.1]}, "errors must be at least 0.*got -0.1"),
        ({"tv_multi": [np.nan, 0.1]}, "tv_multi must be finite"),
        ({"tv_multi": [0.1], "tv_single": [0.1]}, "tv_multi must be one row of at least 2 numbers"),
        ({"draws": 10}, "draws must be at least 199, got 10"),
        ({"level": 1.0}, r"level must lie in \(0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_refused_with_one_sentence(change, error):
    options = {"tv_multi": [0.1, 0.2], "tv_single": [0.2, 0.3], "num_sources": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=error):
        estimated_similarity(**options)


def test_a_prediction_needs_several_sources():
    with pytest.raises(ValueError, match="num_sources must be at least 2, got 1"):
        predicted_ratio(0.5, 1)
