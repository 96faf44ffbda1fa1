"""Show how far a loop is: a bar on a terminal, a line every 30 s elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_LINE_SECONDS = 30.0
# A bar redraws ten times a second; passing it every step would cost more than a small step itself.
_BAR_SECONDS = 0.1


class Meter:
    """Counts the steps of one loop: `update(step, **metrics)` after each, `step` being how many are done."""

    def __init__(
        self, total: int, show: Callable[["Meter"], None], interval: float, clock: Callable[[], float]
    ) -> None:
        self.total, self.step, self.metrics = total, 0, {}
        self._show, self._interval, self._clock = show, interval, clock
        self._first: tuple[int, float] | None = None
        self._shown = self._now = clock()

    def update(self, step: int, **metrics: float) -> None:
        """Count `step` steps as done and show them when it is time to."""
        self.step, self._now = step, self._clock()
        self.metrics.update(metrics)
        # The first step carries the compilation, and a resumed loop does not start from 0: the rate counts from here.
        first, self._first = self._first is None, self._first or (step, self._now)
        if first or self._now - self._shown >= self._interval:
            self._shown = self._now
            self._show(self)

    def status(self) -> str:
        """Say rate, time left and the last metrics."""
        parts = []
        if self._first and self.step > self._first[0] and self._now > self._first[1]:
            rate = (self.step - self._first[0]) / (self._now - self._first[1])
            parts += [f"{rate:.3g} steps/s", f"{max(self.total - self.step, 0) / rate:.0f} s left"]
        return ", ".join(parts + [f"{name} {float(value):.4g}" for name, value in self.metrics.items()])


@contextlib.contextmanager
def progress(total: int, title: str, console: Console) -> Iterator[Meter]:
    """Yield the meter of a loop of `total` steps, drawn on `console`."""
    with _bar(total, title, console) if console.is_terminal else _lines(total, title, console) as meter:
        yield meter


@contextlib.contextmanager
def _bar(total: int, title: str, console: Console) -> Iterator[Meter]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=total, status="")

        def show(meter: Meter) -> None:
            bars.update(task, completed=meter.step, status=meter.status())

        meter = Meter(total, show, _BAR_SECONDS, time.monotonic)
        yield meter
        show(meter)


@contextlib.contextmanager
def _lines(total: int, title: str, console: Console) -> Iterator[Meter]:
    def show(meter: Meter) -> None:
        text = f"{title}: {meter.step}/{total}"
        console.print(", ".join(filter(None, (text, meter.status()))), markup=False, highlight=False, soft_wrap=True)

    meter = Meter(total, show, _LINE_SECONDS, time.monotonic)
    try:
        yield meter
    finally:
        show(meter)
