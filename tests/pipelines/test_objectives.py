import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import Level, Prediction, velocity_target
from jaxgen.diffusion.schedules import RectifiedFlow
from jaxgen.pipelines import EDMObjective, FlowObjective

EDM = EDMObjective(data_std=0.75, log_sigma_mean=-0.5, log_sigma_std=1.4, sigma_max=20.0)
FLOW = FlowObjective(logit_mean=0.3, logit_std=0.8)


def levels(objective, count=4000):
    return jax.vmap(objective.draw_level)(jax.random.split(jax.random.key(0), count))


def test_edm_levels_are_log_normal_below_the_largest_sigma():
    sigma = np.asarray(levels(EDM).sigma)
    inside = sigma < EDM.sigma_max
    # ln 20 lies 2.5 standard deviations above the mean: cutting there moves neither moment by a standard error.
    logs = np.log(sigma)
    assert sigma.max() == EDM.sigma_max
    assert inside.mean() > 0.98
    np.testing.assert_allclose(logs.mean(), -0.5, atol=4 * 1.4 / np.sqrt(4000))
    np.testing.assert_allclose(logs.std(), 1.4, atol=4 * 1.4 / np.sqrt(2 * 4000))


def test_flow_levels_are_logit_normal_on_the_straight_path():
    drawn = levels(FLOW)
    time = np.asarray(drawn.time, np.float64)
    logits = np.log(time / (1 - time))
    np.testing.assert_allclose(logits.mean(), 0.3, atol=4 * 0.8 / np.sqrt(4000))
    np.testing.assert_allclose(logits.std(), 0.8, atol=4 * 0.8 / np.sqrt(2 * 4000))
    np.testing.assert_allclose(drawn.alpha, 1 - drawn.time, rtol=1e-6)
    np.testing.assert_allclose(drawn.sigma, drawn.time, rtol=1e-6)


@pytest.mark.parametrize("objective", [EDM, FLOW])
def test_the_truth_has_no_loss_and_an_error_of_x0_has_the_loss_of_its_target(objective):
    key, x0 = jax.random.key(3), jnp.asarray([0.3, -0.7, 1.1])
    level = objective.draw_level(jax.random.key(1))
    noise = jax.random.normal(key, x0.shape)

    def predict(offset):
        # x is fixed, so an x0 that is off by delta comes with a noise that is off by -alpha delta / sigma.
        return lambda x, level: Prediction(x0 + offset, noise - level.alpha * offset / level.sigma)

    assert float(objective.loss(predict(0.0), key, x0, level)) == pytest.approx(0.0, abs=1e-10)
    loss = float(objective.loss(predict(0.1), key, x0, level))
    sigma, alpha = float(level.sigma), float(level.alpha)
    expected = {
        # Karras et al. 2022, section 5: weight (sigma^2 + d^2) / (sigma d)^2.
        EDM: 0.01 * (sigma**2 + 0.75**2) / (sigma * 0.75) ** 2,
        # d/dt x = noise - x0: off by -(alpha / sigma + 1) delta = -delta / t.
        FLOW: 0.01 * (alpha / sigma + 1) ** 2,
    }[objective]
    assert loss == pytest.approx(expected, rel=1e-4)


def test_flow_reads_the_network_as_a_velocity_and_tells_it_the_time():
    told = []

    def network(x, condition):
        told.append(condition)
        return 2.0 * x

    x, level = jnp.asarray([0.5, -1.0]), Level(jnp.asarray(0.25), jnp.asarray(0.75), jnp.asarray(0.25))
    predicted = FLOW.predict(network, x, level)
    assert float(told[0]) == 0.25
    np.testing.assert_allclose(velocity_target(RectifiedFlow())(predicted, level), 2.0 * x, rtol=1e-6)
    np.testing.assert_allclose(0.75 * predicted.x0 + 0.25 * predicted.noise, x, rtol=1e-6)


def test_edm_tells_the_network_a_quarter_of_the_log_of_sigma():
    told = []

    def network(x, condition):
        told.append((x, condition))
        return jnp.zeros_like(x)

    x, level = jnp.asarray([0.5, -1.0]), Level(jnp.asarray(0.1), jnp.asarray(1.0), jnp.asarray(2.0))
    predicted = EDM.predict(network, x, level)
    np.testing.assert_allclose(told[0][1], np.log(2.0) / 4, rtol=1e-6)
    np.testing.assert_allclose(told[0][0], x / np.sqrt(2.0**2 + 0.75**2), rtol=1e-6)
    np.testing.assert_allclose(predicted.x0, x * 0.75**2 / (2.0**2 + 0.75**2), rtol=1e-6)


def test_grids_fall_from_noise_to_data():
    edm, flow = EDM.grid(10), FLOW.grid(4)
    np.testing.assert_allclose(edm.sigma[[0, 9, 10]], [20.0, 0.002, 0.0], rtol=1e-12)
    np.testing.assert_allclose(flow.time, [1.0, 0.75, 0.5, 0.25, 0.0])


def test_equal_objectives_are_one_key_of_the_compilation_cache():
    assert hash(FlowObjective()) == hash(FlowObjective())
    assert EDMObjective() == EDMObjective()
    assert EDMObjective() != EDMObjective(data_std=0.6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: EDMObjective(data_std=0.0), "data_std must be positive and finite, got 0.0"),
        (lambda: EDMObjective(log_sigma_std=float("inf")), "log_sigma_std must be positive and finite, got inf"),
        (
            lambda: EDMObjective(sigma_min=2.0, sigma_max=1.0),
            "sigmas must satisfy 0 < sigma_min < sigma_max, got 2.0 and 1.0",
        ),
        (lambda: FlowObjective(logit_std=0.0), r"logit\(t\) needs a finite mean and a positive std: 0.0, 0.0"),
    ],
)
def test_impossible_objectives_are_refused(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make()
