"""What the command refuses; and the kept run has every row and every figure."""

import json
from pathlib import Path

import pytest
from commands import assert_refused

import experiments.mesa_optimization as experiment
from experiments.mesa_optimization import CLAIMS

KEPT = Path(experiment.__file__).parent / "results" / "default"
FIGURES = {
    *("capability", "collapse", "depth", "gaussian_blocks", "gaussian_dynamics", "gaussian_ratio", "ones_blocks"),
    *("open_case", "processes", "scatter", "skewness", "small_context", "sparse_blocks", "sparse_dynamics"),
    "sparse_loss",
}


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--dimension 1", "--dimension must lie between 2 and 8, got 1"),
        ("--dimension 9", "--dimension must lie between 2 and 8, got 9"),
        ("--length 2", "--length must lie between 3 and 1000, got 2"),
        ("--small-length 2", "--small-length must lie between 3 and 1000, got 2"),
        ("--sequences 150", "--sequences must be a positive multiple of --block-size 100, got 150"),
        ("--sequences 0", "--sequences must be a positive multiple of --block-size 100, got 0"),
        ("--process-sequences 50", "--process-sequences must be a positive multiple of --block-size 100, got 50"),
        ("--law-sequences 50", "--law-sequences must be a positive multiple of --block-size 100, got 50"),
        ("--epochs 0", "--epochs must lie between 1 and 10000000, got 0"),
        ("--seeds 1", "--seeds must lie between 2 and 10000000, got 1"),
        ("--scatter-seeds 1", "--scatter-seeds must lie between 2 and 10000000, got 1"),
        ("--test-lengths 2 100", "--test-lengths must be lengths of at least 3, --length 100 among them, got [2, 100]"),
        ("--test-lengths 50", "--test-lengths must be lengths of at least 3, --length 100 among them, got [50]"),
        ("--direct-sequences 2001", "--direct-sequences must lie between 2 and 2000, got 2001"),
        ("--part all", "part"),
        ("--depths 2 1", "--depths must be one or more rising numbers of layers, got [2, 1]"),
        ("--depths 0", "--depths must be one or more rising numbers of layers, got [0]"),
        (
            "--block-size 5 --sequences 10 --law-sequences 10 --process-sequences 10 --mesh data=2",
            "--block-size 5 does not divide over 2",
        ),
        ("--from missing", "missing is no run: it holds no config.json"),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence_and_write_nothing(command, folder, argv, error):
    assert_refused(command("mesa-optimization", *argv.split()), folder, error)


def test_the_kept_run_has_every_row_and_figure():
    rows = {row["id"]: row for row in json.loads((KEPT / "claims.json").read_text())}
    assert list(rows) == [claim.id for claim in CLAIMS]
    assert "not run" not in {row["verdict"] for row in rows.values()}
    kept = {path.stem for path in (KEPT / "figures").iterdir()}
    assert kept == FIGURES
