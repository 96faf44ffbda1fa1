"""What Step-by-Step Diffusion and the second version of the paper on guidance misprint: both readings, and which holds.

Nakkiran et al. 2024 (arXiv 2406.08929v2); Bradley & Nakkiran 2024 (arXiv 2408.09000v2).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxgen.diffusion import (
    Tutorial,
    VariancePreservingLinear,
    denoiser,
    diagonal_mixture,
    drift_and_diffusion,
    from_x0,
    laws,
    level_at,
    predict_exactly,
    sample,
    score,
    tutorial_ddim,
    uniform_grid,
)
from jaxgen.diffusion.flow_matching import ddim_flow, diffusion_marginal_flow, linear_diffusion_marginal_flow
from jaxgen.diffusion.levels import Level

SIGMA_Q = 5.0


def test_the_velocity_of_ddim_points_to_the_data():
    # Equation 70 has it as (x_t - x_0) / (2 t); with dx/dt = -v that runs away from x_0. Equation 71 is right.
    x1, x0, t, dt = 3.0, 0.5, 0.4, 1e-6
    x, earlier = (float(ddim_flow.position(jnp.float32(x1), jnp.float32(x0), time)) for time in (t, t - dt))
    exact = lambda time: x0 + np.sqrt(time) * (x1 - x0)  # noqa: E731
    moved = (exact(t - dt) - exact(t)) / dt
    assert moved == pytest.approx((x0 - exact(t)) / (2 * t), rel=1e-5)
    assert moved == pytest.approx(-(exact(t) - x0) / (2 * t), rel=1e-5)
    assert np.sign(moved) != np.sign((exact(t) - x0) / (2 * t))
    assert x == pytest.approx(exact(t), rel=1e-6)
    assert earlier == pytest.approx(exact(t - dt), rel=1e-6)


@pytest.mark.parametrize(
    ("build", "times", "value"),
    [
        (linear_diffusion_marginal_flow, 0, 1.0606601717798214),  # lemma 4 corrected: where DDIM is at t = .09
        (diffusion_marginal_flow, 2, 1.557892),  # as printed, with the noise that is printed: 2 t y' = y - E[x0 | y]
        (linear_diffusion_marginal_flow, 1, 1.610804),  # as printed, with the noise of the interpolation: t z'
    ],
)
def test_the_velocity_of_lemma_4_is_divided_by_the_time(build, times, value):
    # On N(0, 1), from 3 at t = 1 to t = .3.
    law = diagonal_mixture([1.0], [[0.0]], [[1.0]])
    with jax.enable_x64(True):
        velocity = jax.jit(build(lambda x, level: predict_exactly(law, x, level), SIGMA_Q))

        def slope(t, x):
            return -(times * t if times else 1.0) * np.asarray(velocity(jnp.asarray(x), jnp.float64(t)))

        found = solve_ivp(slope, (1.0, 0.3), [3.0], method="DOP853", rtol=1e-9, atol=1e-10).y[0, -1]
    assert found == pytest.approx(value, abs=1e-6)


def test_the_base_of_the_deterministic_interpolation_is_not_its_middle():
    # Lemma 4 claims E[x_1 | x_t] = x_t. For x_t = x_0 + t (x_1 - x_0) it is x_0 + (x_t - x_0) / t, in the mean.
    with jax.enable_x64(True):
        law, x, t = diagonal_mixture([1.0], [[0.0]], [[1.0]]), jnp.array([2.0]), 0.3
        x0 = predict_exactly(law, x, Level(t, 1.0, t * SIGMA_Q)).x0
        base = x0 + (x - x0) / t
    # (x_1, x_t) is Gaussian: Cov(x_1, x_t) / Var(x_t) = (1 + 25 t) / (1 + 25 t^2).
    assert float(base[0]) == pytest.approx(2.0 * (1 + 25 * t) / (1 + 25 * t**2), rel=1e-12)
    assert abs(float(base[0]) - 2.0) > 1.0


def test_the_noise_of_the_path_is_the_step_over_sigma_and_its_prediction_has_a_minus_sign():
    # Section 5 and B.10: with x_t = x_0 + sigma_t e, E[x_{t - dt} - x_t | x_t] = -(dt sigma_t / t) E[e | x_t].
    t, dt, x = 0.4, 0.1, 1.7
    sigma = SIGMA_Q * np.sqrt(t)
    with jax.enable_x64(True):
        law = diagonal_mixture([1.0], [[0.0]], [[1.0]])
        predicted = predict_exactly(law, jnp.array([x]), Level(t, 1.0, sigma))
    # (x_{t - dt}, x_t) is Gaussian: E[x_{t - dt} | x_t] = W(t - dt) / W(t) x_t.
    step = x * ((1 + 25 * (t - dt)) / (1 + 25 * t) - 1)
    noise = float(predicted.noise[0])
    assert noise == pytest.approx((x - float(predicted.x0[0])) / sigma, rel=1e-12)
    assert step == pytest.approx(-dt * sigma / t * noise, rel=1e-12)
    assert step != pytest.approx(dt / (sigma * t) * noise, rel=0.1)
    # So the loss of the step is (dt / t)^2 times that of x_0, and not 1 / t times.
    slope = lambda a: (x * a, (dt / t) * (x * a - x))  # noqa: E731  # x_0 estimated as a x, and the step from it
    errors = [[b - c for b, c in zip(slope(0.3), slope(true), strict=True)] for true in (0.1, 0.2)]
    for of_x0, of_step in errors:
        assert of_step**2 == pytest.approx((dt / t) ** 2 * of_x0**2, rel=1e-12)


def test_the_listing_of_ddim_stops_before_the_root_of_a_negative_time():
    # Pseudocode 3 runs t = 1, ..., dt, 0: in its last pass it takes sqrt(t - dt) at t = 0. It is done after t = dt,
    # where the share is 1. (Pseudocode 1 likewise draws t beyond 1 - dt: see the tests of `ddpm_loss`.)
    steps, start = 10, 0.5
    dt = 1 / steps

    def listing(numbers):
        x = start
        for k in numbers:
            now, next = np.float64(k * dt), np.float64((k - 1) * dt)
            share = np.sqrt(now) / (np.sqrt(now) + np.sqrt(next))
            with np.errstate(divide="ignore"):
                f = x if k == 0 else dt / now * np.tanh(x / (4 * now)) + (1 - dt / now) * x
            x += share * (f - x)
        return x

    with np.errstate(invalid="ignore"):
        assert np.isnan(listing(range(steps, -1, -1)))
    model = denoiser(lambda x, level: from_x0(x, level, jnp.tanh(x / level.sigma**2)))
    with jax.enable_x64(True):
        end = sample(tutorial_ddim(model), jax.random.key(0), jnp.float64(start), uniform_grid(Tutorial(2.0), steps))
    assert float(end) == pytest.approx(listing(range(steps, 0, -1)), rel=1e-12)


def test_the_second_derivative_of_a_density_needs_the_square_of_the_slope():
    # Equation 104: p'' / p = F'' + F'^2 with F = log p, not F'' + F'.
    weights, means, variances = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.49, 0.25])
    density = lambda x: np.sum(weights * np.exp(-0.5 * (x - means) ** 2 / variances) / np.sqrt(variances))  # noqa: E731
    x, h = 0.4, 1e-3
    second = (density(x + h) - 2 * density(x) + density(x - h)) / h**2 / density(x)
    with jax.enable_x64(True):
        law, clean = diagonal_mixture(weights, means[:, None], variances[:, None]), Level(0.0, 1.0, 0.0)
        slope = lambda x: score(law, x[None], clean)[0]  # noqa: E731
        first, bend = (float(value) for value in jax.value_and_grad(slope)(jnp.float64(x)))
    assert (first, bend) == (pytest.approx(2.0934746404404, rel=1e-10), pytest.approx(8.0414086, rel=1e-7))
    assert second == pytest.approx(bend + first**2, rel=1e-5)
    assert abs(second - (bend + first)) > 1.0


def test_the_drift_of_the_variance_preserving_path_is_proportional_to_x():
    # The paper has f = -beta / 2; dx = f x dt + g dw keeps the variance, dx = f dt + g dw does not.
    schedule = VariancePreservingLinear()
    with jax.enable_x64(True):
        t = jnp.linspace(0.1, 1.0, 5)
        drift, diffusion = (np.asarray(part) for part in drift_and_diffusion(schedule, t))
        t = np.asarray(t)
    np.testing.assert_allclose(drift, -0.5 * schedule.beta(t), rtol=1e-12)
    np.testing.assert_allclose(diffusion, schedule.beta(t), rtol=1e-10)
    # dV/dt = 2 f V + g^2 is 0 at V = 1; without x in the drift it is g^2.
    np.testing.assert_allclose(2 * drift + diffusion, 0.0, atol=1e-9)
    assert float(level_at(schedule, np.float64(0.3)).sigma) < 1.0


def test_guided_ddpm_is_half_as_wide_as_the_powered_law_at_large_scales():
    # Section 3.1 of the paper on guidance says about twice; its own formula gives (1 / gamma) / (2 / gamma).
    with jax.enable_x64(True):
        for scale in (20.0, 200.0):
            ratio = float(laws.ddpm_variance(scale) / laws.powered_variance(scale))
            assert ratio == pytest.approx((scale + 1) / (2 * scale - 1) * (1 - 2 ** (1 - 2 * scale)), rel=1e-9)
            assert ratio == pytest.approx(0.5, abs=1.0 / scale)
            assert not 1.5 < ratio < 2.5
