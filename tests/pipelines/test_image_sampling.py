import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import filled_params

from jaxgen.diffusion import Level, draw_block
from jaxgen.models import ImageMLP, ImageMLPConfig
from jaxgen.pipelines import (
    EDMObjective,
    FlowObjective,
    PredictorCorrectorGuidance,
    film_images,
    generate_images,
    guided_ddim,
    guided_ddpm,
    guided_euler,
    predict_given,
)
from jaxgen.training import make_mesh

MODEL = ImageMLP(ImageMLPConfig(image_shape=(4, 4), num_classes=3, width=16, hidden=16, blocks=1, augmentation=2))
EDM, FLOW = EDMObjective(sigma_max=10.0), FlowObjective()
PARAMS = filled_params(MODEL)
KEY = jax.random.key(5)
LABELS = np.array([0, 1, 2, 3, 1])  # 3 is the null class
METHODS = {
    "ddim": (EDM, guided_ddim),
    "ddpm": (EDM, guided_ddpm),
    "pcg": (EDM, PredictorCorrectorGuidance()),
    "flow": (FLOW, guided_euler),
}


def generate(name, labels=LABELS, **options):
    objective, method = METHODS[name]
    options = {"steps": 6, "scale": 1.5, "block_size": 8, **options}
    return generate_images(MODEL, objective, PARAMS, labels, KEY, method=method, **options)


def test_ddim_is_the_textbook_loop():
    sigma = EDM.grid(6).sigma
    for index, label in enumerate(LABELS):
        start_key, _ = jax.random.split(jax.random.fold_in(KEY, index))
        x = sigma[0] * np.asarray(jax.random.normal(start_key, (4, 4)))
        for now, next in itertools.pairwise(sigma):
            level = Level(*(jnp.asarray(value, jnp.float32) for value in (now / 10.0, 1.0, now)))
            x0, null = (
                np.asarray(predict_given(MODEL, EDM, PARAMS, jnp.asarray(x, jnp.float32), level, jnp.asarray(c)).x0)
                for c in (label, 3)
            )
            guided = null + 1.5 * (x0 - null)
            x = guided + next * (x - guided) / now
        np.testing.assert_allclose(generate("ddim")[index], x, atol=2e-5)  # 6 steps of float32 at scale 10


@pytest.mark.parametrize("name", METHODS)
def test_an_image_depends_on_its_index_and_label_alone(name):
    images = generate(name)
    chex.assert_shape(images, (5, 4, 4))
    np.testing.assert_array_equal(generate(name, LABELS[:2]), images[:2])
    changed = generate(name, np.array([0, 2, 2, 3, 1]))
    np.testing.assert_array_equal(changed[[0, 2, 3, 4]], images[[0, 2, 3, 4]])
    assert not np.allclose(changed[1], images[1])
    assert np.isfinite(images).all()


def test_scale_one_is_conditional_and_scale_zero_ignores_the_label():
    unconditional = generate("ddim", scale=0.0)
    np.testing.assert_array_equal(unconditional, generate("ddim", np.full(5, 3), scale=0.0))
    null = generate("ddim", np.full(5, 3), scale=1.0)
    np.testing.assert_allclose(unconditional, null, atol=1e-6)
    assert np.abs(generate("ddim", scale=1.0)[:3] - null[:3]).max() > 1e-3


def test_neither_scale_nor_key_nor_count_compiles_again():
    generate("ddim")
    before = draw_block._cache_size()
    generate("ddim", scale=3.0)
    generate("ddim", np.zeros(20, np.int32))
    generate_images(MODEL, EDMObjective(sigma_max=10.0), PARAMS, LABELS, jax.random.key(9), steps=6, block_size=8)
    assert draw_block._cache_size() == before


def test_every_device_draws_the_images_of_one():
    labels = np.arange(16) % 3
    for name in ("ddpm", "flow"):
        one, eight = generate(name, labels), generate(name, labels, block_size=12, mesh=make_mesh("data=8"))
        np.testing.assert_allclose(one, eight, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("name", METHODS)
def test_a_film_ends_in_the_image_and_starts_in_the_noise_of_every_method(name):
    objective, method = METHODS[name]
    film = film_images(MODEL, objective, PARAMS, LABELS[:2], KEY, method=method, scale=1.5, steps=6)
    chex.assert_shape(film.x, (2, 7, 4, 4))
    chex.assert_shape(film.x0, (2, 6, 4, 4))
    np.testing.assert_allclose(film.x[:, -1], generate(name)[:2], atol=1e-5)
    start_key, _ = jax.random.split(jax.random.fold_in(KEY, 1))
    first = jax.tree.map(lambda leaf: leaf[0], objective.grid(6))
    scale = first.sigma / np.hypot(first.alpha, first.sigma)
    np.testing.assert_allclose(film.x[1, 0], scale * jax.random.normal(start_key, (4, 4)), rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "options", "sentence"),
    [
        ([4], {}, r"labels must lie in 0..2, or be 3 for no class, got 4"),
        ([], {}, r"labels must be a list of at least one class, got shape \(0,\)"),
        ([0], {"scale": float("inf")}, "the guidance scale must be finite, got inf; "),
        ([0], {"steps": 0}, "steps must be an integer of at least 1, got 0"),
    ],
)
def test_impossible_requests_are_refused(labels, options, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        generate("ddim", np.array(labels, np.int32), **options)
