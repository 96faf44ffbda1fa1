"""Rows and notes of the autoregressive and energy-based models, from errors whose answer is known."""

import json
import re

import numpy as np
import pytest

from experiments.configuration import Settings
from experiments.multi_source import CLAIMS, Config
from experiments.multi_source.convex import ConvexErrors
from experiments.multi_source.families import energy_family
from experiments.multi_source.judging_models import Trained, record_convex, record_networks, record_prediction
from experiments.multi_source.network_kinds import kinds
from experiments.multi_source.networks import Curves
from experiments.run_directory import RunDirectory

SOURCES = (2, 4, 8)
FAMILY = energy_family()


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run", Settings("multi-source", "ci", 0, Config()), CLAIMS)
    directory.open()
    yield directory
    directory.close()


def errors_of(similarity, factor=1.0, seed=0):
    """Errors whose arms have the ratio of a similarity, and lie `factor` above their prediction."""
    random = np.random.default_rng(seed)
    predicted = np.empty((2, 3, 8))
    for number, count in enumerate(SOURCES):
        predicted[0, number] = 0.03 * np.sqrt(count) * random.uniform(0.9, 1.1, 8)
        predicted[1, number] = predicted[0, number] * np.sqrt(1 - (count - 1) / count * similarity)
    noise = random.normal(1.0, 0.05, (2, 3, 8, 40))
    return ConvexErrors(SOURCES, factor * predicted[..., None] * noise, predicted, 1e-10, 0)


def notes_of(run):
    return " ".join(json.loads((run.path / "notes.json").read_text())["notes"])


def row_of(run, name):
    return next(row for row in run.rows() if row["id"] == name)


def test_errors_as_predicted_hold_and_errors_that_are_not_are_refuted(run):
    record_convex(run, FAMILY, "A10", errors_of(0.75), 1.0)
    row = row_of(run, "A10")
    assert row["verdict"] == "holds"
    assert [cell["name"] for cell in row["cells"]] == [
        f"K = {count}, {arm}" for count in SOURCES for arm in ("separate models", "shared model")
    ]
    assert row_of(run, "A10-order")["verdict"] == "holds"
    assert [cell["name"] for cell in row_of(run, "A10-order")["cells"]] == ["K = 2 against 4", "K = 4 against 8"]
    # sqrt((6 + 2 K) / (8 K)) and the ratio that was put in, which for 3 / 4 are the same.
    assert "0.586 by the delta method, 0.586 by counting parameters" in notes_of(run)
    assert "attain" not in notes_of(run)
    record_convex(run, FAMILY, "A10", errors_of(0.75, factor=1.1), 1.0)
    assert row_of(run, "A10")["verdict"] == "refuted"
    record_convex(run, FAMILY, "A10", errors_of(0.0), 1.0)
    assert row_of(run, "A10-order")["verdict"] != "holds"


def test_the_similarity_at_two_sources_predicts_the_ratio_at_eight(run):
    record_prediction(run, {"energy-based": errors_of(0.75), "autoregressive": errors_of(0.9, seed=1)}, 1.0)
    row = row_of(run, "A15-models")
    assert row["verdict"] == "holds"
    assert [cell["name"] for cell in row["cells"]] == [
        "energy-based, K = 8 from K = 2",
        "autoregressive, K = 8 from K = 2",
    ]
    assert re.search(r"energy-based: 0\.7\d\d .* the delta method itself misses by [+-]0\.000", notes_of(run))
    wrong = errors_of(0.75)
    wrong.measured[1, 2] *= 1.5
    record_prediction(run, {"energy-based": wrong}, 1.0)
    assert row_of(run, "A15-models")["verdict"] == "refuted"


def test_networks_are_compared_at_the_end_by_seed_and_the_note_tells_their_best(run):
    def curves(*tv):
        return Curves(np.array([1, 10, 100]), np.array(tv), np.zeros((3, 3)), np.zeros((3, 4, 16)))

    alone = curves([0.5, 0.1, 0.30], [0.5, 0.1, 0.31], [0.5, 0.1, 0.33])
    shared = curves([0.5, 0.3, 0.20], [0.5, 0.3, 0.22], [0.5, 0.3, 0.22])
    record_networks(
        run, kinds()[0], "A9", Trained({1.0: np.zeros((3, 4, 16))}, {(1.0, 4): alone}, {(1.0, 4): shared}), 1.0
    )
    row = row_of(run, "A9-networks")
    assert row["verdict"] == "holds"
    assert row["cells"][0]["values"] == [0.30, 0.31, 0.33]
    assert row["cells"][0]["control"] == [0.20, 0.22, 0.22]
    assert "similarity 1, K = 4: separate 0.313, at best 0.100, shared 0.213, at best 0.213" in notes_of(run)
    told = notes_of(run)
    assert "separate models end above their best in 1 of 1 settings, the shared model in 0" in told
    assert "Each at its best, the shared model is better in 0 settings and worse in 1" in told
