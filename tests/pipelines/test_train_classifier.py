import dataclasses
import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import PLATFORMS, assert_portable
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from support import filled_params

from jaxgen.models import abstract_params, logical_axes
from jaxgen.models.image_classifier import ImageClassifier, ImageClassifierConfig
from jaxgen.pipelines.optimisation import AdamW
from jaxgen.pipelines.train_classifier import (
    ClassifierRecipe,
    ClassifierUpdate,
    classifier_features,
    initial_classifier,
    label_accuracy,
    train_classifier,
)
from jaxgen.training import Checkpoints, create, make_mesh, run_span

MODEL = ImageClassifier(ImageClassifierConfig(width=8))
RECIPE = ClassifierRecipe(steps=200, batch_size=64, learning_rate=1e-2)
SHORT = dataclasses.replace(RECIPE, steps=5, warmup_steps=2)
TINY = ImageClassifier(ImageClassifierConfig((4, 4, 2), 3, width=4, multipliers=(1,), features=5))
TRAINED = 1200


@pytest.fixture(scope="module")
def digits():
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(classes))
    images = (pixels[order] / 8 - 1).astype(np.float32).reshape(-1, 8, 8)
    return (images[:TRAINED], classes[order[:TRAINED]]), (images[TRAINED:], classes[order[TRAINED:]])


def train(digits, recipe=SHORT, **options):
    return train_classifier(MODEL, *digits[0], jax.random.key(1), recipe, **options)


@pytest.fixture(scope="module")
def params(digits):
    return train(digits, RECIPE).params


@pytest.fixture(scope="module")
def short(digits):
    return train(digits)


def test_held_out_digits_are_told_apart(digits, params):
    # 11 epochs; nearest neighbours among the raw pixels reach .98, and a linear classifier of them .95.
    assert label_accuracy(MODEL, params, *digits[1]) >= 0.96


def test_features_are_what_a_linear_classifier_needs(digits, params):
    features = classifier_features(MODEL, params, image_dtype="float32")
    (images, labels), (held_out, held_out_labels) = digits
    probe = LogisticRegression(max_iter=1000).fit(np.asarray(features(images[..., None])), labels)
    found = probe.score(np.asarray(features(held_out[..., None])), held_out_labels)
    # The head is such a classifier; 0.02 is three standard deviations of a difference of 12 among 597 images.
    assert found >= label_accuracy(MODEL, params, held_out, held_out_labels) - 0.02


def test_features_depend_on_neither_the_batch_nor_the_form_of_the_images(params):
    as_bytes = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
    features = classifier_features(MODEL, params)
    whole = features(as_bytes)
    assert (whole.shape, whole.dtype) == ((24, 64), jnp.float32)
    assert np.isfinite(whole).all()
    assert np.std(whole, axis=0).max() > 0.1
    parts = np.concatenate([features(as_bytes[:8]), features(as_bytes[8:])])
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)  # float32 sums in another order
    scaled = classifier_features(MODEL, params, image_dtype="float32")
    assert scaled.id == features.id
    np.testing.assert_allclose(scaled((as_bytes / 127.5 - 1).astype(np.float32)), whole, rtol=1e-5, atol=1e-5)


def test_the_id_names_the_network_and_nothing_else():
    params = filled_params(TINY)
    name = classifier_features(TINY, params).id
    assert re.fullmatch("classifier-[0-9a-f]{16}", name)
    copied = jax.tree.map(np.array, params)
    assert classifier_features(ImageClassifier(dataclasses.replace(TINY.config)), copied).id == name
    changed = jax.tree.map(np.array, params)
    changed["trunk"]["enter"]["bias"][0] += 1e-6
    others = [
        classifier_features(TINY, changed).id,
        classifier_features(ImageClassifier(dataclasses.replace(TINY.config, dtype="bfloat16")), params).id,
    ]
    assert len({name, *others}) == 3


@pytest.mark.parametrize("platform", PLATFORMS)
def test_products_of_features_are_exact_on_every_device(platform):
    features = classifier_features(TINY, filled_params(TINY))
    images = jax.ShapeDtypeStruct((7, 4, 4, 2), jnp.uint8)
    # The function is an argument: its parameters are no constants of the program.
    traced = jax.jit(lambda features, images: features(images)).trace(features, images)
    text = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
    products = [line for line in text if "= stablehlo.convolution" in line or "= stablehlo.dot_general" in line]
    assert len(products) == 4  # three convolutions and a dense layer
    assert all("HIGHEST, HIGHEST" in line or line.count("HIGHEST>") == 2 for line in products)


