import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import filled_params

from jaxgen.diffusion import Level
from jaxgen.models import ImageConv, ImageConvConfig, ImageMLP, ImageMLPConfig
from jaxgen.pipelines import (
    DenoisingUpdate,
    EDMObjective,
    FlowObjective,
    Recipe,
    image_training,
    initial_state,
    predict_given,
    train_diffusion,
    train_on_batches,
    training_flops,
)
from jaxgen.pipelines.optimisation import AdamW
from jaxgen.training import Checkpoints, in_memory, make_mesh, restore_params, run_span

MODEL = ImageMLP(ImageMLPConfig(image_shape=(4, 4), num_classes=3, width=16, hidden=16, blocks=1, augmentation=2))
RECIPE = Recipe(steps=6, batch_size=8, warmup_steps=2)
OBJECTIVE = EDMObjective()
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (20, 4, 4)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 20).astype(np.int32)


def train(recipe=RECIPE, **options):
    return train_diffusion(MODEL, OBJECTIVE, IMAGES, LABELS, jax.random.key(1), recipe, **options)


UPDATE = jax.jit(DenoisingUpdate(MODEL, OBJECTIVE, RECIPE.optimisation()))


@pytest.fixture(scope="module")
def whole():
    return train()


def test_the_learning_rate_rises_then_follows_a_cosine_to_zero():
    constants = Recipe(steps=100, learning_rate=0.01, warmup_steps=10, weight_decay=0.0).hyperparameters()
    params = {"w": jnp.zeros(3)}
    gradient = {"w": jnp.asarray([1.0, -2.0, 3.0])}

    def rate(step):
        # The first change of Adam is -rate * sign(gradient), up to its epsilon.
        made = AdamW(1.0).optimiser(constants)
        start = made.init(params)
        counts = jax.tree.map(lambda _: jnp.asarray(step), start.hyperparams_states)
        start = start._replace(hyperparams_states=counts)
        change, after = made.update(gradient, start, params)
        np.testing.assert_allclose(after.hyperparams["learning_rate"], -change["w"][0], rtol=1e-4)
        return float(-change["w"][0])

    expected = [0.01 * min((s + 1) / 10, 1) * (1 + np.cos(np.pi * s / 100)) / 2 for s in (0, 4, 9, 50, 99)]
    np.testing.assert_allclose([rate(s) for s in (0, 4, 9, 50, 99)], expected, rtol=1e-4)  # 1 + cos cancels at the end


