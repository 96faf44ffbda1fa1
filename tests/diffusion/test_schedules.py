import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxgen.diffusion import (
    EDM,
    Cosine,
    OffsetCosine,
    RectifiedFlow,
    Schedule,
    Tutorial,
    VarianceExploding,
    VariancePreservingLinear,
    VariancePreservingScaledLinear,
    drift_and_diffusion,
    level_at,
    rates,
)

VARIANCE_PRESERVING = (
    VariancePreservingLinear(),
    VariancePreservingLinear(0.3, 7.0),
    VariancePreservingScaledLinear(),
    VariancePreservingScaledLinear(2.0, 9.0),
    Cosine(),
    OffsetCosine(),
    OffsetCosine(0.1),
)
FROM_DATA = (*VARIANCE_PRESERVING, EDM(), EDM(5.0), RectifiedFlow(), Tutorial(), Tutorial(2.0))
SCHEDULES = (*FROM_DATA, VarianceExploding(), VarianceExploding(0.1, 348.0))
TIMES = np.linspace(0.0, 1.0, 17)


def written_out(schedule, t):
    """alpha, sigma and their slopes at one time inside (0, 1), from the papers' formulas in python floats."""
    match schedule:
        case VariancePreservingLinear(low, high):
            beta = low + (high - low) * t
            alpha = np.exp(-0.5 * quad(lambda u: low + (high - low) * u, 0.0, t)[0])
            sigma = np.sqrt(1.0 - alpha**2)
            return alpha, sigma, -0.5 * beta * alpha, 0.5 * beta * alpha**2 / sigma
        case VariancePreservingScaledLinear(low, high):
            root = lambda u: np.sqrt(low) + (np.sqrt(high) - np.sqrt(low)) * u  # noqa: E731
            alpha = np.exp(-0.5 * quad(lambda u: root(u) ** 2, 0.0, t)[0])
            sigma = np.sqrt(1.0 - alpha**2)
            return alpha, sigma, -0.5 * root(t) ** 2 * alpha, 0.5 * root(t) ** 2 * alpha**2 / sigma
        case OffsetCosine(s):
            angle, speed = (t + s) / (1 + s) * np.pi / 2, np.pi / 2 / (1 + s)
            most = np.cos(s / (1 + s) * np.pi / 2)
            alpha, alpha_rate = np.cos(angle) / most, -speed * np.sin(angle) / most
            sigma = np.sqrt(1.0 - alpha**2)
            return alpha, sigma, alpha_rate, -alpha * alpha_rate / sigma
        case Tutorial(std):
            return 1.0, std * np.sqrt(t), 0.0, std / (2 * np.sqrt(t))
        case VarianceExploding(low, high):
            sigma = np.exp(np.log(low) + t * (np.log(high) - np.log(low)))
            return 1.0, sigma, 0.0, sigma * np.log(high / low)
        case Cosine():
            angle = np.pi * t / 2
            return np.cos(angle), np.sin(angle), -np.pi / 2 * np.sin(angle), np.pi / 2 * np.cos(angle)
        case EDM(largest):
            return 1.0, largest * t, 0.0, largest
        case RectifiedFlow():
            return 1.0 - t, t, -1.0, 1.0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_path_and_rates_equal_the_published_formulas(schedule):
    inside = TIMES[1:-1]
    alpha, sigma, alpha_rate, sigma_rate = np.array([written_out(schedule, t) for t in inside]).T
    # 1 - alpha^2 cancels in the formula as it is written: 1e-16 over 6e-3 at the first time.
    np.testing.assert_allclose(schedule.alpha(inside), alpha, rtol=1e-13)
    np.testing.assert_allclose(schedule.sigma(inside), sigma, rtol=1e-13)
    with jax.enable_x64(True):
        measured = rates(schedule, jnp.asarray(inside))
        assert measured[0].dtype == jnp.float64
    np.testing.assert_allclose(measured[0], alpha_rate, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(measured[1], sigma_rate, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_numpy_stays_numpy_in_float64_and_jax_stays_jax(schedule):
    assert isinstance(schedule, Schedule)
    on_host, on_device = level_at(schedule, TIMES), level_at(schedule, jnp.asarray(TIMES, jnp.float32))
    for host, device in zip(on_host, on_device, strict=True):
        assert isinstance(host, np.ndarray)
        assert isinstance(device, jax.Array)
        assert (host.dtype, device.dtype) == (np.float64, jnp.float32)
        assert host.shape == device.shape == TIMES.shape
        # Rounding t itself moves sigma of the variance-preserving path by up to beta / 2 * 6e-8 of it.
        np.testing.assert_allclose(device, host, rtol=2e-6, atol=1e-7)
    # A traced time or a traced constant of the schedule each make the result traced.
    jax.eval_shape(lambda schedule, t: level_at(schedule, t), schedule, jax.ShapeDtypeStruct((), jnp.float32))
    jax.eval_shape(lambda schedule: (schedule.alpha(TIMES), schedule.sigma(TIMES)), schedule)


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_the_variance_is_preserved(schedule):
    for dtype, tolerance in ((np.float64, 5e-16), (np.float32, 3e-7)):  # two roundings of squares below 1
        t = np.linspace(0.0, 1.0, 999, dtype=dtype)
        alpha, sigma = (np.asarray(part, np.float64) for part in (schedule.alpha(t), schedule.sigma(t)))
        np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=0, atol=tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_path_leads_from_data_to_noise_monotonically(schedule):
    alpha, sigma = (np.broadcast_to(part, 999) for part in level_at(schedule, np.linspace(0.0, 1.0, 999))[1:])
    assert (alpha[0], sigma[0]) == (1.0, 0.0 if schedule in FROM_DATA else schedule.sigma_min)
    assert (np.diff(np.arctan2(sigma, alpha)) > 0).all()


# f and g^2 of each path at one time in [0, 1), worked out from its definition.
COEFFICIENTS = {
    VariancePreservingLinear(0.3, 7.0): lambda t: (-(0.3 + 6.7 * t) / 2, 0.3 + 6.7 * t),
    VariancePreservingScaledLinear(4.0, 9.0): lambda t: (-((2 + t) ** 2) / 2, (2 + t) ** 2),
    Cosine(): lambda t: (-np.pi / 2 * np.tan(np.pi * t / 2), np.pi * np.tan(np.pi * t / 2)),
    OffsetCosine(0.1): lambda t: np.array([-1, 2]) * np.pi / 2.2 * np.tan(np.pi * (t + 0.1) / 2.2),
    EDM(5.0): lambda t: (0.0, 50 * t),
    Tutorial(3.0): lambda t: (0.0, 9.0),
    VarianceExploding(0.5, 50.0): lambda t: (0.0, 0.5 * 100 ** (2 * t) * np.log(100)),
    RectifiedFlow(): lambda t: (-1 / (1 - t), 2 * t / (1 - t)),
}


@pytest.mark.parametrize("schedule", COEFFICIENTS, ids=str)
def test_drift_and_diffusion_are_finite_at_the_data_and_those_of_the_forward_process(schedule):
    # At t = 0 the slope of a variance-preserving sigma is infinite, and that of sigma^2 is beta_min.
    times = np.array([0.0, 1e-12, 0.2, 0.5, 0.9])
    with jax.enable_x64(True):
        measured = np.array(jax.jit(drift_and_diffusion)(schedule, jnp.asarray(times)))
    expected = np.array([COEFFICIENTS[schedule](t) for t in times]).T
    # The slope of the cosine at 0 is cos(pi / 2) in float64.
    np.testing.assert_allclose(measured, expected, rtol=1e-12, atol=1e-15)
    single = drift_and_diffusion(schedule, jnp.asarray(times, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=3e-6, atol=2e-7)
    assert single[0].dtype == single[1].dtype == jnp.float32


def test_a_path_that_only_knows_its_sigma_has_a_drift_and_diffusion_too():
    class Straight:
        def alpha(self, t):
            return 1.0 - t

        def sigma(self, t):
            return 2.0 * t

    # -1 / (1 - t), and 8 t + 8 t^2 / (1 - t).
    np.testing.assert_allclose(drift_and_diffusion(Straight(), 0.5), (-2.0, 8.0), rtol=1e-6)


def test_the_offset_cosine_without_offset_is_the_cosine():
    for got, expected in zip(level_at(OffsetCosine(0.0), TIMES), level_at(Cosine(), TIMES), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-15)
    assert OffsetCosine().alpha(1.0) == 0.0
    # Nichol & Dhariwal 2021: with s = .008, the first of 1,000 levels has sqrt(beta) of a pixel's bin, about 1 / 127.5.
    assert OffsetCosine().sigma(1e-3) == pytest.approx(1 / 127.5, rel=0.2)
    assert Cosine().sigma(1e-3) < 0.25 / 127.5


def test_the_scaled_linear_path_is_the_limit_of_its_betas():
    # 1,000 betas of Stable Diffusion: ln alpha-bar is minus the sum of beta but for beta^2 / 2, and beta of order 1e-2.
    bars = np.cumsum(np.log1p(-(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)))
    times = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(2 * np.log(VariancePreservingScaledLinear().alpha(times)), bars, rtol=0.01)


@pytest.mark.parametrize("schedule", [Cosine(), OffsetCosine()], ids=str)
def test_float32_log_snr_of_the_cosine_path_is_never_nan(schedule):
    last = jnp.float32(1.0)
    # About the smallest time whose sigma^2 (slope .04) is not flushed to zero, and the last one before the end.
    t = jnp.stack([0 * last, 50 * jnp.finfo(jnp.float32).tiny, jnp.nextafter(last, 0 * last), last])
    alpha, sigma = jax.jit(lambda t: level_at(schedule, t))(t)[1:]
    log_snr = 2 * (jnp.log(alpha) - jnp.log(sigma))
    assert log_snr[0] == jnp.inf
    assert log_snr[3] == -jnp.inf
    assert alpha[3] == 0.0
    # One float32 before the end, alpha is pi / 2 of what is left; cos(pi t / 2) would be wrong by half of it.
    np.testing.assert_allclose(alpha[2], schedule.alpha(np.float64(t[2])), rtol=1e-6)
    assert jnp.isfinite(log_snr[1:3]).all()


def test_sigma_of_the_linear_path_keeps_its_precision_near_the_data():
    schedule = VariancePreservingLinear()
    t = np.float32([1e-9, 1e-7, 1e-5, 1e-3])
    # sqrt(1 - alpha^2) in float32 is 0 at the first two. To first order in t, sigma^2 = beta_min t there.
    np.testing.assert_allclose(schedule.sigma(jnp.asarray(t)), schedule.sigma(t.astype(np.float64)), rtol=1e-6)
    np.testing.assert_allclose(schedule.sigma(jnp.asarray(t[:2])), np.sqrt(0.1 * t[:2]), rtol=1e-5)
    alpha_rate, sigma_rate = rates(schedule, 0.0)
    np.testing.assert_allclose(alpha_rate, -0.05, rtol=1e-6)
    assert sigma_rate == jnp.inf


def test_the_noise_of_the_linear_path_at_its_end():
    schedule = VariancePreservingLinear(0.1, 20.0)
    # sigma^2 / alpha^2 at t = 1, exp(10.05) - 1.
    np.testing.assert_allclose((schedule.sigma(1.0) / schedule.alpha(1.0)) ** 2, 23154.786845395425, rtol=1e-12)


def test_numbers_of_a_schedule_are_leaves_that_can_be_swept():
    assert jax.tree.leaves((VariancePreservingLinear(0.2, 9.0), EDM(7.0), Cosine())) == [0.2, 9.0, 7.0]
    assert jax.tree.leaves((VarianceExploding(0.2, 9.0), Tutorial(7.0), OffsetCosine(0.1))) == [0.2, 9.0, 7.0, 0.1]
    largest = jnp.array([0.5, 80.0])
    swept = jax.vmap(lambda schedule: schedule.sigma(0.5))(EDM(largest))
    np.testing.assert_allclose(swept, largest / 2, rtol=1e-6)
    slope = jax.grad(lambda high: VariancePreservingLinear(0.1, high).alpha(0.5))(20.0)
    # d alpha / d beta_max = -t^2 / 4 alpha
    np.testing.assert_allclose(slope, -(0.5**2) / 4 * VariancePreservingLinear().alpha(0.5), rtol=1e-5)
