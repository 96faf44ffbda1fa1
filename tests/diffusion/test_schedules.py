import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxgen.diffusion import EDM, Cosine, RectifiedFlow, Schedule, VariancePreservingLinear, level_at, rates

SCHEDULES = (VariancePreservingLinear(), VariancePreservingLinear(0.3, 7.0), Cosine(), EDM(), EDM(5.0), RectifiedFlow())
VARIANCE_PRESERVING = SCHEDULES[:3]
TIMES = np.linspace(0.0, 1.0, 17)


def written_out(schedule, t):
    """alpha, sigma and their slopes at one time inside (0, 1), from the papers' formulas in python floats."""
    match schedule:
        case VariancePreservingLinear(low, high):
            beta = low + (high - low) * t
            alpha = np.exp(-0.5 * quad(lambda u: low + (high - low) * u, 0.0, t)[0])
            sigma = np.sqrt(1.0 - alpha**2)
            return alpha, sigma, -0.5 * beta * alpha, 0.5 * beta * alpha**2 / sigma
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
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    assert (np.diff(np.arctan2(sigma, alpha)) > 0).all()


def test_float32_log_snr_of_the_cosine_path_is_never_nan():
    last = jnp.float32(1.0)
    # The smallest time that is not flushed to zero, and the last one before the end.
    t = jnp.stack([0 * last, jnp.finfo(jnp.float32).tiny, jnp.nextafter(last, 0 * last), last])
    alpha, sigma = jax.jit(lambda t: level_at(Cosine(), t))(t)[1:]
    log_snr = 2 * (jnp.log(alpha) - jnp.log(sigma))
    assert log_snr[0] == jnp.inf
    assert log_snr[3] == -jnp.inf
    assert alpha[3] == 0.0
    # One float32 before the end, alpha is pi / 2 of what is left; cos(pi t / 2) would be wrong by half of it.
    np.testing.assert_allclose(alpha[2], np.pi / 2 * (1.0 - float(t[2])), rtol=1e-6)
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
    largest = jnp.array([0.5, 80.0])
    swept = jax.vmap(lambda schedule: schedule.sigma(0.5))(EDM(largest))
    np.testing.assert_allclose(swept, largest / 2, rtol=1e-6)
    slope = jax.grad(lambda high: VariancePreservingLinear(0.1, high).alpha(0.5))(20.0)
    # d alpha / d beta_max = -t^2 / 4 alpha
    np.testing.assert_allclose(slope, -(0.5**2) / 4 * VariancePreservingLinear().alpha(0.5), rtol=1e-5)
