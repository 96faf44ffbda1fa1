import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

from jaxgen.diffusion import (
    EDM,
    Level,
    condition,
    draw_from,
    gaussian_mixture,
    log_density,
    predict_exactly,
    responsibilities,
    score,
    score_target,
    velocity_target,
)

LEVELS = [(1.0, 0.0), (1.0, 0.5), (1.0, 80.0), (0.8, 0.6), (0.02, 1.0), (0.0, 1.0)]
WEIGHTS = np.array([0.4, 0.6])
MEANS = np.array([[1.0, 0.0, -0.5], [-1.0, 2.0, 0.5]])
# In three dimensions the principal axes are no symmetric matrix, as those that eigh finds in the plane are.
ROOTS = np.array(
    [[[0.7, 0.2, 0.1], [0.0, 0.4, 0.3], [0.5, 0.0, 0.3]], [[0.4, 0.0, 0.2], [-0.3, 0.7, 0.0], [0.1, 0.2, 0.5]]]
)
COVARIANCES = ROOTS @ ROOTS.swapaxes(1, 2)


@pytest.fixture(scope="module")
def evaluate():
    """Everything about a mixture of two correlated Gaussians, or another of three dimensions, in float64."""
    with jax.enable_x64(True):
        ours = gaussian_mixture(WEIGHTS, MEANS, COVARIANCES)

    @jax.jit
    def everything(mixture, x, level):
        return {
            "log_density": log_density(mixture, x, level),
            "gradient": jax.grad(log_density, argnums=1)(mixture, x, level),
            "score": score(mixture, x, level),
            "responsibilities": responsibilities(mixture, x, level),
            "prediction": predict_exactly(mixture, x, level),
        }

    def evaluate(x, alpha, sigma, mixture=ours):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, everything(mixture, jnp.asarray(x), Level(0.5, alpha, sigma)))

    return evaluate


def some_points(alpha, sigma):
    spread = np.hypot(1.5 * alpha, sigma)
    return spread * np.random.default_rng(0).standard_normal((5, 3))


