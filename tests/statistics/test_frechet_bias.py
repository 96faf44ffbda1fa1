import jax
import numpy as np
import pytest
import scipy.linalg

from jaxgen.statistics.feature_moments import Features, moments_of_features
from jaxgen.statistics.frechet import unbiased_frechet_distance
from jaxgen.statistics.frechet_bias import fd_debiased, fd_difference, fd_infinity, fd_jackknife, gaussian_bias
from jaxgen.statistics.frechet_host import Factored, factored_distance, sample_frechet_distance


def drawn_moments(rng, root, count):
    """Draw the moments of `count` samples of N(0, root root^T) by Bartlett's decomposition, without the samples."""
    dim = len(root)
    wishart = np.tril(rng.standard_normal((dim, dim)), -1) + np.diag(np.sqrt(rng.chisquare(count - 1 - np.arange(dim))))
    return Factored(root @ rng.standard_normal(dim) / np.sqrt(count), root @ wishart / np.sqrt(count - 1))


def test_bias_of_the_identity_is_counted_by_dimension():
    for dim in (1, 2, 64):
        expected = (1 / 300 + 1 / 700) * (dim + dim * (dim + 1) / 4)
        np.testing.assert_allclose(gaussian_bias(np.eye(dim), 300, 700), expected, rtol=1e-13)
    np.testing.assert_allclose(gaussian_bias(np.eye(64), 1, 1), 2208, rtol=1e-13)


def test_bias_of_one_dimension_is_that_of_the_mean_and_the_standard_deviation():
    # |m|^2 has variance v / n; a standard deviation has variance v / (2 n).
    np.testing.assert_allclose(gaussian_bias(np.array([[3.0]]), 10, 20), (1 / 10 + 1 / 20) * 3 * 1.5, rtol=1e-14)
    unequal = gaussian_bias(np.array([[3.0]]), 10, 20, np.array([[5.0]]))
    np.testing.assert_allclose(unequal, 3 / 10 + 5 / 20 + (1 / 10 + 1 / 20) * np.sqrt(15) / 2, rtol=1e-14)


def test_bias_of_singular_covariances_is_that_of_their_support():
    factor = np.random.default_rng(0).standard_normal((3, 3))
    covariance = factor @ factor.T
    padded = np.zeros((7, 7))
    padded[:3, :3] = covariance
    np.testing.assert_allclose(gaussian_bias(padded, 30, 40), gaussian_bias(covariance, 30, 40), rtol=1e-9)
    assert gaussian_bias(np.zeros((2, 2)), 30, 40) == 0


def test_bias_of_the_identity_in_64_dimensions_by_simulation():
    rng, count = np.random.default_rng(0), 20_000  # dim / count = 0.003
    scaled = [count * factored_distance(*(drawn_moments(rng, np.eye(64), count) for _ in range(2))) for _ in range(100)]
    error = np.std(scaled, ddof=1) / 10
    assert error < 8
    assert abs(np.mean(scaled) - 2208) < 3 * error


