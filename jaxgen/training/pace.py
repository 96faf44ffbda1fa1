"""How many steps one call of the compiled program runs, and where the time of the last ones went."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree


class Timing(NamedTuple):
    """Where the time of the last steps went, in seconds a step."""

    step: Any
    """Wall time, checkpoints included."""
    host: Any
    """The host's own work: starting the program, reporting metrics, beginning to save. On a CPU, whose small programs
    run while they are started, it includes these."""
    data: Any
    """Waiting for batches."""


class Span(NamedTuple):
    """The metrics of steps first + 1 ... first + count, on their way to the host."""

    first: int
    count: int
    metrics: PyTree


class Pace:
    """How many steps the next call runs, and where the time of the last ones went."""

    def __init__(self, most: int, seconds: float | None, on_timing: Callable[[int, Timing], None] | None):
        self._most, self._seconds, self._on_timing = most, seconds, on_timing
        # Until two rounds have told how long a step takes, calls are as short as they can be.
        self.steps = most if seconds is None else 1
        self._slowest: list[float] = []
        self._mark: float | None = None
        self._data = self._device = 0.0
        self._arrived, self._last = 0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for batches."""
        began = time.perf_counter()
        yield
        self._data += time.perf_counter() - began

    def arrived(self, span: Span | None) -> Span | None:
        """Wait for the metrics of a span."""
        if span is None:
            return None
        began = time.perf_counter()
        span = span._replace(metrics={name: np.asarray(value) for name, value in span.metrics.items()})
        self._device += time.perf_counter() - began
        self._arrived, self._last = self._arrived + span.count, span.first + span.count
        return span

    def round(self) -> None:
        """End a round of the loop: spread its time over the steps whose metrics arrived in it, if there are any."""
        now = time.perf_counter()
        if self._mark is None:
            # The first round compiles, and only starts the first call.
            self._mark, self._data, self._device = now, 0.0, 0.0
            return
        if not self._arrived:
            return
        whole, count = now - self._mark, self._arrived
        # A program that runs while it is started belongs to the round before its metrics arrive, so that around a
        # checkpoint one round looks short; of two, the slower tells the truth.
        self._slowest = [*self._slowest[-1:], whole / count]
        if self._seconds is not None and len(self._slowest) == 2:
            self.steps = int(np.clip(self._seconds / max(*self._slowest, 1e-9), 1, self._most))
        if self._on_timing is not None:
            host = max(whole - self._data - self._device, 0.0)
            self._on_timing(self._last, Timing(whole / count, host / count, self._data / count))
        self._mark, self._data, self._device, self._arrived = now, 0.0, 0.0, 0
