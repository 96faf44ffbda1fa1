"""Which checkpoints of a run stay: the newest, or all, and the best by a metric."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Keeping:
    """Orbax's preservation policy: the newest stay, and the best by a metric that is kept in their meta data."""

    def __init__(self, path: Path, newest: int | None, metric: str | None, best: int, maximise: bool):
        self.known: dict[int, Mapping[str, float]] = {}
        self._path, self._newest, self._metric, self._best, self._maximise = path, newest, metric, best, maximise

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Answer for each of orbax's checkpoints, the one to be written included."""
        del context
        steps = [info.step for info in checkpoints]
        if self._newest is None:
            return [True for _ in steps]
        kept = set(sorted(steps)[-self._newest :])
        if self._metric is not None:
            kept |= set(
                best_first({step: self._metrics(step) for step in steps}, self._metric, self._maximise)[: self._best]
            )
        return [step in kept for step in steps]

    def _metrics(self, step: int) -> Mapping[str, float]:
        if step not in self.known:
            try:
                self.known[step] = read_json(self._path / str(step) / "meta").get("metrics", {})
            except (OSError, ValueError):
                self.known[step] = {}  # damaged: it is not the best, and is told when it is read
        return self.known[step]


def best_first(metrics: Mapping[int, Mapping[str, float]], name: str, maximise: bool) -> list[int]:
    """Order the steps that have a metric, the best first and of equal ones the latest."""
    sign = -1.0 if maximise else 1.0
    having = [step for step, of in metrics.items() if name in of]
    return sorted(having, key=lambda step: (sign * metrics[step][name], -step))


def read_json(folder: Path) -> dict[str, Any]:
    """Read what orbax wrote as JSON into a folder of a checkpoint."""
    return json.loads((folder / "metadata").read_bytes())
