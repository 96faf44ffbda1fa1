import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec
from programs import assert_portable
from support import filled_params

from jaxgen.models import abstract_params, init_params, logical_axes
from jaxgen.models.image_classifier import ImageClassifier, ImageClassifierConfig
from jaxgen.training import create, make_mesh, state_shardings

SMALL = ImageClassifierConfig(image_shape=(8, 8, 3), num_classes=3, width=8, multipliers=(1, 2), blocks=2, features=5)
TINY = ImageClassifierConfig(image_shape=(4, 4), num_classes=3, width=8, multipliers=(1,), features=6)


def example(config, lead, seed=0):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.standard_normal((*lead, *config.image_shape)), jnp.float32)


@functools.cache
def params_of(config):
    return filled_params(ImageClassifier(config), scale=0.2)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(config, params, images, method="__call__"):
    """Apply the network in one compiled call: op by op, each small test would compile a hundred programs."""
    return ImageClassifier(config).apply({"params": params}, images, method=method)


def torch_norm(params, x):
    groups = max(min(32, x.shape[1] // 4), 1)  # of widths that they divide
    return torch.nn.functional.group_norm(x, groups, params["scale"], params["bias"], eps=1e-6)


def torch_conv(params, x):
    kernel = params["kernel"].permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(x, kernel, params["bias"], padding=kernel.shape[-1] // 2)


def torch_features(params, config, images):
    """The network up to its penultimate layer, written again in torch, for one batch axis."""
    silu = torch.nn.functional.silu
    params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params["trunk"])
    h = torch_conv(params["enter"], torch.tensor(np.array(images)).permute(0, 3, 1, 2))
    for level in range(len(config.multipliers)):
        h = torch.nn.functional.avg_pool2d(h, 2) if level else h
        for index in range(config.blocks):
            block, x = params[f"level_{level}_{index}"], h
            h = torch_conv(block["expand"], silu(torch_norm(block["norm"], x)))
            h = torch_conv(block["contract"], silu(torch_norm(block["hidden_norm"], h)))
            h = h + (torch_conv(block["skip"], x) if "skip" in block else x)
    h = silu(torch_norm(params["norm"], h)).mean((2, 3))
    return silu(h @ params["features"]["kernel"] + params["features"]["bias"]).numpy()


def test_features_equal_the_network_written_in_torch():
    images = example(SMALL, (3,))
    expected = torch_features(params_of(SMALL), SMALL, images)
    assert np.abs(expected).max() > 0.1
    found = run(SMALL, params_of(SMALL), images, "features")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # float32 over 10 convolutions


def test_logits_are_one_affine_layer_above_the_features():
    images, head = example(SMALL, (3,)), params_of(SMALL)["head"]
    features = np.asarray(run(SMALL, params_of(SMALL), images, "features"), np.float64)
    expected = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(run(SMALL, params_of(SMALL), images), expected, rtol=1e-5, atol=1e-6)


def test_number_of_parameters_of_the_default_is_the_closed_form():
    conv = lambda inputs, outputs, size=3: (size * size * inputs + 1) * outputs  # noqa: E731
    block = lambda inputs, outputs: 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs)  # noqa: E731
    blocks = block(32, 32) + block(32, 64) + conv(32, 64, 1)
    expected = conv(1, 32) + blocks + 2 * 64 + (64 + 1) * 64 + (64 + 1) * 10
    params = abstract_params(ImageClassifier(ImageClassifierConfig()))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected == 81_610


def test_initial_parameters_are_plain_float32_and_give_equal_logits():
    model = ImageClassifier(dataclasses.replace(TINY, dtype="bfloat16"))
    params, expected = init_params(model, jax.random.key(1)), abstract_params(model)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, jnp.dtype("float32")), expected
    )
    # 576 draws with the standard deviation of He et al. 2015, sqrt(2 / fan in)
    assert np.std(params["trunk"]["level_0_0"]["expand"]["kernel"]) == pytest.approx((2 / 72) ** 0.5, rel=0.1)
    assert not np.any(run(model.config, params, example(TINY, (3,))))
    assert np.std(run(model.config, params, example(TINY, (3,)), "features"), axis=0).max() > 1e-3


@pytest.mark.parametrize(("config", "method"), [(dataclasses.replace(SMALL, blocks=1), "features"), (TINY, "__call__")])
def test_single_images_leading_axes_parts_and_vmap_agree(config, method):
    images, params = example(config, (2, 2)), params_of(config)
    apply = lambda images: run(config, params, images, method)  # noqa: E731
    whole = apply(images)
    assert whole.shape == (2, 2, config.features if method == "features" else config.num_classes)
    np.testing.assert_allclose(jax.vmap(jax.vmap(apply))(images), whole, rtol=1e-5, atol=1e-6)  # another order of sums
    np.testing.assert_allclose(apply(images[1]), whole[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(images[1, 0]), whole[1, 0], rtol=1e-5, atol=1e-6)
    assert apply(images[:0]).shape == (0, *whole.shape[1:])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (32, 32, 3), (64, 64, 3), (28, 28)])
def test_images_from_small_and_grey_to_large_and_coloured_are_taken(shape):
    model = ImageClassifier(ImageClassifierConfig(shape, width=12, multipliers=(1, 2, 3), features=7))
    images = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    variables = {"params": abstract_params(model)}
    logits = jax.eval_shape(model.apply, variables, images)
    features = jax.eval_shape(functools.partial(model.apply, method=model.features), variables, images)
    assert (logits.shape, features.shape) == ((5, 10), (5, 7))


