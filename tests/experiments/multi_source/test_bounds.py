"""The bound, measured: families that are hard to fit, fits that meet the exact error, and rows that hold."""

import json

import jax
import numpy as np
import pytest
from commands import hastily_compiled, stored_arrays

from experiments.configuration import Settings
from experiments.multi_source import CLAIMS, Config, bounds
from experiments.run_directory import RunDirectory

ROWS = {"A1", "A1-vacuous", "A2", "A3"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("bounds") / "run"
    config = Config(bound_replicates=1400)
    run = RunDirectory(path, Settings("multi-source", "ci", 0, config), CLAIMS)
    run.open()
    with hastily_compiled():
        bounds.measure(config, run)
    run.close()
    return path


def test_every_row_holds(finished):
    rows = {row["id"]: row for row in json.loads((finished / "claims.json").read_text())}
    assert set(rows) == ROWS
    assert {row["verdict"] for row in rows.values()} == {"holds"}
    cells = rows["A1"]["cells"]
    assert {cell["reference"] for cell in cells} == {0.05, 0.25, 0.5}
    assert {cell["trials"] for cell in cells} == {1400, 70}
    assert [cell["values"] for cell in rows["A1-vacuous"]["cells"]] == [[3269.0], [5678.0], [1.0, 0.0], [1.0, 0.0]]
    assert {path.name for path in (finished / "figures").iterdir()} == {"bound.png", "bound.svg"}
    kept = stored_arrays(finished)
    assert kept["bound_curve_n"].shape == kept["bound_curve_shared_rigorous"].shape
    assert np.all(kept["bound_curve_separate_sharp"] < kept["bound_curve_separate_rigorous"])


def test_finite_families_are_hard_and_every_replicate_is_its_own():
    with hastily_compiled():
        found = bounds.finite_families(100, 0)
    for family in found:
        assert family.errors.shape == (100,)
        assert np.all((family.errors >= 0) & (family.errors <= 1))
        if family.members > 2:
            assert np.mean(family.errors > 0) > 0.2  # another member than the truth is often the most likely
            assert len(np.unique(family.errors)) > 1


def test_fits_of_gaussians_meet_the_exact_error():
    with hastily_compiled():
        found = bounds.gaussian_errors(jax.random.key(1), 400, 500)
    exact = np.array([0.0943513485, 0.1228509288])
    assert np.all(np.abs(found.mean(axis=0) - exact) < 4 * found.std(axis=0) / 20)
