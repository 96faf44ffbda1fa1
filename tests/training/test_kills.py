"""Runs that are killed at random moments, and the record of the tests that are too long for CI."""

import ast
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import killed_run
import numpy as np
import pytest
from PIL import Image

from jaxgen.training import fingerprint, restore_params
from jaxgen.training.tree_paths import flatten

TESTS = Path(__file__).parents[1]
RESULTS = TESTS / "long_results.json"
KILLS = 4  # in a row, of one run
START = 1.0  # about the seconds that a start takes once everything is imported and compiled
LONG = "pytest.mark.long"
FIELDS = {"test", "result", "date", "commit", "machine", "seconds"}


class Whole(NamedTuple):
    """The uninterrupted run: its folder, the losses of its steps, and the seconds from its first step to others."""

    folder: Path
    losses: dict[int, str]
    after: dict[int, float]
    seconds: float


class Kill(NamedTuple):
    """A kill: where its clock began, the last step reported, the newest checkpoint, and whether one was written."""

    since: str
    step: int
    checkpoint: int
    saving: bool


@contextlib.contextmanager
def process_of(folder, images, *, workers=0, cache):
    """Start or continue a run in a process of its own; it is killed in the end."""
    folder.mkdir(exist_ok=True)
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, killed_run.__file__, str(folder), str(images), str(workers)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **environment}, **pipes) as process:
        try:
            assert process.stdout.readline() == "begin\n"
            yield process
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL


def checkpoints(folder):
    """The checkpoints with a name, and those without one and the time when something was last made in them."""
    entries = list((folder / "checkpoints").iterdir()) if (folder / "checkpoints").is_dir() else []
    named = {int(entry.name) for entry in entries if entry.name.isdecimal()}
    return named, {(entry.name, entry.stat().st_mtime_ns) for entry in entries if "-tmp" in entry.name}


def losses_of(lines):
    return {int(step): loss for step, loss in (line.split() for line in lines if line != "end\n")}


def run_to_its_end(folder, images, **options):
    """Run without a kill before the end; return the losses, and when each was told."""
    lines, times = [], []
    with process_of(folder, images, **options) as process:
        while not lines or lines[-1] != "end\n":
            lines.append(process.stdout.readline())
            times.append(time.perf_counter())
            assert lines[-1], "the run ended early"
    return losses_of(lines), np.subtract(times, times[0]).tolist()


def killed(folder, images, since, delay, **options):
    """Run, kill after a delay in seconds, and return what was hit and the losses that were told."""
    left = checkpoints(folder)[1]
    with process_of(folder, images, **options) as process:
        lines = [] if since == "start" else [process.stdout.readline()]
        time.sleep(delay)
        process.kill()
        process.wait()
        named, unnamed = checkpoints(folder)
        lines += process.stdout.readlines()
    newest, losses = max(named, default=0), losses_of(lines)
    return Kill(since, max([newest, *losses]), newest, bool(unnamed - left)), losses


def assert_every_example_was_seen_once(seen, step):
    """The epochs before a step are complete, and nothing was seen twice in the one that it ends in."""
    done = step * killed_run.BATCH
    epochs = np.clip(done - killed_run.SIZE * np.arange(killed_run.EPOCHS), 0, killed_run.SIZE)
    np.testing.assert_array_equal(np.asarray(seen).sum(axis=1), epochs)
    assert np.max(seen) <= 1


def state_of(folder):
    return restore_params(folder / "checkpoints", jax.eval_shape(killed_run.start), field="")


def digests(state):
    """The sha256 of the bits of every array."""
    return {path: fingerprint(leaf) for path, leaf in flatten(state).items()}


def killed_in_a_row(folder, images, whole, seed, **options):
    """Kill a run at random moments, continue it each time, and compare its end with that of the uninterrupted one."""
    random, kills = np.random.default_rng(seed), []
    # In the time of the uninterrupted run, which each process enters at its checkpoint; one dies soon after its start.
    moments, starting = np.sort(random.uniform(0, whole.seconds, KILLS)), random.integers(KILLS)
    for number, moment in enumerate(moments):
        since = "start" if number == starting else "first step"
        reached = whole.after[max(checkpoints(folder)[0], default=1)]
        delay = random.uniform(0, START) if since == "start" else max(0.0, moment - reached)
        kill, losses = killed(folder, images, since, delay, **options)
        assert losses.items() <= whole.losses.items()
        if kill.checkpoint:
            seen = jax.ShapeDtypeStruct((killed_run.EPOCHS, killed_run.SIZE), np.int32)
            seen = restore_params(folder / "checkpoints", seen, field="extra.seen")
            assert_every_example_was_seen_once(seen, kill.checkpoint)
        kills.append(kill)
    losses, _ = run_to_its_end(folder, images, **options)
    assert losses.items() <= whole.losses.items()
    assert checkpoints(folder) == checkpoints(whole.folder)
    state = state_of(folder)
    assert digests(state) == digests(state_of(whole.folder))
    assert_every_example_was_seen_once(state.extra["seen"], killed_run.STEPS)
    assert state.extra["seen"].all()
    return kills


