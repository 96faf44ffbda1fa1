"""The simulations of the paper: its settings, its bounds, and the results that the authors published.

Nothing here uses jaxgen: formulas in plain Python, and three tables that travel with the package.
"""

import csv
import importlib.resources
import math
from typing import NamedTuple

DIMENSION, SOURCES, SAMPLES, SIMILARITY = 10, 5, 500, 0.5
"""The paper's coordinates, number of sources, samples over all sources, and share of the coordinates in common."""
SWEEPS = {"K": (1, 3, 5, 10, 15), "n": (100, 300, 500, 1000, 5000), "sim": (0.0, 0.3, 0.5, 0.7, 1.0)}
"""What each of its sweeps changes, the rest being as above."""
SEEDS = (3, 33, 520, 2025, 25731)
"""The authors' seeds: what they publish are means over these."""
TEST_POINTS = 500
"""Fresh points on which they measure a total variation."""


class Setting(NamedTuple):
    """One of the 15 settings: a point of a sweep.

    Attributes:
        sweep: `K`, `n` or `sim`.
        sources: number K of sources, which are equally likely.
        samples: number n of samples over all of them.
        similarity: share of the coordinates whose mean the sources have in common.
    """

    sweep: str
    sources: int
    samples: int
    similarity: float

    @property
    def name(self) -> str:
        """Return what tells it from the others, as in `K = 10` or `sim = 0.3`."""
        return f"{self.sweep} = {self.value:g}"

    @property
    def value(self) -> float:
        """Return what its sweep changes."""
        return {"K": self.sources, "n": self.samples, "sim": self.similarity}[self.sweep]

    @property
    def dim_shared(self) -> int:
        """Return the number of coordinates in common."""
        return shared_coordinates(self.similarity, DIMENSION)

    @property
    def dim_specific(self) -> int:
        """Return the number of coordinates with a mean of their own in each source."""
        return DIMENSION - self.dim_shared

    def bound(self, *, shared: bool) -> float:
        """Return the theoretical curve of figure 1, sqrt(parameters / n), with the constant 1."""
        own, common = self.dim_specific, self.dim_shared
        parameters = self.sources * own + (common if shared else self.sources * common)
        return math.sqrt(parameters / self.samples)

    @property
    def ratio(self) -> float:
        """Return the ratio of the bounds, sqrt(1 - (K - 1) / K beta)."""
        return math.sqrt(1.0 - (self.sources - 1) / self.sources * self.dim_shared / DIMENSION)


class Published(NamedTuple):
    """What the authors publish of a setting: means over their seeds.

    Attributes:
        bound_single: theoretical curve of separate models.
        bound_multi: theoretical curve of the shared model.
        single: measured total variation of separate models.
        multi: measured total variation of the shared model.
    """

    bound_single: float
    bound_multi: float
    single: float
    multi: float


def shared_coordinates(similarity: float, dimension: int) -> int:
    """Return how many of the coordinates a similarity means, by rounding.

    The authors' int() cuts off: int(.29 * 100) is 28. At the published settings both give the same.

    Raises:
        ValueError: the similarity lies outside of [0, 1].

    >>> shared_coordinates(0.29, 100)
    29
    """
    if not 0 <= similarity <= 1:
        raise ValueError(f"similarity must lie in [0, 1], got {similarity:g}")
    return round(similarity * dimension)


def source_means(sources: int, dim_shared: int, dimension: int = DIMENSION) -> list[list[float]]:
    """Return the true means `[sources, dimension]`: k in each coordinate of source k = 1 ... K, 0 in the shared ones.

    The shared coordinates are the last ones.
    """
    return [[float(k)] * (dimension - dim_shared) + [0.0] * dim_shared for k in range(1, sources + 1)]


def settings() -> list[Setting]:
    """List the 15 settings, sweep by sweep; the base setting is in each of the three."""
    found = [Setting("K", count, SAMPLES, SIMILARITY) for count in SWEEPS["K"]]
    found += [Setting("n", SOURCES, count, SIMILARITY) for count in SWEEPS["n"]]
    return found + [Setting("sim", SOURCES, SAMPLES, share) for share in SWEEPS["sim"]]


def published() -> dict[Setting, Published]:
    """Read what the authors publish of each of the settings.

    Raises:
        ValueError: a table holds other settings than the paper; names it and the row.
    """
    wanted, found = settings(), {}
    for sweep in SWEEPS:
        rows = _rows(f"results_{sweep}.csv")
        for setting, row in zip([of for of in wanted if of.sweep == sweep], rows, strict=True):
            stored = row["K"], row["n"], row["sim"], row["D"]
            if stored != (setting.sources, setting.samples, setting.similarity, DIMENSION):
                raise ValueError(f"results_{sweep}.csv holds (K, n, sim, D) = {stored} where {setting.name} belongs")
            bounds = (row[f"theoretical TV bound of {arm}"] for arm in ("single", "multi"))
            found[setting] = Published(*bounds, *(row[f"empirical TV of {arm}"] for arm in ("single", "multi")))
    return found


def _rows(name: str) -> list[dict[str, float]]:
    table = importlib.resources.files("experiments.multi_source").joinpath("data", name)
    lines = table.read_text(encoding="utf-8").splitlines()
    return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(lines)]
