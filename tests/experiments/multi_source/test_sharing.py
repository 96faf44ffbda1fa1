"""Sources that differ: where groups cross, what is simulated, and a run of it."""

import json

import jax
import numpy as np
import pytest
from commands import hastily_compiled, stored_arrays

from experiments.configuration import Settings
from experiments.multi_source import CLAIMS, Config, sharing
from experiments.multi_source.misspecified import MASK, SOURCES, padded, simulate, spread_means
from experiments.run_directory import RunDirectory

ROWS = {"A14", "A16", "A17"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharing") / "run"
    config = Config(sharing_replicates=300)
    run = RunDirectory(path, Settings("multi-source", "ci", 0, config), CLAIMS)
    run.open()
    with hastily_compiled():
        sharing.measure(config, run)
    run.close()
    return path


def test_every_row_is_measured_in_groups(finished):
    rows = {row["id"]: row for row in json.loads((finished / "claims.json").read_text())}
    assert set(rows) == ROWS
    assert "refuted" not in {row["verdict"] for row in rows.values()}
    assert rows["A16"]["verdict"] == "holds"
    for row in rows.values():
        assert {len(cell["values"]) for cell in row["cells"]} == {10}
    assert len(rows["A14"]["cells"]) == len(sharing.SIZES)
    assert len(rows["A16"]["cells"]) == 3 * len(sharing.FACTORS)
    assert len(rows["A17"]["cells"]) == 8
    figures = {path.stem for path in (finished / "figures").iterdir()}
    assert figures == {"sharing_phases", "shrinkage"}


def test_simulated_squared_errors_meet_the_formula(finished):
    kept = stored_arrays(finished)
    squared, star = kept["sharing_5_500_squared"], 4 / 500
    for i, factor in enumerate(sharing.FACTORS):
        v = factor * star
        # By random numbers of samples E[1 / N] is 5 * 4 / 500^2 above 5 / 500, in the coordinates of class means.
        shared = 5 * 5 / 500 + 5 * ((1 + v) / 500 + v) + 5 * 20 / 500**2
        separate = 50 / 500 + 10 * 20 / 500**2
        for column, expected in enumerate((shared, separate)):
            values = squared[:, i, column]
            assert abs(values.mean() - expected) < 5 * values.std(ddof=1) / 10**0.5  # t of 9 degrees: 1 in 1,400


def test_shares_sum_to_one_and_beat_the_others_on_paper(finished):
    kept = stored_arrays(finished)
    assert kept["weights_shares"].shape == (8, 5)
    np.testing.assert_allclose(kept["weights_shares"].sum(axis=1), 1, rtol=1e-5)
    # The best shares lie between proportional and equal ones.
    target, best = kept["weights_targets"][0], kept["weights_shares"][0]
    assert 0.2 < best[0] < target[0]


def test_crossings_are_interpolated_and_missing_ones_are_told():
    factors = sharing.FACTORS
    found = sharing.crossings(np.stack([factors - 1.1, 2 * (factors - 3.0), factors + 1.0]))
    np.testing.assert_allclose(found[:2], [1.1, 3.0], rtol=1e-12)
    assert np.isnan(found[2])


def test_patterns_have_exactly_the_asked_variance():
    means = spread_means(0, 5, np.array([0.0, 0.3]))
    assert means.shape == (2, SOURCES, 10)
    np.testing.assert_allclose(means[1, :5][:, MASK].var(axis=0), 0.3, rtol=1e-5)
    np.testing.assert_allclose(means[1, :5].mean(axis=0), 0, atol=1e-6)
    assert not means[0].any()
    assert not means[1, 5:].any()


def test_sources_without_probability_change_nothing_and_cases_share_random_numbers():
    p_y = padded(np.full((2, 3), 1 / 3))
    assert p_y.shape == (2, SOURCES)
    means = np.zeros((2, SOURCES, 10), np.float32)
    means[1, :3] = 5.0  # a common shift, which no error sees
    with hastily_compiled():
        found = simulate(jax.random.key(0), 40, 60, means, p_y, p_y)
    assert found.squared.shape == found.tv.shape == (10, 2, 3)
    for part in found:
        np.testing.assert_allclose(part[:, 0], part[:, 1], rtol=1e-4)
        assert np.all((part > 0) & np.isfinite(part))
    # Three sources are too few to shrink.
    np.testing.assert_allclose(found.squared[..., 2], found.squared[..., 1], rtol=1e-5)
