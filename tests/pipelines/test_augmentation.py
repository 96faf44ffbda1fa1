import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import shift as scipy_shift

from jaxgen.pipelines import random_shift

IMAGE = np.random.default_rng(0).uniform(-1, 1, (8, 8)).astype(np.float32)


def shifted(count=256, **settings):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: random_shift(key, jnp.asarray(IMAGE), **settings))(keys)


def test_a_shift_is_what_scipy_makes_of_the_shift_it_tells():
    images, shifts = shifted(32, largest=1.5, rate=1.0)
    for image, told in zip(np.asarray(images), np.asarray(shifts), strict=True):
        # The border: scipy blends with cval only under grid-constant.
        expected = scipy_shift(IMAGE, told, order=1, mode="grid-constant", cval=-1.0)
        np.testing.assert_allclose(image, expected, atol=2e-6)  # float32 coordinates up to 9


def test_shifts_are_uniform_and_half_of_the_images_stay():
    images, shifts = shifted(4096, largest=1.0)
    still = (np.asarray(shifts) == 0).all(axis=1)
    np.testing.assert_allclose(still.mean(), 0.5, atol=4 * 0.5 / 64)  # 4 standard errors of 4,096 coins
    np.testing.assert_allclose(images[still], np.broadcast_to(IMAGE, (still.sum(), 8, 8)), atol=1e-6)
    moved = np.asarray(shifts)[~still]
    assert np.abs(moved).max() <= 1.0
    np.testing.assert_allclose(moved.mean(axis=0), 0.0, atol=4 / np.sqrt(3 * len(moved)))
    np.testing.assert_allclose(moved.var(axis=0), 1 / 3, atol=4 * np.sqrt(4 / 45 / len(moved)))


def test_a_largest_shift_of_zero_changes_nothing():
    images, shifts = shifted(8, largest=0.0, rate=1.0)
    np.testing.assert_array_equal(images, np.broadcast_to(IMAGE, (8, 8, 8)))
    np.testing.assert_array_equal(shifts, np.zeros((8, 2)))
