import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import hastily_compiled
from programs import PLATFORMS

from jaxgen.diffusion import draw_log_normal_level
from jaxgen.models import EDM2, EDM2Config, ImageMLP, ImageMLPConfig, abstract_params, edm2_config, project_weights
from jaxgen.pipelines import (
    DenoisingUpdate,
    EDM2Recipe,
    EDMObjective,
    LatentScaling,
    Recipe,
    generate_images,
    guided_heun,
    initial_state,
    train_diffusion,
    train_on_batches,
)
from jaxgen.training import Snapshots, in_memory, make_mesh, reconstruct, stepped_inverse_root_rate

MODEL = EDM2(EDM2Config((4, 4, 1), 3, width=4, multipliers=(1, 2), blocks=1, attention_sides=(2,), channels_per_head=4))
RECIPE = EDM2Recipe(steps=4, batch_size=8, learning_rate=0.02, reference_batches=2.0, ramp_images=16.0)
OBJECTIVE = EDMObjective()
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (24, 4, 4, 1)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 24).astype(np.int32)
EDGES = OBJECTIVE.level_edges(4)
BATCH = {"image": jnp.asarray(IMAGES[:8]), "label": jnp.asarray(LABELS[:8])}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Nearly all of the time of these tests is compiling."""
    with hastily_compiled():
        yield


@pytest.fixture(scope="module")
def start():
    """A state whose output and conditioning are switched on."""
    state = initial_state(MODEL, RECIPE, jax.random.key(0))

    def awaken(path, leaf):
        return leaf if leaf.ndim else jnp.full_like(leaf, 0.5)

    return state._replace(params=jax.tree_util.tree_map_with_path(awaken, state.params))


def update(objective=OBJECTIVE, recipe=RECIPE, **options):
    return jax.jit(DenoisingUpdate(MODEL, objective, recipe.optimisation(), **options))


@pytest.fixture(scope="module")
def stepped(start):
    """The state after one step and after two, with the metrics of both."""
    step, states, told = update(level_edges=EDGES), [start], []
    for _ in range(2):
        state, metrics = step(states[-1], RECIPE.hyperparameters(), BATCH)
        states.append(state._replace(step=state.step + 1))
        told.append(metrics)
    return states, told


def test_the_loss_is_that_of_the_paper_summed_over_pixels(start, stepped):
    # Karras et al. 2024, eqs. 14, 15 and 21, with the noise and the levels drawn again from the keys of the update.
    params = project_weights(start.params)
    weights = {"params": params, **start.variables}
    losses = []
    for key, x0, label in zip(
        jax.random.split(jax.random.fold_in(start.key, 0), 8), BATCH["image"], BATCH["label"], strict=True
    ):
        _, _, level_key, noise_key = jax.random.split(key, 4)
        sigma = float(draw_log_normal_level(level_key, -1.2, 1.2, 80.0).sigma)
        x = np.asarray(x0, np.float64) + sigma * np.asarray(jax.random.normal(noise_key, x0.shape))
        c_noise = jnp.float32(np.log(sigma) / 4)
        output = MODEL.apply(weights, jnp.asarray(x / np.sqrt(sigma**2 + 0.25), jnp.float32), c_noise, label)
        denoised = 0.25 / (sigma**2 + 0.25) * x + 0.5 * sigma / np.sqrt(sigma**2 + 0.25) * np.asarray(output)
        u = float(MODEL.apply(weights, c_noise, method=MODEL.log_variance))
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        losses.append(np.sum(weight / np.exp(u) * (denoised - np.asarray(x0)) ** 2 + u))
    # Float32 sums of 16 pixels.
    np.testing.assert_allclose(stepped[1][0]["loss"], np.mean(losses), rtol=2e-5)


def test_the_first_step_has_rate_0_and_only_normalises_the_weights(start, stepped):
    first = stepped[0][1]
    chex.assert_trees_all_close(first.params, project_weights(start.params), rtol=1e-6)  # compiled, roundings differ
    for average in first.ema.averages:
        chex.assert_trees_all_equal(average, first.params)
    assert float(stepped[1][0]["learning_rate"]) == 0.0


def test_a_step_moves_normalised_weights_and_leaves_them_where_adam_put_them(stepped):
    (_, first, second), (_, told) = stepped
    # 8 images seen of a ramp of 16: half of the peak. Adam moves an entry by about one rate at most.
    np.testing.assert_allclose(told["learning_rate"], 0.01, rtol=1e-6)
    before = project_weights(first.params)
    change = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), second.params, before)
    assert 0.005 < max(jax.tree.leaves(change)) < 0.02
    kernel = second.params["enter"]["kernel"]
    size = jnp.sqrt(jnp.mean(kernel**2, axis=(0, 1, 2)))
    # Tangential steps make the weights longer, to second order (Karras et al. 2024, section 2.3).
    assert float(jnp.max(jnp.abs(size - 1.0))) > 1e-6
    # Two updates: the averages are between the two, and are never normalised themselves.
    for width, average in zip(RECIPE.ema_widths, second.ema.averages, strict=True):
        mean = average["enter"]["kernel"]
        share = (mean - first.params["enter"]["kernel"]) / (kernel - first.params["enter"]["kernel"])
        exponents = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
        expected = 1 - 0.5 ** (exponents.real.max() + 1)
        np.testing.assert_allclose(np.median(share), expected, rtol=1e-3)


def test_gradients_that_are_not_finite_are_set_to_0_and_counted(start):
    class Broken(EDMObjective):
        def loss(self, predict, key, x0, level):
            plain = super().loss(predict, key, x0, level)
            return jnp.where(plain > -1.0, plain, jnp.sqrt(-1.0 - plain) * jnp.nan)

    state, told = update(Broken())(start, RECIPE.hyperparameters(), BATCH)
    assert np.isfinite(told["loss"])
    sizes = jax.tree.map(jnp.size, start.params)
    # All of the gradient but that of the uncertainty and of what the loss does not reach.
    assert 0.9 * sum(jax.tree.leaves(sizes)) < float(told["nonfinite_gradients"]) <= sum(jax.tree.leaves(sizes))
    chex.assert_tree_all_finite(state.params)


def test_the_loss_by_level_adds_up_and_does_not_depend_on_the_parts(start, stepped):
    assert pytest.approx([-1.2 - 1.2 * 0.6744897501960817, -1.2, -1.2 + 1.2 * 0.6744897501960817]) == EDGES
    whole = stepped[1][0]
    _, parts = update(level_edges=EDGES, accumulate=2)(start, RECIPE.hyperparameters(), BATCH)
    chex.assert_trees_all_close(whole, parts, rtol=1e-4)  # sums in another order
    chex.assert_shape([whole["level_loss"], whole["level_share"]], (4,))
    assert float(whole["level_share"].sum()) == pytest.approx(1.0)
    np.testing.assert_allclose(whole["level_share"] * 8, np.round(whole["level_share"] * 8), atol=1e-5)
    # The plain loss of targets of unit variance; neither the learned weight nor the number of pixels is in it.
    assert 0.1 < float(whole["level_loss"].sum()) < 20.0


def test_any_optimiser_may_move_the_normalised_weights(start):
    recipe = Recipe(steps=4, batch_size=8, warmup_steps=0, learning_rate=1e-3, weight_decay=0.0, largest_shift=0.0)
    state = initial_state(MODEL, recipe, jax.random.key(0))._replace(params=start.params)
    moved, _ = jax.jit(DenoisingUpdate(MODEL, OBJECTIVE, recipe.optimisation()))(state, recipe.hyperparameters(), BATCH)
    far = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), moved.params, project_weights(start.params))
    # Adam's first change is one learning rate long in every entry.
    assert max(jax.tree.leaves(far)) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.slow
def test_training_on_eight_devices_is_that_of_one_and_keeps_snapshots(tmp_path):
    finals = []
    for name, mesh, sharded in (("one", {"data": 1}, False), ("eight", {"data": 8}, True)):
        with Snapshots(tmp_path / name, widths=RECIPE.ema_widths) as snapshots:
            state = train_diffusion(
                MODEL,
                OBJECTIVE,
                IMAGES,
                LABELS,
                jax.random.key(1),
                RECIPE,
                mesh=make_mesh(mesh),
                fully_sharded=sharded,
                snapshots=snapshots,
                snapshot_every=2,
            )
        finals.append(jax.tree.map(np.asarray, (state.params, state.ema.averages, state.variables)))
    chex.assert_trees_all_close(finals[0], finals[1], atol=2e-4)  # float32 sums in another order, four steps of Adam
    like = abstract_params(MODEL)
    for width, average in zip(RECIPE.ema_widths, finals[0][1], strict=True):
        made = reconstruct(tmp_path / "one", like, width)
        chex.assert_trees_all_close(made, average, atol=1e-6)
    between = reconstruct(tmp_path / "one", like, 0.075)
    assert not np.allclose(between["enter"]["kernel"], finals[0][1][0]["enter"]["kernel"])


def test_images_are_drawn_with_the_frequencies_that_were_trained_with(start):
    params = project_weights(start.params)
    arguments = (MODEL, OBJECTIVE, params, np.arange(3), jax.random.key(2))
    options = {"method": guided_heun, "steps": 3, "block_size": 3}
    images = generate_images(*arguments, **options, variables=start.variables)
    assert images.shape == (3, 4, 4, 1)
    assert np.isfinite(images).all()
    others = jax.tree.map(lambda leaf: leaf + 1.0, start.variables)
    assert np.abs(generate_images(*arguments, **options, variables=others) - images).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"accumulate": 3}, "accumulate must divide the batch of 8, got 3"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0"),
        ({"reference_batches": float("inf")}, "reference_batches must be positive and finite, got inf"),
        ({"ramp_images": -1.0}, "ramp_images must be at least 0 and finite, got -1"),
        ({"label_dropout": 1.0}, "label_dropout must lie in [0, 1), got 1"),
        ({"ema_widths": ()}, "ema_widths must name at least one width"),
        ({"ema_widths": (0.3,)}, "0.3"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(change, error):
    with pytest.raises(ValueError, match=error.replace("[", r"\[").replace(")", r"\)").replace("(", r"\(")):
        dataclasses.replace(RECIPE, **change)


def test_the_law_of_the_other_paper_is_one_field_away():
    recipe = dataclasses.replace(RECIPE, law=stepped_inverse_root_rate, ramp_images=0.0)
    optimiser = recipe.optimisation().optimiser(recipe.hyperparameters())
    state, rates = optimiser.init(jnp.zeros(2)), []
    for _ in range(4):
        _, state = optimiser.update(jnp.ones(2), state)
        rates.append(float(state.hyperparams["learning_rate"]))
    # 0, 8, 16 and 24 images seen, 16 of which are the reference: at 24 the root of 4 * 1.5.
    np.testing.assert_allclose(rates, [0.02, 0.02, 0.02, 0.02 / 6**0.5], rtol=1e-6)


def test_stored_latents_are_drawn_and_scaled_in_each_step():
    model = ImageMLP(ImageMLPConfig(image_shape=(4, 4, 2), num_classes=3, width=8, hidden=8, blocks=1))
    recipe = Recipe(steps=4, batch_size=8, largest_shift=0.0)
    scaling = LatentScaling((1.0, -2.0), (4.0, 2.0))
    state = initial_state(model, recipe, jax.random.key(0))
    mean = RANDOM.normal(size=(8, 4, 4, 2)).astype(np.float32)

    def loss(image, latents, step=0):
        update = jax.jit(DenoisingUpdate(model, OBJECTIVE, recipe.optimisation(), latents=latents))
        batch = {"image": jnp.asarray(image, jnp.float32), "label": BATCH["label"]}
        return float(update(state._replace(step=jnp.int32(step)), recipe.hyperparameters(), batch)[1]["loss"])

    sure = np.concatenate([mean, np.zeros_like(mean)], axis=-1)
    spread = np.concatenate([mean, np.full_like(mean, 3.0)], axis=-1)
    scaled = (mean - [1.0, -2.0]) * 0.5 / [4.0, 2.0]
    for step in (0, 1):
        np.testing.assert_allclose(loss(sure, scaling, step), loss(scaled, None, step), rtol=1e-5)
        assert abs(loss(spread, scaling, step) - loss(sure, scaling, step)) > 1e-3


def test_batches_of_latents_have_twice_the_channels():
    model = ImageMLP(ImageMLPConfig(image_shape=(4, 4, 2), num_classes=3, width=8, hidden=8, blocks=1))
    batches = in_memory(
        {"image": np.zeros((8, 4, 4, 2), np.float32), "label": np.zeros(8, np.int32)}, 8, jax.random.key(0)
    )
    recipe = Recipe(steps=4, batch_size=8, largest_shift=0.0)
    with pytest.raises(ValueError, match=r"a batch must hold images \(8, 4, 4, 4\)"):
        train_on_batches(
            model, OBJECTIVE, batches, jax.random.key(0), recipe, latents=LatentScaling((0.0,) * 2, (1.0,) * 2)
        )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(32, 32, 4), (64, 64, 3)])
@pytest.mark.parametrize("size", ["XS", "S"])
def test_a_step_of_the_published_sizes_lowers_for_every_platform(size, shape):
    model = EDM2(edm2_config(size, shape, 1000, dtype="bfloat16"))
    recipe = EDM2Recipe(batch_size=4)
    state = jax.eval_shape(lambda: initial_state(model, recipe, jax.random.key(0)))
    batch = {
        "image": jax.ShapeDtypeStruct((4, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
    }
    step = jax.jit(DenoisingUpdate(model, OBJECTIVE, recipe.optimisation()))
    exported = jax.export.export(step, platforms=PLATFORMS)(state, recipe.hyperparameters(), batch)
    text = exported.mlir_module()
    assert "f64" not in text
    assert text.count("stablehlo.convolution") > 100
    assert "xbf16>" in text
