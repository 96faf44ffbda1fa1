import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.diffusion import EDM, Cosine, Level, RectifiedFlow, corrupt, noise_ratio, shrinkage, uniform_grid

SCALES = st.floats(0.01, 100.0)


def test_corruption_is_the_affine_path_for_any_shape():
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 3, 4)).astype(np.float32)
    x = corrupt(jnp.asarray(x0), jnp.asarray(noise), Level(0.5, jnp.float32(0.75), jnp.float32(2.0)))
    np.testing.assert_allclose(x, 0.75 * x0.astype(np.float64) + 2.0 * noise.astype(np.float64), rtol=1e-6)
    np.testing.assert_array_equal(corrupt(jnp.asarray(x0), jnp.asarray(noise), Level(0.0, 1.0, 0.0)), x0)
    np.testing.assert_array_equal(corrupt(jnp.asarray(x0), jnp.asarray(noise), Level(1.0, 0.0, 1.0)), noise)


@settings(deadline=None)
@given(SCALES, SCALES, SCALES, SCALES)
def test_shrinkage_is_the_ratio_of_the_noise_ratios(alpha, sigma, next_alpha, next_sigma):
    now, next = Level(0.9, alpha, sigma), Level(0.1, next_alpha, next_sigma)
    expected = (next_sigma / next_alpha) / (sigma / alpha)
    np.testing.assert_allclose(shrinkage(now, next), expected, rtol=1e-14)
    np.testing.assert_allclose(noise_ratio(now), sigma / alpha, rtol=1e-6)  # jax rounds it to float32


def test_pure_noise_has_an_infinite_ratio_and_shrinks_to_nothing():
    noise, data = Level(*jnp.array([1.0, 0.0, 1.0])), Level(*jnp.array([0.5, 0.6, 0.8]))
    assert noise_ratio(noise) == jnp.inf
    assert shrinkage(noise, data) == 0.0
    assert shrinkage(data, Level(0.0, 1.0, 0.0)) == 0.0


def test_shrinkage_lies_between_zero_and_one_on_falling_grids():
    for schedule in (Cosine(), EDM(80.0), RectifiedFlow()):
        grid = uniform_grid(schedule, 50)
        now, next = (jax.tree.map(lambda leaf, part=part: leaf[part], grid) for part in (slice(-1), slice(1, None)))
        r = shrinkage(now, next)
        assert r[-1] == 0.0
        assert (r >= 0).all()
        assert (r < 1).all()
