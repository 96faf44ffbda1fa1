"""The references of the claims, each from a second derivation."""

import math

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.stats import norm

from experiments.step_by_step import references


def log_density(x):
    weights, means, stds = references.KERNEL_MIXTURE
    return math.log(
        sum(
            w / s / math.sqrt(2 * math.pi) * math.exp(-0.5 * ((x - m) / s) ** 2)
            for w, m, s in zip(weights, means, stds, strict=True)
        )
    )


def test_curvature_is_the_second_difference_of_the_log_density():
    z, step = references.KERNEL_POINT, 1e-3
    second = (log_density(z + step) - 2 * log_density(z) + log_density(z - step)) / step**2
    assert references.mixture_curvature(z) == pytest.approx(second, rel=1e-4)  # step^2 F''''/12
    assert references.mixture_curvature(z) == pytest.approx(8.0414086, abs=1e-6)


@pytest.mark.parametrize("std", [0.1, 0.05])
def test_kernel_divergence_and_mean_error_follow_from_adaptive_quadrature(std):
    z, step = references.KERNEL_POINT, 1e-5
    edges = {"a": z - 12 * std, "b": z + 12 * std, "epsabs": 1e-13, "epsrel": 1e-10, "limit": 200, "points": [z]}
    weigh = lambda x: math.exp(log_density(x) - 0.5 * ((x - z) / std) ** 2)  # noqa: E731
    mass = quad(weigh, **edges)[0]
    mean = quad(lambda x: x * weigh(x), **edges)[0] / mass

    def log_ratio(x):
        gaussian = -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        return gaussian - math.log(weigh(x) / mass)

    kl = quad(lambda x: math.exp(-0.5 * ((x - mean) / std) ** 2) * log_ratio(x), **edges)[0]
    kl /= std * math.sqrt(2 * math.pi)
    assert kl == pytest.approx(references.KERNEL_KL[std], rel=1e-6)
    slope = (log_density(z + step) - log_density(z - step)) / (2 * step)
    assert abs(z + std**2 * slope - mean) == pytest.approx(references.KERNEL_MEAN_ERROR[std], rel=5e-4)  # 4 digits


def test_kl_of_paths_and_samples_follows_from_covariances():
    # The samples' variance by the recursion, the paths' KL as the difference of two log-determinants.
    for steps, path in references.PATH_KL.items():
        times = np.arange(steps, 0, -1) / steps
        noisy = 1.0 + 25.0 * times
        factors, posterior = 1.0 - 25.0 / steps / noisy, 25.0 / steps * (noisy - 25.0 / steps) / noisy
        variance = noisy[0]
        for factor in factors:
            variance = factor**2 * variance + 25.0 / steps
        assert 0.5 * (variance - 1 - math.log(variance)) == pytest.approx(references.MARGINAL_KL[steps], rel=3e-6)
        excess = 25.0 / steps / posterior
        assert 0.5 * np.sum(excess - 1 - np.log(excess)) == pytest.approx(path, rel=1e-6)
    assert references.gaussian_kl(2.0) == pytest.approx(0.5 * (1 - math.log(2)))


def test_target_ratio_is_that_of_the_conditional_variances_of_a_gaussian_vector():
    # (x0, x_{t-dt}, x_t) at t = .5, dt = .01 by the covariance matrix of three independent parts.
    parts = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    covariance = parts @ np.diag([1.0, 25 * 0.49, 25 * 0.01]) @ parts.T
    given = covariance[:2, :2] - np.outer(covariance[:2, 2], covariance[2, :2]) / covariance[2, 2]
    assert (0.5 / 0.01) ** 2 * given[1, 1] / given[0, 0] == pytest.approx(references.TARGET_RATIO, rel=1e-10)
    assert covariance[0, 2] / math.sqrt(covariance[2, 2]) == pytest.approx(1 / math.sqrt(13.5))


def test_correlation_of_start_and_end_is_that_of_the_forward_process():
    random = np.random.default_rng(0)
    x0 = random.normal(size=1_000_000)
    x1 = x0 + 5.0 * random.normal(size=1_000_000)
    assert pytest.approx(np.corrcoef(x0, x1)[0, 1], abs=4e-3) == references.FORGETTING  # 4 standard errors


def test_the_distance_of_variance_preserving_ddim_from_the_linear_flow():
    weights, means, stds = (np.array(of)[:, None] for of in references.KERNEL_MIXTURE)
    first = norm.ppf((np.arange(64) + 0.5) / 64)

    def follow(alpha, sigma, numbers):
        def slope(u, x):  # t = u^2, in which the noise rises linearly at first
            a, s, h = alpha(u), sigma(u), 1e-6
            spread = a**2 * stds**2 + s**2
            logs = np.log(weights) - 0.5 * (x - a * means) ** 2 / spread - 0.5 * np.log(spread)
            shares = np.exp(logs - logs.max(axis=0))
            shares /= shares.sum(axis=0)
            x0 = (shares * (means + a * stds**2 / spread * (x - a * means))).sum(axis=0)
            rates = ((of(u + h) - of(u - h)) / (2 * h) for of in (alpha, sigma))
            return next(rates) * x0 + next(rates) * (x - a * x0) / s

        return solve_ivp(slope, (1.0, 0.01), first, method="DOP853", t_eval=numbers, rtol=1e-8, atol=1e-8).y

    log_alpha = lambda u: -0.5 * (0.1 * u**2 + 9.95 * u**4)  # noqa: E731
    alpha, sigma = (lambda u: np.exp(log_alpha(u))), (lambda u: np.sqrt(-np.expm1(2 * log_alpha(u))))
    numbers = np.linspace(1.0, 0.01, 600)
    curved = follow(alpha, sigma, numbers)
    last = alpha(1.0), sigma(1.0)
    straight = follow(lambda u: 1 - u**2 + u**2 * last[0], lambda u: u**2 * last[1], numbers)
    nearest = np.abs(curved[:, :, None] - straight[:, None, :]).max(axis=0).min(axis=1)
    # Between 600 times the nearest slice is missed by 1e-3 at most.
    assert nearest.max() == pytest.approx(references.PRESERVING_DEVIATION, abs=1e-3)
