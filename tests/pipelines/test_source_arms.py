"""Two arms that differ in what the sources share, and in nothing else."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import hastily_compiled
from programs import PLATFORMS

from jaxgen.models import EDM2, EDM2Config
from jaxgen.pipelines import (
    Arm,
    ArmUpdate,
    DenoisingUpdate,
    EDM2Recipe,
    EDMObjective,
    LatentScaling,
    arm_weights,
    generate_images,
    guided_heun,
    initial_arm,
    sample_source,
    source_losses,
    train_arm,
)
from jaxgen.training import make_mesh

SOURCES = 2
CONFIG = EDM2Config((4, 4, 1), SOURCES, width=4, multipliers=(1,), blocks=1, attention_sides=(), channels_per_head=4)
SHARED, SEPARATE = (Arm(EDM2(CONFIG), shared) for shared in (True, False))
ALONE = EDM2(dataclasses.replace(CONFIG, num_classes=1))
RECIPE = EDM2Recipe(steps=3, batch_size=8, learning_rate=0.02, reference_batches=2.0, ramp_images=16.0)
OBJECTIVE = EDMObjective()
IMAGES = np.random.default_rng(0).uniform(-1, 1, (24, SOURCES, 4, 4, 1)).astype(np.float32)
KEY = jax.random.key(3)


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with hastily_compiled():
        yield


@dataclasses.dataclass(frozen=True)
class Recorder(DenoisingUpdate):
    """Tells which images came with which keys and labels, in place of a step."""

    def step(self, state, constants, keys, batch):
        return state, {"keys": jax.random.key_data(keys), "image": batch["image"], "label": batch["label"]}


def recorder(arm):
    return ArmUpdate(arm, Recorder(arm.network, OBJECTIVE, RECIPE.optimisation()))


def test_both_arms_see_the_same_images_with_the_same_noise():
    found = {}
    for arm in (SHARED, SEPARATE):
        state = initial_arm(arm, RECIPE, KEY)
        _, told = recorder(arm)(state, None, jnp.asarray(IMAGES[:8]))
        if arm.shared:
            # Image by image, all sources of one beside each other.
            np.testing.assert_array_equal(told["label"], np.tile([0, 1], 8))
            np.testing.assert_array_equal(told["image"], IMAGES[:8].reshape(16, 4, 4, 1))
        else:
            chex.assert_shape(told["image"], (SOURCES, 8, 4, 4, 1))
            assert not told["label"].any()
        pairs = zip(told["keys"].reshape(16, -1), told["image"].reshape(16, -1), strict=True)
        found[arm.shared] = {(*key.tolist(), *image.tolist()) for key, image in pairs}
    assert found[True] == found[False]
    assert len({pair[:2] for pair in found[True]}) == 16


def test_the_noise_of_a_step_is_its_own():
    state = initial_arm(SHARED, RECIPE, KEY)
    keys = [
        recorder(SHARED)(state._replace(step=jnp.asarray(step)), None, jnp.asarray(IMAGES[:8]))[1]["keys"]
        for step in (0, 1)
    ]
    assert not np.intersect1d(*keys).size


def test_the_separate_arm_is_the_networks_one_by_one():
    state = initial_arm(SEPARATE, RECIPE, KEY)
    chex.assert_tree_shape_prefix(state.params, (SOURCES,))
    constants, update = RECIPE.hyperparameters(), DenoisingUpdate(ALONE, OBJECTIVE, RECIPE.optimisation())
    state = state._replace(step=jnp.asarray(2))
    together, told = jax.jit(ArmUpdate(SEPARATE, update))(state, constants, jnp.asarray(IMAGES[:8]))
    chex.assert_shape(told["loss"], (SOURCES,))
    one_by_one = jax.jit(update.step)
    for source in range(SOURCES):
        own = jax.tree.map(lambda leaf, source=source: leaf[source], state._replace(step=(), key=()))
        own = own._replace(step=state.step, key=state.key)
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, 2), source), 8)
        batch = {"image": jnp.asarray(IMAGES[:8, source]), "label": jnp.zeros(8, jnp.int32)}
        moved, metrics = one_by_one(own, constants, keys, batch)
        expected = jax.tree.map(lambda leaf, source=source: leaf[source], together.params)
        # Convolutions of stacked networks add up in another order.
        chex.assert_trees_all_close(moved.params, expected, atol=2e-6)
        np.testing.assert_allclose(metrics["loss"], told["loss"][source], rtol=1e-5)


@pytest.fixture(scope="module")
def trained():
    """Both arms after three steps, and what their metrics told."""
    found = {}
    for arm in (SHARED, SEPARATE):
        told = []
        state = train_arm(
            arm, OBJECTIVE, IMAGES, KEY, RECIPE, on_metrics=lambda step, metrics, told=told: told.append(metrics)
        )
        found[arm.shared] = state, told
    return found


def test_both_arms_move_by_the_same_rate(trained):
    rates = {shared: [np.unique(row["learning_rate"]) for row in told] for shared, (_, told) in trained.items()}
    # Ramp of 16 images of each source, then a fall from 2 batches on: counted in images of a source.
    expected = [0.0, 0.02 * 8 / 16, 0.02]
    for shared in (True, False):
        np.testing.assert_allclose(np.concatenate(rates[shared]), expected, rtol=1e-6)


def test_sources_draw_from_their_own_networks(trained):
    state, _ = trained[False]
    first, second = (arm_weights(SEPARATE, state, source) for source in range(SOURCES))
    chex.assert_trees_all_equal(first[0], jax.tree.map(lambda leaf: leaf[0], state.ema.averages[0]))
    assert not np.allclose(first[0]["enter"]["kernel"], second[0]["enter"]["kernel"])
    whole, _ = trained[True]
    for source in range(SOURCES):
        chex.assert_trees_all_equal(arm_weights(SHARED, whole, source)[0], whole.ema.averages[0])
    drawn = sample_source(SEPARATE, OBJECTIVE, second, 1, 3, KEY, steps=2, block_size=4)
    labels = np.zeros(3, np.int32)
    again = generate_images(
        ALONE,
        OBJECTIVE,
        second[0],
        labels,
        KEY,
        method=guided_heun,
        steps=2,
        block_size=4,
        variables=second[1],
    )
    np.testing.assert_array_equal(drawn, again)


def test_losses_are_those_of_the_source(trained):
    levels = jax.tree.map(lambda leaf: leaf[:2], OBJECTIVE.grid(3))
    state, _ = trained[True]
    # A network tells labels apart once its conditioning has a gain.
    params, variables = arm_weights(SHARED, state, 0)
    params = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.full_like(leaf, 0.5), params)
    losses = [
        source_losses(SHARED, OBJECTIVE, (params, variables), source, IMAGES[:4, 0], KEY, levels).network
        for source in range(SOURCES)
    ]
    chex.assert_shape(losses, (2, 4))
    assert not np.allclose(*losses)


def test_results_on_eight_devices_agree(trained):
    state = train_arm(SEPARATE, OBJECTIVE, IMAGES, KEY, RECIPE, mesh=make_mesh({"data": 8}))
    # Sums over eight devices round otherwise; Adam's first steps turn rounding of small gradients into 1e-4 of a rate.
    chex.assert_trees_all_close(state.ema.averages[0], trained[False][0].ema.averages[0], atol=1e-3)


def test_stored_latents_fit_an_arm_of_half_as_many_channels():
    config = dataclasses.replace(CONFIG, image_shape=(4, 4, 2))
    arm = Arm(EDM2(config), False)
    posterior = np.concatenate([np.zeros((8, SOURCES, 4, 4, 2)), np.ones((8, SOURCES, 4, 4, 2))], -1).astype(np.float32)
    scaling = LatentScaling((0.0, 0.0), (1.0, 1.0))
    update = ArmUpdate(arm, DenoisingUpdate(arm.network, OBJECTIVE, RECIPE.optimisation(), latents=scaling))
    state = jax.eval_shape(lambda: initial_arm(arm, RECIPE, KEY))
    moved, told = jax.eval_shape(update, state, RECIPE.hyperparameters(), posterior)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved.params, state.params)
    chex.assert_shape(told["loss"], (SOURCES,))
    with pytest.raises(ValueError, match=r"shape \[count, 2, 4, 4, 2\], as many of each source, got \[8, 2, 4, 4, 4\]"):
        train_arm(arm, OBJECTIVE, posterior, KEY, RECIPE)
    with pytest.raises(ValueError, match=r"shape \[count, 2, 4, 4, 4\]"):
        train_arm(arm, OBJECTIVE, posterior[..., :2], KEY, RECIPE, latents=scaling)


def test_steps_lower_for_every_platform():
    for arm in (SHARED, SEPARATE):
        recipe = arm.recipe(RECIPE)
        update = ArmUpdate(arm, DenoisingUpdate(arm.network, OBJECTIVE, recipe.optimisation()))
        state = jax.eval_shape(lambda arm=arm: initial_arm(arm, RECIPE, jax.random.key(0)))
        shape = jax.ShapeDtypeStruct((8, SOURCES, 4, 4, 1), jnp.float32)
        exported = jax.export.export(jax.jit(update), platforms=PLATFORMS)(state, recipe.hyperparameters(), shape)
        assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (
            IMAGES[:, :1],
            r"images must have shape \[count, 2, 4, 4, 1\], as many of each source, got \[24, 1, 4, 4, 1\]",
        ),
        (IMAGES[:0], r"got \[0, 2, 4, 4, 1\]"),
        (IMAGES.astype(np.int32), "images must be bytes or finite real numbers, got int32"),
        (np.full_like(IMAGES, np.nan), "finite"),
    ],
)
def test_images_that_fit_no_arm_are_refused(images, error):
    with pytest.raises(ValueError, match=error):
        train_arm(SHARED, OBJECTIVE, images, KEY, RECIPE)


def test_what_cannot_be_is_refused(trained):
    recipe = dataclasses.replace(RECIPE, batch_size=4)
    with pytest.raises(ValueError, match=r"a batch of 4 cannot be split evenly over data=8 devices"):
        train_arm(SHARED, OBJECTIVE, IMAGES, KEY, recipe, mesh=make_mesh({"data": 8}))
    with pytest.raises(ValueError, match=r"a source must lie in 0 ... 1, got 2"):
        arm_weights(SHARED, trained[True][0], 2)
