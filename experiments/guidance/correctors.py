"""What more corrections do: sharper or not, and how they undo the shift of the mean (D6, D9, D10)."""

import itertools
import time
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import Cell
from experiments.guidance import clouds, figures, references
from experiments.run_directory import RunDirectory
from jaxgen.diffusion import laws

_GAUSSIAN, _TWO, _THREE = "the Gaussian problem", "two clusters, mu = 2", "three clusters"
_Found: TypeAlias = dict[str, dict[int, clouds.Statistics]]
_KNOWN = {
    _GAUSSIAN: references.CORRECTED_VARIANCES,
    _TWO: references.TWO_CLUSTERS_CORRECTED,
    _THREE: references.THREE_CLUSTERS_CORRECTED,
}
# Times the steps and the samples: three clusters have the heaviest tails, and few corrections the largest errors.
_EFFORT = {(_THREE, 1): 3, (_THREE, 2): 2}
_COUNTS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
SCALES = {_GAUSSIAN: 3.0, _TWO: 5.0, _THREE: 3.0}


def measure(config: Any, run: RunDirectory) -> None:
    """Scan the number of corrections on the problems whose laws are known."""
    began = time.perf_counter()
    problems = {
        _GAUSSIAN: clouds.gaussian_problem(0.0),
        _TWO: clouds.two_clusters(2.0),
        _THREE: clouds.three_clusters(),
    }
    found: _Found = {}
    counts = {name: [count for count in config.corrections if count in known] for name, known in _KNOWN.items()}
    with run.progress(sum(map(len, counts.values())), "numbers of corrections") as progress:
        done = 0
        for name, problem in problems.items():
            found[name] = {}
            for count in counts[name]:
                found[name][count] = _scan(config, run, problem, name, count)
                progress.update(done := done + 1)
    seconds = (time.perf_counter() - began) / len(problems)
    _record(run, found, seconds)
    _equilibrium(config, run, found, seconds)


def _scan(config: Any, run: RunDirectory, problem: clouds.Problem, name: str, count: int) -> clouds.Statistics:
    effort, scale = _EFFORT.get((name, count), 1), SCALES[name]
    options = {"particles": effort * config.scan_particles, "seeds": config.seeds}
    return clouds.measure_clouds(run, clouds.ByPCG(count), problem, [scale], effort * config.scan_steps, **options)


def _record(run: RunDirectory, found: _Found, seconds: float) -> None:
    gaussian, two = (found[name] for name in (_GAUSSIAN, _TWO))
    narrow = [Cell(f"K = {count}: variance", values=of.variance[:, 0]) for count, of in gaussian.items()]
    run.record("D6", narrow, seconds=seconds)
    for claim, of in (("D9", two), ("D9-gaussian", gaussian)):
        cells = [
            Cell(f"K = {a} less K = {b}", values=of[a].variance[:, 0], control=of[b].variance[:, 0])
            for a, b in itertools.pairwise(sorted(of))
        ]
        run.record(claim, cells, seconds=seconds)
    laws_cells = [
        Cell(f"Gaussian, K = {count}: variance / law", values=of.variance[:, 0] / references.CORRECTED_VARIANCES[count])
        for count, of in gaussian.items()
    ]
    for name, known in ((_TWO, references.TWO_CLUSTERS_CORRECTED), (_THREE, references.THREE_CLUSTERS_CORRECTED)):
        for count, of in found[name].items():
            for quantity, law in zip(("mean", "variance"), known[count], strict=True):
                values = getattr(of, quantity)[:, 0] / law
                laws_cells.append(Cell(f"{name}, K = {count}: {quantity} / law", values=values))
    run.record("D9-laws", laws_cells, seconds=seconds)


def _equilibrium(
    config: Any, run: RunDirectory, found: dict[str, dict[int, clouds.Statistics]], seconds: float
) -> None:
    """Compare 20 corrections with the powered law: samples of three clusters, and the limits of small steps."""
    limits = _limits(config.cells)
    cells = []
    for name, powered in ((_TWO, references.TWO_CLUSTERS_POWERED), (_THREE, references.THREE_CLUSTERS_POWERED)):
        for index, quantity in enumerate(("mean", "variance")):
            coarse, fine = (limits[name][part, 20.0][index] / powered[index] for part in (2, 1))
            # Both are extrapolated to fourth order: what parts them bounds what the finer one is off by.
            error = abs(fine - coarse)
            title = f"{name}, K = 20, small steps: {quantity} / powered"
            cells.append(Cell(title, values=[fine], error=error, test="deterministic"))
    of = found[_THREE][20]
    for index, quantity in enumerate(("mean", "variance")):
        values = getattr(of, quantity)[:, 0] / references.THREE_CLUSTERS_POWERED[index]
        cells.append(Cell(f"{_THREE}, K = 20, samples: {quantity} / powered", values=values))
    run.record("D10", cells, seconds=seconds)
    curves = {
        _GAUSSIAN: {count: (0.0, variance) for count, variance in references.CORRECTED_VARIANCES.items()}
        | {np.inf: (0.0, references.powered_variance(3.0))},
        _TWO: {count: limits[_TWO][1, count] for count in _COUNTS} | {np.inf: references.TWO_CLUSTERS_POWERED},
        _THREE: {count: limits[_THREE][1, count] for count in _COUNTS} | {np.inf: references.THREE_CLUSTERS_POWERED},
    }
    figures.corrections(run, found, curves)


def _limits(cells: int) -> dict[str, dict[tuple[int, float], tuple[float, float]]]:
    """Solve for mean and variance in the limit of small steps, by the part of the cells and the corrections."""
    problems = {_TWO: laws.two_clusters(2.0), _THREE: laws.three_clusters()}
    limits: dict[str, dict[tuple[int, float], tuple[float, float]]] = {name: {} for name in problems}
    with jax.enable_x64(True):
        for part in (2, 1):
            size = {"cells": cells // part, "steps": cells // part}
            solve = jax.jit(jax.vmap(partial(laws.pcg_moments, **size), in_axes=(None, None, 0)))
            for name, problem in problems.items():
                problem = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), problem)
                moments = solve(problem, SCALES[name], np.array(_COUNTS))
                for at, count in enumerate(_COUNTS):
                    limits[name][part, count] = float(moments.mean[at]), float(moments.variance[at])
    return limits