def test_values_of_the_reference_derivation(evaluate):
    # Eight digits, and the log-density in all of float64, from a derivation apart from this library.
    covariances = [[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.05], [-0.05, 0.6]]]
    with jax.enable_x64(True):
        mixture = gaussian_mixture([0.4, 0.6], [[1.0, 0.0], [-1.0, 2.0]], covariances)
    measured = evaluate([0.5, -0.3], 0.8, 0.6, mixture)
    np.testing.assert_allclose(measured["prediction"].x0, [0.74401234, -0.13932342], atol=5e-9)
    np.testing.assert_allclose(measured["score"], [0.26447187, 0.52372573], atol=5e-9)
    np.testing.assert_allclose(measured["log_density"], -2.3323146881371906, rtol=1e-14)
    np.testing.assert_allclose(measured["responsibilities"], [0.9685538, 0.0314462], atol=5e-8)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_log_density_is_that_of_scipy(evaluate, alpha, sigma):
    for x in some_points(alpha, sigma):
        joint = [
            weight * stats.multivariate_normal(alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(3)).pdf(x)
            for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
        ]
        measured = evaluate(x, alpha, sigma)
        np.testing.assert_allclose(measured["log_density"], np.log(sum(joint)), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(measured["responsibilities"], joint / sum(joint), rtol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_score_is_the_gradient_and_tweedie_ties_the_predictions(evaluate, alpha, sigma):
    for x in some_points(alpha, sigma):
        measured = evaluate(x, alpha, sigma)
        np.testing.assert_allclose(measured["score"], measured["gradient"], rtol=1e-10, atol=1e-14)
        prediction = measured["prediction"]
        np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.noise, x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(prediction.noise, -sigma * measured["score"], rtol=1e-12, atol=1e-14)


def test_predictions_at_both_ends_of_the_path(evaluate):
    x = [0.3, 0.7, -0.2]
    clean = evaluate(x, 1.0, 0.0)["prediction"]
    np.testing.assert_allclose(clean.x0, x, rtol=1e-13)
    np.testing.assert_array_equal(clean.noise, 0.0)
    pure = evaluate(x, 0.0, 1.0)["prediction"]
    np.testing.assert_allclose(pure.x0, WEIGHTS @ MEANS, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(pure.noise, x, rtol=1e-13)


# The integrals of a smooth function that vanishes at both ends: the rectangle rule converges exponentially.
LINE = np.linspace(-12.0, 12.0, 4001)
ON_LINE = (np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.7, 0.5]))


def line_density(sigma=0.0):
    """Density of the mixture on the line with noise added, at every point of LINE."""
    weights, means, stds = ON_LINE
    return stats.norm(means, np.hypot(stds, sigma)).pdf(LINE[:, None]) @ weights


@pytest.fixture(scope="module")
def on_line():
    weights, means, stds = ON_LINE
    with jax.enable_x64(True):
        mixture = gaussian_mixture(weights, means[:, None], stds[:, None, None] ** 2)
    predict = jax.jit(lambda mixture, x, level: predict_exactly(mixture, x[None], level))

    def evaluate(x, alpha, sigma, mixture=mixture):
        with jax.enable_x64(True):
            prediction = predict(mixture, jnp.asarray(x, float), Level(0.5, alpha, sigma))
            return float(prediction.x0[0]), float(prediction.noise[0])

    return evaluate


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.1), (1.0, 2.0), (0.8, 0.6), (0.3, 1.0)])
def test_predictions_are_the_integrals_of_bayes(on_line, alpha, sigma):
    for x in (-2.0, 0.1, 0.9):
        posterior = line_density() * stats.norm(alpha * LINE, sigma).pdf(x)
        posterior /= posterior.sum()
        x0, noise = on_line(x, alpha, sigma)
        np.testing.assert_allclose(x0, posterior @ LINE, rtol=1e-10)
        np.testing.assert_allclose(noise, posterior @ ((x - alpha * LINE) / sigma), rtol=1e-10, atol=1e-12)


def test_expected_reverse_step_in_each_view(on_line):
    # Step-by-Step Diffusion, claims 1 and 2: x_t = x_0 + N(0, q^2 t) and x_{t-dt} = x_t + N(0, q^2 dt) backwards, with
    # the signs of its section 5 corrected: E[x_{t-dt} - x_t | x_t] = -(dt sigma_t / t) E[noise | x_t].
    q, t, dt = 2.0, 0.5, 0.2
    for x in (-1.0, 0.4, 2.0):
        posterior = line_density(q * np.sqrt(t - dt)) * stats.norm(LINE, q * np.sqrt(dt)).pdf(x)
        step = (posterior / posterior.sum()) @ LINE - x
        sigma = q * np.sqrt(t)
        x0, noise = on_line(x, 1.0, sigma)
        np.testing.assert_allclose(step, dt / t * (x0 - x), rtol=1e-9)
        np.testing.assert_allclose(step, -dt * sigma / t * noise, rtol=1e-9)
        # Tweedie: the score is at t, whatever dt.
        np.testing.assert_allclose(step, q**2 * dt * -noise / sigma, rtol=1e-9)


