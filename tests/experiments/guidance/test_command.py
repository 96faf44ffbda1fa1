"""What the command does on guidance: it refuses what is wrong, and a run leaves what it promises."""

import json

import numpy as np
import pytest
from commands import assert_refused, finish

from experiments.guidance import CLAIMS

TINY = (
    *("--particles", "64", "--cluster-particles", "64", "--seeds", "2", "--exact-steps", "2", "--scan-steps", "4"),
    *("--scan-particles", "64", "--orders", "2", "4", "--strong-orders", "2", "4", "--strong-particles", "64"),
    *("--learned-sizes", "4", "--learned-seeds", "2", "--learned-steps", "2", "--learned-samples", "64"),
    *("--smc-particles", "64", "--class-samples", "128", "--class-steps", "4", "--class-scales", "2", "--cells", "16"),
    *("--digit-scales", "2", "--digit-seeds", "2", "--digit-samples", "80", "--digit-steps", "2"),
    *("--fidelity-steps", "2", "--fidelity-samples", "10"),
    *("--corrections", "1", "2", "20", "--permutations", "19", "--grid-scales", "1", "--grid-corrections", "1"),
    *("--steps", "2", "--batch-size", "8", "--width", "8", "--hidden", "8", "--blocks", "1"),
)
FIGURES = (
    *("class_gaussians", "corrections", "digits_against_ddpm", "equivalence", "gaussian_laws", "learned_clusters"),
    *("scale_and_corrections", "three_clusters", "translation", "two_clusters", "yardstick"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("finished") / "run", "guidance", *TINY, "--mesh", "data=1")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--particles 0", "--particles must be at least 1, got 0"),
        ("--seeds 1", "--seeds must be at least 2, got 1"),
        ("--learned-seeds 1", "--learned-seeds must be at least 2, got 1"),
        ("--class-samples 3", "--class-samples must be at least 4, got 3"),
        ("--digit-seeds 1", "--digit-seeds must be at least 2, got 1"),
        ("--orders 20", "--orders takes at least two different numbers of steps"),
        ("--orders 0 4", "--orders must be at least 1, got 0"),
        ("--class-scales 1", "--class-scales must lie above 1, where guidance does something"),
        ("--digit-scales nan", "--digit-scales must be finite, got nan"),
        ("--class-label 11", "--class-label must be a digit from 0 to 9, got 11"),
        ("--digit-samples 598", "--digit-samples must lie between 80"),
        ("--width 0", "width must be at least 1, got 0"),
        ("--preset gpu", "guidance has the presets ci, default; got 'gpu'"),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence_and_write_nothing(command, folder, argv, error):
    assert_refused(command("guidance", *argv.split()), folder, error)


@pytest.mark.slow
def test_a_run_leaves_every_figure_and_a_row_of_every_claim(finished):
    found = {path.stem for path in (finished / "figures").glob("*.png")}
    assert found == set(FIGURES)
    rows = {row["id"]: row for row in json.loads((finished / "claims.json").read_text())}
    assert list(rows) == [claim.id for claim in CLAIMS]
    assert {name for name, row in rows.items() if row["verdict"] == "not run"} == {"D7", "D8", "D12-values"}
    assert "weights" in rows["D7"]["reason"]
    with np.load(finished / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["gaussian_ddim_variance"].shape == (2, 11)
        assert arrays["digit_p_values"].shape == (3, 2)
