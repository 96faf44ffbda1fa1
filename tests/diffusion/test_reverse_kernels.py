"""How nearly Gaussian reverse steps are: quadrature of scipy, expansions, and closed forms on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxgen.diffusion import (
    ddpm_marginal_kl,
    ddpm_path_kl,
    diagonal_mixture,
    predict_exactly,
    previous_point,
    reverse_kernel_kl,
    reverse_log_density,
    reverse_mean,
    score,
    tutorial_ddpm_variance,
)
from jaxgen.diffusion.levels import Level

WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.49, 0.25])
Z = 0.4
# The first two derivatives of log p at z.
SLOPE, CURVATURE = 2.0934746404404, 8.0414086


def density(x):
    return np.sum(WEIGHTS * np.exp(-0.5 * (x - MEANS) ** 2 / VARIANCES) / np.sqrt(2 * np.pi * VARIANCES))


def law():
    return diagonal_mixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None])


@pytest.fixture(scope="module")
def divergences():
    """KL at the exact mean, at z + std^2 grad log p(z), and at z, for some std: rows of floats."""
    with jax.enable_x64(True):

        @jax.jit
        def all_three(z, std):
            clean = Level(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))
            means = reverse_mean(law(), z, std), z + std**2 * score(law(), z, clean), z
            kls = [reverse_kernel_kl(law(), z, std, mean) for mean in means]
            return jnp.stack(kls), jnp.stack(means)[:, 0]

        stds = (0.1, 0.05, 0.025, 0.01)
        return {std: [np.asarray(part) for part in all_three(jnp.array([Z]), std)] for std in stds}


def test_the_divergences_have_the_known_values(divergences):
    assert divergences[0.1][0][0] == pytest.approx(1.2887177325e-3, rel=1e-9)
    assert divergences[0.1][0][1] == pytest.approx(1.2900055859e-3, rel=1e-9)
    assert divergences[0.05][0][0] == pytest.approx(9.533830e-5, rel=1e-6)
    assert divergences[0.1][0][2] == pytest.approx(2.128e-2, rel=1e-3)


def test_the_divergence_is_of_fourth_order_with_the_coefficient_of_lemma_1(divergences):
    rates = {std: of[0][0] / std**4 for std, of in divergences.items()}
    assert pytest.approx(16.166063, rel=1e-6) == CURVATURE**2 / 4
    slope = np.log2(divergences[0.05][0][0] / divergences[0.025][0][0])
    assert slope == pytest.approx(3.937, abs=1e-3)
    assert rates[0.1] < rates[0.05] < rates[0.025] < rates[0.01] < 16.166063
    # What is left is of second order: extrapolated, it is the coefficient to what 0.01 and 0.025 leave of fourth order.
    limit = (rates[0.01] / 0.01**2 - rates[0.025] / 0.025**2) / (0.01**-2 - 0.025**-2)
    assert limit == pytest.approx(16.166063, rel=2e-4)
    # At z itself the divergence is of second order, std^2 F'^2 / 2.
    assert divergences[0.01][0][2] / 0.01**2 == pytest.approx(SLOPE**2 / 2, rel=0.01)


def test_the_mean_is_exact_by_the_later_score_and_off_at_fourth_order_by_the_earlier(divergences):
    for std in (0.1, 0.05):
        weight = lambda x, std=std: density(x) * np.exp(-0.5 * (x - Z) ** 2 / std**2)  # noqa: E731
        ends = (Z - 12 * std, Z + 12 * std)
        options = {"epsabs": 1e-15, "epsrel": 1e-13}
        expected = quad(lambda x, w=weight: x * w(x), *ends, **options)[0] / quad(weight, *ends, **options)[0]
        assert divergences[std][1][0] == pytest.approx(expected, abs=1e-12)
    gaps = {std: abs(of[1][1] - of[1][0]) for std, of in divergences.items()}
    assert gaps[0.1] == pytest.approx(3.140e-4, rel=1e-3)
    assert gaps[0.05] == pytest.approx(1.847e-5, rel=1e-3)
    assert np.log2(gaps[0.05] / gaps[0.025]) == pytest.approx(4.025, abs=1e-3)


def test_the_reverse_density_is_that_of_bayes_and_the_divergence_its_integral():
    std = 0.3
    evidence = quad(lambda x: density(x) * np.exp(-0.5 * (x - Z) ** 2 / std**2), -6, 6, epsabs=1e-14)[0]
    normal = lambda x: np.exp(-0.5 * (x - 0.5) ** 2 / std**2) / np.sqrt(2 * np.pi) / std  # noqa: E731
    bayes = lambda x: density(x) * np.exp(-0.5 * (x - Z) ** 2 / std**2) / evidence  # noqa: E731
    expected = quad(lambda x: normal(x) * np.log(normal(x) / bayes(x)), -3, 4, epsabs=1e-13)[0]
    with jax.enable_x64(True):
        found = reverse_log_density(law(), jnp.array([0.9]), jnp.array([Z]), std)
        kl = reverse_kernel_kl(law(), jnp.array([Z]), std, jnp.array([0.5]))
    assert float(found) == pytest.approx(np.log(bayes(0.9)), rel=1e-12)
    assert float(kl) == pytest.approx(expected, rel=1e-9)


def test_the_previous_point_of_claim_2_is_tweedies_mean():
    # By the posterior of x_0 given x_t, and by the score of x_t as x_{t - dt} with noise: two routes to one mean.
    sigma_q, t, dt = 5.0, 0.4, 0.15
    with jax.enable_x64(True):
        earlier = diagonal_mixture(WEIGHTS, MEANS[:, None], VARIANCES[:, None] + sigma_q**2 * (t - dt))
        now, next = (Level(time, 1.0, sigma_q * np.sqrt(time)) for time in (t, t - dt))
        for x in (jnp.array([value]) for value in (-4.0, 0.9, 3.0)):
            claimed = previous_point(predict_exactly(law(), x, now).x0, x, now, next)
            # Numbers of order 4 in float64.
            np.testing.assert_allclose(claimed, reverse_mean(earlier, x, sigma_q * np.sqrt(dt)), atol=1e-12)


def test_the_previous_point_is_a_noisier_target_than_the_clean_one():
    # The variance given x_t is that of the noise times the slope of the mean. On N(0, 1) the step, times t / dt, has
    # (t / dt) W(t - dt) / s^2 times that of x_0.
    sigma_q, t, dt = 5.0, 0.5, 0.01
    with jax.enable_x64(True):
        clean, earlier = (diagonal_mixture([1.0], [[0.0]], [[1.0 + sigma_q**2 * time]]) for time in (0.0, t - dt))

        def variance(of, noise_variance, x):
            return noise_variance * jax.jvp(of, (x,), (jnp.ones(1),))[1][0]

        for x in (jnp.array([0.3]), jnp.array([-7.0])):
            of_x0 = variance(lambda x: reverse_mean(clean, x, sigma_q * np.sqrt(t)), sigma_q**2 * t, x)
            of_step = variance(lambda x: reverse_mean(earlier, x, sigma_q * np.sqrt(dt)), sigma_q**2 * dt, x)
            assert float((t / dt) ** 2 * of_step / of_x0) == pytest.approx(662.5, rel=1e-10)


def test_the_divergence_needs_one_dimension():
    wide = diagonal_mixture([1.0], [[0.0, 0.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match="computed in one dimension, the law has 2"):
        reverse_kernel_kl(wide, jnp.zeros(1), 0.1, jnp.zeros(1))


@pytest.mark.parametrize(
    ("steps", "path", "marginal"),
    [(10, 0.798124, 0.420344), (100, 0.0626806, 0.00418999), (1000, 0.00603562, 3.92705e-5)],
)
def test_divergences_of_whole_runs_have_the_known_values(steps, path, marginal):
    with jax.enable_x64(True):
        assert float(ddpm_path_kl(1.0, 5.0, steps)) == pytest.approx(path, rel=2e-6)
        assert float(ddpm_marginal_kl(1.0, 5.0, steps)) == pytest.approx(marginal, rel=3e-6)


def test_the_path_diverges_at_first_order_and_the_marginal_at_second_and_less():
    with jax.enable_x64(True):
        paths = [float(ddpm_path_kl(1.0, 5.0, steps)) for steps in (10, 100, 1000, 10_000)]
        marginals = [float(ddpm_marginal_kl(1.0, 5.0, steps)) for steps in (10, 100, 1000, 10_000)]
    orders = np.log10(np.divide(paths[:-1], paths[1:]))
    np.testing.assert_allclose(orders[:2], [1.105, 1.016], atol=1e-3)
    assert orders[2] == pytest.approx(1.0, abs=2e-3)
    assert np.log10(marginals[1] / marginals[2]) == pytest.approx(2.0, abs=0.05)
    assert (np.array(marginals) < paths).all()


@pytest.mark.parametrize(
    ("steps", "start", "variance"),
    [(10, 25.0, 2.90675507629679), (10, None, 2.9082343662376187), (1000, 25.0, 1.0111063666599)],
)
def test_the_variance_of_a_run_has_the_known_values(steps, start, variance):
    with jax.enable_x64(True):
        assert float(tutorial_ddpm_variance(1.0, 5.0, steps, start)) == pytest.approx(variance, rel=1e-12)
