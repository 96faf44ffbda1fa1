"""Simulations against the per-point loop: both compute the same numbers, and their times become ratios."""

import sys

import jax
import numpy as np
import pytest
from commands import hastily_compiled

from experiments.benchmarks import CLAIMS, Config, SimulationSizes, total_variation
from experiments.benchmarks.timing import Timing
from experiments.benchmarks.total_variation import MISSING
from experiments.configuration import Settings
from experiments.multi_source import sweeps
from experiments.multi_source.references import Setting
from experiments.run_directory import RunDirectory


def measured(folder, sizes, preset="ci", **options):
    config = Config(repetitions=8, seconds=0.001, simulations=sizes, **options)
    run = RunDirectory(folder / "run", Settings("benchmarks", preset, 0, config), CLAIMS)
    run.open()
    total_variation.measure(config, run)
    run.close()
    return {row["id"]: row for row in run.rows()}


@pytest.mark.parametrize("similarity", [0.0, 0.5, 1.0])
def test_the_loop_computes_the_estimates_of_the_simulations_on_the_same_sample_and_points(similarity):
    setting = Setting("sim", 3, 60, similarity)
    problem = sweeps.problem_of(setting)
    with hastily_compiled():
        train, test = jax.jit(lambda key: sweeps.draw(key, problem, 60, 40))(jax.random.key(2))
        expected = jax.jit(sweeps.errors_of)(train, test, problem)
        sample = total_variation.sample_of(2, setting, 40)
    np.testing.assert_array_equal(sample.x, test.x)
    found = total_variation.per_point_loop(sample)()
    # Densities of 1e-7 in float32, whose logarithms are exact to 1e-6, and ratios that differ from 1 by a third.
    np.testing.assert_allclose(found, expected.paper, rtol=2e-5)


def test_a_ratio_is_that_of_one_replicate_on_all_points(folder, monkeypatch):
    timing = Timing(np.full(8, 2.0), np.linspace(1.0, 1.7, 8))
    monkeypatch.setattr(total_variation, "time_replicates", lambda *arguments: timing)
    row = measured(folder, SimulationSizes(replicates=50, timed_points=20), isolated=False)["P11"]
    np.testing.assert_allclose(row["cells"][0]["values"], 25.0 * 25.0 * np.linspace(1.0, 1.7, 8))
    assert (row["verdict"], row["scale"]) == ("holds", "reduced")
    assert row["reason"].endswith("took 3.375e+04 ms with the per-point loop and 40 ms with jaxgen, medians.")


def test_each_repetition_is_a_process_with_data_of_its_own(folder, monkeypatch):
    seeds = []

    def here(stop, work, sizes, seed, seconds):
        del stop, work, sizes, seconds
        seeds.append(seed)
        return Timing(np.full(1, 1.0), np.full(1, 1.0 + seed))

    monkeypatch.setattr(total_variation, "in_process", here)
    row = measured(folder, SimulationSizes(), "default")["P11"]
    assert seeds == list(range(8))
    np.testing.assert_allclose(row["cells"][0]["values"], 500.0 * (1.0 + np.arange(8)))
    assert row["scale"] == "full"


def test_without_torch_the_row_names_the_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with hastily_compiled():
        row = measured(folder, SimulationSizes(replicates=25, points=10, timed_points=4), isolated=False)["P11"]
    assert (row["verdict"], row["reason"]) == ("not run", MISSING)
    assert "pip install" in MISSING


def test_nothing_is_measured_at_the_preset_of_a_gpu(folder):
    assert measured(folder, SimulationSizes(), "gpu") == {}
