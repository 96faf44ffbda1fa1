import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.diffusion import (
    EDM,
    Cosine,
    Level,
    Prediction,
    RectifiedFlow,
    VariancePreservingLinear,
    denoising_loss,
    draw_log_normal_level,
    draw_logit_normal_level,
    draw_uniform_level,
    edm_preconditioned,
    edm_weight,
    from_velocity,
    from_x0,
    gaussian_mixture,
    level_at,
    noise_target,
    predict_exactly,
    rates,
    score_target,
    snr_weight,
    unit_weight,
    v_target,
    velocity_target,
    x0_target,
)

COUNT = 20_000
MEAN, STD = 0.7, 1.6


def posterior_errors(schedule, t):
    """Variance of each target given x, for data of N(m, s^2): what even the best prediction leaves.

    Given x, noise = (x - alpha x0) / sigma, so every target is a constant plus a multiple of x0, whose variance is
    s^2 sigma^2 / (alpha^2 s^2 + sigma^2).
    """
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    alpha_rate, sigma_rate = (float(rate) for rate in rates(schedule, t))
    variance = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
    slopes = {
        "x0": 1.0,
        "noise": alpha / sigma,
        "score": alpha / sigma**2,
        "v": alpha**2 / sigma + sigma,
        "velocity": alpha_rate - sigma_rate * alpha / sigma,
    }
    return {name: slope**2 * variance for name, slope in slopes.items()}


def targets(schedule):
    return {
        "x0": x0_target,
        "noise": noise_target,
        "score": score_target,
        "v": v_target,
        "velocity": velocity_target(schedule),
    }


@pytest.mark.parametrize(
    ("schedule", "t"), [(VariancePreservingLinear(), 0.3), (Cosine(), 0.6), (EDM(5.0), 0.2), (RectifiedFlow(), 0.8)]
)
def test_exact_denoiser_reaches_the_posterior_variance(schedule, t):
    law = gaussian_mixture([1.0], [[MEAN] * 3], [STD**2 * np.eye(3)])
    predict = lambda x, level: predict_exactly(law, x, level)  # noqa: E731

    @jax.jit
    @jax.vmap
    def losses(key):
        data_key, noise_key = jax.random.split(key)
        x0 = MEAN + STD * jax.random.normal(data_key, (3,))
        level = level_at(schedule, jnp.float32(t))
        return {
            name: denoising_loss(predict, noise_key, x0, level, target=target)
            for name, target in targets(schedule).items()
        }

    drawn = losses(jax.random.split(jax.random.key(0), COUNT))
    for name, expected in posterior_errors(schedule, t).items():
        # A mean square of 3 COUNT normals: its relative standard error is sqrt(2 / 3 COUNT); 4 of them.
        np.testing.assert_allclose(drawn[name].mean(), expected, rtol=4 * np.sqrt(2 / 3 / COUNT), err_msg=name)


def rough(x, level):
    """A prediction that is consistent with x but far from exact."""
    return from_x0(x, level, jnp.tanh(x) + 0.1 * level.time)


@jax.jit
def losses_in_every_view(key, x0, t):
    level = level_at(RectifiedFlow(), t)
    loss = lambda **options: denoising_loss(rough, key, x0, level, **options)  # noqa: E731
    return level, {
        "noise": loss(),
        "x0": loss(target=x0_target),
        "x0 by snr": loss(target=x0_target, weight=snr_weight),
        "x0 by edm": loss(target=x0_target, weight=edm_weight(0.75)),
        "score": loss(target=score_target),
        "v": loss(target=v_target),
        "velocity": loss(target=velocity_target(RectifiedFlow())),
    }


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_losses_of_the_views_differ_by_their_weights_alone(t):
    x0 = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3)), jnp.float32)
    level, loss = losses_in_every_view(jax.random.key(1), x0, t)
    alpha, sigma = float(level.alpha), float(level.sigma)
    snr = (alpha / sigma) ** 2
    # A consistent prediction's errors are tied: sigma * noise error = -alpha * x0 error.
    close = lambda left, right: np.testing.assert_allclose(left, right, rtol=2e-5)  # noqa: E731  # errors in float32
    close(loss["noise"], snr * loss["x0"])
    close(loss["x0 by snr"], loss["noise"])
    close(loss["score"], loss["noise"] / sigma**2)
    close(loss["v"], ((alpha**2 + sigma**2) / alpha) ** 2 * loss["noise"])
    close(loss["velocity"], loss["x0"] / sigma**2)
    close(loss["x0 by edm"], (sigma**2 / alpha**2 + 0.75**2) / (0.75 * sigma / alpha) ** 2 * loss["x0"])


def test_loss_is_the_mean_square_over_the_sample_written_in_numpy():
    x0, key = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3)), jnp.float32), jax.random.key(3)
    level = Level(0.4, 0.8, 0.6)
    noise = np.asarray(jax.random.normal(key, (2, 3)), np.float64)
    x = 0.8 * np.asarray(x0, np.float64) + 0.6 * noise
    predict = lambda x, level: Prediction(level.time * x, 2.0 * x)  # noqa: E731
    np.testing.assert_allclose(denoising_loss(predict, key, x0, level), np.mean((2.0 * x - noise) ** 2), rtol=1e-5)
    weighed = denoising_loss(predict, key, x0, level, target=x0_target, weight=lambda level: 7.0 * level.sigma)
    np.testing.assert_allclose(weighed, 4.2 * np.mean((0.4 * x - np.asarray(x0)) ** 2), rtol=1e-5)


