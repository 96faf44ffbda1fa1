"""The tutorial's algorithms against closed forms: Gaussian data, points, and the library's own samplers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxgen.diffusion import (
    Level,
    Prediction,
    Tutorial,
    ddim,
    ddpm,
    ddpm_loss,
    denoiser,
    diagonal_mixture,
    forward_std,
    from_x0,
    predict_exactly,
    predict_from_points,
    previous_point,
    sample,
    tutorial_ddim,
    tutorial_ddpm,
    tutorial_ddpm_variance,
    uniform_grid,
    x0_loss,
)

SIGMA_Q = 5.0
MIXTURE = ([0.3, 0.7], [[-1.0], [1.5]], [[0.49], [0.25]])


def gaussian(x, level):
    """The exact denoiser of N(0, 1)."""
    total = level.alpha**2 + level.sigma**2
    return Prediction(level.alpha * x / total, level.sigma * x / total)


def end(build, predict, x, steps, sigma_q=SIGMA_Q):
    grid = uniform_grid(Tutorial(sigma_q), steps)
    return jax.jit(lambda x, grid: sample(build(denoiser(predict)), jax.random.key(0), x, grid))(x, grid)


@pytest.mark.parametrize(
    ("steps", "start", "variance"),
    [(10, 25.0, 2.90675507629679), (10, 26.0, 2.9082343662376187)],
)
def test_ddpm_of_the_tutorial_has_its_closed_variance_on_gaussian_data(steps, start, variance, monkeypatch):
    # x_end = m x_start + sum_k n_k z_k: m by a run without noise, each n_k by a run with z_k = 1 alone.
    kicks = jnp.concatenate([jnp.zeros((1, steps)), jnp.eye(steps)])
    with jax.enable_x64(True):
        number = iter(range(steps))
        monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: kicks[:, next(number)].astype(dtype))
        model, grid = denoiser(gaussian), uniform_grid(Tutorial(SIGMA_Q), steps)
        sampler = tutorial_ddpm(model)
        state = sampler.init(jnp.zeros(steps + 1).at[0].set(1.0))
        for n in range(steps):
            levels = (Level(*(float(leaf[n + k]) for leaf in grid)) for k in (0, 1))
            state, _ = sampler.step(jax.random.key(0), state, *levels)
        ends = np.asarray(state.x)
        assert start * ends[0] ** 2 + np.sum(ends[1:] ** 2) == pytest.approx(variance, rel=1e-12)
        assert float(tutorial_ddpm_variance(1.0, SIGMA_Q, steps, start)) == pytest.approx(variance, rel=1e-12)


def test_the_limits_of_small_steps_on_gaussian_data():
    with jax.enable_x64(True):
        law = lambda steps: float(tutorial_ddpm_variance(1.0, SIGMA_Q, steps, 25.0))  # noqa: E731
        assert law(1000) == pytest.approx(1.0111063666599, rel=1e-12)
        # s^2 - s^6 / W(1)^2 from V_1 = sigma_q^2; what is left is of second order.
        assert 2 * law(40_000) - law(20_000) == pytest.approx(0.9985207100591716, abs=1e-6)
        steps = np.array([1000, 4000, 16_000])
        multipliers = np.array([float(end(tutorial_ddim, gaussian, jnp.float64(1.0), int(n))) for n in steps])
    assert multipliers[0] == pytest.approx(0.19206549491768676, rel=1e-11)
    # DDIM's s^2 sigma_q^2 / W(1): the share of the last steps leaves an error of (a + b ln N) / N.
    terms = np.stack([np.ones(3), 1 / steps, np.log(steps) / steps], axis=1)
    limit = np.linalg.solve(terms, 25 * multipliers**2)[0]
    assert limit == pytest.approx(0.9615384615384616, abs=1e-4)


def test_ddpm_forgets_its_start_and_ddim_keeps_it():
    # On N(0, 1) from N(0, 26): a start is worth 1 / 26 of itself at the end, for every dt, so that its correlation with
    # the end is (1 / 26) sqrt(26 / V_0), and 1 / sqrt(26) where the end's variance V_0 is 1.
    count, steps, std = 4000, 50, np.sqrt(26.0)

    def ends(build, starts, grid, key):
        run = lambda x, key: sample(build(denoiser(gaussian)), key, x, grid)  # noqa: E731
        return jax.vmap(run)(starts, jax.random.split(key, count))

    with jax.enable_x64(True):
        follow = jax.jit(ends, static_argnums=0)
        grid = uniform_grid(Tutorial(SIGMA_Q), steps)
        starts = std * jax.random.normal(jax.random.key(5), (count,))
        forgetful, shifted = (follow(tutorial_ddpm, x, grid, jax.random.key(6)) for x in (starts, starts + 1.0))
        np.testing.assert_allclose(shifted - forgetful, 1 / 26, rtol=1e-9)  # the same noise
        kept = [follow(tutorial_ddim, starts, grid, jax.random.key(seed)) for seed in (6, 7)]
        spreads = [float(tutorial_ddpm_variance(1.0, SIGMA_Q, n)) for n in (steps, 1000, 2000)]
    finite, coarse, fine = (std / 26 / np.sqrt(spread) for spread in spreads)
    # Four standard errors of a correlation.
    assert np.corrcoef(starts, forgetful)[0, 1] == pytest.approx(finite, abs=4 * (1 - finite**2) / np.sqrt(count))
    assert 2 * fine - coarse == pytest.approx(0.196116, abs=1e-5)  # what is left is of second order in dt
    np.testing.assert_array_equal(*kept)
    assert np.corrcoef(starts, kept[0])[0, 1] == pytest.approx(1.0, abs=1e-12)


def test_the_step_of_ddim_is_the_listings_share():
    share = 1 / (1 + np.sqrt(0.9))
    assert share == pytest.approx(0.513167019494862, rel=1e-14)
    now, next = Level(1.0, 1.0, 5.0), Level(0.9, 1.0, 5.0 * np.sqrt(0.9))
    away = denoiser(lambda x, level: from_x0(x, level, x + 1.0))
    with jax.enable_x64(True):
        moved = tutorial_ddim(away).step(jax.random.key(0), tutorial_ddim(away).init(jnp.float64(2.0)), now, next)[0]
        assert float(moved.x) - 2.0 == pytest.approx(share * 0.1, rel=1e-12)  # f - x = (dt / t) (x0 - x)
        last = tutorial_ddim(away).step(
            jax.random.key(0), tutorial_ddim(away).init(jnp.float64(2.0)), next, Level(0.0, 1.0, 0.0)
        )
        assert float(last[0].x) == pytest.approx(3.0, rel=1e-14)


def two_points(x, level):
    # Without `predict_from_points`, which this also shows: E[x0 | x] = tanh(x / sigma^2) for points at -1 and 1.
    return from_x0(x, level, jnp.tanh(x / level.sigma**2))


@pytest.mark.parametrize(("start", "value"), [(0.5, 0.719312600708932), (-3.0, -0.9991842320171718)])
def test_ddim_between_two_points_has_the_known_ends(start, value):
    points = jnp.array([[-1.0], [1.0]])
    with jax.enable_x64(True):
        x = jnp.array([start])
        assert float(end(tutorial_ddim, two_points, x, 10, 2.0)[0]) == pytest.approx(value, rel=1e-12)
        empirical = lambda x, level: predict_from_points(points.astype(x.dtype), x, level)  # noqa: E731
        assert float(end(tutorial_ddim, empirical, x, 10, 2.0)[0]) == pytest.approx(value, rel=1e-12)


def test_a_share_of_one_half_in_every_step_is_another_sampler():
    x, dt = 0.5, 0.1
    for k in range(10, 0, -1):
        t = k * dt
        x += 0.5 * (dt / t) * (np.tanh(x / (4 * t)) - x)
    assert x == pytest.approx(0.5448618386166477, rel=1e-12)
    with jax.enable_x64(True):
        ours = float(end(tutorial_ddim, two_points, jnp.array([0.5]), 10, 2.0)[0])
    assert ours - x == pytest.approx(0.719312600708932 - 0.5448618386166477, rel=1e-11)


@pytest.mark.parametrize("steps", [1, 3, 17])
def test_ddim_of_the_tutorial_is_ddim_for_every_step_size_and_exact_for_a_point(steps):
    with jax.enable_x64(True):
        law = diagonal_mixture(*MIXTURE)
        exact = lambda x, level: predict_exactly(law, x, level)  # noqa: E731
        x = jnp.array([4.0])
        chex.assert_trees_all_close(end(tutorial_ddim, exact, x, steps), end(ddim, exact, x, steps), rtol=1e-12)
        point = lambda x, level: from_x0(x, level, jnp.full_like(x, 0.7))  # noqa: E731
        assert float(end(tutorial_ddim, point, x, steps)[0]) == pytest.approx(0.7, abs=1e-12)


def test_ddpm_of_the_tutorial_is_ddpm_with_the_forward_variance():
    with jax.enable_x64(True):
        law = diagonal_mixture(*MIXTURE)
        exact = lambda x, level: predict_exactly(law, x, level)  # noqa: E731
        x = jnp.array([4.0])
        large = end(lambda model: ddpm(model, std=forward_std), exact, x, 7)
        chex.assert_trees_all_close(end(tutorial_ddpm, exact, x, 7), large, rtol=1e-11)
        # The variance of one step, sigma_q^2 dt, over the posterior's, sigma_q^2 dt (t - dt) / t.
        now, next = Level(0.3, 1.0, SIGMA_Q * np.sqrt(0.3)), Level(0.2, 1.0, SIGMA_Q * np.sqrt(0.2))
        ends = []
        for build in (tutorial_ddpm, ddpm):
            sampler = build(denoiser(exact))
            step = lambda key, sampler=sampler: sampler.step(key, sampler.init(x), now, next)[0].x[0]  # noqa: E731
            ends.append(jax.vmap(step)(jax.random.split(jax.random.key(1), 4)))
        spread = [np.ptp(of) for of in ends]
        assert spread[0] ** 2 / spread[1] ** 2 == pytest.approx(0.3 / 0.2, rel=1e-9)
        assert spread[0] ** 2 / np.ptp(
            jax.vmap(lambda k: jax.random.normal(k, (1,), x.dtype)[0])(jax.random.split(jax.random.key(1), 4))
        ) ** 2 == pytest.approx(25 * 0.1, rel=1e-9)


def test_the_previous_point_is_expected_where_bayes_says():
    # Claim 2 by quadrature on the mixture: E[x_{t - dt} - x_t | x_t] = (dt / t) E[x_0 - x_t | x_t].
    t, dt, x = 0.4, 0.15, 0.9
    weights, means, variances = (np.array(part).ravel() for part in MIXTURE)

    def density(y, time):
        spread = variances + SIGMA_Q**2 * time
        return np.sum(weights * np.exp(-0.5 * (y - means) ** 2 / spread) / np.sqrt(2 * np.pi * spread))

    def expected(step):
        weight = lambda y: density(y, t - step) * np.exp(-0.5 * (x - y) ** 2 / (SIGMA_Q**2 * step))  # noqa: E731
        ends = (x - 60, x + 60)
        options = {"points": [x], "epsabs": 1e-14, "epsrel": 1e-13, "limit": 400}
        return quad(lambda y: y * weight(y), *ends, **options)[0] / quad(weight, *ends, **options)[0]

    with jax.enable_x64(True):
        law = diagonal_mixture(*MIXTURE)
        levels = (Level(time, 1.0, SIGMA_Q * np.sqrt(time)) for time in (t, t - dt))
        now, next = levels
        x0 = predict_exactly(law, jnp.array([x]), now).x0
        found = float(previous_point(x0, jnp.array([x]), now, next)[0])
    assert float(x0[0]) == pytest.approx(expected(t), abs=1e-9)
    assert found == pytest.approx(expected(dt), abs=1e-9)
    assert found - x == pytest.approx(dt / t * (float(x0[0]) - x), abs=1e-12)


def test_the_losses_are_least_at_the_regression_functions():
    # On N(0, 1): the loss of the previous point is sigma_q^2 dt W(t) / W(t + dt) at best, averaged over t.
    keys, dt = jax.random.split(jax.random.key(2), 200_000), 0.1

    def mean_loss(loss, slope, *more):
        def one(key):
            x0_key, key = jax.random.split(key)
            return loss(lambda x, t: slope(t) * x, key, jax.random.normal(x0_key, (1,)), SIGMA_Q, *more)

        found = jax.vmap(one)(keys)
        return float(found.mean()), float(found.std() / len(keys) ** 0.5)

    noisy = lambda t: 1 + SIGMA_Q**2 * t  # noqa: E731
    best, stderr = mean_loss(ddpm_loss, lambda t: noisy(t - dt) / noisy(t), dt)
    expected = quad(lambda t: SIGMA_Q**2 * dt * noisy(t) / noisy(t + dt), 0, 1 - dt)[0] / (1 - dt)
    assert best == pytest.approx(expected, abs=4 * stderr)
    assert mean_loss(ddpm_loss, lambda t: 1.0, dt)[0] > best + 4 * stderr
    best, stderr = mean_loss(x0_loss, lambda t: 1 / noisy(t))
    assert best == pytest.approx(quad(lambda t: 1 - 1 / noisy(t), 0, 1)[0], abs=4 * stderr)
    assert mean_loss(x0_loss, lambda t: 2 / noisy(t))[0] > best + 4 * stderr


def test_the_previous_point_is_never_asked_for_beyond_the_last_time():
    asked = []

    def f(x, t):
        asked.append(t)
        return x

    for seed in range(200):
        ddpm_loss(f, jax.random.key(seed), jnp.zeros(1), SIGMA_Q, 0.25)
    assert min(asked) >= 0.25
    assert 0.9 < max(asked) <= 1.0
