import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config
from support import filled_params

from jaxgen.diffusion import (
    EDM,
    classifier_free,
    ddpm,
    denoiser,
    edm_preconditioned,
    level_at,
    prior,
    sample,
    sample_many,
    uniform_grid,
)
from jaxgen.diffusion.samplers import many
from jaxgen.models import ImageMLP, ImageMLPConfig
from jaxgen.training import make_mesh

MODEL = ImageMLP(ImageMLPConfig(image_shape=(3, 2), num_classes=3, width=16, hidden=24, blocks=1, embedding=8))
NULL = MODEL.config.null_label
GRID = uniform_grid(EDM(10.0), 4)
KEY = jax.random.key(0)


@functools.cache
def params():
    # Large enough that a wrong label, or a wrong key, moves a sample by far more than rounding.
    return filled_params(MODEL, scale=0.5)


def draw_image(key, label, params, scale, grid):
    """One image of a guided network by ancestral sampling: every noise of a run, and the labels, enter it."""

    def predict(x, level, label):
        network = lambda x, c_noise: MODEL.apply({"params": params}, x, c_noise, label)  # noqa: E731
        return edm_preconditioned(network, x, level, 1.0)

    start_key, run_key = jax.random.split(key)
    start = prior(start_key, (3, 2), jax.tree.map(lambda leaf: leaf[0], grid))
    return sample(ddpm(denoiser(classifier_free(predict, label, NULL, scale))), run_key, start, grid)


def images(count, *, key=KEY, labels=None, **options):
    labels = np.arange(count) % 3 if labels is None else labels
    return sample_many(draw_image, key, count, params(), 1.5, GRID, conditions=labels, **options)


@pytest.fixture(scope="module")
def hundred():
    return images(100)


def draw_noise(key, condition):
    """What sampling draws, and nothing else."""
    del condition
    return {"start": jax.random.normal(key, (3,)), "step": jax.random.normal(jax.random.fold_in(key, 7), (2, 2))}


def noises(count, **options):
    return sample_many(draw_noise, KEY, count, **options)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_a_sample_is_the_same_to_the_bit_however_many_are_asked_for(hundred, count):
    drawn = images(count)
    assert isinstance(drawn, np.ndarray)
    assert drawn.shape == (count, 3, 2)
    np.testing.assert_array_equal(drawn, hundred[:count])


def test_a_sample_is_the_one_its_own_key_draws(hundred):
    assert np.isfinite(hundred).all()
    assert len(np.unique(hundred, axis=0)) == 100
    for i in (0, 63, 64, 99):
        alone = jax.jit(draw_image)(jax.random.fold_in(KEY, i), i % 3, params(), 1.5, GRID)
        np.testing.assert_allclose(hundred[i], alone, rtol=0, atol=1e-5)  # products of another shape, entries up to 6
    assert np.abs(images(1, key=jax.random.key(1)) - hundred[:1]).max() > 1e-2


def test_conditions_follow_their_sample_through_padding(hundred):
    swapped = np.arange(100) % 3
    swapped[[3, 99]] = (swapped[[3, 99]] + 1) % 3
    again = images(100, labels=swapped)
    same = np.delete(np.arange(100), [3, 99])
    np.testing.assert_array_equal(again[same], hundred[same])
    assert np.abs(again[[3, 99]] - hundred[[3, 99]]).max((1, 2)).min() > 1e-3
    # A pytree of conditions, whose leaves come back beside the sample that they belong to.
    given = {"label": np.arange(10, 80), "row": np.random.default_rng(0).standard_normal((70, 2)).astype(np.float32)}
    back = sample_many(lambda key, condition: condition, KEY, 70, conditions=given)
    jax.tree.map(np.testing.assert_array_equal, back, given)


@pytest.mark.parametrize("block_size", [1, 16])
def test_noise_is_the_same_to_the_bit_and_samples_to_rounding_across_block_sizes(hundred, block_size):
    jax.tree.map(np.testing.assert_array_equal, noises(20, block_size=block_size), noises(20))
    # Matrix products of another shape.
    np.testing.assert_allclose(images(20, block_size=block_size), hundred[:20], rtol=0, atol=1e-5)


def test_devices_share_the_work_and_change_no_noise_and_no_sample_beyond_rounding(hundred):
    for mesh in (make_mesh("data=1"), make_mesh("data=8")):
        jax.tree.map(np.testing.assert_array_equal, noises(100, mesh=mesh), noises(100))
    drawn = images(100, mesh=mesh)
    np.testing.assert_allclose(drawn, hundred, rtol=0, atol=1e-5)  # products of another shape, entries up to 6
    # However many are asked for, on a mesh too.
    np.testing.assert_array_equal(images(7, mesh=mesh), drawn[:7])


