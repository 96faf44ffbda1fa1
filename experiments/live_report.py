"""The `report.html` of a run: kept up to date by a thread while the run goes on, and written once more at its end."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import files, report
from experiments.environment import utc_now
from experiments.training_curves import TrainingCurves

# What the run waits for at its end, in seconds: a page that is being written is let finish.
_PATIENCE = 5.0


class LiveReport:
    """Writes the page whole, one version at a time, whichever thread asks."""

    def __init__(self, run: Path, content: Callable[[], Mapping[str, Any]]) -> None:
        """Describe the page of the run in the folder `run`.

        Args:
            run: the folder; the page shows its `metrics.jsonl`.
            content: returns what else `report.render` takes, `title` included, as the run stands; called in both
                threads.
        """
        self._path, self._content = run / "report.html", content
        self._curves = TrainingCurves(run / "metrics.jsonl")
        self._turn, self._running = threading.Lock(), False

    def write(self, outcome: str) -> None:
        """Write the page of a run that is over; `outcome` says how it ended."""
        with self._turn:
            self._write(outcome, None)

    @contextlib.contextmanager
    def live(self, interval: float, tell: Callable[[str], None]) -> Iterator[None]:
        """Write the page in a thread, at once and every `interval` seconds, until the block ends.

        The thread never raises into the block: what goes wrong is told once, and tried again at the next interval.

        Args:
            interval: seconds from one version to the next, and until an open page loads itself again.
            tell: called in the thread with the sentence on the first page that could not be written.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._refresh, args=(over, interval, tell), name="live report", daemon=True)
        self._running = True
        thread.start()
        try:
            yield
        finally:
            self._running = False
            over.set()
            thread.join(_PATIENCE)

    def _refresh(self, over: threading.Event, interval: float, tell: Callable[[str], None]) -> None:
        told = False
        while not over.is_set():
            try:
                with self._turn:
                    if self._running:  # a turn that comes late must not overwrite the last page
                        self._write(f"Running, as of {utc_now()}", max(round(interval), 1))
            except Exception as error:
                if not told:
                    tell(f"note: {self._path} is not up to date: {error}")
                told = True
            over.wait(interval)

    def _write(self, outcome: str, reload: int | None) -> None:
        page = report.render(outcome=outcome, curves=self._curves.plots(), reload=reload, **self._content())
        files.write_whole(self._path, page)