def test_flow_along_the_straight_path_is_the_diffusion_flow_in_another_time():
    # Step-by-Step Diffusion, lemma 4, with its velocity corrected to E[x_0 - x_t | x_t] / t: N(0, 1), q = 5, from 3 at
    # t = 1; the linear flow at time s is the DDIM flow at s^2.
    with jax.enable_x64(True):
        law = gaussian_mixture([1.0], [[0.0]], [[[1.0]]])
        velocity = velocity_target(EDM(5.0))

        @jax.jit
        def slope(x, t):
            level = Level(t, jnp.ones_like(t), 5.0 * t)
            return velocity(predict_exactly(law, x, level), level), score_target(predict_exactly(law, x, level), level)

        # The diffusion flow has the slope -q^2 / 2 score at noise q sqrt(t), the linear one the velocity at noise q t.
        linear = solve_ivp(lambda t, x: slope(jnp.asarray(x), t)[0], (1.0, 0.3), [3.0], rtol=1e-10, atol=1e-12)
        drift = lambda t, x: -12.5 * slope(jnp.asarray(x), np.sqrt(t))[1]  # noqa: E731
        diffusion = solve_ivp(drift, (1.0, 0.09), [3.0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(linear.y[0, -1], 1.0606601717798214, rtol=1e-8)
    np.testing.assert_allclose(diffusion.y[0, -1], 1.0606601717798214, rtol=1e-8)


def test_float32_survives_narrow_components_far_away():
    # Two nearly point masses: the densities underflow, their logarithms do not.
    law = gaussian_mixture([0.5, 0.5], [[-10.0], [10.0]], [[[1e-6]], [[1e-6]]])
    x, level = jnp.array([9.0]), Level(0.0, 1.0, 0.002)
    assert jnp.isfinite(log_density(law, x, level))
    prediction = predict_exactly(law, x, level)
    # The posterior mean lies at the share 1e-6 / (1e-6 + 4e-6) of the way from the mean to x.
    np.testing.assert_allclose(prediction.x0, 10.0 - 0.2, rtol=1e-5)
    np.testing.assert_allclose(prediction.noise, (9.0 - 9.8) / 0.002, rtol=1e-4)


def test_conditioning_keeps_the_components_of_a_class(evaluate):
    with jax.enable_x64(True):
        whole = gaussian_mixture(
            [0.2, 0.3, 0.5], [[0.0, 0.0, 0.0], *MEANS], [np.eye(3), *COVARIANCES], labels=[3, 7, 3]
        )
        class_3 = gaussian_mixture([2 / 7, 5 / 7], [[0.0, 0.0, 0.0], MEANS[1]], [np.eye(3), COVARIANCES[1]])
        chosen = condition(whole, 3)
        traced = jax.jit(condition)(whole, 3)
    assert chosen.means.shape == whole.means.shape
    for alpha, sigma in LEVELS:
        for x in some_points(alpha, sigma)[:2]:
            expected = evaluate(x, alpha, sigma, class_3)
            for law in (chosen, traced):
                measured = evaluate(x, alpha, sigma, law)
                for name in ("log_density", "score", "gradient", "prediction"):
                    left, right = np.asarray(measured[name]), np.asarray(expected[name])
                    np.testing.assert_allclose(left, right, rtol=1e-11, atol=1e-12)
                assert measured["responsibilities"][1] == 0.0
    # The law of total probability: p(x) = sum over classes of p(class) p(x | class).
    with jax.enable_x64(True):
        laws = [(0.7, condition(whole, 3)), (0.3, condition(whole, 7)), (1.0, whole)]
    *parts, total = (share * np.exp(evaluate([0.2, 0.4, 0.1], 0.8, 0.6, law)["log_density"]) for share, law in laws)
    np.testing.assert_allclose(sum(parts), total, rtol=1e-13)


def test_draws_have_the_moments_and_labels_of_the_mixture():
    count = 40_000
    law = gaussian_mixture(WEIGHTS, MEANS, COVARIANCES, labels=[0, 1])
    draw = jax.jit(lambda law, keys: jax.vmap(draw_from, in_axes=(0, None))(keys, law))
    keys = jax.random.split(jax.random.key(0), count)
    for mixture, weights in ((law, WEIGHTS), (condition(law, 1), [0.0, 1.0])):
        x = np.asarray(draw(mixture, keys), np.float64)
        mean = weights @ MEANS
        second = np.einsum("k,kij->ij", weights, COVARIANCES + MEANS[:, :, None] * MEANS[:, None, :])
        products = x[:, :, None] * x[:, None, :]
        # Four standard errors, of the mean and of each second moment.
        assert (np.abs(x.mean(0) - mean) < 4 * x.std(0) / np.sqrt(count)).all()
        assert (np.abs(products.mean(0) - second) < 4 * products.std(0) / np.sqrt(count)).all()
    share = np.mean(np.asarray(draw(law, keys))[:, 1] > 1.0)
    tails = [stats.norm(mean[1], np.sqrt(cov[1, 1])).sf(1.0) for mean, cov in zip(MEANS, COVARIANCES, strict=True)]
    assert share == pytest.approx(WEIGHTS @ tails, abs=4 * 0.5 / np.sqrt(count))


def test_mixtures_follow_the_float_type_and_can_be_stacked():
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(gaussian_mixture([1.0], [[mean]], [[[variance]]]) for mean, variance in ((0.0, 1.0), (2.0, 4.0))),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(stacked)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    densities = jax.vmap(log_density, in_axes=(0, None, None))(stacked, jnp.array([1.0]), Level(0.0, 1.0, 1.0))
    expected = [stats.norm(0, np.sqrt(2)).logpdf(1), stats.norm(2, np.sqrt(5)).logpdf(1)]
    np.testing.assert_allclose(densities, expected, rtol=1e-6)
    with jax.enable_x64(True):
        assert gaussian_mixture([1.0], [[0.0]], [[[1.0]]]).means.dtype == jnp.float64


ONE = np.eye(1)[None]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ([0.5, 0.5], np.zeros(2), np.ones(2)),
            "a mixture needs weights [K], means [K, D] and covariances [K, D, D], got shapes (2,), (2,) and (2,)",
        ),
        (
            ([1.0], np.zeros((2, 1)), np.ones((1, 1))),
            "a mixture needs weights [K], means [K, D] and covariances [K, D, D], got shapes (1,), (2, 1) and (1, 1)",
        ),
        (([0.5, 0.6], [[0.0]] * 2, [np.eye(1)] * 2), "weights must be non-negative and sum to 1, got [0.5, 0.6]"),
        (([-0.5, 1.5], [[0.0]] * 2, [np.eye(1)] * 2), "weights must be non-negative and sum to 1, got [-0.5, 1.5]"),
        (([np.nan], [[0.0]], ONE), "weights must be non-negative and sum to 1, got [nan]"),
        (([1.0], [[np.inf]], ONE), "means must be finite, got [[inf]]"),
        (([1.0], [[0.0]], ONE, [0, 1]), "labels need one entry for each of the 1 components, got shape (2,)"),
        (
            ([1.0], [[0.0]], -ONE),
            "covariances must be symmetric and positive definite, got a smallest eigenvalue of -1",
        ),
        (
            ([1.0], [[0.0]], 0 * ONE),
            "covariances must be symmetric and positive definite, got a smallest eigenvalue of 0",
        ),
        (
            ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]),
            "covariances must be symmetric and positive definite, got a smallest eigenvalue of 1",
        ),
    ],
)
def test_arguments_that_make_no_mixture_are_refused(arguments, sentence):
    with pytest.raises(ValueError) as caught:
        gaussian_mixture(*arguments)
    assert str(caught.value) == sentence


def test_a_class_that_no_component_carries_is_refused_where_it_is_known():
    law = gaussian_mixture([0.5, 0.5], [[0.0], [1.0]], [np.eye(1)] * 2, labels=[4, 2])
    with pytest.raises(ValueError) as caught:
        condition(law, 3)
    assert str(caught.value) == "no component carries the label 3; the mixture has the labels [2, 4]"
    # A component without weight carries nothing.
    weightless = gaussian_mixture([0.0, 1.0], [[0.0], [1.0]], [np.eye(1)] * 2, labels=[4, 2])
    for label, empty in ((2, condition(law, 4)), (4, weightless)):
        with pytest.raises(ValueError, match=f"no component carries the label {label}; the mixture has the labels"):
            condition(empty, label)
