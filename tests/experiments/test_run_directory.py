import dataclasses
import io
import json
import resource
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from experiments import environment
from experiments.claims import Cell, Claim
from experiments.configuration import Settings
from experiments.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration."""

    steps: int = 3
    """Number of steps."""


def claim(name, **options):
    return Claim(
        name, f"{name} is one", source="arithmetic", rule="exact", reference=1.0, test="deterministic", **options
    )


CLAIMS = (claim("Z2"), claim("Z1"), claim("Z3", not_run={"ci": "takes 9 minutes"}))
ONE, TWO = [Cell("one", values=[1.0])], [Cell("two", values=[2.0])]


@pytest.fixture
def start(tmp_path):
    """Open the run in `tmp_path/run`, a new one or that of before, in a process that has nothing else of it."""
    runs = []

    def start(*, resumed=False, **settings):
        while runs:
            runs.pop().close()
        settings = Settings(experiment="sums", preset="ci", seed=3, config=Config(), **settings)
        run = RunDirectory(tmp_path / "run", settings, CLAIMS, resumed=resumed, console=Console(file=io.StringIO()))
        run.open()
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.close()


def lines(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def rows(run):
    return json.loads((run.path / "claims.json").read_text())


def test_describing_a_run_writes_nothing(tmp_path):
    RunDirectory(tmp_path / "run", Settings("sums", "ci", 0, Config()), CLAIMS)
    assert not (tmp_path / "run").exists()


def test_rows_are_written_as_they_come_in_the_order_of_the_claims(start):
    run = start()
    run.record("Z1", TWO, seconds=0.5, scale="reduced", reason="two is not one")
    assert [row["id"] for row in rows(run)] == ["Z1"]
    run.record("Z2", ONE, seconds=0.25)
    assert [(row["id"], row["verdict"]) for row in rows(run)] == [("Z2", "holds"), ("Z1", "refuted")]
    found = rows(run)[1]
    assert (found["preset"], found["scale"], found["seconds"]) == ("ci", "reduced", 0.5)
    assert "two is not one" in found["reason"]
    assert run.contradictions() == ["Z1"]
    run.record("Z1", ONE, seconds=0.5)
    assert [row["verdict"] for row in rows(run)] == ["holds", "holds"]
    assert run.contradictions() == []


def test_an_unknown_claim_is_refused_with_the_nearest(start):
    with pytest.raises(ValueError, match=r"CLAIMS has no 'Z22'; the nearest is 'Z2'"):
        start().record("Z22", ONE, seconds=0.0)


def test_finish_adds_what_is_declared_and_refuses_what_is_not(start):
    run = start()
    run.record("Z1", ONE, seconds=0.0)
    with pytest.raises(RuntimeError, match="left the claims Z2 open"):
        run.finish()
    assert json.loads((run.path / "environment.json").read_text())["finished"] is None
    assert not (run.path / "report.html").exists()
    run.not_run("Z2", "only sampling")
    run.finish()
    assert [(row["verdict"], row["reason"]) for row in rows(run)][::2] == [
        ("not run", "only sampling"),
        ("not run", "takes 9 minutes"),
    ]
    assert json.loads((run.path / "environment.json").read_text())["finished"]
    assert "takes 9 minutes" in (run.path / "report.html").read_text()


def test_metrics_are_a_line_each_as_soon_as_they_are_told(start):
    run = start()
    run.metrics(1, loss=np.float32(0.5))
    assert lines(run) == [{"step": 1, "loss": 0.5}]
    run.metrics(2, loss=float("nan"), rate=float("inf"))
    assert lines(run)[1] == {"step": 2, "loss": None, "rate": None}


def test_resumed_metrics_hold_no_step_twice(start):
    run = start()
    run.resume_metrics(0)  # nothing to drop yet
    for step in range(1, 6):
        run.metrics(step, noise_loss=step)
    for step in range(1, 4):
        run.metrics(step, velocity_loss=step)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "velo')
    run = start(resumed=True)
    run.resume_metrics(2, metric="velocity_loss")
    run.metrics(3, velocity_loss=3)
    assert [row["step"] for row in lines(run) if "velocity_loss" in row] == [1, 2, 3]
    assert [row["step"] for row in lines(run) if "noise_loss" in row] == [1, 2, 3, 4, 5]
    run.resume_metrics(2)
    assert [row["step"] for row in lines(run)] == [1, 2, 1, 2]


def test_a_damaged_line_of_metrics_is_named(start):
    run = start()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"stop": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a line of metrics"):
        run.resume_metrics(1)


def test_a_figure_is_written_twice_and_shown_once_over_its_caption(start):
    run = start()
    for caption in ("first <caption>", "second <caption>"):
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([1, 2])
        run.figure("line", figure, caption)
    with Image.open(run.path / "figures" / "line.png") as image:
        assert image.size == (300, 150)  # inches by 150 dots each
    assert (run.path / "figures" / "line.svg").read_text().startswith("<?xml")
    run.write_report("Stopped")
    page = (run.path / "report.html").read_text()
    assert page.count("<img ") == 1
    assert page.count("second &lt;caption&gt;</figcaption>") == 1
    assert "first" not in page


@pytest.mark.parametrize("name", ["../line", "a/b", "", ".hidden", "a.png"])
def test_a_figure_stays_in_its_folder(start, name):
    run = start()
    with pytest.raises(ValueError, match="a figure's name is letters, digits"):
        run.figure(name, Figure(), "")
    assert list((run.path / "figures").iterdir()) == []


def test_arrays_are_collected_and_read_without_pickle(start):
    run = start()
    run.arrays(a=np.arange(3), names=["x", "yz"])
    run.arrays(b=np.float32(2.5), a=np.arange(2))
    with np.load(run.path / "arrays.npz", allow_pickle=False) as stored:
        assert {name: stored[name].tolist() for name in stored} == {"a": [0, 1], "names": ["x", "yz"], "b": 2.5}
    with pytest.raises(ValueError, match="'bad' has dtype object"):
        run.arrays(bad=np.array([{}, None]))
    with np.load(run.path / "arrays.npz", allow_pickle=False) as stored:
        assert sorted(stored) == ["a", "b", "names"]


def test_what_was_recorded_before_an_interruption_is_still_there(start):
    run = start()
    run.record("Z1", ONE, seconds=0.0)
    run.note("a note")
    run.arrays(a=np.arange(3))
    run.figure("line", Figure(figsize=(1, 1)), "a caption")
    started = json.loads((run.path / "environment.json").read_text())["started"]
    run = start(resumed=True)
    run.note("a note")
    run.arrays(b=np.arange(2))
    run.not_run("Z2", "only sampling")
    run.finish()
    assert [row["verdict"] for row in rows(run)] == ["not run", "holds", "not run"]
    page = (run.path / "report.html").read_text()
    assert page.count("<p>a note</p>") == 1
    assert "a caption</figcaption>" in page
    assert json.loads((run.path / "environment.json").read_text())["started"] == started
    with np.load(run.path / "arrays.npz", allow_pickle=False) as stored:
        assert sorted(stored) == ["a", "b"]


def test_a_run_that_goes_on_with_other_code_says_so(start, monkeypatch):
    monkeypatch.setattr(environment, "code_version", lambda: ("abc", False))
    start()
    run = start(resumed=True)
    run.write_report("Stopped")
    assert "went on with" not in (run.path / "report.html").read_text()
    monkeypatch.setattr(environment, "code_version", lambda: ("def", False))
    run = start(resumed=True)
    run.write_report("Stopped")
    assert "with the code of commit abc and went on with that of def" in (run.path / "report.html").read_text()
    assert json.loads((run.path / "environment.json").read_text())["commit"] == "def"


def test_a_disk_that_fills_up_ends_the_metrics_with_an_error_that_a_resumption_mends(start):
    run = start()
    run.metrics(1, loss=0.5)
    size = (run.path / "metrics.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
    try:
        with pytest.raises(OSError, match="No space left on device"):
            run.metrics(2, loss=0.25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = start(resumed=True)
    run.resume_metrics(1)
    run.metrics(2, loss=0.25)
    assert [row["step"] for row in lines(run)] == [1, 2]


def test_damaged_records_are_named_with_their_line_and_the_folder_is_let_go(start):
    run = start()
    (run.path / "notes.json").write_text('{"notes": [],\n "figures": {')
    with pytest.raises(ValueError, match=r"notes\.json:2: malformed JSON"):
        start(resumed=True)
    assert not (run.path / ".lock").exists()


def test_settings_say_what_the_run_was_asked_for(start, tmp_path):
    run = start(mesh="data=2", source=tmp_path)
    assert json.loads((run.path / "config.json").read_text()) == {
        "experiment": "sums",
        "preset": "ci",
        "seed": 3,
        "mesh": "data=2",
        "part": None,
        "from": str(tmp_path),
        "fully_sharded": False,
        "config": {"steps": 3},
    }
    assert run.checkpoints.is_dir()


def test_the_report_shows_the_training_while_it_goes_on_and_when_it_is_over(start):
    run = start()
    page = run.path / "report.html"
    with run.live(0.02):
        for step in range(1, 6):
            run.metrics(step, loss=1 / step)
        end = time.monotonic() + 30
        while not (page.exists() and "0.2 at step 5" in page.read_text()):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert "Running, as of " in page.read_text()
        assert 'http-equiv="refresh"' in page.read_text()
    for name in ("Z1", "Z2"):
        run.record(name, ONE, seconds=0.0)
    run.finish()
    text = page.read_text()
    assert "0.2 at step 5" in text
    assert "Finished " in text
    assert "http-equiv" not in text


def test_a_process_that_does_not_write_judges_in_memory_and_leaves_no_file(start, tmp_path, capsys):
    run = start()
    run.note("a note")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    settings = Settings("sums", "ci", 3, Config(), fully_sharded=True)
    other = RunDirectory(run.path, settings, CLAIMS, writes=False, tensorboard=True)
    assert (other.fully_sharded, other.tensorboard, other.writes, run.writes) == (True, True, False, True)
    assert (run.fully_sharded, run.tensorboard) == (False, False)
    other.open()
    assert other.checkpoints == run.checkpoints
    other.resume_metrics(0)
    with other.live(0.01), other.progress(1, "title") as progress:
        other.metrics(1, loss=1.0)
        progress.update(1)
    other.arrays(a=np.arange(3))
    other.figure("line", Figure(), "a caption")
    other.note("another note")
    other.record("Z1", TWO, seconds=0.0)
    with pytest.raises(ValueError, match="CLAIMS has no 'Z4'"):
        other.record("Z4", ONE, seconds=0.0)
    with pytest.raises(ValueError, match="'bad' has dtype object"):
        other.arrays(bad=np.array([{}, None]))
    with pytest.raises(RuntimeError, match="left the claims Z2 open"):
        other.finish()
    other.not_run("Z2", "only sampling")
    other.finish()
    other.write_report("Stopped")
    other.close()
    assert other.contradictions() == ["Z1"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capsys.readouterr() == ("", "")


def test_a_process_that_does_not_write_takes_up_what_was_recorded_and_misses_a_folder_that_is_not_there(
    start, tmp_path
):
    run = start()
    run.record("Z1", TWO, seconds=0.0)
    (run.path / ".claims.json.x.part").write_text("[")  # being written by the other process
    settings = Settings("sums", "ci", 3, Config())
    other = RunDirectory(run.path, settings, CLAIMS, resumed=True, writes=False)
    other.open()
    assert [row["id"] for row in other.rows()] == ["Z1"]
    assert (run.path / ".claims.json.x.part").exists()
    with pytest.raises(ValueError, match="elsewhere is not seen by this process; name a folder that all share with --"):
        RunDirectory(tmp_path / "elsewhere", settings, CLAIMS, writes=False).open()
