"""DDIM and its inversion against their recursions on Gaussian data, published values, and one another."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Cosine,
    Level,
    RectifiedFlow,
    check_grid,
    ddim,
    ddim_inversion,
    ddpm,
    denoiser,
    from_noise,
    from_v,
    from_x0,
    noise_target,
    predict_exactly,
    sample,
    sigma_grid,
    uniform_grid,
    v_target,
    x0_target,
)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_meets_its_recursion_on_gaussian_data(eta):
    runs.assert_recursion(
        build=lambda conditional, guided: ddim(guided, eta),
        step=lambda conditional, guided, now, next: oracle.ddim_step(guided, now, next, eta),
        draws=runs.one_draw,
        names=runs.FROM_NOISE,
    )


def variance_exploding(law_std, x, grid):
    """DDIM of N(0, law_std^2) in float64 from one number."""
    with jax.enable_x64(True):
        law = runs.exact(oracle.Gaussian(np.zeros(1), np.array([[law_std**2]])))
        model = denoiser(runs.predictor_of(law))
        return float(jax.jit(lambda x, grid: sample(ddim(model), jax.random.key(0), x, grid))(jnp.array([x]), grid)[0])


@pytest.mark.parametrize(("steps", "multiplier"), [(10, 0.10327885982217158), (1000, 0.19206549491768676)])
def test_ddim_of_the_tutorial_has_its_closed_multiplier(steps, multiplier):
    # Step-by-Step Diffusion: sigma = q sqrt(t), N(0, s^2): the product of (s^2 + q^2 sqrt(t (t - dt))) / (s^2 + q^2 t).
    q, t = 5.0, np.linspace(1.0, 0.0, steps + 1)
    product = np.prod((1 + q**2 * np.sqrt(t[:-1] * t[1:])) / (1 + q**2 * t[:-1]))
    assert product == pytest.approx(multiplier, rel=1e-12)
    assert variance_exploding(1.0, 3.0, sigma_grid(q * np.sqrt(t))) == pytest.approx(3.0 * multiplier, rel=1e-11)


@pytest.mark.parametrize("traced", [False, True])
def test_ddim_at_eta_one_is_ddpm_however_large_the_step(traced):
    law = runs.exact(runs.CONDITIONAL)
    model, noise, key = denoiser(runs.predictor_of(law)), jnp.array([0.7, -1.7]), jax.random.key(0)
    # In the first, r = rho' / rho is 3e-4: 1 - (1 - r^2) has lost half of its digits in float32.
    for grid in (sigma_grid(np.array([3e4, 9.0])), uniform_grid(Cosine(), 10), uniform_grid(RectifiedFlow(), 10)):
        x = grid.sigma[0] * noise
        run = lambda eta, x=x, grid=grid: sample(ddim(model, eta), key, x, grid)  # noqa: E731
        measured = jax.jit(run)(1.0) if traced else run(1.0)
        # A few float32 roundings, of what is added up to x.
        np.testing.assert_allclose(measured, sample(ddpm(model), key, x, grid), rtol=2e-6, atol=1e-6)


def test_eta_may_be_traced_and_swept():
    law = runs.exact(runs.CONDITIONAL)
    model, x, key, grid = (
        denoiser(runs.predictor_of(law)),
        jnp.array([0.9, 0.2]),
        jax.random.key(1),
        runs.GRIDS["edm"](5),
    )
    swept = jax.jit(jax.vmap(lambda eta: sample(ddim(model, eta), key, x, grid)))(jnp.array([0.0, 0.5, 1.0]))
    for eta, measured in zip((0.0, 0.5, 1.0), swept, strict=True):
        np.testing.assert_allclose(measured, sample(ddim(model, eta), key, x, grid), rtol=1e-5, atol=1e-6)


def test_the_slope_in_eta_is_finite_at_both_ends_and_right_in_between():
    with jax.enable_x64(True):
        law, grid = runs.exact(runs.CONDITIONAL), runs.GRIDS["edm"](5)
        model, x, key = denoiser(runs.predictor_of(law)), jnp.array([0.9, 0.2]), jax.random.key(1)
        run = jax.jit(lambda eta: sample(ddim(model, eta), key, x, grid).sum())
        slope = jax.jit(jax.grad(run))
        for eta in (0.0, 0.5, 1.0):
            ends = max(eta - 1e-6, 0.0), min(eta + 1e-6, 1.0)
            difference = (run(ends[1]) - run(ends[0])) / (ends[1] - ends[0])
            # One-sided at the ends, where the error is 1e-6 times half the second derivative.
            assert float(slope(eta)) == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.parametrize("eta", [-0.1, 1.5, np.nan, jnp.float32(2.0)])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError) as caught:
        ddim(denoiser(lambda x, level: None), eta)
    assert str(caught.value) == f"eta must lie in [0, 1], got {eta}; 0 is the ODE, 1 ancestral sampling"


def affine_network(target):
    """What a network trained for `target` says on N(m, C): it is told x and the time, and knows nothing else."""
    schedule = RectifiedFlow()
    law = runs.exact(runs.CONDITIONAL)

    def network(x, time):
        level = Level(time, schedule.alpha(time), schedule.sigma(time))
        return target(predict_exactly(law, x, level), level)

    return network


def test_inversion_meets_its_recursion_with_a_network_that_is_told_the_time_alone():
    # The output v is that of the NEXT time, and is read at the levels of this one: with s = sigma, a = alpha there,
    # v = a_next E[noise | x] - s_next E[x0 | x] of the law at the next time, then (Level(next.time, a, s))
    # x0 = (a x - s v) / (a^2 + s^2), noise = (s x + a v) / (a^2 + s^2), x' = a_next x0 + s_next noise.
    law, eye = [(1.0, runs.CONDITIONAL)], np.eye(2)

    def step(now, next):
        (_, a, s), (_, a_next, s_next) = now, next
        (gain, offset), (slope, level) = (f(law, a_next, s_next) for f in (oracle.denoised, oracle.noise_of))
        v, w = a_next * slope - s_next * gain, a_next * level - s_next * offset
        x0, noise = (a * eye - s * v) / (a**2 + s**2), (s * eye + a * v) / (a**2 + s**2)
        shift = (-a_next * s + s_next * a) / (a**2 + s**2) * w
        return oracle.Affine(a_next * x0 + s_next * noise, shift)

    def encode(grids):
        network, x = affine_network(v_target), jnp.array([1.0, -0.3])
        model = denoiser(lambda x, level: from_v(x, level, network(x, level.time)))
        return [sample(ddim_inversion(model), jax.random.key(0), x, grid) for grid in grids]

    grids = [uniform_grid(RectifiedFlow(), count, start=0.0, stop=1.0) for count in runs.COUNTS]
    for dtype, tolerance in runs.TOLERANCES.items():
        with jax.enable_x64(dtype == "float64"):
            for grid, measured in zip(grids, jax.jit(encode)(jax.tree.map(jnp.asarray, grids)), strict=True):
                expected = oracle.replay(oracle.walk(step, grid), np.array([1.0, -0.3]), [()] * 1000)
                assert np.abs(measured - expected).max() < tolerance * np.abs(expected).max()


def test_decoding_an_inversion_returns_to_first_order():
    with jax.enable_x64(True):
        network = affine_network(v_target)
        model = denoiser(lambda x, level: from_v(x, level, network(x, level.time)))
        x, key = jnp.array([1.0, -0.3]), jax.random.key(0)

        @jax.jit
        def there_and_back(grids):
            def back(grid):
                encoded = sample(ddim_inversion(model), key, x, grid)
                return sample(ddim(model), key, encoded, jax.tree.map(lambda leaf: leaf[::-1], grid))

            return [jnp.abs(back(grid) - x).max() for grid in grids]

        counts = np.array([40, 80, 160, 320])
        grids = [uniform_grid(RectifiedFlow(), int(count), start=0.0, stop=0.9) for count in counts]
        errors = np.array(there_and_back(jax.tree.map(jnp.asarray, grids)))
    runs.assert_first_order(counts, errors)


def test_the_start_at_pure_noise_is_fine_for_predictions_of_x0_and_v_and_refused_for_noise():
    grid, key, x = uniform_grid(Cosine(), 4), jax.random.key(0), jnp.array([0.4, -1.2])
    law = runs.exact(runs.CONDITIONAL)
    assert grid.alpha[0] == 0.0
    truth = sample(ddim(denoiser(runs.predictor_of(law))), key, x, grid)
    for target, read in ((x0_target, from_x0), (v_target, from_v)):
        model = denoiser(lambda x, level, t=target, r=read: r(x, level, t(predict_exactly(law, x, level), level)))
        # from_x0 at small sigma loses digits to x - alpha x0; v does not.
        np.testing.assert_allclose(sample(ddim(model), key, x, grid), truth, rtol=1e-5, atol=1e-5)
        assert jnp.isfinite(sample(ddpm(model), key, x, grid)).all()
    noise_model = denoiser(lambda x, level: from_noise(x, level, noise_target(predict_exactly(law, x, level), level)))
    assert not jnp.isfinite(sample(ddim(noise_model), key, x, grid)).any()
    with pytest.raises(ValueError) as caught:
        check_grid(grid, divides_by_alpha=True)
    assert str(caught.value) == (
        "a network that predicts the noise says nothing about x0 at alpha = 0, which this grid contains; "
        "start below t = 1 or predict x0, v or the velocity"
    )
    check_grid(uniform_grid(Cosine(), 4, start=0.999), divides_by_alpha=True)