def test_a_grey_image_may_have_an_axis_of_one_channel():
    config = dataclasses.replace(TINY, image_shape=(4, 4, 1))
    images = example(TINY, (3,))
    np.testing.assert_array_equal(
        run(config, params_of(TINY), images[..., None], "features"), run(TINY, params_of(TINY), images, "features")
    )


def test_bfloat16_keeps_gradients_norms_features_and_logits_in_float32():
    config, images = dataclasses.replace(TINY, dtype="bfloat16"), example(TINY, (3,))
    lowered = run.lower(config, params_of(TINY), images).as_text().splitlines()
    products = [line for line in lowered if "stablehlo.convolution" in line]
    assert products
    assert all("xbf16>" in line for line in products)
    assert not [line for line in lowered if "stablehlo.rsqrt" in line and "bf16" in line]
    features = run(config, params_of(TINY), images, "features")
    assert features.dtype == run(config, params_of(TINY), images).dtype == jnp.float32
    full = run(TINY, params_of(TINY), images, "features")
    np.testing.assert_allclose(features, full, atol=0.05 * float(jnp.abs(full).max()))  # 8 bits of mantissa
    gradient = jax.eval_shape(jax.grad(lambda params: jnp.sum(run(config, params, images))), params_of(TINY))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_float64_agrees_with_float32():
    single = run(TINY, params_of(TINY), example(TINY, (3,)))
    with jax.enable_x64(True):
        double = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64)  # noqa: E731
        output = run(TINY, jax.tree.map(double, params_of(TINY)), double(example(TINY, (3,))))
        assert output.dtype == jnp.float64
    np.testing.assert_allclose(output, single, rtol=1e-5, atol=1e-5)  # float32 over 3 convolutions


def test_gradients_are_finite_at_extreme_images():
    images = jnp.stack([jnp.zeros((4, 4)), jnp.full((4, 4), 1e4), jnp.full((4, 4), -1e-20)])
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(run(TINY, params, images) ** 2)))(params_of(TINY))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_every_axis_is_named_and_tensor_parallelism_splits_the_inner_features():
    model = ImageClassifier(SMALL)
    params, axes = abstract_params(model), logical_axes(model)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, names: len(names) == leaf.ndim and all(names), params, axes)))
    wide = ImageClassifier(dataclasses.replace(SMALL, width=32, features=64, num_classes=20))
    state = create(jax.random.key(0), abstract_params(wide), ())
    places = state_shardings(state, make_mesh({"data": 4, "model": 2}), logical_axes(wide)).params
    block = places["trunk"]["level_1_0"]
    assert block["expand"]["kernel"].spec == PartitionSpec(None, None, None, "model")
    assert block["contract"]["kernel"].spec == PartitionSpec(None, None, "model", None)
    assert block["skip"]["kernel"].is_fully_replicated
    assert places["trunk"]["features"]["kernel"].spec == PartitionSpec(None, "model")
    assert places["head"]["kernel"].spec == PartitionSpec("model", None)


def test_two_devices_of_tensor_parallelism_compute_what_one_does():
    images, model = example(TINY, (3,)), ImageClassifier(TINY)
    state = create(jax.random.key(0), params_of(TINY), ())
    # The sizes are below what a rule table bothers to split.
    split = jax.tree.map(
        lambda leaf, names: jax.sharding.NamedSharding(
            make_mesh({"model": 2}), PartitionSpec(*("model" if name == "hidden" else None for name in names))
        ),
        state.params,
        logical_axes(model),
    )
    found = run(TINY, jax.device_put(params_of(TINY), split), images)
    np.testing.assert_allclose(found, run(TINY, params_of(TINY), images), rtol=1e-5, atol=1e-6)  # another order of sums


def test_forward_and_gradient_lower_for_every_platform():
    model = ImageClassifier(ImageClassifierConfig((64, 64, 3), width=8, multipliers=(1, 2, 4, 4), dtype="bfloat16"))
    loss = jax.jit(jax.grad(lambda params, images: jnp.mean(model.apply({"params": params}, images) ** 2)))
    assert_portable(loss, abstract_params(model), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 1),
        ("width", 0),
        ("blocks", 0),
        ("features", 0),
        ("multipliers", ()),
        ("multipliers", (1, 0)),
        ("image_shape", (8,)),
        ("image_shape", (8, 8, 3, 1)),
        ("image_shape", (8, 4)),
        ("image_shape", (8, 8, 0)),
        ("image_shape", (0, 0)),
        ("image_shape", (9, 9)),
    ],
)
def test_configuration_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field} must"):
        ImageClassifierConfig(**{field: value})


@pytest.mark.parametrize("method", ["__call__", "features"])
@pytest.mark.parametrize("shape", [(8, 8), (4, 8, 3), (2, 8, 8, 1), (3,)])
def test_images_of_another_shape_are_refused(shape, method):
    with pytest.raises(ValueError, match=r"images must end in the image shape \(8, 8, 3\), got \("):
        ImageClassifier(SMALL).apply({"params": params_of(SMALL)}, jnp.zeros(shape), method=method)
