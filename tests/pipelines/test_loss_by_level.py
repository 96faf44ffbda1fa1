import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import filled_params

from jaxgen.diffusion import Level
from jaxgen.models import ImageMLP, ImageMLPConfig
from jaxgen.pipelines import EDMObjective, loss_by_level

MODEL = ImageMLP(ImageMLPConfig(image_shape=(4, 4), num_classes=3, width=8, hidden=8, blocks=1))
PARAMS = filled_params(MODEL)
OBJECTIVE = EDMObjective()
SIGMAS = np.array([5.0, 0.5, 0.05])
LEVELS = Level(SIGMAS / 80.0, np.ones(3), SIGMAS)
RANDOM = np.random.default_rng(0)


def measure(images, labels=None, levels=LEVELS):
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    return loss_by_level(MODEL, OBJECTIVE, PARAMS, images, labels, jax.random.key(1), levels)


def test_predicting_0_has_a_loss_of_1_on_data_of_the_right_size():
    # Karras et al. 2022, appendix B.6: weights and scalings are those that make the target's variance 1 at any noise.
    images = RANDOM.normal(0.0, 0.5, (2000, 4, 4))
    zero = measure(images).zero
    error = zero.std(axis=1) / np.sqrt(2000)
    assert (np.abs(zero.mean(axis=1) - 1.0) < 4 * error).all()
    assert (error < 0.02).all()


def test_the_loss_is_that_of_the_formula_for_the_same_noise():
    images, labels = RANDOM.normal(0.0, 0.5, (3, 4, 4)).astype(np.float32), np.array([0, 3, 2])
    found = measure(images, labels).network
    assert found.shape == (3, 3)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (4, 4)))
        for level, sigma in enumerate(SIGMAS):
            x = image + sigma * noise
            scale = np.sqrt(sigma**2 + 0.25)
            inputs = (jnp.asarray(x / scale, jnp.float32), jnp.float32(np.log(sigma) / 4), jnp.asarray(label))
            output = np.asarray(MODEL.apply({"params": PARAMS}, inputs[0], jnp.asarray(inputs[1]), inputs[2]))
            denoised = 0.25 / scale**2 * x + 0.5 * sigma / scale * output
            expected = scale**2 / (0.5 * sigma) ** 2 * np.mean((denoised - image) ** 2)
            np.testing.assert_allclose(found[level, i], expected, rtol=1e-3)  # small noise cancels in float32


def test_an_image_has_the_same_noise_however_many_there_are():
    images = RANDOM.normal(0.0, 0.5, (4, 4, 4))
    np.testing.assert_allclose(measure(images).network[:, :2], measure(images[:2]).network, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": np.zeros((2, 5, 4))}, r"images must have shape \[count, 4, 4\]"),
        ({"images": np.zeros((2, 4, 4)), "labels": np.array([0, 4])}, "labels must lie in 0..2"),
        ({"images": np.zeros((2, 4, 4)), "levels": Level(np.zeros(1), np.ones(1), np.zeros(1))}, "sigma above 0"),
        ({"images": np.zeros((2, 4, 4)), "levels": Level(0.5, 1.0, 0.5)}, "levels must be a list"),
    ],
)
def test_what_does_not_fit_is_refused(change, error):
    with pytest.raises(ValueError, match=error):
        measure(**change)
