"""What holds exactly: both targets say the same, DDIM hits a point, and it is a linear flow (E4, E5, E6, E7)."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.stats import norm

from experiments.claims import Cell
from experiments.run_directory import RunDirectory
from experiments.step_by_step import figures, problems, references
from jaxgen.diffusion import (
    Level,
    Tutorial,
    VariancePreservingLinear,
    flow_matching,
    heun,
    level_at,
    predict_exactly,
    time_grid,
    tutorial_ddim,
    uniform_grid,
)
from jaxgen.typing import Sample, Scalar

_TIMES = ((1.0, 0.1), (0.5, 0.25), (0.3, 0.01))  # t and dt of the two targets
_STEPS = (1, 2, 10, 100, 1000)
_POINT = (0.7, -1.3)
_STARTS = 64
_FINE = 101  # times between two levels at which the largest and the nearest are sought


def measure(config: Any, run: RunDirectory) -> None:
    """Measure the identities, in float64."""
    del config
    with jax.enable_x64(True):
        for part in (_targets, _one_point, _linear_flow, _printed_flow, _preserving):
            part(run)
            problems.stop_here(run)


def _targets(run: RunDirectory) -> None:
    """E4: the posterior means of the previous and of the clean point, one from the other."""
    began = time.perf_counter()
    points = jax.random.normal(jax.random.key(run.seed), (100, 2)) * 4.0
    cells = []
    for t, dt in _TIMES:
        clean, now = problems.plane_mixture(), level_at(Tutorial(problems.SIGMA_Q), np.float64(t))
        earlier = problems.plane_mixture(problems.SIGMA_Q * np.sqrt(t - dt))
        step = Level(np.float64(t), np.float64(1.0), problems.SIGMA_Q * np.sqrt(dt))
        previous = jax.vmap(lambda x, law=earlier, at=step: predict_exactly(law, x, at).x0 - x)(points)
        whole = jax.vmap(lambda x, law=clean, at=now: predict_exactly(law, x, at).x0 - x)(points)
        miss = np.abs(previous - dt / t * whole).max(axis=1)
        cells.append(Cell(f"t = {t:g}, dt = {dt:g}: largest error at 100 points", values=[miss.max()]))
    run.record("E4", cells, seconds=time.perf_counter() - began)


def _one_point(run: RunDirectory) -> None:
    """E5: DDIM from many starts to one point, on even and uneven grids: the end alone would be right for any lambda."""
    began = time.perf_counter()
    model, point = problems.of_points(np.array([_POINT])), np.array(_POINT)
    starts = problems.SIGMA_Q * jax.random.normal(jax.random.key(run.seed), (16, 2))
    keys = jax.random.split(jax.random.key(0), 16)
    uneven = np.sort(np.random.default_rng(run.seed).uniform(size=6))[::-1]
    grids = {f"{steps} steps": problems.tutorial_grid(steps) for steps in _STEPS}
    grids["7 uneven steps"] = time_grid(Tutorial(problems.SIGMA_Q), np.concatenate([[1.0], uneven, [0.0]]))
    cells = []
    for name, grid in grids.items():
        found = problems.paths(tutorial_ddim(model), keys, starts, grid)
        way = point + np.sqrt(np.asarray(grid.time))[:, None] * (np.asarray(starts)[:, None] - point)
        cells.append(Cell(f"{name}: largest distance to the way", values=[np.abs(found - way).max()]))
    run.record("E5", cells, seconds=time.perf_counter() - began)


def _linear_flow(run: RunDirectory) -> None:
    """E6: DDIM in t and Euler's method on the linear flow in sqrt(t), then both without steps."""
    began = time.perf_counter()
    law, sigma_q = problems.plane_mixture(), problems.SIGMA_Q
    starts = sigma_q * jax.random.normal(jax.random.key(run.seed), (_STARTS, 2))
    keys = jax.random.split(jax.random.key(0), _STARTS)
    linear = flow_matching.linear_diffusion_marginal_flow(
        lambda x, level: predict_exactly(law, jnp.asarray(x), level), sigma_q
    )
    cells = []
    for steps in (2, 10, 100):
        grid = problems.tutorial_grid(steps)
        curves = problems.paths(tutorial_ddim(problems.exact(law)), keys, starts, grid)
        follow = jax.jit(jax.vmap(partial(flow_matching.trace_flow, linear), (0, None)))
        straight = follow(starts, np.sqrt(grid.time))
        cells.append(Cell(f"mixture, {steps} steps: largest distance", values=[np.abs(curves - straight).max()]))
    flows = {
        "DDIM, y at t = .09": (flow_matching.diffusion_marginal_flow, 0.09),
        "z at .3": (flow_matching.linear_diffusion_marginal_flow, 0.3),
    }
    gaussian = problems.gaussian()
    predict = lambda x, level: predict_exactly(gaussian, jnp.asarray(x), level)  # noqa: E731
    for name, (flow, stop) in flows.items():
        end = _integrate(flow(predict, sigma_q), stop)
        cells.append(Cell(f"N(0, 1), {name}", values=[end], control=[references.FLOW_END]))
    run.record("E6", cells, seconds=time.perf_counter() - began)