def test_a_run_in_two_parts_agrees_to_the_bit(digits, short, tmp_path):
    steps = []
    calls = iter([False, False, False, True])
    with Checkpoints(tmp_path / "run") as checkpoints:
        stopped = train(
            digits,
            checkpoints=checkpoints,
            save_every=2,
            stop=lambda: next(calls),
            on_metrics=lambda step, metrics: steps.append((step, sorted(metrics))),
        )
    assert 0 < int(stopped.step) < SHORT.steps
    assert steps[0] == (1, ["accuracy", "gradient_norm", "learning_rate", "loss"])
    with Checkpoints(tmp_path / "run") as checkpoints:
        resumed = train(digits, checkpoints=checkpoints, resume=True)
    assert int(resumed.step) == SHORT.steps
    chex.assert_trees_all_equal((resumed.params, resumed.opt_state), (short.params, short.opt_state))


def test_a_mesh_of_eight_devices_trains_the_same_network(digits, short):
    sharded = train(digits, mesh=make_mesh("data=8"))
    # Sums over a batch of 64 in another order, through 5 steps of Adam, which magnifies gradients near 0.
    chex.assert_trees_all_close(jax.device_get(sharded.params), jax.device_get(short.params), atol=2e-3)


def test_recipes_of_one_shape_share_a_program(digits, short):
    before = run_span._cache_size()
    train(digits, dataclasses.replace(SHORT, learning_rate=1e-4, weight_decay=0.1, label_smoothing=0.3, steps=1))
    assert run_span._cache_size() == before


def batch_of(count, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, *TINY.config.image_shape)).astype(np.uint8)
    labels = random.integers(0, TINY.config.num_classes, count).astype(np.int32)
    return {"image": images if dtype == np.uint8 else (images / 127.5 - 1).astype(dtype), "label": labels}


def tiny_state(recipe):
    params = filled_params(TINY, scale=0.5)
    return create(jax.random.key(0), params, AdamW(1.0).optimiser(recipe.hyperparameters().optimiser).init(params))


