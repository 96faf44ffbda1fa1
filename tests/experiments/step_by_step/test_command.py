"""What the command does with the tutorial: it refuses what is wrong, and a run leaves what it promises."""

import json

import numpy as np
import pytest
from commands import assert_refused, files, finish

from experiments.step_by_step import CLAIMS

TINY = (
    *("--steps", "2", "--flow-steps", "2", "--batch-size", "2", "--flow-batch-size", "2", "--width", "4"),
    *("--sizes", "2", "3", "--seeds", "2", "--flow-points", "8", "--sampling-steps", "20", "--samples", "8"),
    *("--block-size", "8", "--particles", "16", "--law-steps", "4", "--law-seeds", "2"),
)
FIGURES = {
    *("annulus_flow", "annulus_times", "divergences", "memorised", "memory", "orders", "points", "preserving_flows"),
    *("reverse_kernels", "spirals"),
}
EXACT = {"E1", "E1-limit", "E1-values", "E2", "E2-exact", "E2-values", "E3", "E3-bound", "E3-values"}
EXACT |= {"E4", "E5", "E6", "E6-printed", "E7", "E7-value"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("finished") / "run", "step-by-step", *TINY, "--mesh", "data=2")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--steps 0", "--steps must lie between 1 and 10000000, got 0"),
        ("--seeds 1", "--seeds must lie between 2 and 10000000, got 1"),
        ("--law-seeds 1", "--law-seeds must lie between 2 and 10000000, got 1"),
        ("--sigma-q 0", "--sigma-q must be above 0, got 0"),
        ("--radius -1", "--radius must be above 0, got -1"),
        ("--sizes 10", "--sizes must be at least two rising numbers of points, got [10]"),
        ("--sizes 20 10", "--sizes must be at least two rising numbers of points, got [20, 10]"),
        ("--sizes 0 10", "--sizes must be at least two rising numbers of points, got [0, 10]"),
        ("--layers 0", "--layers must lie between 1 and 10000000, got 0"),
        ("--batch-size 9 --mesh data=2", "--batch-size 9 does not divide over 2 devices"),
        ("--sampling-steps 30", "--sampling-steps must be a multiple of 20, got 30"),
        ("--from missing", "missing is no run: it holds no config.json"),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence_and_write_nothing(command, folder, argv, error):
    assert_refused(command("step-by-step", *argv.split()), folder, error)


@pytest.mark.slow
def test_a_run_leaves_every_file_and_a_row_of_every_claim(finished):
    assert {name for name in files(finished) if not name.startswith("checkpoints/")} == {
        *("config.json", "environment.json", "metrics.jsonl", "claims.json", "notes.json", "arrays.npz", "report.html"),
        *(f"figures/{name}.{ending}" for name in FIGURES for ending in ("png", "svg")),
    }
    rows = {row["id"]: row for row in json.loads((finished / "claims.json").read_text())}
    assert list(rows) == [claim.id for claim in CLAIMS]
    # What is exact needs no network and no size: it holds in the smallest run.
    assert {name: rows[name]["verdict"] for name in EXACT} == dict.fromkeys(EXACT, "holds")
    assert {row["scale"] for row in rows.values()} == {"full", "reduced"}
    assert "not run" not in {row["verdict"] for row in rows.values()}
    with np.load(finished / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["spiral_ddim_ways"].shape == (40, 2, 21, 2)
        assert arrays["annulus_clouds"].shape == (7, 8, 2)
        assert all(np.isfinite(arrays[name]).all() for name in arrays if arrays[name].dtype.kind == "f")


@pytest.mark.slow
def test_a_run_whose_networks_were_trained_otherwise_is_refused(command, folder, finished):
    code, out, err = command(
        "step-by-step", "--from", finished, *TINY, "--width", "8", "--mesh", "data=2", "--out", "again"
    )
    assert (code, out) == (2, "")
    assert "takes its networks as they are, but width is 4 in the run and 8 here" in err
    assert not (folder / "again").exists()