def _printed_flow(run: RunDirectory) -> None:
    """E6-printed: the velocity of the printed lemma 4, under both readings of its noise."""
    began = time.perf_counter()
    law, cells = problems.gaussian(), []
    noises = dict(zip(references.PRINTED_END, (jnp.sqrt, lambda t: t), strict=True))

    def printed(noise: Callable[[Scalar], Scalar]) -> Callable[[Sample, Scalar], Sample]:
        def velocity(x: Sample, t: Scalar) -> Sample:
            level = Level(t, jnp.ones_like(t), problems.SIGMA_Q * noise(t))
            return predict_exactly(law, jnp.asarray(x), level).x0 - x

        return velocity

    for name, noise in noises.items():
        end = _integrate(printed(noise), 0.3)
        cells.append(Cell(f"{name}: z at .3", values=[end], control=[references.PRINTED_END[name]]))
    run.record("E6-printed", cells, seconds=time.perf_counter() - began)


def _integrate(velocity: Callable[[Sample, Scalar], Sample], stop: float) -> float:
    """Solve dx/dt = -v from x = 3 at t = 1 to `stop` by a method of order 8, to 1e-12."""
    slope = jax.jit(lambda t, x: -velocity(x, t))
    solution = solve_ivp(
        lambda t, x: np.asarray(slope(jnp.asarray(t), jnp.asarray(x))),
        (1.0, stop),
        np.array([references.FLOW_START]),
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
    )
    return float(solution.y[0, -1])


def _preserving(run: RunDirectory) -> None:
    """E7: the distance between the curves of variance-preserving DDIM and the straight flow of its coupling."""
    began = time.perf_counter()
    shown = {}

    def deviation(steps: int) -> float:
        shown["curves"] = curves = _both_flows(steps)
        return _largest_deviation(*curves)

    found, error = problems.doubled(deviation, 400)
    seconds = time.perf_counter() - began
    cell = Cell("largest distance to the nearest slice", values=[found], error=error)
    run.record("E7", [cell], seconds=seconds)
    run.record("E7-value", [cell], seconds=seconds, reason=references.ON_PRESERVING_DEVIATION)
    preserving, linear = (np.asarray(curve) for curve in shown["curves"])
    run.arrays(preserving_ddim=preserving[:, ::8], preserving_linear_flow=linear[:, ::8])
    figures.preserving_flows(run, preserving, linear)


def _both_flows(steps: int) -> tuple[Float[np.ndarray, "starts levels"], Float[np.ndarray, "starts levels"]]:
    """Follow variance-preserving DDIM and the linear flow of x_1 = alpha x_0 + sigma noise from normal quantiles."""
    model, path = problems.exact(problems.line_mixture()), VariancePreservingLinear()
    alpha, sigma = path.alpha(np.float64(1.0)), path.sigma(np.float64(1.0))
    times = np.linspace(1.0, 0.0, steps + 1)
    starts = jnp.asarray(norm.ppf((np.arange(_STARTS) + 0.5) / _STARTS))[:, None]
    keys = jax.random.split(jax.random.key(0), _STARTS)
    grids = uniform_grid(path, steps), Level(times, 1.0 - times + times * alpha, times * sigma)
    curves = (jax.jit(lambda grid: problems.paths(heun(model), keys, starts, grid))(grid) for grid in grids)
    preserving, linear = (np.asarray(curve[..., 0]) for curve in curves)
    return preserving, linear


def _largest_deviation(curves: Float[np.ndarray, "starts levels"], flow: Float[np.ndarray, "starts levels"]) -> float:
    """Return the largest distance, over the times of the curves, to the nearest slice of the flow."""
    last = curves.shape[1] - 1
    rough = np.arange(0, last + 1, 4)
    at = rough[np.argmax([_nearest_slice(curves[:, level], flow) for level in rough])]
    fine = np.linspace(max(at - 4, 0), min(at + 4, last), _FINE)
    return max(_nearest_slice(points, flow) for points in _between(curves, fine).T)


def _nearest_slice(points: Float[np.ndarray, " starts"], flow: Float[np.ndarray, "starts levels"]) -> float:
    """Return the least distance, over the flow's times, of the largest over the starts."""
    away = np.abs(points[:, None] - flow).max(axis=0)
    padded = np.pad(away, 1, constant_values=np.inf)
    # Where the largest distance is found, two slices are equally near: each valley is searched.
    valleys = np.flatnonzero((away <= padded[:-2]) & (away <= padded[2:]))
    found = []
    for at in valleys[np.argsort(away[valleys])[:3]]:
        fine = np.linspace(max(at - 1, 0), min(at + 1, len(away) - 1), _FINE)
        found.append(np.abs(points[:, None] - _between(flow, fine)).max(axis=0).min())
    return float(min(found))


def _between(
    curves: Float[np.ndarray, "starts levels"], levels: Float[np.ndarray, " chosen"]
) -> Float[np.ndarray, "starts chosen"]:
    """Interpolate curves between their levels."""
    below = np.minimum(levels.astype(int), curves.shape[1] - 2)
    return curves[:, below] + (levels - below)[None] * (curves[:, below + 1] - curves[:, below])
