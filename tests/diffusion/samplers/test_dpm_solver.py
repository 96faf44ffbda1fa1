"""DPM-Solver++ (2M) and its stochastic form against their recursions, and without their history."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Cosine,
    Denoiser,
    RectifiedFlow,
    Sampler,
    ddim,
    ddpm,
    denoiser,
    discrete,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    gaussian_mixture,
    karras_grid,
    predict_exactly,
    sample,
    scaled_linear_betas,
    sigma_grid,
    timestep_grid,
    trailing_timesteps,
    uniform_grid,
)

FORMS = {"ode": (dpm_solver_pp_2m, runs.no_draws), "sde": (dpm_solver_pp_2m_sde, runs.one_draw)}


@pytest.mark.parametrize("form", FORMS)
def test_two_steps_meet_their_recursion_on_gaussian_data(form):
    # From alpha = 0 on two of the grids, infinitely far away: there is nothing to extrapolate in the second step.
    build, draws = FORMS[form]
    runs.assert_recursion(
        build=lambda conditional, guided: build(guided),
        walk=lambda conditional, guided, grid: oracle.multistep_walk(guided, grid, form == "sde"),
        draws=draws,
        names=("linear", "cosine", "karras", "flow"),
        counts=(1, 2, 10),
        # x and x0 cancel in a step of length h: e^-h is rounded by 6e-8 h, as is 1 - e^-h.
        tolerances={"float64": 1e-10, "float32": 2e-5},
    )


def test_the_stochastic_form_leaves_the_variance_of_the_data_to_second_order():
    # N(0, 1.7) by the recursion that the library was shown to follow; DDPM, without the history, is of first order.
    law, counts, errors = [(1.0, oracle.Gaussian(np.zeros(1), np.array([[1.7]])))], np.array([80, 160, 320, 640]), []
    for count in counts:
        maps = oracle.multistep_walk(law, sigma_grid(np.geomspace(20.0, 0.05, count + 1)), stochastic=True)
        _, covariance = oracle.moments(maps, np.zeros(2), np.diag([1.7 + 20.0**2, 0.0]))
        errors.append(covariance[0, 0] - (1.7 + 0.05**2))
    runs.assert_order(counts, errors, 2.0, 0.02)


def without_history(sampler):
    """The same kernel as if each step were the first."""

    def step(key, state, now, next):
        return sampler.step(key, state._replace(length=jnp.zeros_like(state.length)), now, next)

    return Sampler(sampler.init, step)


@pytest.mark.parametrize(("two", "one"), [(dpm_solver_pp_2m, ddim), (dpm_solver_pp_2m_sde, ddpm)], ids=FORMS)
def test_without_its_history_the_method_is_ddim_or_ddpm(two, one):
    with jax.enable_x64(True):
        model, key = denoiser(runs.predictor_of(runs.exact(runs.CONDITIONAL))), jax.random.key(2)
        samplers = {"reduced": without_history(two(model)), "first order": one(model), "second": two(model)}
        for grid in (karras_grid(10), uniform_grid(Cosine(), 10)):
            x = jnp.array([0.9, -0.4]) * grid.sigma[0]
            ends = {
                name: jax.jit(lambda x, grid, sampler=sampler: sample(sampler, key, x, grid))(x, grid)
                for name, sampler in samplers.items()
            }
            np.testing.assert_allclose(ends["reduced"], ends["first order"], rtol=1e-11)
            assert np.abs(ends["second"] - ends["first order"]).max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_slopes_are_finite_and_right_at_both_ends(form):
    build, _ = FORMS[form]
    grids = [uniform_grid(Cosine(), 5), uniform_grid(RectifiedFlow(), 5), karras_grid(5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *grids)
    with jax.enable_x64(True):
        model = denoiser(runs.predictor_of(runs.exact(runs.CONDITIONAL)))
        run = lambda x, grid: sample(build(model), jax.random.key(0), x, grid)  # noqa: E731
        # What the grid's own numbers do to the end, for those who learn them, is finite too.
        both = jax.jit(jax.vmap(jax.jacrev(run, argnums=(0, 1)), in_axes=(None, 0)))
        slopes, of_grid = both(jnp.array([0.3, 0.1]), stacked)
    for slope, grid in zip(slopes, grids, strict=True):
        maps = oracle.multistep_walk([(1.0, runs.CONDITIONAL)], grid, form == "sde")
        expected = np.linalg.multi_dot([step.matrix for step in reversed(maps)])[:2, :2]
        # A run of DDPM forgets its start: what is left of it is smaller than what was added up.
        np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-12)
    assert np.isfinite(of_grid.alpha).all()
    assert np.isfinite(of_grid.sigma).all()


def test_memory_advances_once_a_step_and_the_history_is_what_the_network_said():
    law = runs.exact(runs.CONDITIONAL)
    model = Denoiser(lambda x: jnp.int32(0), lambda memory, x, level: (predict_exactly(law, x, level), memory + 1))
    sampler, grid = dpm_solver_pp_2m(model), jax.tree.map(jnp.float32, karras_grid(3))
    state = sampler.init(jnp.array([40.0, -9.0]))
    step = jax.jit(sampler.step)
    for n in range(3):
        now, next = (jax.tree.map(lambda leaf, at=at: leaf[at], grid) for at in (n, n + 1))
        before = state
        state, predicted = step(jax.random.key(0), state, now, next)
        assert state.memory == n + 1
        np.testing.assert_array_equal(state.x0, predicted.x0)
        np.testing.assert_allclose(state.x0, predict_exactly(law, before.x, now).x0, rtol=1e-6)
        assert float(state.length) == pytest.approx(np.log(now.sigma / next.sigma) if n < 2 else 0.0, rel=1e-5)


def test_ten_trailing_steps_have_the_known_ends():
    # .3 N(-1, .7^2) + .7 N(1.5, .5^2), the scaled-linear betas, timesteps 999, 899, ..., 99, from .3, z_n = (-1)^n: as
    # known to seven decimals, of which float32 betas have left the last one uncertain, and with 40 digits.
    grid = timestep_grid(discrete(scaled_linear_betas()), trailing_timesteps(1000, 10))
    values = ((dpm_solver_pp_2m, 1.4297235, 1.4297235143310397), (dpm_solver_pp_2m_sde, 1.4776074, 1.4776073043842403))
    with jax.enable_x64(True):
        law = gaussian_mixture([0.3, 0.7], [[-1.0], [1.5]], [[[0.49]], [[0.25]]])
        for build, known, digits in values:
            end = runs.with_alternating_noise(build(denoiser(runs.predictor_of(law))), np.array([[0.3]]), grid)
            assert end.item() == pytest.approx(known, abs=1e-7)
            assert end.item() == pytest.approx(digits, rel=1e-11)
