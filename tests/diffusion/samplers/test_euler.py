"""Euler steps on the velocity against their recursion on Gaussian data, and against DDIM on the straight path."""

import itertools

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    EDM,
    Cosine,
    Level,
    RectifiedFlow,
    VariancePreservingLinear,
    ddim,
    denoiser,
    euler,
    from_velocity,
    gaussian_mixture,
    predict_exactly,
    sample,
    uniform_grid,
    velocity_target,
)


def linear_rates(t):
    """alpha' = -beta alpha / 2 and sigma' = beta alpha^2 / (2 sigma), beta = .1 + 19.9 t."""
    beta, alpha = 0.1 + 19.9 * t, np.exp(-0.5 * (0.1 * t + 19.9 * t**2 / 2))
    return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / np.sqrt(1 - alpha**2)


PATHS = {
    "linear": (VariancePreservingLinear(), linear_rates),
    "cosine": (Cosine(), lambda t: (-np.pi / 2 * np.sin(np.pi * t / 2), np.pi / 2 * np.cos(np.pi * t / 2))),
    "edm": (EDM(10.0), lambda t: (0.0, 10.0)),
    "karras": (EDM(80.0), lambda t: (0.0, 80.0)),
    "flow": (RectifiedFlow(), lambda t: (-1.0, 1.0)),
}


@pytest.mark.parametrize("name", PATHS)
def test_euler_meets_its_recursion_on_gaussian_data(name):
    schedule, rates = PATHS[name]
    runs.assert_recursion(
        build=lambda conditional, guided: euler(guided, schedule),
        step=lambda conditional, guided, now, next: oracle.euler_step(guided, now, next, rates),
        draws=runs.no_draws,
        names=(name,),
    )


def test_euler_on_the_linear_path_is_the_step_of_its_probability_flow():
    # With f = -beta / 2 and g^2 = beta: x' = x - dt (f x - beta / 2 score), the predictor of the guidance paper.
    law, rates = [(1.0, runs.CONDITIONAL)], PATHS["linear"][1]
    grid = runs.GRIDS["linear"](20)
    for now, next in itertools.pairwise(zip(*grid, strict=True)):
        slope, level = oracle.score(law, *now[1:])
        half = 0.5 * (0.1 + 19.9 * now[0]) * (now[0] - next[0])
        step = oracle.euler_step(law, now, next, rates)
        np.testing.assert_allclose(step.matrix, (1 + half) * np.eye(2) + half * slope, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(step.shift, half * level, rtol=1e-9, atol=1e-11)


def some_mixture():
    return gaussian_mixture([0.3, 0.7], [[-1.0], [1.5]], [[[0.49]], [[0.25]]])


@pytest.mark.parametrize(("enabled", "tolerance"), [(True, 1e-12), (False, 2e-6)])
def test_flow_matching_by_euler_is_ddim_on_the_same_grid(enabled, tolerance):
    # A network that outputs the velocity dx/dt = noise - x0, told the time alone; from t = 1, where alpha is 0.
    path = RectifiedFlow()
    with jax.enable_x64(enabled):
        law, grid = some_mixture(), jax.tree.map(jnp.asarray, uniform_grid(path, 10))

        def network(x, time):
            level = Level(time, 1.0 - time, time)
            return velocity_target(path)(predict_exactly(law, x, level), level)

        model = denoiser(lambda x, level: from_velocity(x, level, network(x, level.time), path))

        @jax.jit
        def both(x):
            flow, key = x, jax.random.key(0)
            for n in range(10):  # Step-by-Step Diffusion, pseudocode 5, its velocity being -dx/dt
                flow = flow - 0.1 * network(flow, grid.time[n])
            return flow, sample(euler(model), key, x, grid), sample(ddim(model), key, x, grid)

        for x in (0.3, -1.2, 2.0):
            by_hand, by_euler, by_ddim = both(jnp.array([x]))
            np.testing.assert_allclose(by_euler, by_hand, rtol=tolerance)
            np.testing.assert_allclose(by_ddim, by_hand, rtol=tolerance)
            if x == 0.3:  # the value of an independent program
                np.testing.assert_allclose(by_euler, 1.4007372344003783, rtol=tolerance)