def test_edm_weight_gives_the_untrained_network_a_unit_loss_at_every_level():
    # With F = 0 and data of standard deviation d, c_skip x - x0 has variance (s d)^2 / (s^2 + d^2) = 1 / weight.
    data_std = 0.75
    predict = lambda x, level: edm_preconditioned(lambda x, c: 0 * x, x, level, data_std)  # noqa: E731

    @jax.jit
    @jax.vmap
    def losses(key, sigma):
        data_key, noise_key = jax.random.split(key)
        x0, level = data_std * jax.random.normal(data_key, (3,)), Level(0.5, 1.0, sigma)
        return denoising_loss(predict, noise_key, x0, level, target=x0_target, weight=edm_weight(data_std))

    sigmas = jnp.repeat(jnp.array([0.02, 0.5, 20.0]), COUNT)
    drawn = losses(jax.random.split(jax.random.key(4), 3 * COUNT), sigmas).reshape(3, COUNT)
    np.testing.assert_allclose(drawn.mean(1), 1.0, rtol=4 * np.sqrt(2 / 3 / COUNT))  # 4 standard errors


def test_weights_are_their_formulas():
    for alpha, sigma in ((1.0, 0.02), (0.8, 0.6), (1e-3, 1.0)):
        level = Level(0.5, jnp.float32(alpha), jnp.float32(sigma))
        assert unit_weight(level) == 1.0
        np.testing.assert_allclose(snr_weight(level), (alpha / sigma) ** 2, rtol=1e-6)
        s = sigma / alpha
        np.testing.assert_allclose(edm_weight(0.5)(level), (s**2 + 0.25) / (s * 0.5) ** 2, rtol=1e-6)


def test_loss_of_a_velocity_network_is_flow_matching():
    # Step-by-Step Diffusion, pseudocode 4, with time running towards the noise: |f(x_t, t) - (x_1 - x_0)|^2.
    x0, key, t = jnp.array([0.5, -1.0]), jax.random.key(5), jnp.float32(0.3)
    network = lambda x, t: jnp.sin(x) - t  # noqa: E731
    predict = lambda x, level: from_velocity(x, level, network(x, level.time), RectifiedFlow())  # noqa: E731
    level, target = level_at(RectifiedFlow(), t), velocity_target(RectifiedFlow())
    x1 = np.asarray(jax.random.normal(key, (2,)))
    expected = np.mean((np.sin(0.3 * x1 + 0.7 * np.asarray(x0)) - 0.3 - (x1 - np.asarray(x0))) ** 2)
    np.testing.assert_allclose(denoising_loss(predict, key, x0, level, target=target), expected, rtol=1e-5)


def draws(draw):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(6), COUNT)))


def assert_follows(samples, law):
    """A Kolmogorov-Smirnov test that a right sampler fails once in 10,000 keys; the key is fixed."""
    assert stats.kstest(samples, law.cdf).pvalue > 1e-4


def test_log_normal_levels_have_their_law_below_the_largest_sigma():
    level = draws(lambda key: draw_log_normal_level(key, -0.8, 1.2, 1e3))  # beyond 6 standard deviations
    assert_follows(np.log(level.sigma), stats.norm(-0.8, 1.2))
    np.testing.assert_allclose(EDM(1e3).sigma(level.time), level.sigma, rtol=1e-6)
    np.testing.assert_array_equal(level.alpha, 1.0)
    cut = draws(lambda key: draw_log_normal_level(key, -0.8, 1.2, 1.0))
    np.testing.assert_array_equal(cut.sigma, np.minimum(level.sigma, 1.0))  # the same draws
    assert cut.time.max() == 1.0
    share = stats.norm(-0.8, 1.2).sf(0.0)
    # Four standard errors of a proportion.
    assert np.mean(cut.sigma == 1.0) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / COUNT))


def test_uniform_levels_have_their_law_on_the_schedule():
    for low, high in ((0.0, 1.0), (0.2, 0.3)):
        level = draws(lambda key, low=low, high=high: draw_uniform_level(key, Cosine(), low=low, high=high))
        assert_follows(level.time, stats.uniform(low, high - low))
        np.testing.assert_allclose(level.sigma, np.sin(np.pi / 2 * level.time), rtol=1e-5)
        np.testing.assert_allclose(level.alpha, np.cos(np.pi / 2 * level.time), rtol=1e-4, atol=1e-6)


def test_logit_normal_levels_have_their_law_on_the_schedule():
    for mean, std in ((0.0, 1.0), (-0.5, 0.4)):
        level = draws(lambda key, mean=mean, std=std: draw_logit_normal_level(key, RectifiedFlow(), mean=mean, std=std))
        time = level.time.astype(np.float64)
        assert_follows(np.log(time / (1 - time)), stats.norm(mean, std))
        np.testing.assert_array_equal(level.sigma, level.time)
