import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.diffusion import (
    EDM,
    Cosine,
    Level,
    Prediction,
    RectifiedFlow,
    VariancePreservingLinear,
    corrupt,
    edm_preconditioned,
    from_noise,
    from_score,
    from_v,
    from_velocity,
    from_x0,
    level_at,
    noise_target,
    score_target,
    v_target,
    velocity_target,
    x0_target,
)

SCHEDULES = (VariancePreservingLinear(), Cosine(), EDM(80.0), RectifiedFlow())
ENTRIES = st.lists(st.floats(-10.0, 10.0), min_size=3, max_size=3)
TIMES = st.floats(0.001, 0.999)
PAIRS = {
    "noise": (from_noise, noise_target),
    "x0": (from_x0, x0_target),
    "score": (from_score, score_target),
    "v": (from_v, v_target),
}


def _round_trip(schedule, x0, noise, t):
    """Read the truth back from x and each of its targets, and say how each target is written in x0 and noise."""
    level, truth = level_at(schedule, t), Prediction(x0, noise)
    x = corrupt(x0, noise, level)
    velocity = velocity_target(schedule)
    targets = {name: target(truth, level) for name, (_, target) in PAIRS.items()}
    targets["velocity"] = velocity(truth, level)
    predictions = {name: read(x, level, targets[name]) for name, (read, _) in PAIRS.items()}
    predictions["velocity"] = from_velocity(x, level, targets["velocity"], schedule)
    again = {name: target(predictions["v"], level) for name, (_, target) in PAIRS.items()}
    return level, targets, predictions, {**again, "velocity": velocity(predictions["v"], level)}


round_trip = jax.jit(_round_trip)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_view_gives_back_the_truth(schedule):
    @settings(deadline=None)
    @given(ENTRIES, ENTRIES, TIMES)
    def check(x0, noise, t):
        with jax.enable_x64(True):
            x0, noise = jnp.asarray(x0), jnp.asarray(noise)
            level, targets, predictions, again = round_trip(schedule, x0, noise, t)
            # A view divides by alpha or sigma, the smallest of which is 1e-3 here, against x of at most 800.
            smallest = min(1.0, float(level.alpha), float(level.sigma))
            for prediction in predictions.values():
                np.testing.assert_allclose(prediction.x0, x0, atol=1e-11 / smallest)
                np.testing.assert_allclose(prediction.noise, noise, atol=1e-11 / smallest)
            for name, target in targets.items():
                np.testing.assert_allclose(again[name], target, rtol=1e-9, atol=1e-10 / smallest)

    check()


def test_targets_are_their_definitions():
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 4))
    with jax.enable_x64(True):
        truth, level = Prediction(jnp.asarray(x0), jnp.asarray(noise)), Level(0.3, 0.8, 0.6)
        np.testing.assert_array_equal(x0_target(truth, level), x0)
        np.testing.assert_array_equal(noise_target(truth, level), noise)
        np.testing.assert_allclose(score_target(truth, level), -noise / 0.6, rtol=1e-15)
        np.testing.assert_allclose(v_target(truth, level), 0.8 * noise - 0.6 * x0, rtol=1e-14)
        # On the straight path the velocity is noise - x0 at every time.
        np.testing.assert_allclose(velocity_target(RectifiedFlow())(truth, level), noise - x0, rtol=1e-14)


