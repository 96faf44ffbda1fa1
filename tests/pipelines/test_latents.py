import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import PLATFORMS

from jaxgen.pipelines.latents import LatentScaling, draw_latent, raw_latent

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MEANS = RNG.normal(0, 5, (2, 3, 4)).astype(np.float32)
STDS = RNG.uniform(0.1, 2, (2, 3, 4)).astype(np.float32)
POSTERIOR = jnp.concatenate([MEANS, STDS], axis=-1)
# Of stabilityai/sd-vae-ft-mse, as the authors' code gives them.
RAW_MEAN = np.array([5.81, 3.25, 0.12, -2.15])
RAW_STD = np.array([4.17, 4.62, 3.71, 3.28])


def test_a_certain_latent_is_its_mean_scaled():
    posterior = jnp.concatenate([MEANS, np.zeros_like(MEANS)], axis=-1)
    expected = (MEANS.astype(np.float64) - RAW_MEAN) * 0.5 / RAW_STD
    got = draw_latent(KEY, posterior, LatentScaling())
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)  # float32 rounding of numbers up to 3


def test_draws_have_the_moments_of_the_posterior():
    count = 20_000
    keys = jax.random.split(KEY, count)
    draws = jax.vmap(lambda key: draw_latent(key, POSTERIOR, LatentScaling()))(keys)
    mean = (MEANS.astype(np.float64) - RAW_MEAN) * 0.5 / RAW_STD
    std = STDS.astype(np.float64) * 0.5 / RAW_STD
    z = ((np.asarray(draws, np.float64) - mean) / std).reshape(count, -1)
    # 4.5 standard errors, for 24 elements at once.
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=4.5 / np.sqrt(count))
    np.testing.assert_allclose(z.var(axis=0), 1, atol=4.5 * np.sqrt(2 / count))
    np.testing.assert_allclose((z**3).mean(axis=0), 0, atol=4.5 * np.sqrt(15 / count))
    np.testing.assert_allclose((z**4).mean(axis=0), 3, atol=4.5 * np.sqrt(96 / count))
    # No element shares its noise with another.
    correlation = np.corrcoef(z.T) - np.eye(24)
    assert np.abs(correlation).max() < 5 / np.sqrt(count)


def test_latents_of_the_assumed_moments_have_mean_zero_and_the_std_of_the_preconditioning():
    means = RNG.normal(RAW_MEAN, RAW_STD, (64, 64, 4)).astype(np.float32)
    posterior = jnp.concatenate([means, np.zeros_like(means)], axis=-1)
    for final_std in (0.5, 1.0):
        latents = np.asarray(draw_latent(KEY, posterior, LatentScaling(final_std=final_std)))
        np.testing.assert_allclose(latents.mean(axis=(0, 1)), 0, atol=4 * final_std / 64)  # 4 standard errors
        np.testing.assert_allclose(latents.std(axis=(0, 1)), final_std, rtol=4 / 64 / np.sqrt(2))


def test_the_raw_latent_undoes_the_scaling():
    for scaling in (LatentScaling(), LatentScaling((-3.0, 0.0, 100.0, 1e-3), (1e-2, 1.0, 50.0, 7.0), 2.0)):
        noise = jax.random.normal(KEY, MEANS.shape)
        latent = draw_latent(KEY, POSTERIOR, scaling)
        # The rounding of what the mean of a channel was taken from.
        np.testing.assert_allclose(raw_latent(latent, scaling), MEANS + STDS * noise, rtol=2e-6, atol=2e-5)
    one = raw_latent(jnp.array([0.5, 0.0, -0.5, 1.0]), LatentScaling())
    np.testing.assert_allclose(one, RAW_MEAN + RAW_STD * [1, 0, -1, 2], rtol=1e-6)


def test_the_draw_depends_on_the_key_alone():
    one, again, other = (draw_latent(jax.random.key(seed), POSTERIOR, LatentScaling()) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).all()


def test_compiled_and_mapped_draws_are_those_of_single_ones():
    keys, posteriors = jax.random.split(KEY, 3), jnp.stack([POSTERIOR, POSTERIOR + 1, 2 * POSTERIOR])
    program = jax.jit(draw_latent, static_argnames="scaling")
    mapped = jax.jit(jax.vmap(functools.partial(draw_latent, scaling=LatentScaling())))(keys, posteriors)
    for row in range(3):
        alone = draw_latent(keys[row], posteriors[row], LatentScaling())
        np.testing.assert_allclose(program(keys[row], posteriors[row], LatentScaling()), alone, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(mapped[row], alone, rtol=2e-6, atol=1e-6)  # fused multiply-add
    batch = raw_latent(mapped, LatentScaling())
    np.testing.assert_array_equal(batch[1], raw_latent(mapped[1], LatentScaling()))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_drawn_in_single(dtype):
    half = POSTERIOR.astype(dtype)
    latent = draw_latent(KEY, half, LatentScaling())
    np.testing.assert_array_equal(latent, draw_latent(KEY, half.astype(jnp.float32), LatentScaling()))
    assert raw_latent(latent.astype(dtype), LatentScaling()).dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (((), ()), "one number for each of 1 or more channels, got 0 and 0"),
        (((1.0, 2.0), (1.0,)), "one number for each of 1 or more channels, got 2 and 1"),
        (((np.nan,), (1.0,)), "raw_mean must be finite, got nan"),
        (((0.0,), (0.0,)), "raw_std must be positive and finite, got 0.0"),
        (((0.0,), (np.inf,)), "raw_std must be positive and finite, got inf"),
        (((0.0,), (1.0,), -0.5), "final_std must be positive and finite, got -0.5"),
        (((0.0,), (1.0,), np.nan), "final_std must be positive and finite, got nan"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(arguments, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        LatentScaling(*arguments)


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got the odd number of 7"):
        draw_latent(KEY, POSTERIOR[..., :7], LatentScaling())
    with pytest.raises(ValueError, match="the latent has 3 channels, but the scaling 4"):
        draw_latent(KEY, POSTERIOR[..., :6], LatentScaling())
    # A lone channel would broadcast.
    with pytest.raises(ValueError, match="the latent has 4 channels, but the scaling 1"):
        draw_latent(KEY, POSTERIOR, LatentScaling((0.0,), (1.0,)))
    with pytest.raises(ValueError, match="the latent has 8 channels, but the scaling 4"):
        jax.eval_shape(lambda latent: raw_latent(latent, LatentScaling()), POSTERIOR)


def test_the_draw_lowers_for_every_platform():
    batch = jax.ShapeDtypeStruct((4, 32, 32, 8), jnp.float32)

    def there_and_back(keys, posteriors):
        latents = jax.vmap(functools.partial(draw_latent, scaling=LatentScaling()))(keys, posteriors)
        return latents, raw_latent(latents, LatentScaling())

    exported = jax.export.export(jax.jit(there_and_back), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct((4,), KEY.dtype), batch
    )
    assert exported.platforms == PLATFORMS
    assert "f64" not in exported.mlir_module()