def test_bias_of_a_law_with_a_steep_spectrum_by_simulation():
    rng, count = np.random.default_rng(1), 20_000
    root = rng.standard_normal((12, 12)) * np.exp(-0.3 * np.arange(12))[None]
    scaled = [
        count * factored_distance(drawn_moments(rng, root, count), drawn_moments(rng, root, count // 2))
        for _ in range(1000)
    ]
    error = np.std(scaled, ddof=1) / np.sqrt(1000)
    expected = count * gaussian_bias(root @ root.T, count, count // 2)
    assert error < 0.02 * expected
    assert abs(np.mean(scaled) - expected) < 3 * error


def test_bias_between_two_laws_by_simulation():
    rng, count, dim = np.random.default_rng(2), 20_000, 6
    roots = rng.standard_normal((2, dim, dim)) * np.exp(-0.3 * np.arange(dim))[None, None]
    covariances = [root @ root.T for root in roots]
    zero = np.zeros(dim)
    truth = factored_distance(*(Factored(zero, root) for root in roots))

    def linear(own, other):
        # The derivative against the own covariance is I - T, with T the optimal map: it has mean 0 and is most of the
        # spread. T = C1^-1/2 (C1^1/2 C2 C1^1/2)^1/2 C1^-1/2.
        root = scipy.linalg.sqrtm(own).real
        return np.eye(dim) - np.linalg.inv(root) @ scipy.linalg.sqrtm(root @ other @ root).real @ np.linalg.inv(root)

    slopes = linear(*covariances), linear(*covariances[::-1])
    errors = []
    for _ in range(1000):
        laws = [drawn_moments(rng, root, n) for root, n in zip(roots, (count, count // 2), strict=True)]
        parts = zip(slopes, laws, covariances, strict=True)
        first_order = sum(np.sum(slope * (law.factor @ law.factor.T - own)) for slope, law, own in parts)
        errors.append(factored_distance(*laws) - truth - first_order)
    expected = gaussian_bias(covariances[0], count, count // 2, covariances[1])
    assert np.std(errors) / np.sqrt(1000) < 0.03 * expected
    assert abs(np.mean(errors) - expected) < 3 * np.std(errors) / np.sqrt(1000)
    assert gaussian_bias(covariances[0], count, count // 2) < 0.9 * expected  # that of one law would not do


def law(kind, dim, shift):
    """Return a sampler of two sets of features and the true distance of their moments."""
    scale = np.linspace(0.8, 1.5, dim) if shift else np.ones(dim)

    def draw(rng, count, other):
        noise = [
            rng.standard_exponential((n, dim)) - 1 if kind == "exponential" else rng.standard_normal((n, dim))
            for n in (count, other)
        ]
        return Features(noise[0], "mine"), Features(shift + scale * noise[1], "mine")

    return draw, np.sum((scale - 1) ** 2) + dim * shift**2


ESTIMATORS = {
    "debiased": lambda seed, *sets: fd_debiased(*sets, groups=10),
    "jackknife": lambda seed, *sets: fd_jackknife(*sets, groups=10),
    "infinity": lambda seed, *sets: fd_infinity(jax.random.key(seed), *sets, groups=10, windows=2, fractions=(0.5, 1)),
}


@pytest.mark.parametrize(
    ("estimator", "kind", "draws"),
    [("debiased", "gaussian", 150), ("jackknife", "exponential", 150), ("infinity", "exponential", 60)],
)
def test_estimates_are_unbiased_and_intervals_cover_between_different_laws(estimator, kind, draws):
    draw, truth = law(kind, 4, 0.2)
    found, covered = [], []
    for seed in range(draws):
        sets = draw(np.random.default_rng(seed), 300, 200)
        confidence = ESTIMATORS[estimator](seed, *sets)
        low, high = confidence.limits(0.9)
        found.append(confidence.estimate)
        covered.append(low <= truth <= high)
    assert abs(np.mean(found) - truth) < 3 * np.std(found) / np.sqrt(draws)
    assert abs(np.mean(covered) - 0.9) < 3 * np.sqrt(0.9 * 0.1 / draws)


@pytest.mark.parametrize("estimator", ["debiased", "jackknife"])
def test_intervals_between_equal_laws_cover_at_least_as_often_as_they_say(estimator):
    draw, _ = law("gaussian", 4, 0)
    found, covered = [], []
    for seed in range(150):
        confidence = ESTIMATORS[estimator](seed, *draw(np.random.default_rng(seed), 300, 200))
        low, high = confidence.limits(0.9)
        found.append(confidence.estimate)
        covered.append(low <= 0 <= high)
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(150)
    assert np.mean(covered) > 0.9  # a distance near 0 has no linear part, and the jackknife doubles the rest


def test_extrapolation_agrees_with_the_jackknife_on_one_data_set_and_depends_little_on_its_key():
    draw, truth = law("exponential", 5, 0.3)
    sets = draw(np.random.default_rng(0), 2000, 1500)
    whole = fd_jackknife(*sets)
    for seed in (0, 1):
        for weighted in (False, True):
            line = fd_infinity(jax.random.key(seed), *sets, groups=2, weighted=weighted)
            assert abs(line.estimate - whole.estimate) < 0.3 * whole.stderr
    assert abs(whole.estimate - truth) < 3 * whole.stderr


def test_extrapolation_is_the_intercept_of_the_line_in_one_over_size():
    draw, _ = law("gaussian", 3, 0.5)
    first, second = draw(np.random.default_rng(0), 80, 40)
    half, whole = (
        fd_infinity(jax.random.key(1), first, second, fractions=f, windows=1, groups=2).estimate
        for f in ((0.5, 1.0), (0.25, 1.0))
    )
    weighted = fd_infinity(
        jax.random.key(1), first, second, fractions=(0.25, 0.5, 1.0), windows=1, groups=2, weighted=True
    ).estimate
    rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.key(1))))
    first, second = (x._replace(values=rng.permutation(x.values)) for x in (first, second))

    def cut(fraction):
        parts = (Features(x.values[: round(fraction * len(x.values))], "mine") for x in (first, second))
        laws = [moments_of_features(part) for part in parts]
        root = scipy.linalg.sqrtm(laws[0].covariance @ laws[1].covariance).real
        shift = np.sum((laws[0].mean - laws[1].mean) ** 2)
        return shift + np.trace(laws[0].covariance + laws[1].covariance - 2 * root)

    np.testing.assert_allclose(half, 2 * cut(1) - cut(0.5), rtol=1e-9)
    np.testing.assert_allclose(whole, (4 * cut(1) - cut(0.25)) / 3, rtol=1e-9)
    # The normal equations with weights 1, 2, 4 at x = 4, 2, 1: sums 7, 12, 28, whose determinant is 52.
    values = np.array([cut(0.25), cut(0.5), cut(1)]) * np.array([1, 2, 4])
    expected = (28 * np.sum(values) - 12 * np.sum(values * np.array([4, 2, 1]))) / 52
    np.testing.assert_allclose(weighted, expected, rtol=1e-9)


def test_jackknife_agrees_with_the_compiled_one_to_the_second_order_of_the_bias():
    draw, _ = law("gaussian", 6, 0.3)
    first, second = draw(np.random.default_rng(0), 600, 403)
    with jax.enable_x64(True):
        separate = float(unbiased_frechet_distance(first.values, second.values, groups=20))
    both = fd_jackknife(first, second)
    plain = sample_frechet_distance(first.values, second.values)
    # Deleting both groups at once adds the product of their noises, of second order.
    np.testing.assert_allclose(both.estimate, separate, atol=0.06 * both.stderr)
    assert plain - both.estimate > 0.5 * both.stderr


def test_a_fixed_reference_is_not_deleted():
    draw, _ = law("gaussian", 4, 0.2)
    first, second = draw(np.random.default_rng(0), 300, 200)
    free, fixed = fd_debiased(first, second), fd_debiased(first, moments_of_features(second))
    np.testing.assert_allclose(fixed.estimate, free.estimate, rtol=1e-10)
    assert fixed.stderr < 0.9 * free.stderr


def test_paired_differences_are_known_better_than_either_distance():
    rng = np.random.default_rng(0)
    noise, reference = rng.standard_normal((400, 5)), Features(rng.standard_normal((300, 5)), "mine")
    near, far = Features(noise + 0.10, "mine"), Features(1.05 * noise + 0.15, "mine")
    # The true difference of the distances: means 5 (0.15^2 - 0.1^2), scales 5 * 0.05^2.
    truth = 5 * (0.1**2 - 0.15**2) - 5 * 0.05**2
    paired = fd_difference(near, far, reference)
    low, high = paired.limits(0.99)
    assert low < truth < high
    assert paired.less(0.0) < 0.01
    assert paired.stderr < 0.5 * fd_jackknife(far, reference).stderr
    np.testing.assert_allclose(fd_difference(far, near, reference).estimate, -paired.estimate, rtol=1e-9)


def test_differences_cover_and_have_no_bias_for_unequal_counts():
    scale, found, covered = np.array([1.0, 1.2, 0.8]), [], []
    truth = np.sum((scale - 1) ** 2) - 3 * 0.3**2
    for seed in range(150):
        rng = np.random.default_rng(seed)
        sets = scale * rng.standard_normal((300, 3)), 0.3 + rng.standard_normal((120, 3)), rng.standard_normal((200, 3))
        confidence = fd_difference(*(Features(x, "mine") for x in sets), groups=10)
        low, high = confidence.limits(0.9)
        found.append(confidence.estimate)
        covered.append(low <= truth <= high)
    assert abs(np.mean(found) - truth) < 3 * np.std(found) / np.sqrt(150)
    assert abs(np.mean(covered) - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 150)


def features(count, dim=4, feature_id="mine"):
    return Features(np.random.default_rng(count).standard_normal((count, dim)), feature_id)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_bias(np.eye(2), 0, 5), "counts must be at least 1, got 0 and 5"),
        (lambda: fd_debiased(features(40), features(40, feature_id="other")), "got mine and other"),
        (lambda: fd_jackknife(features(40), features(4)), "sets of more than 4 samples, got 3 of 4 without one of 20"),
        (lambda: fd_jackknife(features(40), features(40), groups=1), "groups must be at least 2, got 1"),
        (lambda: fd_infinity(jax.random.key(0), features(40), features(40), fractions=(0.1, 1)), "got 3 of 40"),
        (lambda: fd_infinity(jax.random.key(0), features(40), features(40), fractions=(1, 1)), "two different numbers"),
        (lambda: fd_infinity(jax.random.key(0), features(40), features(40), fractions=(0, 1)), r"in \(0, 1\]"),
        (lambda: fd_infinity(jax.random.key(0), features(40), features(40), windows=0), "windows must be at least 1"),
        (lambda: fd_difference(features(40), features(40, 3), features(40)), "must share one dimension, got 4 and 3"),
    ],
)
def test_what_has_no_estimate_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
