"""Where the metrics of a run go: writers, and a thread that keeps a slow one from holding the training up."""

import contextlib
import importlib.util
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

Scalars: TypeAlias = Mapping[str, Any]
"""Numbers by name: floats, or arrays of shape ()."""


@runtime_checkable
class MetricWriter(Protocol):
    """Takes the metrics of one step at a time; `flush()` is called too where a writer has it."""

    def __call__(self, step: int, metrics: Scalars) -> None:
        """Write the metrics after `step` steps."""
        ...

    def close(self) -> None:
        """Write what is left and let go of the file."""
        ...


class Asynchronous:
    """Hands metrics to writers in a thread of its own: a call returns at once, whatever a writer does.

    Lines wait in a queue, in order. When it is full, because a writer is slower than the training or does not return,
    a line is dropped and counted. A writer that raises is closed, and the others go on; its error comes out
    of the next `flush` or `close`. The thread ends with the interpreter and never keeps it alive.

    Attributes:
        dropped: lines that no writer got since the queue was full.

    >>> seen = []
    >>> with Asynchronous(lambda step, metrics: seen.append((step, metrics["loss"]))) as write:
    ...     write(1, {"loss": 0.5})
    ...     write(2, {"loss": 0.25})
    >>> seen
    [(1, 0.5), (2, 0.25)]
    """

    def __init__(self, *writers: MetricWriter | Callable[[int, Scalars], None], capacity: int = 1024):
        """Start the thread.

        Args:
            writers: each gets every line; plain functions are writers that need no closing.
            capacity: lines that may wait, at least 1.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.dropped = 0
        self._capacity, self._closed = capacity, False
        # A call takes no lock: the queue's put never waits, and only the thread that trains counts what it drops.
        self._lines: queue.SimpleQueue[tuple[int, Scalars] | threading.Event | None] = queue.SimpleQueue()
        self._writers, self._errors = list(writers), queue.SimpleQueue[BaseException]()
        self._thread = threading.Thread(target=self._work, name="metric writers", daemon=True)
        self._thread.start()

    def __call__(self, step: int, metrics: Scalars) -> None:
        """Queue the metrics of a step; they must not change afterwards, the mapping itself may."""
        if self._closed:
            raise ValueError("the metric writers are closed")
        if self._lines.qsize() >= self._capacity:
            self.dropped += 1
        else:
            self._lines.put((step, dict(metrics)))

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was queued is written, at most `timeout` seconds, and say whether it is.

        Raises:
            BaseException: the first error of a writer since the last time, as it is.
        """
        written = threading.Event()
        if not self._closed:
            self._lines.put(written)
            if not written.wait(timeout):
                self._tell([self._stalled(timeout)])
                return False
        self._tell([])
        return True

    def close(self, timeout: float = 10.0) -> None:
        """Write what is left and close the writers, waiting at most `timeout` seconds; a second call does nothing.

        Warns of lines that were dropped, and of a writer that does not return.

        Raises:
            BaseException: the first error of a writer since the last `flush`, as it is.
        """
        if self._closed:
            return
        self._closed = True
        self._lines.put(None)
        self._thread.join(timeout)
        messages = [self._stalled(timeout)] if self._thread.is_alive() else []
        if self.dropped:
            messages.append(f"{self.dropped} lines of metrics were dropped: a writer is slower than the training")
        self._tell(messages)

    def __enter__(self) -> "Asynchronous":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except BaseException as found:
            if error is None:
                raise
            # What ended the block is the one to tell.
            error.add_note(f"the metric writers failed as well: {found!r}")

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            if isinstance(line, threading.Event):
                self._each(lambda writer: getattr(writer, "flush", _nothing)())
                line.set()
            else:
                self._each(lambda writer, line=line: writer(*line))
        self._each(lambda writer: getattr(writer, "close", _nothing)())

    def _each(self, act: Callable[[Any], None]) -> None:
        for writer in tuple(self._writers):
            try:
                act(writer)
            except BaseException as error:
                # It may have cut a line short: nothing may follow it.
                self._writers.remove(writer)
                self._errors.put(error)
                with contextlib.suppress(BaseException):
                    getattr(writer, "close", _nothing)()

    def _stalled(self, timeout: float) -> str:
        return f"a metric writer has not returned for {timeout:g} s; about {self._lines.qsize()} lines wait for it"

    def _tell(self, messages: list[str]) -> None:
        """Warn, then raise what writers raised: the error comes out even where warnings are errors."""
        errors = []
        while not self._errors.empty():
            errors.append(self._errors.get())
        try:
            for message in messages:
                warnings.warn(message, RuntimeWarning, stacklevel=3)
        finally:
            if errors:
                for other in errors[1:]:
                    errors[0].add_note(f"another metric writer failed as well: {other!r}")
                raise errors[0]


class TensorBoard:
    """Writes scalars as an event file that TensorBoard shows: `tensorboard --logdir FOLDER`.

    Every event is in the file when the call returns, so that a killed run has lost none. No TensorFlow is imported,
    also where it is installed.
    """

    # The records are written by the package's `RecordWriter`. Its `EventFileWriter` would import TensorFlow where it
    # is installed, keep events back for minutes, print a full disk's error from a thread of its own, and name the host.

    def __init__(self, folder: Path | str, *, purge_step: int | None = None):
        """Begin a new event file in `folder`, which is made where it does not exist.

        Args:
            folder: one folder a run; a resumed run goes on in the same one.
            purge_step: the first step that is run again, the step of the checkpoint plus one: TensorBoard drops what
                earlier files of the folder hold from it on.

        Raises:
            ValueError: the package `tensorboard` is not installed.
        """
        require_tensorboard()
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names: the time, here to the nanosecond.
        now = time.time_ns()
        path = folder / f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}"
        # What protobuf generates is known only as it runs.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        self._file = path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=events.SessionLog(status=events.SessionLog.START))

    def __call__(self, step: int, metrics: Scalars) -> None:
        """Write the metrics after `step` steps as float32; what is not finite is written as it is.

        Raises:
            ValueError: a metric is not a single number.
        """
        for name, value in metrics.items():
            if np.ndim(value):
                raise ValueError(f"TensorBoard takes single numbers, the metric {name!r} has shape {np.shape(value)}")
        # float64 beyond the range of float32 is infinite there; protobuf's own conversion agrees, without a warning.
        values = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._write(step=int(step), summary=self._summary(value=values))

    def flush(self) -> None:
        """Do nothing: every event is flushed as it is written."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


def require_tensorboard() -> None:
    """Say that `tensorboard` is missing before a run starts, not when it first reports.

    Raises:
        ValueError: it is not installed; names the command that installs it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("writing for TensorBoard needs its package: pip install 'jaxgen[tensorboard]'")


def _nothing() -> None:
    pass
