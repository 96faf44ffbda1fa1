"""Monte Carlo on N(0, 1) and the orders of the samplers (E8 and E11, both by seeds)."""

import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.claims import Cell
from experiments.run_directory import RunDirectory
from experiments.step_by_step import figures, problems, references
from jaxgen.diffusion import (
    Level,
    Tutorial,
    ddim,
    dpm_solver_pp_2m,
    draw_from,
    heun,
    level_at,
    predict_exactly,
    trajectory,
    tutorial_ddim,
    tutorial_ddpm,
    tutorial_ddpm_variance,
)
from jaxgen.typing import PRNGKey

_TIME, _DURATION = 0.5, 0.01  # of the two targets
_ORDER_STEPS = (10, 40, 160, 640)
_FINEST = 20_000
_SAMPLERS = {"DDIM": tutorial_ddim, "DDPM": tutorial_ddpm}
_FLOAT32 = 1e-5  # a correlation of 1 over some thousand steps in float32


def measure(config: Any, run: RunDirectory) -> None:
    """Measure the noise of both targets, what the samplers keep of their start, and their orders."""
    for part in (_targets, _memory):
        part(config, run)
        problems.stop_here(run)
    with jax.enable_x64(True):
        _points(run)
        problems.stop_here(run)
        _orders(run)


def _targets(config: Any, run: RunDirectory) -> None:
    """E8: the variance of x_{t-dt} and of x_0 given x_t, both on the scale of x_0 - x_t."""
    began = time.perf_counter()
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(run.seed), seed))(jnp.arange(config.law_seeds))
    law, schedule = problems.gaussian(), Tutorial(problems.SIGMA_Q)

    def residuals(key: PRNGKey) -> Float[Array, " 2"]:
        data_key, first_key, second_key = jax.random.split(key, 3)
        x0 = draw_from(data_key, law)
        earlier = level_at(schedule, jnp.asarray(_TIME - _DURATION))
        previous = x0 + earlier.sigma * jax.random.normal(first_key, (1,))
        x = previous + problems.SIGMA_Q * jnp.sqrt(_DURATION) * jax.random.normal(second_key, (1,))
        expected = predict_exactly(law, x, level_at(schedule, jnp.asarray(_TIME))).x0 - x
        return jnp.concatenate([_TIME / _DURATION * (previous - x) - expected, x0 - x - expected])

    def variances(key: PRNGKey) -> Float[Array, " 2"]:
        return jnp.mean(jax.vmap(residuals)(jax.random.split(key, config.particles)) ** 2, axis=0)

    previous, clean = np.asarray(jax.jit(jax.vmap(variances))(keys)).T
    cell = Cell("t = .5, dt = .01", values=previous / clean)
    run.record("E8", [cell], seconds=time.perf_counter() - began)
    run.arrays(target_variance_previous=previous, target_variance_clean=clean)


def _memory(config: Any, run: RunDirectory) -> None:
    """E11: the correlation of start and end, from the exact law at t = 1."""
    began = time.perf_counter()
    grid = problems.tutorial_grid(config.law_steps)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(run.seed), 100 + seed))(jnp.arange(config.law_seeds))
    model, std = problems.exact(problems.gaussian()), math.sqrt(1.0 + references.VARIANCE_Q)
    found, shown = {}, {}
    for name, sampler in _SAMPLERS.items():

        def correlation(key: PRNGKey, grid: Level, sampler=sampler) -> tuple[Array, Array, Array]:
            start_key, run_key = jax.random.split(key)
            starts = std * jax.random.normal(start_key, (config.particles, 1))
            ends = problems.ends(sampler(model), jax.random.split(run_key, config.particles), starts, grid)
            return jnp.corrcoef(starts[:, 0], ends[:, 0])[0, 1], starts[:, 0], ends[:, 0]

        # One seed after another: their memory is not needed at once.
        run_seed = jax.jit(correlation)
        drawn = [run_seed(key, grid) for key in keys]
        found[name] = np.array([float(of[0]) for of in drawn])
        shown[name] = tuple(np.asarray(part)[:2000] for part in drawn[0][1:])
        problems.stop_here(run)
    forgetting = Cell("DDPM", values=found["DDPM"])
    keeping = Cell(
        "DDIM: smallest of all seeds",
        values=[found["DDIM"].min()],
        reference=1.0,
        margin=1e-3,
        margin_reason="float32 rounding over all steps, with much to spare",
        test="deterministic",
        error=_FLOAT32,
    )
    run.record("E11", [forgetting, keeping], seconds=time.perf_counter() - began)
    run.arrays(correlation_ddpm=found["DDPM"], correlation_ddim=found["DDIM"])
    figures.memory(run, shown, {name: float(of.mean()) for name, of in found.items()})
    run.note(
        f"From one start, DDPM ends anywhere (correlation {found['DDPM'].mean():.3f}, 1 / sqrt(26) = .196 in the "
        "limit) and DDIM always at one place, in the order of the starts."
    )


