import errno
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxgen.training import metrics
from jaxgen.training.metrics import Asynchronous, MetricWriter, TensorBoard

LONG = 60.0


class Recorder:
    """Keeps what it gets; can be held up from its first line on, and can fail at a step."""

    def __init__(self, held=False, fails_at=None):
        self.steps, self.closed, self.flushed = [], False, 0
        self.began, self.released, self.fails_at = threading.Event(), threading.Event(), fails_at
        if not held:
            self.released.set()

    def __call__(self, step, metrics):
        self.began.set()
        assert self.released.wait(LONG)
        if step == self.fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.steps.append(step)

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


@pytest.fixture
def held():
    """A writer that does not return from its first line; let go at the end, so that its thread ends."""
    writer = Recorder(held=True)
    yield writer
    writer.released.set()


# The thread.


def test_every_line_arrives_in_order_at_every_writer():
    first, second = Recorder(), Recorder()
    with Asynchronous(first, second) as write:
        for step in range(1000):
            write(step, {"loss": 1.0})
    assert first.steps == second.steps == list(range(1000))
    assert first.closed
    assert write.dropped == 0


def test_a_writer_that_never_returns_does_not_hold_up_a_call(held):
    write = Asynchronous(held, capacity=64)
    values = {"loss": np.float32(0.5), "rate": 1.0}
    write(0, values)
    assert held.began.wait(LONG)
    before = time.thread_time()
    for step in range(1, 10_001):
        write(step, values)
    spent = time.thread_time() - before
    assert spent / 10_000 < 50e-6  # seconds of this thread's processor time; about 1e-6 when nothing else runs
    assert write.dropped == 10_000 - 64
    with pytest.warns(RuntimeWarning, match="^a metric writer has not returned for 0.05 s; about 65 lines wait for it"):
        assert not write.flush(timeout=0.05)
    with pytest.warns(RuntimeWarning) as told:
        write.close(timeout=0.05)
    assert [str(one.message) for one in told] == [
        "a metric writer has not returned for 0.05 s; about 66 lines wait for it",
        "9936 lines of metrics were dropped: a writer is slower than the training",
    ]


def test_what_is_dropped_is_counted_to_the_line(held):
    write = Asynchronous(held, capacity=10)
    write(0, {})
    assert held.began.wait(LONG)
    for step in range(1, 31):
        write(step, {})
    held.released.set()
    with pytest.warns(RuntimeWarning, match="^20 lines of metrics were dropped"):
        write.close(LONG)
    assert held.steps == list(range(11))
    assert write.dropped == 20


def test_flush_waits_for_what_was_queued_and_flushes_the_writers(held):
    with Asynchronous(held) as write:
        write(1, {})
        held.released.set()
        assert write.flush(LONG)
        assert (held.steps, held.flushed) == ([1], 1)


def test_the_error_of_a_writer_is_raised_as_it_is_and_the_others_go_on():
    failing, whole = Recorder(fails_at=2), Recorder()
    write = Asynchronous(failing, whole)
    for step in range(1, 5):
        write(step, {})
    with pytest.raises(OSError, match="No space left on device") as caught:
        write.flush(LONG)
    assert caught.value.errno == errno.ENOSPC
    write(5, {})
    write.close(LONG)  # told once
    assert failing.steps == [1]
    assert failing.closed
    assert whole.steps == [1, 2, 3, 4, 5]
    assert whole.closed


def test_closing_raises_the_error_though_warnings_are_errors_and_names_a_second_one(held):
    write = Asynchronous(held, Recorder(fails_at=1), capacity=1)
    held.fails_at = 1
    write(1, {})
    assert held.began.wait(LONG)
    write(2, {})
    write(3, {})
    held.released.set()
    with pytest.raises(OSError, match="No space left") as caught:
        write.close(LONG)
    assert "another metric writer failed as well: OSError" in caught.value.__notes__[0]
    assert write.dropped == 1