def test_an_update_is_adamw_on_the_mean_smoothed_cross_entropy():
    recipe = dataclasses.replace(SHORT, label_smoothing=0.3, mirror=True)
    state, batch = tiny_state(recipe), batch_of(8)
    augment = ClassifierUpdate(TINY, mirror=True).augment
    update = jax.jit(ClassifierUpdate(TINY, mirror=True))
    after, metrics = update(state, recipe.hyperparameters(), batch)
    keys = jax.random.split(jax.random.fold_in(state.key, 0), 8)
    images = jax.jit(jax.vmap(augment, (0, 0, None)))(keys, batch["image"], jnp.float32(0.0))
    assert 0 < np.sum(np.any(images != batch["image"], axis=(1, 2, 3))) < 8
    adamw = optax.adamw(recipe.learning_rate / 2, b2=0.99, weight_decay=1e-2)  # half way through the warm-up

    @jax.jit
    def by_hand(params):
        def loss(params):
            logits = TINY.apply({"params": params}, images)
            log_shares = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
            right = log_shares[np.arange(8), batch["label"]]
            return -jnp.mean(0.7 * right + 0.1 * jnp.sum(log_shares, axis=-1)), logits

        (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        change, _ = adamw.update(gradient, adamw.init(params), params)
        return value, logits, optax.tree.norm(gradient), optax.apply_updates(params, change)

    value, logits, norm, params = by_hand(state.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(np.argmax(logits, -1) == batch["label"]), rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(metrics["learning_rate"], recipe.learning_rate / 2, rtol=1e-6)
    # Adam's first step has the size of the rate whatever the gradient: compare where that is not lost in rounding.
    chex.assert_trees_all_close(after.params, params, atol=5e-5)
    as_bytes = update(state, recipe.hyperparameters(), batch_of(8, dtype=np.uint8))[1]
    chex.assert_trees_all_close(as_bytes, metrics, rtol=1e-4)


def augmented(image, **flags):
    """An image, augmented 64 times."""
    augment = jax.jit(jax.vmap(ClassifierUpdate(TINY, **flags).augment, (0, None, None)))
    return np.asarray(augment(jax.random.split(jax.random.key(0), 64), image, jnp.float32(1.0)))


def test_a_plain_update_leaves_the_images_alone():
    image = batch_of(1)["image"][0]
    np.testing.assert_array_equal(augmented(image), np.tile(image, (64, 1, 1, 1)))


def test_half_of_the_images_are_mirrored():
    image = batch_of(1)["image"][0]
    seen = augmented(image, mirror=True)
    mirrored = [np.array_equal(one, image[:, ::-1]) for one in seen]
    assert sum(mirrored) + sum(np.array_equal(one, image) for one in seen) == 64
    assert 16 < sum(mirrored) < 48  # four standard deviations about a half


def test_half_of_the_images_are_shifted_all_channels_together():
    # A bright pixel in each channel, away from the border: its place is the centre of the light.
    image = np.full((4, 4, 2), -1.0, np.float32)
    image[1, 2] = 1.0
    seen = augmented(image, shift=True)
    np.testing.assert_array_equal(seen[..., 0], seen[..., 1])
    light = (seen[..., 0] + 1) / 2
    np.testing.assert_allclose(light.sum((1, 2)), 1.0, rtol=1e-5)  # linear interpolation keeps the light
    places = np.stack([light.sum(2) @ np.arange(4), light.sum(1) @ np.arange(4)], axis=-1) - np.array([[1, 2]])
    shifted = np.abs(places).max(1) > 1e-4
    assert 16 < shifted.sum() < 48
    assert 0.5 < np.abs(places).max() <= 1 + 1e-5
    grey = augmented(image[..., 0], shift=True)
    np.testing.assert_array_equal(grey, seen[..., 0])


def test_an_update_lowers_for_every_platform():
    model = ImageClassifier(ImageClassifierConfig((16, 16, 3), 4, width=4))
    recipe = dataclasses.replace(SHORT, largest_shift=1.0, mirror=True)
    state = jax.eval_shape(lambda: initial_classifier(model, recipe, jax.random.key(0)))
    batch = {"image": jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.uint8), "label": jax.ShapeDtypeStruct((8,), jnp.int32)}

    @jax.jit
    def update(state, constants, batch):
        after, metrics = ClassifierUpdate(model, shift=True, mirror=True)(state, constants, batch)
        return after.params, metrics

    assert_portable(update, state, recipe.hyperparameters(), batch)


def test_accuracy_counts_every_image_once_whatever_the_blocks():
    params, batch = filled_params(TINY, scale=0.5), batch_of(23, seed=3)
    logits = np.asarray(jax.jit(TINY.apply)({"params": params}, batch["image"]))
    expected = np.mean(np.argmax(logits, axis=-1) == batch["label"])
    assert 0 < expected < 1
    for size in (5, 23, 100):
        assert label_accuracy(TINY, params, *batch.values(), block_size=size) == pytest.approx(expected)
    assert label_accuracy(TINY, params, *batch_of(23, 3, np.uint8).values()) == pytest.approx(expected)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        label_accuracy(TINY, params, *batch.values(), block_size=0)


def test_the_recipe_reaches_the_update_and_a_cpu_has_no_loop_around_it(monkeypatch, digits):
    calls = []

    def watched(update, state, constants, batches, **options):
        calls.append((update, options["steps_per_call"], options["axes"]))
        return state

    monkeypatch.setattr(sys.modules["jaxgen.pipelines.train_classifier"], "fit", watched)
    train(digits, dataclasses.replace(SHORT, largest_shift=0.5))
    train(digits, dataclasses.replace(SHORT, mirror=True))
    axes = logical_axes(MODEL)
    assert calls == [
        (ClassifierUpdate(MODEL, shift=True), None, axes),
        (ClassifierUpdate(MODEL, mirror=True), None, axes),
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0 and finite, got -1.0"),
        ({"largest_shift": float("inf")}, "largest_shift must be at least 0 and finite, got inf"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"second_moment_decay": -0.1}, r"second_moment_decay must lie in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_recipes_are_refused(change, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        ClassifierRecipe(**change)


IMAGES, LABELS = batch_of(20)["image"], batch_of(20)["label"]


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (IMAGES[:, :3], LABELS, r"images must have shape \[count, 4, 4, 2\] and labels \[count\] with a count of at "),
        (IMAGES, LABELS[:5], r"images must have shape \[count, 4, 4, 2\] and labels \[count\] with a count of at "),
        (IMAGES[:0], LABELS[:0], r"images must have shape \[count, 4, 4, 2\] and labels \[count\] with a count of at "),
        (np.where(IMAGES > 0.9, np.nan, IMAGES), LABELS, "images must be finite, got "),
        (IMAGES.astype(np.int32), LABELS, "images must be bytes, or real numbers scaled to .*, got int32"),
        (IMAGES, np.full(20, 3), "labels must be integers in 0..2, got int64 in 3..3"),
        (IMAGES, np.full(20, -1), "labels must be integers in 0..2, got int64 in -1..-1"),
    ],
)
def test_data_that_do_not_fit_are_refused(images, labels, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        train_classifier(TINY, images, labels, jax.random.key(0), SHORT)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        label_accuracy(TINY, abstract_params(TINY), images, labels)


def test_a_batch_that_devices_cannot_share_is_refused():
    recipe = dataclasses.replace(SHORT, batch_size=9)
    with pytest.raises(ValueError, match="a batch of 9 cannot be split evenly over data=8 devices"):
        train_classifier(TINY, IMAGES, LABELS, jax.random.key(0), recipe, mesh=make_mesh("data=8"))


def test_features_of_other_images_are_refused():
    features = classifier_features(TINY, filled_params(TINY))
    with pytest.raises(ValueError, match=r"^images must have shape \[count, 4, 4, 2\], got \(3, 4, 4, 1\)"):
        features(np.zeros((3, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="are of uint8 images, got float32"):
        features(np.zeros((3, 4, 4, 2), np.float32))
