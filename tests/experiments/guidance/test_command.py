"""What the command does on guidance: it refuses what is wrong, and a run leaves what it promises."""

import json
from pathlib import Path

import pytest
from commands import assert_refused

from experiments import guidance
from experiments.guidance import CLAIMS

FIGURES = (
    *("class_gaussians", "corrections", "digits_against_ddpm", "equivalence", "gaussian_laws", "learned_clusters"),
    *("scale_and_corrections", "three_clusters", "translation", "two_clusters", "yardstick"),
)


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


def test_the_kept_run_left_every_figure_and_a_row_of_every_claim():
    # A run takes a minute to compile at any size: `.ci/run` makes one at ci, which fails where a row is missing.
    kept = Path(guidance.__file__).parent / "results" / "default"
    assert {path.stem for path in (kept / "figures").glob("*.png")} == set(FIGURES)
    rows = {row["id"]: row for row in json.loads((kept / "claims.json").read_text())}
    assert list(rows) == [claim.id for claim in CLAIMS]
    assert {name for name, row in rows.items() if row["verdict"] == "not run"} == {"D7", "D8"}
    assert "weights" in rows["D7"]["reason"]
