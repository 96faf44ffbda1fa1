"""`metrics.jsonl`: a line of JSON for each step that was reported, appended as the run goes."""

import errno
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from experiments import files


class MetricsFile:
    """Appends lines, and drops those that a resumed run writes again."""

    def __init__(self, path: Path) -> None:
        """Name the file, which the first line creates."""
        self.path = path
        self._file: io.FileIO | None = None

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line, at once and whole; what is not finite becomes null."""
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        numbers = {name: float(value) for name, value in values.items()}
        row = {"step": int(step), **{name: value if math.isfinite(value) else None for name, value in numbers.items()}}
        line = json.dumps(row).encode() + b"\n"
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path.name)

    def drop_beyond(self, step: int, metric: str = "") -> None:
        """Drop the lines beyond `step`, of those that hold `metric` where one is named, and a line that was cut short.

        Raises:
            ValueError: a whole line is none of metrics; names the file and the line.
        """
        self.close()
        if not self.path.exists():
            return
        whole = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = []
        for number, line in enumerate(whole, start=1):
            try:
                row = json.loads(line)
                beyond = row["step"] > step
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.path}:{number}: not a line of metrics") from None
            if not beyond or (metric and metric not in row):
                kept.append(line)
        files.write_whole(self.path, "".join(kept))

    def close(self) -> None:
        """Let go of the file; a later line opens it again."""
        if self._file:
            self._file.close()
            self._file = None
