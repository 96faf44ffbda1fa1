"""Heun's method against its recursion on Gaussian data, and what it asks of the network."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Cosine,
    Denoiser,
    Prediction,
    RectifiedFlow,
    VariancePreservingLinear,
    ddim,
    denoiser,
    heun,
    heun_flow,
    karras_grid,
    predict_exactly,
    sample,
    trajectory,
    uniform_grid,
)

LAW = [(1.0, runs.CONDITIONAL)]
COUNTS = (1, 2, 10)


def test_heun_meets_its_recursion_on_gaussian_data():
    # From alpha = 0 on two of the grids: the first step is DDIM's there.
    runs.assert_recursion(
        build=lambda conditional, guided: heun(guided),
        step=lambda conditional, guided, now, next: oracle.heun_step(guided, now, next),
        draws=runs.no_draws,
        names=("linear", "cosine", "karras", "flow"),
        counts=COUNTS,
    )


def linear_rates(t):
    """alpha' = -beta alpha / 2 and sigma' = beta alpha^2 / (2 sigma), beta = .1 + 19.9 t."""
    beta, alpha = 0.1 + 19.9 * t, np.exp(-0.5 * (0.1 * t + 19.9 * t**2 / 2))
    return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / np.sqrt(1 - alpha**2)


@pytest.mark.parametrize(
    ("name", "schedule", "rates"),
    # The slope of sigma is infinite at the end of the first, and is not to be asked there.
    [("linear", VariancePreservingLinear(), linear_rates), ("flow", None, lambda t: (-1.0, 1.0))],
)
def test_heun_in_time_meets_its_recursion_on_gaussian_data(name, schedule, rates):
    runs.assert_recursion(
        build=lambda conditional, guided: heun_flow(guided, schedule),
        step=lambda conditional, guided, now, next: oracle.heun_flow_step(guided, now, next, rates),
        draws=runs.no_draws,
        names=(name,),
        counts=COUNTS,
        tolerances={"float64": 1e-10},
    )


@pytest.mark.parametrize("build", [heun, lambda model: heun_flow(model, Cosine())], ids=["heun", "heun_flow"])
def test_the_network_is_run_twice_a_step_and_once_in_the_last_for_many_samples_too(build):
    # Over samples on one grid the choice stays a choice: what is not taken is not computed.
    times = []

    def predict(x, level):
        jax.debug.callback(lambda time: times.append(float(time)), level.time)
        return Prediction(0.5 * x, 0.5 * x)

    grid = uniform_grid(Cosine(), 4, start=0.9)
    jax.block_until_ready(
        jax.jit(jax.vmap(lambda x, grid: sample(build(denoiser(predict)), jax.random.key(0), x, grid), (0, None)))(
            jnp.ones((3, 2)), grid
        )
    )
    jax.effects_barrier()
    # The time is that of all samples alike, and is told once.
    inside = [time for time in grid.time[1:-1].tolist() for _ in range(2)]
    np.testing.assert_allclose(sorted(times, reverse=True), [0.9, *inside], rtol=1e-6)


def test_heun_at_the_start_from_pure_noise_is_ddim():
    model = denoiser(runs.predictor_of(runs.exact(runs.CONDITIONAL)))
    x, key = jnp.array([0.4, -1.2]), jax.random.key(0)
    for path in (Cosine(), RectifiedFlow()):
        grid = uniform_grid(path, 4)
        assert grid.alpha[0] == 0.0
        expected = trajectory(ddim(model), key, x, grid)[0]
        found = trajectory(heun(model), key, x, grid)[0]
        np.testing.assert_array_equal(found[1], expected[1])
        assert np.abs(found[2] - expected[2]).max() > 1e-3


def test_memory_advances_at_the_first_evaluation_of_a_step_alone():
    law = runs.exact(runs.CONDITIONAL)

    def apply(memory, x, level):
        return predict_exactly(law, x, level), {"count": memory["count"] + 1, "seen": x}

    model = Denoiser(lambda x: {"count": jnp.int32(0), "seen": jnp.zeros_like(x)}, apply)
    for sampler in (heun(model), heun_flow(model)):
        grid = jax.tree.map(jnp.float32, uniform_grid(RectifiedFlow(), 3, start=0.9))
        now, next = (jax.tree.map(lambda leaf, n=n: leaf[n], grid) for n in (0, 1))
        x = jnp.array([0.4, -1.2])
        state, _ = sampler.step(jax.random.key(0), sampler.init(x), now, next)
        assert state.memory["count"] == 1
        np.testing.assert_array_equal(state.memory["seen"], x)


def test_slopes_are_finite_and_right_at_both_ends():
    # Under vmap over grids the choice becomes a select, whose untaken branch divides by alpha = 0 or by sigma = 0.
    grids = [uniform_grid(Cosine(), 3), uniform_grid(RectifiedFlow(), 3), karras_grid(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *grids)
    model = denoiser(runs.predictor_of(runs.exact(runs.CONDITIONAL)))
    # Weights, since a sum over the coordinates could hide an exchange of them.
    weights = jnp.array([1.0, 3.0])

    def total(x, grids):
        run = jax.vmap(lambda x, grid: weights @ sample(heun(model), jax.random.key(0), x, grid))
        return run(x, grids).sum()

    slopes = jax.jit(jax.grad(total))(jnp.tile(jnp.array([0.3, 0.1]), (3, 1)), stacked)
    for slope, grid in zip(slopes, grids, strict=True):
        maps = oracle.walk(lambda now, next: oracle.heun_step(LAW, now, next), grid)
        expected = weights @ np.linalg.multi_dot([step.matrix for step in reversed(maps)])
        assert np.abs(slope - expected).max() < 1e-5 * np.abs(expected).max()