def test_an_error_of_the_block_is_told_before_that_of_a_writer():
    def fail():
        with Asynchronous(Recorder(fails_at=1)) as write:
            write(1, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail()
    assert "the metric writers failed as well: OSError(28" in caught.value.__notes__[0]


def test_closing_twice_is_closing_and_a_closed_one_takes_nothing():
    write = Asynchronous(Recorder())
    write.close()
    write.close()
    assert write.flush()
    with pytest.raises(ValueError, match="the metric writers are closed"):
        write(1, {})
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        Asynchronous(capacity=0)


def test_the_mapping_may_change_after_the_call(held):
    seen = []
    values = {"loss": 1.0}
    with Asynchronous(held, lambda step, metrics: seen.append(dict(metrics))) as write:
        write(1, values)
        values["loss"] = 2.0
        held.released.set()
    assert seen == [{"loss": 1.0}]


def test_a_writer_that_never_returns_does_not_keep_the_interpreter_alive():
    code = """
import threading
from jaxgen.training.metrics import Asynchronous
began = threading.Event()
def write(step, metrics):
    began.set()
    threading.Event().wait()
writer = Asynchronous(write)
writer(1, {})
assert began.wait(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


# TensorBoard.


ROOT = Path(__file__).parents[2]


def scalars(folder):
    """Read a folder back as TensorBoard itself does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_back_steps_values_and_times(tmp_path):
    before = time.time()
    writer = TensorBoard(tmp_path / "a" / "b")
    assert isinstance(writer, MetricWriter)
    for step in range(1, 2001):
        writer(step, {"loss": np.float32(1 / step), "rate": np.asarray(3.0), "steps": step})
        if step == 5:  # readable while the run goes on
            assert [step for step, _ in scalars(tmp_path / "a" / "b")["loss"]] == [1, 2, 3, 4, 5]
    writer.close()
    writer.close()
    found = scalars(tmp_path / "a" / "b")
    assert set(found) == {"loss", "rate", "steps"}
    assert found["loss"] == [(step, np.float32(1 / step)) for step in range(1, 2001)]
    assert found["steps"][-1] == (2000, 2000.0)

    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (tmp_path / "a" / "b").iterdir()
    times = [event.wall_time for event in EventFileLoader(str(file)).Load()]
    assert before <= times[0] <= times[-1] <= time.time()
    assert len(times) == 2001


def test_what_is_not_finite_is_written_as_it_is(tmp_path):
    writer = TensorBoard(tmp_path)
    writer(1, {"nan": float("nan"), "inf": -np.inf, "beyond float32": 1e300})
    writer.close()
    found = {tag: values[0][1] for tag, values in scalars(tmp_path).items()}
    np.testing.assert_equal(found, {"nan": np.nan, "inf": -np.inf, "beyond float32": np.inf})


def test_a_metric_that_is_no_single_number_is_refused_by_name(tmp_path):
    writer = TensorBoard(tmp_path)
    with pytest.raises(ValueError, match=r"the metric 'losses' has shape \(3,\)"):
        writer(1, {"loss": 1.0, "losses": np.ones(3)})
    writer.close()
    assert scalars(tmp_path) == {}


def test_a_resumed_run_takes_the_place_of_the_steps_after_its_checkpoint(tmp_path):
    writer = TensorBoard(tmp_path)
    for step in range(1, 8):
        writer(step, {"loss": 1.0, "ended": 1.0})
    writer.close()
    writer = TensorBoard(tmp_path, purge_step=5)
    for step in range(5, 7):
        writer(step, {"loss": 2.0})
    writer.close()
    assert len(list(tmp_path.iterdir())) == 2
    found = scalars(tmp_path)
    assert found["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]
    assert [step for step, _ in found["ended"]] == [1, 2, 3, 4]


def test_a_full_disk_is_told_and_what_was_written_before_is_read(tmp_path):
    write = Asynchronous(TensorBoard(tmp_path))
    write(1, {"loss": 0.5})
    assert write.flush(LONG)
    (file,) = tmp_path.iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 5, hard))
    try:
        write(2, {"loss": 0.25})
        with pytest.raises(OSError, match="File too large"):  # what the limit says in place of a full disk
            write.close(LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert scalars(tmp_path) == {"loss": [(1, 0.5)]}


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^writing for TensorBoard .*: pip install 'jaxgen\[tensorboard\]'$"):
        TensorBoard(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_writing_imports_no_tensorflow_and_warns_of_nothing(tmp_path):
    fake = tmp_path / "packages" / "tensorflow"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise AssertionError('TensorFlow was imported')")
    code = f"""
import sys
from jaxgen.training.metrics import TensorBoard
assert "tensorboard" not in sys.modules
writer = TensorBoard({str(tmp_path / "run")!r}, purge_step=1)
writer(1, {{"loss": 0.5}})
writer.close()
assert "tensorflow" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(fake.parent)])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=LONG, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert scalars(tmp_path / "run") == {"loss": [(1, 0.5)]}
