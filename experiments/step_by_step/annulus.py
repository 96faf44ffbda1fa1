"""A flow from an annulus onto a spiral: flow matching asks nothing of its base (E10)."""

import time
from typing import Any

import jax
import numpy as np

from experiments.claims import Cell
from experiments.run_directory import RunDirectory
from experiments.step_by_step import data, figures, sampling
from experiments.step_by_step.networks import Networks
from jaxgen.statistics import sliced_wasserstein2

SHOWN = (1.0, 0.75, 0.5, 0.2, 0.1, 0.05, 0.0)
"""Times of the pictures, as in figures 7 and 10."""
_FLOOR_DRAWS = 8
_PAIRS = 200


def measure(config: Any, run: RunDirectory, networks: Networks) -> None:
    """Measure how far the flow's samples are from the spiral, against fresh points of it, and draw the flow."""
    began = time.perf_counter()
    fresh = 1000 * run.seed + 800  # beyond the seeds of what was trained on
    starts = data.annulus_samples(fresh, config.samples)
    ways = sampling.flow(networks, starts, steps=config.sampling_steps, block_size=config.block_size)
    key = jax.random.fold_in(jax.random.key(run.seed), 20)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        return float(sliced_wasserstein2(key, first, second))

    real = [data.spiral_samples(fresh + 1 + n, config.samples) for n in range(2 * _FLOOR_DRAWS)]
    floor = float(np.mean([distance(a, b) for a, b in zip(real[::2], real[1::2], strict=True)]))
    found = np.array(
        [
            np.mean([distance(ways[:, index, -1], other) for other in real[:_FLOOR_DRAWS]])
            for index in range(config.seeds)
        ]
    )
    away = np.array([data.distances_to_spiral(ways[:, seed, -1]).mean() for seed in range(config.seeds)])
    base = distance(starts, real[0]) / floor
    cell = Cell("sliced W2 to the spiral / that of fresh points", values=found / floor)
    scale = "full" if config.flow_steps >= 20_000 else "reduced"
    run.record("E10", [cell], seconds=time.perf_counter() - began, scale=scale)
    run.note(
        f"The flow from the annulus is {found.mean() / floor:.2f} times as far from the spiral (sliced W2 "
        f"{found.mean():.3f}) as fresh points of the spiral are ({floor:.3f}); the annulus itself is {base:.1f} "
        f"times as far. Its samples lie {away.mean():.3f} off the curve on average. Straight lines between partners "
        "cross; the ways of the marginal flow do not."
    )
    indices = [round((1.0 - at) * config.sampling_steps) for at in SHOWN]
    clouds, curves = ways[:, 0, indices], ways[:_PAIRS, 0]
    run.arrays(annulus_times=SHOWN, annulus_clouds=clouds.swapaxes(0, 1), annulus_ways=curves)
    run.arrays(annulus_sliced_w2=found, annulus_floor=floor, annulus_distance=away)
    figures.annulus(run, SHOWN, clouds, curves, data.spiral_samples(fresh + 100, len(curves)))