def _points(run: RunDirectory) -> None:
    """Draw the ways of DDIM and DDPM to one point and to two."""
    targets = {"one point": np.array([[0.0]]), "two points": np.array([[-1.0], [1.0]])}
    sigma_q, grid = 2.0, problems.tutorial_grid(100, 2.0)
    starts = jnp.asarray(sigma_q * np.linspace(-2.0, 2.0, 16))[:, None]
    keys = jax.random.split(jax.random.key(run.seed), len(starts))
    curves = {
        (sampler, name): np.asarray(problems.paths(kernel(problems.of_points(of)), keys, starts, grid))[..., 0]
        for sampler, kernel in _SAMPLERS.items()
        for name, of in targets.items()
    }
    run.arrays(**{f"points_{s}_{name.replace(' ', '_')}".lower(): of for (s, name), of in curves.items()})
    figures.points(run, np.asarray(grid.time), curves, {name: of[:, 0] for name, of in targets.items()})
    final = np.sqrt(np.mean(curves["DDPM", "one point"][:, -1] ** 2))
    run.note(
        "To one point DDIM's ways are parabolas that end on it exactly. DDPM's last step adds noise of variance "
        f"sigma_q^2 dt, here a standard deviation of .2 (over the ways shown: {final:.2f}), as pseudocode 2 has it."
    )


def _orders(run: RunDirectory) -> None:
    """Draw the error of each sampler against its number of steps."""
    law = problems.line_mixture()
    start, key = jnp.array([3.0]), jax.random.key(0)

    @partial(jax.jit, static_argnums=0)
    def end(kernel, grid: Level) -> Array:
        return trajectory(kernel(problems.exact(law)), key, start, grid)[0][-1, 0]

    even = problems.even_noise_grid
    truth = float(end(heun, even(_FINEST)))
    kernels = {
        "DDIM, equal steps in t": (ddim, problems.tutorial_grid),
        "DDIM, equal steps in √t": (ddim, even),
        "Heun, equal steps in √t": (heun, even),
        "DPM-Solver++ (2M), equal steps in √t": (dpm_solver_pp_2m, even),
    }
    errors = {
        name: np.array([abs(float(end(kernel, grid(steps))) - truth) for steps in _ORDER_STEPS])
        for name, (kernel, grid) in kernels.items()
    }
    limit = 1.0 - 1.0 / (1.0 + references.VARIANCE_Q) ** 2
    laws = np.array(
        [
            abs(float(tutorial_ddpm_variance(1.0, problems.SIGMA_Q, n, problems.SIGMA_Q**2)) - limit)
            for n in _ORDER_STEPS
        ]
    )
    errors["DDPM, variance on N(0, 1)"] = laws
    run.arrays(order_steps=_ORDER_STEPS, order_names=list(errors), order_errors=list(errors.values()))
    figures.orders(run, np.array(_ORDER_STEPS), errors)
    fitted = {name: -np.polyfit(np.log(_ORDER_STEPS[-3:]), np.log(of[-3:]), 1)[0] for name, of in errors.items()}
    told = ", ".join(f"{name} {order:.2f}" for name, order in fitted.items())
    run.note(
        f"Orders fitted to the last three numbers of steps: {told}. Equal steps in t end with one from sigma_q "
        "sqrt(dt) to 0, which is long where sigma is what matters; equal steps in sigma cost nothing and lose less."
    )
