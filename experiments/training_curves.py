"""The metrics of a run as curves: read while the file grows, thinned by averaging, laid out for the report."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MOST_POINTS = 600
"""Points that a curve has at most, about two to a unit of its width; with more lines, each is an average."""


class Frame(NamedTuple):
    """The size of a plot and the edges of what its axes span, in the units of its coordinates."""

    width: int = 360
    height: int = 190
    left: int = 54
    right: int = 343
    top: int = 10
    bottom: int = 166


FRAME = Frame()


class Tick(NamedTuple):
    """A mark of an axis: where it is along the axis, and what it says."""

    position: float
    label: str


class Plot(NamedTuple):
    """A curve laid out: y points down, as in SVG."""

    name: str
    points: str
    """Coordinates as `x,y x,y ...`."""
    end: tuple[float, float]
    steps: Sequence[Tick]
    values: Sequence[Tick]
    last: float
    last_step: int
    lost: int
    """Lines whose value was not finite."""


class Curve:
    """A metric against the step, as averages over equal numbers of lines: twice as many lines each when it is full."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        """Begin an empty curve of at most `most` points, an even number."""
        self.width, self.lost, self.lowest = 1, 0, math.inf
        self.last: tuple[int, float] = 0, math.nan
        self._most = most
        self._counts: list[int] = []
        self._steps: list[float] = []
        self._values: list[float] = []

    def add(self, step: int, value: float | None) -> None:
        """Take one more value; one that is not finite, or None in its place, is only counted."""
        if value is None or not math.isfinite(value):
            self.lost += 1
            return
        if not self._counts or self._counts[-1] == self.width:
            if len(self._counts) == self._most:
                self._halve()
            self._counts.append(0)
            self._steps.append(0.0)
            self._values.append(0.0)
        self._counts[-1] += 1
        self._steps[-1] += step
        self._values[-1] += value
        self.lowest, self.last = min(self.lowest, value), (step, value)

    def points(self) -> list[tuple[float, float]]:
        """Return the mean step and the mean value of each group."""
        groups = zip(self._counts, self._steps, self._values, strict=True)
        return [(step / count, value / count) for count, step, value in groups]

    def _halve(self) -> None:
        self._counts = [2 * self.width] * (self._most // 2)
        for sums in (self._steps, self._values):
            sums[:] = [a + b for a, b in zip(sums[::2], sums[1::2], strict=True)]
        self.width *= 2


class TrainingCurves:
    """The curves of a `metrics.jsonl` that a run is writing; `read` takes up only what is new."""

    def __init__(self, path: Path) -> None:
        """Name the file; it need not exist yet."""
        self._path = path
        self._identity, self._read = 0, 0
        self._curves: dict[str, Curve] = {}

    def read(self) -> dict[str, Curve]:
        """Read the lines that came since the last time; one that is not yet whole, or is none of metrics, is left out.

        A resumed run replaces the file by a shorter one: it is then read from its beginning.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return self._curves
        with file:
            found = file.seek(0, 2), self._path.stat().st_ino
            if found[1] != self._identity or found[0] < self._read:
                self._identity, self._read, self._curves = found[1], 0, {}
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._take(line)
        return self._curves

    def plots(self) -> list[Plot]:
        """Read what is new and lay out every curve that has a point, in the order in which they began."""
        return [plot(name, curve) for name, curve in self.read().items() if curve.points()]

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
            values = {name: value if value is None else float(value) for name, value in row.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return
        for name, value in values.items():
            self._curves.setdefault(name, Curve()).add(step, value)


def plot(name: str, curve: Curve) -> Plot:
    """Lay a curve out; a loss that is positive throughout gets a logarithmic axis."""
    points = curve.points()
    log = "loss" in name.lower() and curve.lowest > 0
    steps, values = ([point[axis] for point in points] for axis in (0, 1))
    horizontal = _Axis(min(steps), max(steps), FRAME.left, FRAME.right)
    vertical = _Axis(min(values), max(values), FRAME.bottom, FRAME.top, log=log)
    placed = [(horizontal.place(step), vertical.place(value)) for step, value in points]
    return Plot(
        name,
        " ".join(f"{x:.1f},{y:.1f}" for x, y in placed),
        (round(placed[-1][0], 1), round(placed[-1][1], 1)),
        list(horizontal.ticks()),
        list(vertical.ticks()),
        curve.last[1],
        curve.last[0],
        curve.lost,
    )


class _Axis:
    """Places the numbers between `low` and `high` on the line from `begin` to `end`."""

    def __init__(self, low: float, high: float, begin: float, end: float, *, log: bool = False) -> None:
        if low == high:  # a constant lies in the middle
            low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
        self._low, self._high, self._begin, self._end, self._log = low, high, begin, end, log

    def place(self, number: float) -> float:
        low, high = self._scale(self._low), self._scale(self._high)
        return self._begin + (self._scale(number) - low) / (high - low) * (self._end - self._begin)

    def ticks(self) -> Iterator[Tick]:
        numbers = _decades(self._low, self._high) if self._log else []
        for number in numbers or _multiples(self._low, self._high):
            yield Tick(round(self.place(number), 1), f"{number:.6g}")

    def _scale(self, number: float) -> float:
        return math.log10(number) if self._log else number


def _multiples(low: float, high: float) -> list[float]:
    """Return three to seven multiples of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for factor in (1, 2, 2.5, 5, 10) if (step := factor * power) >= rough)
    # The ends may be multiples themselves, up to rounding.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return three to six of the powers of ten, or of their multiples by 2 and 5; nothing where there are fewer."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5)):
        numbers = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        inside = [number for number in numbers if low <= number <= high]
        if len(inside) >= 3:
            return inside[:: -(-len(inside) // 6)]
    return []
