import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.statistics.memorization import memorization_ratio


def draw(seed, count):
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


def test_new_draws_have_ratio_one_copies_zero_and_mixtures_their_share():
    training, held_out, new = draw(0, 500), draw(1, 400), draw(2, 400)
    assert memorization_ratio(training[:400], held_out, training) == 0
    fresh = memorization_ratio(new, held_out, training)
    np.testing.assert_allclose(fresh, 1, atol=0.08)  # 400 distances with a spread of a third: 3 standard errors
    half = np.concatenate([training[:400], new])
    np.testing.assert_allclose(memorization_ratio(half, held_out, training), fresh / 2, rtol=1e-5)


def test_does_not_depend_on_the_unit():
    training, held_out, samples = draw(0, 50), draw(1, 40), draw(2, 30)
    one = memorization_ratio(samples, held_out, training)
    np.testing.assert_allclose(memorization_ratio(4 * samples, 4 * held_out, 4 * training), one, rtol=1e-6)


def test_lowers_for_every_platform():
    shape = jax.ShapeDtypeStruct((40, 3), jnp.float32)
    exported = jax.export.export(memorization_ratio, platforms=["cpu", "cuda", "tpu"])(shape, shape, shape)
    assert "f64" not in exported.mlir_module()
