"""The simulations meet the exact expectations and the published tables, and no number depends on how they are run."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import hastily_compiled

from experiments.configuration import Settings
from experiments.multi_source import CLAIMS, Config, judging_sweeps, references, sweeps
from experiments.multi_source.references import Setting, settings
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.training import make_mesh, shard_batch

REPLICATES = 2000
SMALL = {"samples": 100, "test_points": references.TEST_POINTS}
ROWS = 15
CHUNK = 4 * sweeps.BLOCK  # of the run as well, whose programs serve the tests


def simulated(problem, count, devices, *, first=0, key=0):
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    numbers = shard_batch(np.arange(first, first + count, dtype=np.int32), mesh)
    return jax.device_get(sweeps.simulate(jax.random.key(key), numbers, problem, **SMALL, mesh=mesh))


def fitted(key, problem, samples, test_points):
    with hastily_compiled():
        return jax.jit(lambda key: sweeps.errors_of(*sweeps.draw(key, problem, samples, test_points), problem))(key)


def assert_same(left, right):
    for name, one, other in zip(sweeps.Errors._fields, left, right, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_replicates_have_the_same_bits_in_any_chunks_and_on_one_and_eight_devices():
    problem = sweeps.problem_of(Setting("K", 3, 100, 0.3), ROWS)
    whole = simulated(problem, 2 * CHUNK, 8)
    parts = [simulated(problem, CHUNK, 1, first=first) for first in (0, CHUNK)]
    assert_same(map(np.concatenate, zip(*parts, strict=True)), whole)
    assert len(np.unique(whole.exact[:, 1])) == 2 * CHUNK


def test_a_replicate_is_that_of_the_key_of_its_number():
    problem = sweeps.problem_of(Setting("K", 3, 100, 0.3), ROWS)
    whole = simulated(problem, CHUNK, 1, key=5)
    alone = fitted(jax.random.fold_in(jax.random.key(5), 7), problem, 100, references.TEST_POINTS)
    for one, other in zip(alone, whole, strict=True):
        np.testing.assert_allclose(one, other[7], rtol=1e-5)  # sums of float32 in another order


def test_keys_differ_between_settings_but_along_similarity():
    found = settings()
    keys = [tuple(jax.random.key_data(key).tolist()) for key in sweeps.setting_keys(jax.random.key(3), found)]
    assert len(set(keys[:10])) == 10
    assert len(set(keys[10:])) == 1
    assert keys[10] not in keys[:10]
    for number in (0, 4, 9):
        assert keys[number] == tuple(jax.random.key_data(jax.random.fold_in(jax.random.key(3), number)).tolist())


def test_the_separate_arm_is_the_same_at_every_similarity():
    found = [
        simulated(sweeps.problem_of(Setting("sim", 5, 100, share), ROWS), CHUNK, 1)
        for share in references.SWEEPS["sim"]
    ]
    for of in found[1:]:
        # float32 rounding of points near means of up to 5
        np.testing.assert_allclose(of.exact[:, 0], found[0].exact[:, 0], atol=1e-6)
        assert np.all(of.exact[:, 1] != found[0].exact[:, 1])


@pytest.mark.parametrize("setting", [Setting("sim", 5, 100, 0.0), Setting("K", 1, 100, 0.5)], ids=str)
def test_with_nothing_to_share_both_arms_are_one_fit(setting):
    found = simulated(sweeps.problem_of(setting, ROWS), CHUNK, 1)
    np.testing.assert_array_equal(found.exact[:, 0], found.exact[:, 1])
    np.testing.assert_array_equal(found.paper[:, 0], found.paper[:, 1])


def test_sources_without_samples_are_counted_and_leave_no_nan():
    problem = sweeps.problem_of(Setting("K", 15, 2, 0.5))
    found = fitted(jax.random.key(0), problem, 2, 20)
    assert found.unseen >= 13
    assert np.all(np.isfinite(found.exact))
    padded = sweeps.problem_of(Setting("K", 3, 50, 0.5), ROWS)
    assert fitted(jax.random.key(0), padded, 50, 20).unseen == 0


def test_the_spread_of_a_standard_deviation_is_that_of_simulations():
    draws = np.random.default_rng(0).standard_normal((2000, 400, 2))
    expected = draws.std(axis=1, ddof=1).std(axis=0)
    found = np.mean([judging_sweeps.spread_error(one) for one in draws[:200]], axis=0)
    np.testing.assert_allclose(found, expected, rtol=0.05)  # 1.6 % is one standard error of the left side


def test_a_stop_ends_the_simulations(tmp_path):
    config = Config(replicates=50)
    run = RunDirectory(tmp_path / "run", Settings("multi-source", "ci", 0, config), CLAIMS, stop=lambda: True)
    with pytest.raises(Interrupted):
        sweeps.simulate_all(config, run, jax.random.key(0))


class Measured(NamedTuple):
    rows: dict
    arrays: dict
    notes: list
    figures: set


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a run with 2,000 data sets of each setting leaves."""
    config = Config(replicates=REPLICATES, chunk=CHUNK)
    path = tmp_path_factory.mktemp("sweeps") / "run"
    run = RunDirectory(path, Settings("multi-source", "ci", 0, config, mesh="data=1"), CLAIMS)
    run.open()
    sweeps.measure(config, run)
    run.close()
    with np.load(path / "arrays.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    notes = json.loads((path / "notes.json").read_text())["notes"]
    return Measured({row["id"]: row for row in run.rows()}, arrays, notes, {p.name for p in path.glob("figures/*.png")})


# Expectations at K = 1, 3, 5, 10, 15, at n = 100 to 5,000 and at similarity 0 to 1, derived apart from this code.
SINGLE = [0.0549778420, 0.0951923703, 0.1228509288, 0.1735859521, 0.2124066452]
SINGLE += [0.2728933150, 0.1584295482, 0.1228509288, 0.0869382030, 0.0389046740] + [0.1228509288] * 5
MULTI = [0.0549778420, 0.0773504966, 0.0943513485, 0.1271961338, 0.1532102680]
MULTI += [0.2107818125, 0.1217862152, 0.0943513485, 0.0667253328, 0.0298437216]
MULTI += [0.1228509288, 0.1066158153, 0.0943513485, 0.0804667578, 0.0549778420]


@pytest.mark.slow
def test_simulated_means_lie_within_four_standard_errors_of_the_expectation_in_all_settings(measured):
    expected = np.stack([SINGLE, MULTI], axis=1)
    np.testing.assert_allclose(measured.arrays["sweep_exact"], expected, atol=1e-8)
    z = (measured.arrays["sweep_mean"] - expected) / measured.arrays["sweep_stderr"]
    assert z.shape == (15, 2)
    assert np.abs(z).max() < 4
    z = (measured.arrays["sweep_paper_mean"] - expected) / (measured.arrays["sweep_paper_spread"] / REPLICATES**0.5)
    assert np.abs(z).max() < 4


@pytest.mark.slow
def test_published_values_lie_within_the_interval_that_five_seeds_leave(measured):
    spread = measured.arrays["sweep_paper_spread"] / np.sqrt(5)
    z = (measured.arrays["sweep_published"] - measured.arrays["sweep_exact"]) / spread
    assert np.abs(z).max() < 1.75  # 1.6, with the error of the spread at 2,000 data sets
    np.testing.assert_allclose(measured.arrays["sweep_paper_spread"][2], 0.013, rtol=0.2)


@pytest.mark.slow
def test_a_run_records_its_claims_and_keeps_what_it_draws(measured):
    rows = measured.rows
    assert {name for name, row in rows.items() if row["verdict"] == "holds"} >= {
        *("A4", "A5", "A6", "A6-flat", "A6-slope", "A7", "A8", "A13-paper", "A15")
    }
    assert rows["A13"]["verdict"] in (
        "holds",
        "inconclusive",
    )  # 1 % is two standard errors where the scatter is largest
    assert {name: len(row["cells"]) for name, row in rows.items()} == {
        **{"A4": 2, "A5": 2, "A6": 4, "A6-flat": 1, "A6-slope": 1, "A7": 8, "A8": 13, "A13": 60, "A13-paper": 30},
        "A15": 2,
    }
    assert all(len(cell["values"]) == 20 for cell in rows["A13"]["cells"])
    assert [cell.get("paired", True) for cell in rows["A7"]["cells"]] == [False] * 4 + [True] * 4
    assert rows["A4"]["cells"][1]["x"] == pytest.approx([0.2, 0.244948974, 0.331662479, 0.4])
    assert measured.figures == {"sweeps.png", "sweep_ratios.png", "sweep_estimators.png"}
    assert measured.arrays["sweep_base_paper"].shape == (REPLICATES, 2)
    assert "0 data sets left a source without a sample" in " ".join(measured.notes)


def test_groups_are_disjoint_and_whole():
    values = np.arange(47.0)
    groups = judging_sweeps.grouped(values)
    assert groups.shape == (20,)
    np.testing.assert_allclose(groups[:2], (1.0, 4.0))
    assert np.sum(groups * [len(part) for part in np.array_split(values, 20)]) == values.sum()


def test_points_of_both_kinds_come_from_one_draw_without_overlap():
    problem = sweeps.problem_of(Setting("K", 2, 4, 0.5))
    train, test = sweeps.draw(jax.random.key(0), problem, 4, 3)
    assert (train.x.shape, test.x.shape) == ((4, 10), (3, 10))
    assert len(np.unique(jnp.concatenate([train.x, test.x])[:, 0])) == 7
