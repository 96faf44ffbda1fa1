import jax.numpy as jnp
import numpy as np

from jaxgen.models.resampling import double, halve


def test_halving_averages_and_doubling_repeats():
    x = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 4, 3)
    halved, doubled = halve(x), double(x)
    np.testing.assert_array_equal(halved[1, 0, 1], (x[1, 0, 2] + x[1, 0, 3] + x[1, 1, 2] + x[1, 1, 3]) / 4)
    np.testing.assert_array_equal(doubled, np.repeat(np.repeat(x, 2, 1), 2, 2))
    np.testing.assert_array_equal(halve(doubled), x)


def test_halving_keeps_half_precision():
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    assert halve(x).dtype == double(x).dtype == jnp.bfloat16