def assert_every_kind_was_hit(kills):
    assert len(kills) == 20
    assert {kill.since for kill in kills} == {"start", "first step"}
    assert any(kill.saving for kill in kills)
    within_an_epoch = [kill for kill in kills if kill.checkpoint * killed_run.BATCH % killed_run.SIZE]
    assert any(kill.step > kill.checkpoint for kill in within_an_epoch)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(killed_run.SIZE):
        pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02d}.{'png' if number % 2 else 'jpg'}")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Not that of the test session: a process that is killed may leave half of a program in it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(images, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    losses, times = run_to_its_end(folder, images, cache=cache)
    assert sorted(losses) == list(range(1, killed_run.STEPS + 1))
    return Whole(folder, losses, dict(zip(losses, times, strict=False)), times[-1])


@contextlib.contextmanager
def recorded(request):
    """Keep what becomes of a test in `long_results.json`, if JAXGEN_RECORD_LONG asks for it; yields its record."""
    began, record = time.perf_counter(), {"test": request.node.nodeid, "result": "failed"}
    try:
        yield record
        record["result"] = "passed"
    finally:
        git = ["git", "-C", str(TESTS), "rev-parse", "--short", "HEAD"]
        record |= {
            "date": datetime.date.today().isoformat(),
            "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
            "machine": f"{os.cpu_count()}-core CPU, Python {platform.python_version()}, jax {jax.__version__}",
            "seconds": round(time.perf_counter() - began),
        }
        if os.environ.get("JAXGEN_RECORD_LONG"):
            records = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            records = [other for other in records if other["test"] != record["test"]] + [record]
            RESULTS.write_text(json.dumps(sorted(records, key=lambda record: record["test"]), indent=2) + "\n")


@pytest.mark.slow
def test_a_run_killed_at_four_random_moments_ends_in_the_same_bits(images, cache, whole, tmp_path):
    assert len(killed_in_a_row(tmp_path / "run", images, whole, 0, cache=cache)) == 4


@pytest.mark.long
def test_runs_killed_at_twenty_random_moments_end_in_the_same_bits(images, whole, tmp_path, request):
    """Every other run reads in a process of its own, and each begins by compiling."""
    with recorded(request) as record:
        kills = []
        for seed in range(1, 6):
            options = {"workers": seed % 2, "cache": tmp_path / f"cache{seed}"}
            kills += killed_in_a_row(tmp_path / f"run{seed}", images, whole, seed, **options)
            record["kills"] = [kill._asdict() for kill in kills]
        assert_every_kind_was_hit(kills)


def marked_long():
    """The tests with the marker `long`, which stands before functions alone."""
    for path in sorted(TESTS.rglob("test_*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        marked = [node.name for node in functions if LONG in map(ast.unparse, node.decorator_list)]
        mentions = [node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node) == LONG]
        assert len(marked) == len(mentions), f"{path} marks something else as long than a function"
        yield from (f"{path.relative_to(TESTS.parent).as_posix()}::{name}" for name in marked)


def test_the_last_result_of_every_long_test_is_kept():
    records = json.loads(RESULTS.read_text())
    assert [record["test"].split("[")[0] for record in records] == sorted(marked_long())
    for record in records:
        assert record.keys() >= FIELDS
        assert record["result"] == "passed"
        assert record["commit"]
        datetime.date.fromisoformat(record["date"])


def test_the_kept_result_is_of_twenty_kills_of_every_kind():
    name = test_runs_killed_at_twenty_random_moments_end_in_the_same_bits.__name__
    (record,) = (record for record in json.loads(RESULTS.read_text()) if record["test"].endswith(f"::{name}"))
    assert_every_kind_was_hit([Kill(**kill) for kill in record["kills"]])
