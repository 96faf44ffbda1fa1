"""The figure of the training loss, from whatever lines the metrics hold."""

import json

import pytest

from experiments.configuration import Settings
from experiments.digits import CLAIMS, Config, figures
from experiments.run_directory import RunDirectory


def drawn(path, lines, *, writes=True):
    """Return whether the loss was drawn."""
    run = RunDirectory(path, Settings("digits", "ci", 0, Config()), CLAIMS, writes=writes)
    (path / "figures").mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures._loss(run)
    return (path / "figures" / "training.png").exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"step": 10, "denoiser_loss": 1.0}, {"step": 10, "flow_loss": 2.0}], True),
        ([{"step": 10, "denoiser_loss": 1.0}, {"step": 20, "denoiser_loss": None}, {"step": 20, "other": 3.0}], True),
        ([{"step": 10, "denoiser_loss": None}, {"step": 20, "other": 3.0}], False),
        ([], False),
    ],
)
def test_the_loss_is_drawn_from_the_lines_that_hold_it(tmp_path, lines, expected):
    assert drawn(tmp_path, lines) == expected


def test_a_process_that_does_not_write_draws_no_loss(tmp_path):
    assert not drawn(tmp_path, [{"step": 10, "denoiser_loss": 1.0}], writes=False)
    assert not (tmp_path / "notes.json").exists()