def test_every_device_draws_its_share_of_a_block(monkeypatch):
    draw_block, shares = many.draw_block, []

    def spy(draw, keys, conditions, operands):
        block = draw_block(draw, keys, conditions, operands)
        for leaf in (keys, conditions, block["start"]):
            assert len(leaf.sharding.device_set) == 8
            shares.append(leaf.sharding.shard_shape(leaf.shape)[0])
        return block

    monkeypatch.setattr(many, "draw_block", spy)
    noises(70, conditions=np.arange(70), mesh=make_mesh("data=8"))
    assert shares == [8] * 6  # of the 64 of two blocks


def test_other_axes_of_a_mesh_are_left_alone():
    mesh = make_mesh("data=4,model=2")
    jax.tree.map(np.testing.assert_array_equal, noises(9, block_size=4, mesh=mesh), noises(9))


def test_parameters_that_are_placed_already_stay_where_they_are():
    mesh = make_mesh("data=2,model=2")
    split = jax.sharding.NamedSharding(mesh, jax.P("model"))
    weights = jnp.arange(4.0)
    seen = []

    def draw(key, condition, weights):
        jax.debug.inspect_array_sharding(weights, callback=seen.append)
        return weights.sum() + jax.random.normal(key)

    for operand in (weights, jax.device_put(weights, split)):
        sample_many(draw, KEY, 2, operand, block_size=2, mesh=mesh)
    shares = [sharding.shard_shape((4,)) for sharding in seen]
    assert shares == [(4,), (2,)]


def test_another_count_key_condition_scale_or_grid_never_traces_again():
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(draw_image, n=1)
    for count, key, scale, stop in ((3, KEY, 1.0, 0.0), (64, jax.random.key(8), 0.0, 0.1), (65, KEY, -2.0, 0.2)):
        labels = np.full(count, count % 3)
        grid = uniform_grid(EDM(10.0), 4, stop=stop)
        drawn = sample_many(counted, key, count, params(), scale, grid, conditions=labels)
        assert len(drawn) == count


def test_samples_may_be_pytrees_and_need_no_condition():
    drawn = noises(70)
    assert drawn["start"].shape == (70, 3)
    assert drawn["step"].shape == (70, 2, 2)
    # Independent normals: the 490 entries have mean 0 and variance 1 within 4 standard errors.
    entries = np.concatenate([drawn["start"].ravel(), drawn["step"].ravel()])
    assert abs(entries.mean()) < 4 / np.sqrt(490)
    assert abs(entries.var() - 1) < 4 * np.sqrt(2 / 490)


def test_finished_blocks_are_reported_with_the_number_of_samples():
    seen = []
    noises(100, on_block=seen.append)
    assert seen == [64, 100]
    seen.clear()
    noises(128, on_block=seen.append)
    assert seen == [64, 128]
    seen.clear()
    noises(1, on_block=seen.append)
    assert seen == [1]


def test_prior_is_the_noise_of_the_level():
    level = level_at(EDM(10.0), 0.3)
    x = prior(KEY, (2, 3), level)
    np.testing.assert_allclose(x, 3.0 * jax.random.normal(KEY, (2, 3)), rtol=1e-6)
    assert x.dtype == jnp.float32
    assert prior(KEY, (2,), level, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.fixture
def unchecked_types():
    """Lift the type checks that only the tests have, which would hide what a user sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, None])
@pytest.mark.parametrize("name", ["count", "block_size"])
def test_counts_that_are_no_positive_integer_are_refused(name, value, unchecked_types):
    count = value if name == "count" else 5
    options = {"block_size": value} if name == "block_size" else {}
    with pytest.raises(ValueError) as caught:
        noises(count, **options)
    assert str(caught.value) == f"{name} must be an integer of at least 1, got {value!r}"


def test_a_block_that_devices_cannot_share_is_refused():
    with pytest.raises(ValueError) as caught:
        noises(5, block_size=12, mesh=make_mesh("data=8"))
    assert str(caught.value) == (
        "a block of 12 samples does not divide over 8 devices of the mesh's data axis; choose a multiple"
    )


@pytest.mark.parametrize("shape", [(4,), (6, 2), ()])
def test_conditions_of_another_length_are_refused(shape):
    with pytest.raises(ValueError) as caught:
        noises(5, conditions={"good": np.zeros(5), "bad": np.zeros(shape)})
    assert str(caught.value) == f"conditions need one entry a sample, got shape {shape} for 5 samples"
