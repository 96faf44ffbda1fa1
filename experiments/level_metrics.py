"""The training loss by noise level, as averages over the steps between two lines of metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class LevelMetrics:
    """Sums what `DenoisingUpdate` tells of each interval of noise, and replaces it by one loss for each.

    The sums live with the process: the first line after a resume may be an average over fewer steps.
    """

    def __init__(self, level_edges: Sequence[float]) -> None:
        """Name the intervals between the rising values `level_edges` of ln sigma."""
        ends = [f"{math.exp(edge):.2g}" for edge in level_edges]
        self.names = [f"loss_sigma_{low}_to_{high}" for low, high in zip(["0", *ends], [*ends, "inf"], strict=True)]
        self._loss, self._share = np.zeros(len(self.names)), np.zeros(len(self.names))

    def add(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Take the metrics of a step, and return those that are not of levels."""
        self._loss += np.asarray(metrics["level_loss"], np.float64)
        self._share += np.asarray(metrics["level_share"], np.float64)
        return {name: value for name, value in metrics.items() if not name.startswith("level_")}

    def take(self) -> dict[str, float]:
        """Return the mean loss of each interval that had an image since the last call, and begin anew."""
        means = {
            name: float(loss / share)
            for name, loss, share in zip(self.names, self._loss, self._share, strict=True)
            if share > 0
        }
        self._loss[:], self._share[:] = 0.0, 0.0
        return means
