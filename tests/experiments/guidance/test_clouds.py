"""Clouds on known problems: the fast prediction, the statistics, and what the claims are held against."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.guidance import clouds, references
from jaxgen.diffusion import Level, laws, predict_exactly

PROBLEMS = {
    "gaussian": clouds.gaussian_problem,
    "two clusters": lambda: clouds.two_clusters(2.0),
    "three clusters": clouds.three_clusters,
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.7), (0.6, 0.8), (1.0, 500.0)])
def test_the_prediction_of_many_points_is_that_of_each(name, alpha, sigma):
    with jax.enable_x64(True):
        x = jnp.linspace(-4.0, 4.0, 9)[:, None] * max(sigma, 1.0)
        level = Level(jnp.asarray(0.5), jnp.asarray(alpha), jnp.asarray(sigma))
        for mixture in PROBLEMS[name]():
            found = clouds.cloud_predictor(mixture)(x, level)
            expected = jax.vmap(lambda one, mixture=mixture: predict_exactly(mixture, one, level))(x)
            np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-11, atol=1e-12)


def test_the_density_of_a_histogram_integrates_to_one_at_the_middles_of_its_bins():
    counts = np.zeros(len(clouds.EDGES) - 1)
    counts[[3, 90]] = 1.0, 3.0
    middles, density = clouds.density_of(counts)
    width = clouds.EDGES[1] - clouds.EDGES[0]
    assert density.sum() * width == pytest.approx(1.0)
    assert density[90] == pytest.approx(0.75 / width)
    assert middles[90] == pytest.approx(-8.0 + 90.5 * width)


def test_the_references_in_closed_form_are_the_laws():
    with jax.enable_x64(True):
        for scale, mean in references.DDIM_MEANS.items():
            assert mean == pytest.approx(float(laws.ddim_mean(scale, 1.0)), rel=1e-11)
            assert references.ddim_variance(scale) == pytest.approx(float(laws.ddim_variance(scale)), rel=1e-12)
            assert references.ddpm_variance(scale) == pytest.approx(float(laws.ddpm_variance(scale)), rel=1e-12)
            assert references.ddpm_mean(scale) == pytest.approx(float(laws.ddpm_mean(scale, 1.0)), rel=1e-11)
        for count, variance in references.CORRECTED_VARIANCES.items():
            assert variance == pytest.approx(float(laws.pcg_variance(3.0, count)), rel=1e-12)
