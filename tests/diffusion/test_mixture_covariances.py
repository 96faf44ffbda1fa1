"""Mixtures with full, diagonal and low-rank covariances say the same wherever they are the same law."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.diffusion import (
    Level,
    condition,
    diagonal_mixture,
    draw_from,
    gaussian_mixture,
    guide,
    log_density,
    low_rank_mixture,
    mean_and_covariance,
    powered_log_density,
    predict_exactly,
    responsibilities,
    score,
)

D, R = 4, 2
LEVELS = [(1.0, 0.0), (1.0, 0.5), (1.0, 80.0), (0.8, 0.6), (0.02, 1.0), (0.0, 1.0)]
RNG = np.random.default_rng(0)
WEIGHTS, LABELS = np.array([0.2, 0.3, 0.5]), [3, 7, 3]
MEANS = RNG.standard_normal((3, D))
FACTORS = RNG.standard_normal((3, D, R))
FLOORS = np.array([0.1, 0.5, 0.02])
VARIANCES = np.exp(RNG.standard_normal((3, D)))
# One component has both factors along one direction: they span less than they count.
FACTORS[1, :, 1] = 2.0 * FACTORS[1, :, 0]


def dense(kind):
    """The covariances of each kind of mixture."""
    if kind == "diagonal":
        return np.array([np.diag(row) for row in VARIANCES])
    return FACTORS @ FACTORS.swapaxes(1, 2) + FLOORS[:, None, None] * np.eye(D)


def built(kind):
    if kind == "diagonal":
        return diagonal_mixture(WEIGHTS, MEANS, VARIANCES, LABELS)
    return low_rank_mixture(WEIGHTS, MEANS, FACTORS, FLOORS, LABELS)


@jax.jit
def everything(mixture, x, level):
    return {
        "log_density": log_density(mixture, x, level),
        "gradient": jax.grad(log_density, argnums=1)(mixture, x, level),
        "score": score(mixture, x, level),
        "responsibilities": responsibilities(mixture, x, level),
        "prediction": predict_exactly(mixture, x, level),
        "moments": mean_and_covariance(mixture),
    }


KINDS = ("diagonal", "low-rank")


@pytest.fixture(scope="module")
def measured():
    """Both forms of each law, whole and of class 3, at four points of every level, in float64."""
    program = jax.jit(jax.vmap(everything, in_axes=(None, 0, 0)))
    results = {}
    levels = Level(*(np.repeat(column, 4) for column in (np.zeros(6), *np.array(LEVELS).T)))
    xs = np.hypot(1.5 * levels.alpha, levels.sigma)[:, None] * RNG.standard_normal((24, D))
    with jax.enable_x64(True):
        for kind in KINDS:
            laws = {"own": built(kind), "full": gaussian_mixture(WEIGHTS, MEANS, dense(kind), LABELS)}
            for form, law in laws.items():
                for label, mixture in ((None, law), (3, condition(law, 3))):
                    outcome = jax.tree.map(np.asarray, program(mixture, xs, levels))
                    results[kind, form, label] = outcome
    return xs, levels, results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [None, 3])
def test_densities_scores_and_predictions_are_those_of_the_dense_covariances(measured, kind, label):
    xs, levels, results = measured
    outcome = results[kind, "own", label]
    weights = WEIGHTS if label is None else np.array([0.2, 0.0, 0.5]) / 0.7
    covariances = dense(kind)
    for n, (x, alpha, sigma) in enumerate(zip(xs, levels.alpha, levels.sigma, strict=True)):
        noisy = alpha**2 * covariances + sigma**2 * np.eye(D)
        joint = weights * [stats.multivariate_normal(alpha * m, c).pdf(x) for m, c in zip(MEANS, noisy, strict=True)]
        offsets = [np.linalg.solve(c, x - alpha * m) for m, c in zip(MEANS, noisy, strict=True)]
        posterior = joint / joint.sum()
        means = [m + alpha * c @ o for m, c, o in zip(MEANS, covariances, offsets, strict=True)]
        tight = {"rtol": 1e-9, "atol": 1e-10}
        np.testing.assert_allclose(outcome["log_density"][n], np.log(joint.sum()), **tight)
        np.testing.assert_allclose(outcome["responsibilities"][n], posterior, **tight)
        np.testing.assert_allclose(outcome["score"][n], -posterior @ np.array(offsets), **tight)
        np.testing.assert_allclose(outcome["gradient"][n], outcome["score"][n], **tight)
        np.testing.assert_allclose(outcome["prediction"].x0[n], posterior @ np.array(means), **tight)
        np.testing.assert_allclose(outcome["prediction"].noise[n], -sigma * outcome["score"][n], **tight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [None, 3])
def test_forms_of_one_law_agree(measured, kind, label):
    own, full = (measured[2][kind, form, label] for form in ("own", "full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11), own, full)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_total_variance(measured, kind):
    for label, weights in ((None, WEIGHTS), (3, np.array([0.2, 0.0, 0.5]) / 0.7)):
        for form in ("own", "full"):
            mean, covariance = (leaf[0] for leaf in measured[2][kind, form, label]["moments"])
            expected = weights @ MEANS
            second = np.einsum("k,kij->ij", weights, dense(kind) + MEANS[:, :, None] * MEANS[:, None, :])
            np.testing.assert_allclose(mean, expected, rtol=1e-12)
            np.testing.assert_allclose(covariance, second - np.outer(expected, expected), rtol=1e-11, atol=1e-13)


def test_factors_of_full_rank_and_equal_variances_are_each_other():
    x, level = np.array([0.3, -0.2, 0.9, 1.1]), Level(0.0, 0.8, 0.6)
    with jax.enable_x64(True):
        root = np.linalg.cholesky(dense("low-rank") - 0.01 * np.eye(D))
        same = [
            low_rank_mixture(WEIGHTS, MEANS, root, [0.01] * 3),
            gaussian_mixture(WEIGHTS, MEANS, dense("low-rank")),
        ]
        round_ones = [
            low_rank_mixture(WEIGHTS, MEANS, np.zeros((3, D, 1)), FLOORS),
            diagonal_mixture(WEIGHTS, MEANS, np.tile(FLOORS[:, None], D)),
        ]
        for first, second in (same, round_ones):
            left, right = (everything(law, x, level) for law in (first, second))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_moments_of_the_law(kind):
    count, law = 20_000, built(kind)
    keys = jax.random.split(jax.random.key(1), count)
    x = np.asarray(jax.jit(jax.vmap(draw_from, in_axes=(0, None)))(keys, law), np.float64)
    mean = WEIGHTS @ MEANS
    second = np.einsum("k,kij->ij", WEIGHTS, dense(kind) + MEANS[:, :, None] * MEANS[:, None, :])
    products = x[:, :, None] * x[:, None, :]
    # Four standard errors, of the mean and of each second moment.
    assert (np.abs(x.mean(0) - mean) < 4 * x.std(0) / np.sqrt(count)).all()
    assert (np.abs(products.mean(0) - second) < 4 * products.std(0) / np.sqrt(count)).all()


@pytest.mark.parametrize("rank", [None, 3])
def test_no_array_of_the_size_of_a_covariance_is_made(rank):
    size, rows = 1000, np.zeros((2, 1000))
    if rank is None:
        law = diagonal_mixture([0.5, 0.5], rows, rows + 1.0)
    else:
        law = low_rank_mixture([0.5, 0.5], rows, RNG.standard_normal((2, size, rank)), [1.0, 1.0])

    def program(law, key, x, level):
        prediction = predict_exactly(law, x, level)
        gradient = jax.grad(log_density, argnums=1)(law, x, level)
        return prediction, gradient, score(law, x, level), draw_from(key, condition(law, 0))

    text = str(jax.make_jaxpr(program)(law, jax.random.key(0), jnp.zeros(size), Level(0.0, 0.8, 0.6)))
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) == 2 * size * (rank or 1)


def test_float32_survives_factors_much_larger_than_what_they_leave():
    # As of natural images: 60 along the factor, .01 across it; x far along it. The oracle is float64.
    x, level = np.array([40.0, 30.0, 0.0, 0.005]), Level(0.0, 1.0, 0.002)
    factors = np.array([[[48.0], [36.0], [0.0], [0.0]], [[0.0], [0.0], [60.0], [0.0]]])
    arguments = ([0.5, 0.5], np.zeros((2, 4)), factors, [1e-4, 1e-4])
    single = everything(low_rank_mixture(*arguments), x.astype(np.float32), level)
    with jax.enable_x64(True):
        double = everything(low_rank_mixture(*arguments), x, level)
    # x is rounded by 4e-6 across the factor, where the standard deviation is .01.
    np.testing.assert_allclose(single["log_density"], double["log_density"], atol=1e-3)
    np.testing.assert_allclose(single["score"], double["score"], atol=0.1)  # 4e-6 / 1e-4, as 0.005 / 1e-4 = 50 is
    np.testing.assert_allclose(single["prediction"].x0, double["prediction"].x0, atol=2e-5)
    assert single["responsibilities"][0] == 1.0


def test_stacked_mixtures_may_be_mapped_over():
    laws = [low_rank_mixture(WEIGHTS, shift + MEANS, FACTORS, FLOORS, LABELS) for shift in (0.0, 1.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *laws)
    x, of_one = jnp.ones(D), jax.jit(lambda law, x: score(law, x, Level(0.0, 0.8, 0.6)))
    together = jax.vmap(of_one, in_axes=(0, None))(stacked, x)
    np.testing.assert_allclose(together, [of_one(law, x) for law in laws], rtol=1e-4, atol=1e-5)


def test_powered_density_has_the_guided_score_as_its_gradient():
    # Conditional and unconditional share components, with other weights.
    x, level, scale = np.array([0.3, -0.2, 0.9, 1.1]), Level(0.0, 0.8, 0.6), 2.5
    with jax.enable_x64(True):
        laws = [low_rank_mixture(weights, MEANS, FACTORS, FLOORS) for weights in ([0.05, 0.15, 0.8], WEIGHTS)]

        @jax.jit
        def program(laws, x):
            predict = guide(*(lambda x, level, law=law: predict_exactly(law, x, level) for law in laws), scale)
            slopes = jax.value_and_grad(powered_log_density, argnums=3)(*laws, scale, x, level)
            return *slopes, predict(x, level).noise

        value, slope, noise = map(np.asarray, program(laws, x))
    np.testing.assert_allclose(slope, -noise / 0.6, rtol=1e-11)
    densities = []
    for weights in ([0.05, 0.15, 0.8], WEIGHTS):
        noisy = 0.64 * dense("low-rank") + 0.36 * np.eye(D)
        parts = [stats.multivariate_normal(0.8 * m, c).pdf(x) for m, c in zip(MEANS, noisy, strict=True)]
        densities.append(np.log(np.dot(weights, parts)))
    np.testing.assert_allclose(value, 2.5 * densities[0] - 1.5 * densities[1], rtol=1e-11)


def test_powered_density_integrates_to_the_powered_law():
    # Bradley & Nakkiran (2024): N(0, 1)^scale N(0, 2)^(1 - scale) has the variance 2 / (scale + 1).
    line = np.linspace(-12.0, 12.0, 2001)
    with jax.enable_x64(True):
        laws = [diagonal_mixture([1.0], [[0.0]], [[variance]]) for variance in (1.0, 2.0)]
        of_x = jax.vmap(lambda scale, x: powered_log_density(*laws, scale, x[None], Level(0.0, 1.0, 0.0)), (None, 0))
        logs = np.asarray(jax.jit(jax.vmap(of_x, (0, None)))(np.array([1.0, 1.5, 2.0, 3.0, 7.5]), line))
    density = np.exp(logs)
    variances = (density @ line**2) / density.sum(1)
    np.testing.assert_allclose(variances, [1.0, 0.8, 2 / 3, 0.5, 0.23529411764705882], rtol=1e-12)


SHAPES = "a mixture needs weights [K], means [K, D] and"


@pytest.mark.parametrize(
    ("build", "arguments", "sentence"),
    [
        (diagonal_mixture, ([1.0], [[0.0]], [[0.0]]), "variances must be positive and finite, got a smallest one of 0"),
        (diagonal_mixture, ([1.0], [[0.0]], [[-1]]), "variances must be positive and finite, got a smallest one of -1"),
        (diagonal_mixture, ([1.0], [[0.0]], [[np.nan]]), "variances [K, D] must be finite"),
        (diagonal_mixture, ([1.0], [[0.0]], [1.0]), f"{SHAPES} variances [K, D], got shapes (1,), (1, 1) and (1,)"),
        (diagonal_mixture, ([0.9], [[0.0]], [[1.0]]), "weights must be non-negative and sum to 1, got [0.9]"),
        (diagonal_mixture, ([], [], []), f"{SHAPES} variances [K, D], got shapes (0,), (0,) and (0,)"),
        (
            diagonal_mixture,
            (np.zeros(0), np.zeros((0, 2)), np.zeros((0, 2))),
            f"{SHAPES} variances [K, D], got shapes (0,), (0, 2) and (0, 2)",
        ),
        (
            low_rank_mixture,
            ([1.0], [[0.0]], [[[1.0]]], [0.0]),
            "variances must be positive and finite, got a smallest one of 0",
        ),
        (
            low_rank_mixture,
            ([1.0], [[0.0]], [[[1.0]]], [np.inf]),
            "variances must be positive and finite, got a smallest one of inf",
        ),
        (low_rank_mixture, ([1.0], [[0.0]], [[[np.nan]]], [1.0]), "factors [K, D, R] must be finite"),
        (
            low_rank_mixture,
            ([1.0], [[0.0]], [[[1.0, 1.0]]], [1.0]),
            "factors must be of a rank between 1 and 1, got shape (1, 1, 2)",
        ),
        (
            low_rank_mixture,
            ([1.0], [[0.0]], np.zeros((1, 1, 0)), [1.0]),
            "factors must be of a rank between 1 and 1, got shape (1, 1, 0)",
        ),
        (
            low_rank_mixture,
            ([1.0], [[0.0]], [[1.0]], [1.0]),
            f"{SHAPES} factors [K, D, R], got shapes (1,), (1, 1) and (1, 1)",
        ),
        (
            low_rank_mixture,
            ([1.0], [[0.0]], [[[1.0]]], [[1.0]]),
            "variances need one entry for each of the 1 components, got shape (1, 1)",
        ),
        (gaussian_mixture, ([1.0], [[0.0]], [[[np.nan]]]), "covariances [K, D, D] must be finite"),
        (
            gaussian_mixture,
            ([1.0], np.zeros((1, 2)), 1e-10 * np.array([[[1.0, 0.5], [0.0, 1.0]]])),
            "covariances must be symmetric and positive definite, got a smallest eigenvalue of 1e-10",
        ),
        (diagonal_mixture, ([1.0], [[0.0]], [[1.0]], [0.5]), "labels must be 32-bit integers, got [0.5]"),
        (diagonal_mixture, ([1.0], [[0.0]], [[1.0]], [2**40]), f"labels must be 32-bit integers, got [{2**40}]"),
        (
            diagonal_mixture,
            ([1.0], [[0.0]], [[1.0]], [0, 1]),
            "labels need one entry for each of the 1 components, got shape (2,)",
        ),
    ],
)
def test_arguments_that_make_no_mixture_are_refused(build, arguments, sentence):
    with pytest.raises(ValueError) as caught:
        build(*arguments)
    assert str(caught.value) == sentence
