import jax.numpy as jnp
import numpy as np

from jaxgen.models import fourier_features


def test_fourier_features_have_unit_mean_square_and_resolve_their_range():
    features = fourier_features(jnp.linspace(-2, 2, 9), 16, 0.125, 8.0)
    assert features.shape == (9, 32)
    np.testing.assert_allclose(jnp.mean(features**2, axis=-1), 1.0, rtol=1e-5)
    # One period of the highest frequency apart: its sine and cosine agree, those of half the frequency are opposite.
    low, high = fourier_features(jnp.array([0.3, 0.3 + 1 / 8]), 2, 4.0, 8.0)
    np.testing.assert_allclose(low[jnp.array([1, 3])], high[jnp.array([1, 3])], atol=1e-5)
    np.testing.assert_allclose(low[jnp.array([0, 2])], -high[jnp.array([0, 2])], atol=1e-5)
