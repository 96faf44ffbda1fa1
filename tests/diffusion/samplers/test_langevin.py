"""Langevin steps against their recursion on Gaussian data, and what they do where there is no noise."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxgen.diffusion import (
    Denoiser,
    Level,
    at_now,
    denoiser,
    diagonal_mixture,
    fixed_step_size,
    from_score,
    guide,
    guided_curvature,
    karras_grid,
    langevin,
    path_step_size,
    pcg,
    predict_exactly,
    sample,
    score,
    signal_to_noise,
    trajectory,
)


def test_langevin_meets_its_recursion_on_gaussian_data():
    # One evaluation a step is what PCG's recursion is tested with.
    runs.assert_recursion(
        build=lambda conditional, guided: langevin(guided, 3),
        step=lambda conditional, guided, now, next: oracle.langevin_step(guided, now, next, 3),
        draws=runs.langevin_draws(3),
        names=runs.WITH_DATA,
    )


def levels(*values, dtype=jnp.float32):
    return [Level(*(jnp.asarray(part, dtype) for part in level)) for level in values]


NOISY, CLEAN = (0.5, 0.9, 0.4), (0.0, 1.0, 0.0)
LAW = [(1.0, runs.CONDITIONAL)]


def one_step(now, next, count=1, x=(0.4, -1.0), key=7, **options):
    """A step of Langevin dynamics on N(m, C) in float64, with its info."""
    with jax.enable_x64(True):
        law = runs.exact(runs.CONDITIONAL)
        if options.pop("with_clean_score", False):
            options["clean_score"] = lambda x: score(law, x, Level(0.0, 1.0, 0.0))
        sampler = langevin(denoiser(runs.predictor_of(law)), count, **options)
        now, next = levels(now, next, dtype=jnp.float64)
        state, info = jax.jit(sampler.step)(jax.random.key(key), sampler.init(jnp.array(x)), now, next)
        return np.asarray(state.x), jax.tree.map(float, info)


def draws(count, key=7):
    with jax.enable_x64(True):
        return [runs.langevin_draws(count)(jax.random.key(key), jnp.float64)]


def test_without_a_clean_score_nothing_is_done_at_zero_noise():
    assert one_step(NOISY, CLEAN)[0].tolist() == [0.4, -1.0]
    assert one_step(NOISY, (0.1, 0.99, 0.1))[0].tolist() != [0.4, -1.0]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("next", [CLEAN, (0.1, 0.99, 0.1)])
def test_a_clean_score_acts_at_zero_noise_and_there_alone(next, count):
    # The clean score is that of N(m, C): (C^-1)(m - x), of which the recursion knows no limit but its value at 0.
    step = oracle.langevin_step(LAW, NOISY, next, count, clean=True)
    measured, _ = one_step(NOISY, next, count, with_clean_score=True)
    np.testing.assert_allclose(measured, oracle.replay([step], np.array([0.4, -1.0]), draws(count)), rtol=1e-12)


def test_the_clean_score_is_not_asked_where_there_is_noise():
    measured, _ = one_step(NOISY, (0.1, 0.99, 0.1), clean_score=lambda x: jnp.full_like(x, jnp.nan))
    assert np.isfinite(measured).all()


def test_a_step_size_of_ones_own_is_used_and_reported():
    for next, epsilon in (((0.1, 0.99, 0.1), 0.003), ((0.2, 0.9, 0.2), 0.012)):
        step = oracle.langevin_step(LAW, NOISY, next, 2, epsilon=lambda now, next, size=epsilon: size)
        measured, info = one_step(NOISY, next, 2, step_size=lambda now, next: 0.3 * next.sigma**2)
        np.testing.assert_allclose(measured, oracle.replay([step], np.array([0.4, -1.0]), draws(2)), rtol=1e-11)
        assert info.stiffness == pytest.approx(0.3)
        assert info.step_size == pytest.approx(0.3 * next[2] ** 2)


def test_steps_of_one_size_are_taken_at_every_level_and_may_be_swept():
    for next in ((0.1, 0.99, 0.1), (0.2, 0.9, 0.2)):
        step = oracle.langevin_step(LAW, NOISY, next, epsilon=lambda now, next: 0.004)
        measured, info = one_step(NOISY, next, step_size=fixed_step_size(0.004))
        np.testing.assert_allclose(measured, oracle.replay([step], np.array([0.4, -1.0]), draws(1)), rtol=1e-11)
        assert info.step_size == pytest.approx(0.004)
    now, next = levels(NOISY, (0.1, 0.99, 0.1))
    swept = jax.vmap(lambda epsilon: fixed_step_size(epsilon)(now, next))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(swept, [0.1, 0.2])


@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_to_noise_ratio_sets_the_length_of_the_drift(count):
    # Song et al. (2021), algorithm 5, in numpy: h = 2 (r |z| / |score|)^2 anew in each step, x + h score + sqrt(2 h) z.
    next, x = (0.1, 0.9, 0.3), np.array([0.4, -1.0])
    slope, level = oracle.score(LAW, *next[1:])
    for z in draws(count)[0]:
        pull = slope @ x + level
        h = 2 * (0.16 * np.linalg.norm(z) / np.linalg.norm(pull)) ** 2
        x = x + h * pull + np.sqrt(2 * h) * z
        assert np.linalg.norm(h * pull) == pytest.approx(0.16 * np.linalg.norm(np.sqrt(2 * h) * z))
    measured, info = one_step(NOISY, next, count, adapt=signal_to_noise())
    np.testing.assert_allclose(measured, x, rtol=1e-11)
    assert info.step_size == pytest.approx(2 * h)
    assert info.stiffness == pytest.approx(2 * h / 0.3**2)


def test_a_sample_does_not_depend_on_the_others_of_its_batch():
    law = runs.exact(runs.CONDITIONAL)
    sampler = langevin(denoiser(runs.predictor_of(law)), 2, adapt=signal_to_noise(0.2))
    now, next = levels(NOISY, (0.1, 0.9, 0.3))
    keys, x = jax.random.split(jax.random.key(0), 5), jax.random.normal(jax.random.key(1), (5, 2))
    batch = jax.jit(jax.vmap(lambda key, x: sampler.step(key, sampler.init(x), now, next)[0].x))
    together = batch(keys, x)
    # The same program on other companions: the same bits.
    np.testing.assert_array_equal(batch(keys, x.at[1:].multiply(100.0))[0], together[0])
    for i in range(5):
        np.testing.assert_allclose(batch(keys[i : i + 1], x[i : i + 1])[0], together[i], rtol=1e-6)
    # Each has a step of its own.
    sizes = jax.vmap(lambda key, x: sampler.step(key, sampler.init(x), now, next)[1].step_size)(keys, x)
    assert len(set(np.asarray(sizes).tolist())) == 5


@pytest.mark.parametrize("rule", [fixed_step_size, signal_to_noise])
@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_a_step_that_is_none_is_refused(rule, value):
    name = "a step size" if rule is fixed_step_size else "a signal-to-noise ratio"
    with pytest.raises(ValueError) as caught:
        rule(value)
    assert str(caught.value) == f"{name} must be positive and finite, got {value}"


def test_a_correction_may_be_made_at_the_level_that_was_left():
    # The size remains that of the interval; the score is the one of the old level.
    old, new, x = NOISY, (0.1, 0.99, 0.1), np.array([0.4, -1.0])
    slope, level = oracle.score(LAW, *old[1:])
    epsilon = oracle.path_epsilon(old, new)
    expected = x + epsilon / 2 * (slope @ x + level) + np.sqrt(epsilon) * draws(1)[0][0]
    measured, info = one_step(old, new, evaluate_at=at_now)
    np.testing.assert_allclose(measured, expected, rtol=1e-11)
    assert info.stiffness == pytest.approx(epsilon / old[2] ** 2)
    # There is noise there even in the last step, and no clean score is needed.
    assert np.abs(one_step(old, CLEAN, evaluate_at=at_now)[0] - x).min() > 1e-2


def curvature(level):
    """Of the guided law at scale 3 of the first problem of Bradley & Nakkiran (2024), in closed form."""
    return 3.0 / (1.0 + level.sigma**2) - 2.0 / (2.0 + level.sigma**2)


@pytest.mark.parametrize("steps", [10, 640])
def test_unstable_steps_are_flagged_where_the_iteration_grows(steps):
    grid = karras_grid(steps)
    score_of = lambda x, level: -curvature(level) * x  # noqa: E731
    model = denoiser(lambda x, level: from_score(x, level, score_of(x, level)))
    told = langevin(model, curvature=curvature, clean_score=lambda x: -2.0 * x)
    infos = [
        jax.jit(lambda grid, sampler=sampler: trajectory(sampler, jax.random.key(0), jnp.ones(1), grid)[1])(grid)
        for sampler in (told, langevin(model))
    ]
    now, next = grid.sigma[:-1], grid.sigma[1:]
    # One step multiplies by 1 - epsilon curvature / 2, which grows from 4 on.
    growth = np.abs(1 - 0.5 * (now**2 - next**2) * curvature(Level(grid.time, 1.0, next)))
    np.testing.assert_array_equal(infos[0].unstable, growth >= 1)
    # Not told the curvature, it takes the largest that data may have, and at sigma = 0 nothing is done.
    bound = (next > 0) & (now**2 >= 5 * next**2)
    np.testing.assert_array_equal(infos[1].unstable, bound)
    if steps == 10:
        # From sigma 4.07 to 1.50 the product is 6.4, and 4.9 in the step before; the bound warns further down too.
        worst = int(np.argmax(growth))
        assert (now[worst], next[worst]) == pytest.approx((4.07, 1.50), abs=5e-3)
        assert 2 * (growth[worst] + 1) == pytest.approx(6.4, abs=0.05)
        assert np.flatnonzero(infos[0].unstable).tolist() == [worst - 1, worst]
        assert np.flatnonzero(bound).tolist() == [*range(worst - 1, 9)]
    else:
        assert not bound.any()
        assert not infos[0].unstable.any()


@pytest.mark.parametrize("scale", [3.0, 15.0])
def test_guidance_of_narrow_data_is_flagged_where_it_grows(scale):
    # N(0, 1e-6) in N(0, 2): the guided curvature is scale / (1e-6 + sigma^2) + (1 - scale) / (2 + sigma^2).
    laws = [diagonal_mixture([1.0], [[0.0]], [[variance]]) for variance in (1e-6, 2.0)]
    exact = [lambda x, level, law=law: predict_exactly(law, x, level) for law in laws]
    guided, grid = denoiser(guide(*exact, scale)), karras_grid(40)

    def unstable(curvature):
        sampler = pcg(denoiser(exact[0]), guided, curvature=curvature)
        return np.asarray(trajectory(sampler, jax.random.key(0), jnp.ones(1), grid)[1].corrector.unstable)

    now, next = grid.sigma[:-1], grid.sigma[1:]
    grows = (now**2 - next**2) * (scale / (1e-6 + next**2) + (1 - scale) / (2 + next**2)) >= 4
    assert grows[:-1].any()
    assert not unstable(None).any()  # 1 / sigma^2, the most without guidance
    flagged = unstable(guided_curvature(scale))
    assert flagged[:-1][grows[:-1]].all()
    # Warned of besides: steps at noise that both laws drown in, where guidance adds no curvature.
    np.testing.assert_array_equal(flagged[:-1], (scale * (now**2 - next**2) >= 4 * next**2)[:-1])


@pytest.mark.parametrize(("scale", "most"), [(-2.0, 3.0), (0.0, 1.0), (0.4, 1.0), (1.0, 1.0), (7.0, 7.0)])
def test_the_bound_on_the_guided_curvature_is_the_largest_of_log_concave_laws(scale, most):
    level = Level(0.5, 1.0, 0.5)
    assert float(guided_curvature(scale)(level)) == pytest.approx(most / 0.25)
    shares = np.linspace(0.0, 1.0, 11)  # curvatures of either law, in units of 1 / sigma^2
    assert np.max(scale * shares[:, None] + (1 - scale) * shares) == pytest.approx(most)


def test_nothing_is_unstable_where_nothing_is_done():
    wide = {"step_size": fixed_step_size(1e3), "curvature": lambda level: 1.0}
    assert one_step(NOISY, (0.1, 0.99, 0.1), **wide)[1].unstable
    assert not one_step(NOISY, (0.1, 0.99, 0.1), 0, **wide)[1].unstable
    assert not one_step(NOISY, CLEAN, **wide)[1].unstable
    assert one_step(NOISY, CLEAN, with_clean_score=True, **wide)[1].unstable


def test_the_path_step_size_is_beta_dt_on_the_linear_path():
    # alpha'^2 (rho^2 - rho'^2) = alpha'^2 / alpha^2 - 1 where sigma^2 = 1 - alpha^2, and that is exp(beta dt) - 1.
    beta = 0.1 + 19.9 * 0.5
    grid = runs.GRIDS["linear"](1000)
    now, next = (Level(*(leaf[n] for leaf in grid)) for n in (500, 501))
    integral = 1e-3 * (beta - 19.9 * 0.5e-3)
    assert float(path_step_size(now, next)) == pytest.approx(np.expm1(integral), rel=1e-4)  # rounded to float32
    assert float(path_step_size(*levels((0.3, 1.0, 3.0), (0.2, 1.0, 2.0)))) == pytest.approx(5.0)


def test_long_dynamics_at_one_level_reach_its_law():
    # Its fixed point: v = (1 - h p)^2 v + eps, h = eps / 2, p = 1 / (C + sigma^2): v = 1 / (p - h p^2 / 2).
    sigma, epsilon = 0.4, 0.05
    law = [(1.0, oracle.Gaussian(np.array([0.7]), np.array([[0.5]])))]
    step = oracle.langevin_step(law, (0.5, 1.0, 0.5), (0.4, 1.0, sigma), 400, epsilon=lambda now, next: epsilon)
    mean, variance = oracle.moments([step], np.array([30.0]), np.array([[9.0]]))
    precision = 1 / (0.5 + sigma**2)
    np.testing.assert_allclose(mean, 0.7, atol=1e-3)
    np.testing.assert_allclose(variance, 1 / (precision * (1 - epsilon * precision / 4)), rtol=1e-5)


def test_no_steps_leave_the_state_as_it_is():
    with_memory = Denoiser(lambda x: jnp.int32(0), lambda memory, x, level: (None, memory + 1))
    sampler = langevin(with_memory, 0)
    state = sampler.init(jnp.array([1.0]))
    after, info = sampler.step(jax.random.key(0), state, *levels(NOISY, (0.1, 0.99, 0.1)))
    assert after is state
    assert jnp.isfinite(info.step_size)


@pytest.mark.parametrize("clean", [False, True])
def test_slopes_are_finite_and_right_where_the_noise_ends(clean):
    # Under vmap over grids the choice between acting and not becomes a select, whose untaken branch divides by 0.
    grids = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(runs.GRIDS[name](3) for name in runs.WITH_DATA))
    law = runs.exact(runs.CONDITIONAL)
    clean_score = (lambda x: score(law, x, Level(0.0, 1.0, 0.0))) if clean else None
    sampler = langevin(denoiser(lambda x, level: predict_exactly(law, x, level)), 2, clean_score=clean_score)
    # Weights, since a sum over the coordinates could hide an exchange of them.
    weights = jnp.array([1.0, 3.0])

    def total(x):
        run = jax.vmap(lambda x, grid: weights @ sample(sampler, jax.random.key(0), x, grid))
        return run(x, grids).sum()

    slopes = jax.jit(jax.grad(total))(jnp.tile(jnp.array([0.3, 0.1]), (len(runs.WITH_DATA), 1)))
    for slope, name in zip(slopes, runs.WITH_DATA, strict=True):
        maps = oracle.walk(lambda now, next: oracle.langevin_step(LAW, now, next, 2, clean=clean), runs.GRIDS[name](3))
        expected = weights @ np.linalg.multi_dot([step.matrix for step in reversed(maps)])
        assert np.abs(slope - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.fixture
def unchecked_types():
    """Lift the type checks that only the tests have, which would hide what a user sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("count", [-1, 1.0, True, "2"])
def test_a_number_of_steps_that_is_none_is_refused(count):
    with pytest.raises(ValueError) as caught:
        langevin(denoiser(lambda x, level: None), count)
    assert str(caught.value) == f"num_steps of Langevin dynamics must be an integer of at least 0, got {count!r}"