def test_v_follows_salimans_and_ho_where_the_variance_is_preserved():
    rng = np.random.default_rng(1)
    x, v = (jnp.asarray(row, jnp.float32) for row in rng.standard_normal((2, 5)))
    prediction = from_v(x, Level(0.3, 0.8, 0.6), v)
    np.testing.assert_allclose(prediction.x0, 0.8 * x - 0.6 * v, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prediction.noise, 0.6 * x + 0.8 * v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_velocity_is_the_slope_of_the_path(schedule, time):
    rng = np.random.default_rng(2)
    x0, noise = rng.standard_normal((2, 3))
    path = lambda t: schedule.alpha(t) * x0 + schedule.sigma(t) * noise  # noqa: E731
    step = 1e-4
    # Central differences of fourth order: h^4 / 30 of the fifth derivative, and 1e-16 / h of rounding of x <= 200.
    slope = (8 * (path(time + step) - path(time - step)) - path(time + 2 * step) + path(time - 2 * step)) / (12 * step)
    with jax.enable_x64(True):
        truth = Prediction(jnp.asarray(x0), jnp.asarray(noise))
        velocity = velocity_target(schedule)(truth, level_at(schedule, jnp.asarray(time)))
        tangent = jax.jvp(lambda t: corrupt(*truth, level_at(schedule, t)), (time,), (1.0,))[1]
    np.testing.assert_allclose(velocity, slope, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(velocity, tangent, rtol=1e-14)


def test_views_that_are_defined_at_the_ends_stay_finite_there():
    rng = np.random.default_rng(3)
    x, output = (jnp.asarray(row, jnp.float32) for row in rng.standard_normal((2, 5)))
    clean, pure = Level(0.0, 1.0, 0.0), Level(1.0, 0.0, 1.0)
    np.testing.assert_array_equal(from_noise(x, clean, output), (x, output))
    np.testing.assert_array_equal(from_x0(x, pure, output), (output, x))
    np.testing.assert_array_equal(from_v(x, clean, output), (x, output))
    np.testing.assert_array_equal(from_v(x, pure, output), (-output, x))
    np.testing.assert_array_equal(from_velocity(x, pure, output, RectifiedFlow()), (x - output, x))
    np.testing.assert_array_equal(from_velocity(x, clean, output, RectifiedFlow()), (x, x + output))


def network(x, c_noise):
    return jnp.sin(3.0 * x) + c_noise


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edm_preconditioning_is_that_of_karras(alpha, sigma):
    x = np.random.default_rng(4).standard_normal(6) * np.hypot(alpha, sigma)
    data_std = 0.75
    # D(y; s) = c_skip y + c_out F(c_in y, c_noise), in y = x / alpha at noise s = sigma / alpha.
    y, s = x / alpha, sigma / alpha
    c_skip = data_std**2 / (s**2 + data_std**2)
    c_out = s * data_std / np.sqrt(s**2 + data_std**2)
    c_in = 1 / np.sqrt(s**2 + data_std**2)
    expected = c_skip * y + c_out * (np.sin(3 * c_in * y) + np.log(s) / 4)
    with jax.enable_x64(True):
        prediction = edm_preconditioned(network, jnp.asarray(x), Level(0.5, alpha, sigma), data_std)
    np.testing.assert_allclose(prediction.x0, expected, rtol=1e-12)
    # The form as a quotient loses 1e-16 * x / sigma.
    np.testing.assert_allclose(prediction.noise, (x - alpha * expected) / sigma, rtol=1e-12, atol=1e-12)


def test_edm_noise_keeps_float32_precision_at_the_smallest_sigma():
    x, level = np.random.default_rng(5).standard_normal(6).astype(np.float32), Level(0.0, 1.0, 1e-5)
    single = edm_preconditioned(network, jnp.asarray(x), level, 0.75)
    with jax.enable_x64(True):
        double = edm_preconditioned(network, jnp.asarray(x, jnp.float64), level, 0.75)
    # (x - x0) / sigma would be off by 6e-8 / 1e-5.
    np.testing.assert_allclose(single.noise, double.noise, rtol=1e-5)


def test_edm_prediction_and_its_gradient_are_finite_without_noise():
    @jax.jit
    def predict(x, sigma):
        return edm_preconditioned(network, x, Level(sigma, 1.0, sigma), 0.75)

    x, sigma = jnp.array([-2.0, 0.5]), jnp.float32(0.0)
    prediction = predict(x, sigma)
    np.testing.assert_allclose(prediction.x0, x, rtol=1e-6)
    assert jnp.isfinite(prediction.noise).all()
    for gradient in jax.jacrev(predict, argnums=(0, 1))(x, sigma):
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_float32_in_gives_float32_out_where_float64_is_allowed():
    with jax.enable_x64(True):
        x, level = jnp.ones(3, jnp.float32), Level(*(jnp.float32(value) for value in (0.3, 0.8, 0.6)))
        predictions = [read(x, level, 2 * x) for read, _ in PAIRS.values()]
        predictions += [from_velocity(x, level, 2 * x, Cosine()), edm_preconditioned(network, x, level, 0.75)]
    assert {leaf.dtype for leaf in jax.tree.leaves(predictions)} == {jnp.dtype(jnp.float32)}