def test_an_update_is_adamw_on_the_mean_loss_and_averages_the_parameters():
    state = initial_state(MODEL, RECIPE, jax.random.key(0))
    state = state._replace(params=filled_params(MODEL))
    batch = {"image": jnp.asarray(IMAGES[:8]), "label": jnp.asarray(LABELS[:8])}
    constants = dataclasses.replace(RECIPE, label_dropout=0.0, largest_shift=0.0).hyperparameters()
    after, metrics = UPDATE(state, constants, batch)

    keys = jax.random.split(jax.random.fold_in(state.key, 0), 8)

    def loss_of_one(params, key, image, label):
        _, _, level_key, noise_key = jax.random.split(key, 4)
        level = OBJECTIVE.draw_level(level_key)
        predict = lambda x, level: predict_given(MODEL, OBJECTIVE, params, x, level, label)  # noqa: E731
        return OBJECTIVE.loss(predict, noise_key, image, level)

    adamw = optax.adamw(RECIPE.learning_rate / 2, b2=0.99, weight_decay=1e-4)  # half way through the warm-up

    @jax.jit
    def by_hand(params):
        each = jax.vmap(jax.value_and_grad(loss_of_one), in_axes=(None, 0, 0, 0))
        value, gradient = jax.tree.map(lambda part: part.mean(axis=0), each(params, keys, *batch.values()))
        change, _ = adamw.update(gradient, adamw.init(params), params)
        return value, optax.tree.norm(gradient), optax.apply_updates(params, change)

    value, norm, params = by_hand(state.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    # Adam's first step has the size of the rate whatever the gradient: compare where that is not lost in rounding.
    chex.assert_trees_all_close(after.params, params, atol=2e-5)
    chex.assert_trees_all_close(after.ema.average, after.params)


def test_every_label_is_dropped_at_a_rate_near_one():
    state = initial_state(MODEL, RECIPE, jax.random.key(0))._replace(params=filled_params(MODEL))
    constants = RECIPE.hyperparameters()._replace(label_dropout=np.float32(1.0))

    def loss(labels):
        return float(UPDATE(state, constants, {"image": jnp.asarray(IMAGES[:8]), "label": labels})[1]["loss"])

    assert loss(jnp.zeros(8, jnp.int32)) == loss(jnp.full(8, 2, jnp.int32))
    kept = constants._replace(label_dropout=np.float32(0.0))
    losses = [
        float(
            UPDATE(state, kept, {"image": jnp.asarray(IMAGES[:8]), "label": jnp.full(8, label, jnp.int32)})[1]["loss"]
        )
        for label in (0, 2)
    ]
    assert losses[0] != losses[1]


def test_two_runs_and_a_run_in_two_parts_agree_to_the_bit(whole, tmp_path):
    chex.assert_trees_all_equal(train().params, whole.params)
    calls = iter([False, True])
    with Checkpoints(tmp_path / "run") as checkpoints:
        stopped = train(checkpoints=checkpoints, save_every=2, stop=lambda: next(calls))
    assert 0 < int(stopped.step) < RECIPE.steps
    with Checkpoints(tmp_path / "run") as checkpoints:
        resumed = train(checkpoints=checkpoints, resume=True)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    stored = restore_params(tmp_path / "run", whole.params, field="ema.average")
    chex.assert_trees_all_equal(stored, whole.ema.average)


def test_a_mesh_of_eight_devices_trains_the_same_network(whole):
    sharded = train(mesh=make_mesh("data=8"))
    # Sums over a batch of 8 in another order, through 6 steps of Adam.
    chex.assert_trees_all_close(jax.device_get(sharded.params), jax.device_get(whole.params), atol=2e-4)


def test_recipes_of_one_shape_share_a_program(whole):
    before = run_span._cache_size()
    train(dataclasses.replace(RECIPE, learning_rate=1e-4, weight_decay=0.1, label_dropout=0.5, steps=5))
    assert run_span._cache_size() == before


def test_training_learns_a_class_that_is_one_image():
    # Every image of a class is the same, so the best denoiser returns it; 400 steps come close.
    images = np.stack([np.full((4, 4), value, np.float32) for value in (-1.0, 0.0, 1.0)])[LABELS]
    model = ImageMLP(dataclasses.replace(MODEL.config, width=64, hidden=64, augmentation=0))
    recipe = Recipe(steps=400, batch_size=16, largest_shift=0.0, learning_rate=5e-3, ema_half_life=20.0)
    for objective in (EDMObjective(data_std=0.8), FlowObjective()):
        state = train_diffusion(model, objective, images, LABELS, jax.random.key(0), recipe)
        level = Level(jnp.asarray(0.5), jnp.asarray(0.5), jnp.asarray(0.5))
        for label, value in enumerate((-1.0, 0.0, 1.0)):
            x = 0.5 * value + 0.5 * jax.random.normal(jax.random.key(label), (4, 4))
            predicted = predict_given(model, objective, state.ema.average, x, level, jnp.asarray(label))
            # A quarter of the way to the next class; an untrained network is half of it or more away from -1 and 1.
            np.testing.assert_allclose(np.mean(predicted.x0), value, atol=0.25)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"label_dropout": 1.0}, r"label_dropout must lie in \[0, 1\), got 1.0"),
        ({"largest_shift": -1.0}, "largest_shift must be at least 0 and finite, got -1.0"),
    ],
)
def test_impossible_recipes_are_refused(change, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        dataclasses.replace(RECIPE, **change)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((IMAGES[:, :3], LABELS), {}, r"images must have shape \[count, 4, 4\] and labels \[count\], got "),
        ((IMAGES, LABELS[:5]), {}, r"images must have shape \[count, 4, 4\] and labels \[count\], got "),
        ((np.where(IMAGES > 0.9, np.nan, IMAGES), LABELS), {}, "images must be finite, got "),
        ((IMAGES, np.full(20, 4)), {}, "labels must lie in "),
        ((IMAGES, LABELS), {"recipe": Recipe(largest_shift=0.0)}, "a largest shift of 0.0 and a network with 2 "),
        (
            (IMAGES, LABELS),
            {"recipe": dataclasses.replace(RECIPE, batch_size=9), "mesh": "data=8"},
            "a batch of 9 cannot be split evenly over data=8 devices; choose a multiple",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(arguments, options, sentence):
    recipe = options.pop("recipe", RECIPE)
    mesh = make_mesh(options["mesh"]) if "mesh" in options else None
    with pytest.raises(ValueError, match=f"^{sentence}"):
        train_diffusion(MODEL, OBJECTIVE, *arguments, jax.random.key(0), recipe, mesh=mesh)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_of_one_and_of_a_prime_number_train(batch_size):
    state = train(dataclasses.replace(RECIPE, batch_size=batch_size, steps=2))
    assert int(state.step) == 2


def after(recipe=RECIPE, image=None, **options):
    """Take one update of the parameters of `filled_params` on eight images."""
    state = initial_state(MODEL, recipe, jax.random.key(0))._replace(params=filled_params(MODEL))
    image = IMAGES[:8] if image is None else image
    update = DenoisingUpdate(MODEL, OBJECTIVE, recipe.optimisation(), recipe.mirror, recipe.accumulate)
    return jax.jit(update)(state, recipe.hyperparameters(), {"image": image, "label": jnp.asarray(LABELS[:8])})


def test_an_update_in_parts_is_the_update_of_the_whole_batch():
    whole, parts = after(), after(dataclasses.replace(RECIPE, accumulate=4))
    # Adam divides by the root of a gradient's square: where it is near 0, rounding shows.
    chex.assert_trees_all_close(parts[0].params, whole[0].params, atol=2e-5)
    np.testing.assert_allclose(parts[1]["loss"], whole[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(parts[1]["learning_rate"], RECIPE.learning_rate / 2, rtol=1e-6)


def test_bytes_are_scaled_to_the_interval_from_minus_one_to_one():
    image = RANDOM.integers(0, 256, (8, 4, 4)).astype(np.uint8)
    scaled = (image / 127.5 - 1).astype(np.float32)
    chex.assert_trees_all_close(after(image=image)[1], after(image=scaled)[1], rtol=1e-5)


def test_half_of_the_images_are_mirrored():
    recipe = dataclasses.replace(RECIPE, mirror=True, largest_shift=0.0, batch_size=64)
    model = ImageMLP(dataclasses.replace(MODEL.config, augmentation=0))
    seen = []

    class Watching(EDMObjective):
        def loss(self, predict, key, x0, level):
            jax.debug.callback(lambda image: seen.append(np.array(image)), x0)
            return super().loss(predict, key, x0, level)

    update = DenoisingUpdate(model, Watching(), recipe.optimisation(), mirror=True)
    batch = {"image": jnp.tile(IMAGES[:1], (64, 1, 1)), "label": jnp.zeros(64, jnp.int32)}
    jax.jit(update)(initial_state(model, recipe, jax.random.key(0)), recipe.hyperparameters(), batch)
    jax.effects_barrier()
    mirrored = [np.array_equal(image, IMAGES[0][:, ::-1]) for image in seen]
    plain = [np.array_equal(image, IMAGES[0]) for image in seen]
    assert sum(mirrored) + sum(plain) == 64
    assert 16 < sum(mirrored) < 48  # five standard deviations about a half


def test_the_flops_of_an_update_are_three_times_those_of_its_products():
    recipe = dataclasses.replace(RECIPE, largest_shift=0.0)
    config = dataclasses.replace(MODEL.config, augmentation=0, embedding=8, frequencies=4)
    found = training_flops(ImageMLP(config), OBJECTIVE, recipe)
    into, width, hidden = 16, 16, 16
    products = {
        "enter": into * width,
        "noise": 8 * 8,
        "mix": 8 * 8,
        "film": 8 * 2 * width,
        "expand": width * hidden,
        "contract": hidden * width,
        "leave": width * into,
    }
    # Forward, and backward for weights and inputs; of the first layer and the noise embedding there is no gradient
    # with respect to the input.
    forward = 2 * recipe.batch_size * sum(products.values())
    no_inputs = 2 * recipe.batch_size * (products["enter"] + products["noise"])
    assert found == 3 * forward - no_inputs
    rematerialised = ImageMLP(dataclasses.replace(config, remat=True, scan=True))
    assert training_flops(rematerialised, OBJECTIVE, recipe) == found


def test_batches_that_do_not_fit_are_refused():
    wide = in_memory({"image": np.zeros((9, 4, 5), np.uint8), "label": np.zeros(9, int)}, 8, jax.random.key(0))
    with pytest.raises(ValueError, match=r"must hold images \(8, 4, 4\) and labels \(8,\), got \(8, 4, 5\) and \(8,\)"):
        train_on_batches(MODEL, OBJECTIVE, wide, jax.random.key(0), RECIPE)
    with pytest.raises(ValueError, match="accumulate must divide the batch of 8, got 3"):
        dataclasses.replace(RECIPE, accumulate=3)
    mesh = make_mesh("data=8")
    with pytest.raises(ValueError, match="a batch of 4 cannot be split evenly over data=8"):
        train(dataclasses.replace(RECIPE, accumulate=2), mesh=mesh)


def test_a_convolutional_network_trains_on_a_cpu_without_a_loop_around_its_step(monkeypatch):
    calls = []

    def watched(update, state, *_, **options):
        calls.append(options["steps_per_call"])
        return state

    monkeypatch.setattr(image_training, "fit", watched)
    conv = ImageConv(ImageConvConfig((8, 8, 3), 3, width=4, multipliers=(1, 2), blocks=1))
    recipe = dataclasses.replace(RECIPE, largest_shift=0.0)
    train_diffusion(conv, OBJECTIVE, np.zeros((8, 8, 8, 3)), np.zeros(8, int), jax.random.key(0), recipe)
    train()
    assert calls == [None, 16]
