import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec
from support import filled_params

from jaxgen.models import ImageConv, ImageConvConfig, abstract_params, init_params, logical_axes
from jaxgen.training import create, make_mesh, state_shardings

SMALL = ImageConvConfig(
    image_shape=(8, 8, 3), num_classes=3, width=8, multipliers=(1, 2), blocks=2, embedding=8, frequencies=5
)
TINY = dataclasses.replace(SMALL, image_shape=(4, 4, 2), multipliers=(1,), blocks=1)


def example(config, lead, seed=0):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((*lead, *config.image_shape)), jnp.float32)
    condition = jnp.asarray(random.uniform(-1, 1, lead), jnp.float32)
    return x, condition, jnp.asarray(random.integers(0, config.num_classes + 1, lead))


@functools.cache
def params_of(config):
    return filled_params(ImageConv(config), scale=0.2)


def run(config, params, *inputs):
    """Apply the network in one compiled call: op by op, each small test would compile a hundred programs."""
    return jax.jit(ImageConv(config).apply)({"params": params}, *inputs)


def torch_tree(params):
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)


def torch_conv(params, x):
    kernel = params["kernel"].permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(x, kernel, params["bias"], padding="same")


def torch_norm(x, weight=None, bias=None):
    channels = x.shape[1]
    groups = {8: 2, 16: 4, 24: 6}[channels]  # 4 features a group
    return torch.nn.functional.group_norm(x, groups, weight, bias, eps=1e-6)


def torch_dense(params, x):
    kernel = params["kernel"].reshape(len(params["kernel"]), -1)
    return x @ kernel + params["bias"].reshape(-1)


def torch_block(params, x, condition):
    """The residual block in torch's own convolutions, norms and attention, channels first."""
    silu = torch.nn.functional.silu
    h = torch_conv(params["expand"], silu(torch_norm(x, params["norm"]["scale"], params["norm"]["bias"])))
    scale, shift = torch_dense(params["film"], condition).chunk(2, dim=1)
    h = silu(torch_norm(h) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    x = (torch_conv(params["skip"], x) if "skip" in params else x) + torch_conv(params["contract"], h)
    if "attend" not in params:
        return x
    norm = params["attention_norm"]
    tokens = torch_norm(x, norm["scale"], norm["bias"]).flatten(2).transpose(1, 2)
    query, key, value = torch_dense(params["project"], tokens).chunk(3, dim=2)
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    return x + torch_dense(params["attend"], attended).transpose(1, 2).reshape(x.shape)


def torch_image_conv(params, config, x, condition, label):
    """The network written again in torch, for one batch axis."""
    params, silu = torch_tree(params), torch.nn.functional.silu
    x, condition, label = (torch.tensor(np.asarray(value)) for value in (x, condition, label))
    angles = 2 * np.pi * condition[:, None] * torch.tensor(np.geomspace(*config.frequency_range, config.frequencies))
    waves = (np.sqrt(2) * torch.cat([angles.sin(), angles.cos()], 1)).to(torch.float32)
    total = torch_dense(params["noise"], waves) + params["classes"][label.long()]
    c = silu(torch_dense(params["mix"], silu(total)))
    h = torch_conv(params["enter"], x.permute(0, 3, 1, 2))
    lowest, skips = len(config.multipliers) - 1, []
    for level in range(lowest):
        for index in range(config.blocks):
            h = torch_block(params[f"down_{level}_{index}"], h, c)
        skips.append(h)
        h = torch.nn.functional.avg_pool2d(h, 2)
    for index in range(2 * config.blocks):
        h = torch_block(params[f"lowest_{index}"], h, c)
    for level in range(lowest - 1, -1, -1):
        h = torch.cat([torch.nn.functional.interpolate(h, scale_factor=2, mode="nearest"), skips[level]], 1)
        for index in range(config.blocks):
            h = torch_block(params[f"up_{level}_{index}"], h, c)
    h = torch_conv(params["leave"], silu(torch_norm(h, params["norm"]["scale"], params["norm"]["bias"])))
    return h.permute(0, 2, 3, 1).numpy()


def test_output_equals_the_network_written_in_torch():
    config = dataclasses.replace(SMALL, multipliers=(1, 2, 1))
    inputs = example(config, (3,))
    expected = torch_image_conv(params_of(config), config, *inputs)
    assert np.abs(expected).max() > 0.5
    output = run(config, params_of(config), *inputs)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)  # float32 over 25 convolutions


def test_heads_split_the_features_of_attention():
    config = dataclasses.replace(TINY, head_width=4)
    params = params_of(config)
    capture = lambda module, _: module.name in ("project", "attend")  # noqa: E731
    apply = jax.jit(functools.partial(ImageConv(config).apply, capture_intermediates=capture))
    _, state = apply({"params": params}, *example(config, (2,)))
    block = state["intermediates"]["lowest_0"]
    # Two heads of 4 features, one after the other.
    query, key, value = np.moveaxis(np.reshape(block["project"]["__call__"][0], (2, 16, 3, 2, 4)), (2, 3), (0, 1))
    attended = np.concatenate(np.asarray(nn.softmax(query @ np.swapaxes(key, -1, -2) / 2)) @ value, -1)  # sqrt(4) = 2
    output = jax.tree.map(np.asarray, params["lowest_0"]["attend"])
    expected = attended @ output["kernel"] + output["bias"]
    np.testing.assert_allclose(np.reshape(block["attend"]["__call__"][0], (2, 16, 8)), expected, atol=1e-5)


def test_number_of_parameters_of_the_default_is_the_closed_form():
    conv = lambda inputs, outputs, size=3: (size * size * inputs + 1) * outputs  # noqa: E731
    embedding = 256

    def block(inputs, outputs, attention=False):
        skip = conv(inputs, outputs, 1) if inputs != outputs else 0
        film = (embedding + 1) * 2 * outputs
        attend = 2 * outputs + conv(outputs, 3 * outputs, 1) + conv(outputs, outputs, 1) if attention else 0
        return 2 * inputs + conv(inputs, outputs) + film + conv(outputs, outputs) + skip + attend

    down = 2 * block(64, 64) + block(64, 128) + block(128, 128)
    lowest = 4 * block(128, 128, attention=True)
    up = block(256, 128) + block(128, 128) + block(192, 64) + block(64, 64)
    condition = (64 + 1) * embedding + 11 * embedding + (embedding + 1) * embedding
    expected = conv(3, 64) + condition + down + lowest + up + 2 * 64 + conv(64, 3)
    params = abstract_params(ImageConv(ImageConvConfig()))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected == 3_872_771


def test_initial_parameters_are_plain_float32_and_give_zero_output():
    model = ImageConv(dataclasses.replace(TINY, dtype="bfloat16", attention=0))
    params = init_params(model, jax.random.key(1))
    expected = abstract_params(model)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, jnp.dtype("float32")), expected
    )
    # 576 draws with a standard deviation of 1 / sqrt(fan in)
    assert np.std(params["lowest_0"]["expand"]["kernel"]) == pytest.approx(72**-0.5, rel=0.1)
    assert not np.any(run(model.config, params, *example(TINY, (3,))))


def test_single_samples_leading_axes_and_vmap_agree():
    config = dataclasses.replace(SMALL, blocks=1)
    x, condition, label = example(config, (2, 2))
    apply = functools.partial(run, config, params_of(config))
    whole = apply(x, condition, label)
    assert whole.shape == (2, 2, 8, 8, 3)
    mapped = jax.vmap(jax.vmap(apply))(x, condition, label)
    np.testing.assert_allclose(mapped, whole, rtol=1e-5, atol=1e-5)  # another order of float32 sums
    np.testing.assert_allclose(apply(x[1, 0], condition[1, 0], label[1, 0]), whole[1, 0], rtol=1e-5, atol=1e-5)
    assert apply(x[:0], condition[:0], label[:0]).shape == (0, 2, 8, 8, 3)


def test_float64_agrees_with_float32_through_its_own_attention():
    single = run(TINY, params_of(TINY), *example(TINY, (3,)))
    with jax.enable_x64(True):
        double = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64)  # noqa: E731
        x, condition, label = example(TINY, (3,))
        params = jax.tree.map(double, params_of(TINY))
        lowered = jax.jit(ImageConv(TINY).apply).lower({"params": params}, double(x), double(condition), label)
        # Only the frequencies, which are drawn up on the host, know float32.
        products = [line for line in lowered.as_text().splitlines() if "dot_general" in line or "convolution" in line]
        assert products
        assert all("f32" not in line for line in products)
        output = lowered.compile()({"params": params}, double(x), double(condition), label)
        assert output.dtype == jnp.float64
    np.testing.assert_allclose(output, single, rtol=1e-5, atol=1e-5)  # float32 over 8 convolutions


def test_condition_and_every_label_change_the_output():
    x, condition, _ = example(TINY, ())
    labels = jnp.arange(TINY.num_classes + 1)
    apply = functools.partial(run, TINY, params_of(TINY), x)
    outputs = jax.vmap(apply, (None, 0))(condition, labels)
    distances = jnp.abs(outputs[:, None] - outputs[None]).max((2, 3, 4)) + 1.0 * jnp.eye(len(labels))
    assert TINY.null_label == TINY.num_classes
    assert distances.min() > 1e-4
    assert jnp.abs(apply(condition + 0.1, labels[0]) - outputs[0]).max() > 1e-4


def stacked(params, config):
    """The parameters of the scanned network, from those of the unrolled one."""
    result = dict(params)
    for stage, count in (("down_0", config.blocks), ("lowest", 2 * config.blocks), ("up_0", config.blocks)):
        rest = [result.pop(f"{stage}_{index}") for index in range(1, count) if f"{stage}_0" in params]
        if rest:
            result[f"{stage}_rest"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest)
    return result


def value_and_gradient(config, params, inputs):
    """The inputs are arguments, so that tests of equal shapes find the program in the compilation cache."""
    model = ImageConv(config)
    loss = lambda params, inputs: jnp.mean(model.apply({"params": params}, *inputs) ** 2)  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))(params, inputs)


def test_scanned_blocks_equal_unrolled_blocks():
    unrolled, inputs = params_of(SMALL), example(SMALL, (3,))
    output = run(dataclasses.replace(SMALL, scan=True), stacked(unrolled, SMALL), *inputs)
    np.testing.assert_allclose(output, run(SMALL, unrolled, *inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_rematerialisation_leaves_the_gradients(scan):
    inputs, params = example(TINY, (3,)), params_of(TINY)
    _, expected = value_and_gradient(TINY, params, inputs)
    if scan:
        params, expected = stacked(params, TINY), stacked(expected, TINY)
    _, gradient = value_and_gradient(dataclasses.replace(TINY, remat=True, scan=scan), params, inputs)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5),  # float32 sums reordered
        gradient,
        expected,
    )


def test_only_more_than_four_equal_blocks_are_scanned_by_default():
    names = [set(abstract_params(ImageConv(dataclasses.replace(SMALL, blocks=blocks)))) for blocks in (2, 3)]
    assert not [name for name in names[0] if "rest" in name]
    assert [name for name in names[1] if "rest" in name] == ["lowest_rest"]  # 5 after the first one


def test_bfloat16_keeps_parameters_gradients_norms_and_output_in_float32():
    config, inputs = dataclasses.replace(TINY, dtype="bfloat16"), example(TINY, (3,))
    model = ImageConv(config)
    lowered = jax.jit(model.apply).lower({"params": params_of(TINY)}, *inputs).as_text().splitlines()
    products = [line.rsplit("->", 1)[0] for line in lowered if "stablehlo.convolution" in line]
    assert ["xf32>" in line for line in products] == [False] * (len(products) - 1) + [True]  # the last layer
    assert not [line for line in lowered if "stablehlo.rsqrt" in line and "bf16" in line]
    assert not [line for line in lowered if "stablehlo.reduce(" in line and "bf16" in line]
    output = run(config, params_of(TINY), *inputs)
    assert output.dtype == jnp.float32
    full = run(TINY, params_of(TINY), *inputs)
    np.testing.assert_allclose(output, full, atol=0.05 * float(jnp.abs(full).max()))  # 8 bits of mantissa
    gradient = jax.eval_shape(lambda params: value_and_gradient(config, params, inputs)[1], params_of(TINY))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_dropout_draws_from_its_own_stream_and_is_off_by_default():
    config, inputs = dataclasses.replace(TINY, dropout=0.5), example(TINY, (3,))
    np.testing.assert_array_equal(run(config, params_of(TINY), *inputs), run(TINY, params_of(TINY), *inputs))

    @jax.jit
    def dropping(key):
        variables = {"params": params_of(TINY)}
        return ImageConv(config).apply(variables, *inputs, deterministic=False, rngs={"dropout": key})

    first, again, other = (dropping(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-4


def test_augmentation_condition_reaches_the_output():
    config = dataclasses.replace(TINY, augmentation=2)
    model, inputs = ImageConv(config), example(config, (3,))
    outputs = [run(config, params_of(config), *inputs, jnp.full((3, 2), value)) for value in (0.0, 1.0)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-4
    variables = {"params": params_of(config)}
    with pytest.raises(ValueError, match="the network has 2 augmentation features"):
        model.apply(variables, *inputs)
    with pytest.raises(ValueError, match="augmentation must have shape"):
        model.apply(variables, *inputs, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="the network has 0 augmentation features"):
        ImageConv(TINY).apply({"params": params_of(TINY)}, *inputs, jnp.zeros((3, 2)))


def test_gradients_are_finite_at_extreme_inputs():
    x = jnp.stack([jnp.zeros((4, 4, 2)), jnp.full((4, 4, 2), 1e4), jnp.full((4, 4, 2), -1e-20)])
    _, gradient = value_and_gradient(TINY, params_of(TINY), (x, jnp.array([-3.0, 0.0, 3.0]), jnp.arange(3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_every_axis_is_named_and_tensor_parallelism_splits_the_inner_features():
    model = ImageConv(dataclasses.replace(SMALL, scan=True, augmentation=2, attention=2))
    params, axes = abstract_params(model), logical_axes(model)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, names: len(names) == leaf.ndim and all(names), params, axes)))
    state = create(jax.random.key(0), params, ())
    places = state_shardings(state, make_mesh({"data": 4, "model": 2}), axes).params
    blocks = places["lowest_rest"]
    assert blocks["expand"]["kernel"].spec == PartitionSpec(None, None, None, None, "model")
    assert blocks["contract"]["kernel"].spec == PartitionSpec(None, None, None, "model", None)
    assert blocks["film"]["kernel"].spec == PartitionSpec(None, None, None, "model")
    assert blocks["project"]["kernel"].spec == PartitionSpec(None, None, None, "model")
    assert blocks["attend"]["kernel"].spec == PartitionSpec(None, "model", None)
    assert places["leave"]["kernel"].is_fully_replicated


def test_two_devices_of_tensor_parallelism_compute_what_one_does():
    config, mesh = TINY, make_mesh({"model": 2})
    params, inputs = params_of(config), example(config, (3,))
    places = state_shardings(create(jax.random.key(0), params, ()), mesh, logical_axes(ImageConv(config))).params
    split = run(config, jax.device_put(params, places), *inputs)
    np.testing.assert_allclose(split, run(config, params, *inputs), rtol=1e-5, atol=1e-5)  # another order of sums


def test_forward_and_gradient_lower_for_every_platform():
    model = ImageConv(dataclasses.replace(SMALL, blocks=3, remat=True, dtype="bfloat16"))
    loss = jax.jit(jax.grad(lambda p, x, c, y: jnp.mean(model.apply({"params": p}, x, c, y) ** 2)))
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (abstract_params(model), *example(model.config, (2,))),
    )
    exported = jax.export.export(loss, platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("blocks", 0),
        ("head_width", 0),
        ("multipliers", ()),
        ("multipliers", (1, 0)),
        ("image_shape", (32, 16, 3)),
        ("image_shape", (32, 32, 0)),
        ("image_shape", (30, 30, 3)),
        ("image_shape", (33, 33, 3)),
        ("attention", 4),
        ("attention", -1),
        ("frequency_range", (2.0, 1.0)),
        ("dropout", 1.0),
        ("augmentation", -1),
    ],
)
def test_configuration_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field} must"):
        ImageConvConfig(**{field: value})


def test_sides_that_cannot_be_halved_are_refused_with_the_multiple():
    with pytest.raises(ValueError, match="multiples of 4, got") as error:
        ImageConvConfig(image_shape=(30, 30, 3))
    assert "fewer multipliers" in str(error.value)
    assert ImageConvConfig(image_shape=(30, 30, 1), multipliers=(1, 2)).image_shape == (30, 30, 1)


def test_shapes_that_do_not_belong_together_are_refused():
    x, condition, label = example(SMALL, (4,))
    apply = functools.partial(ImageConv(SMALL).apply, {"params": params_of(SMALL)})
    with pytest.raises(ValueError, match="image shape"):
        apply(x[..., :-1], condition, label)
    with pytest.raises(ValueError, match="noise_condition"):
        apply(x, condition[:3], label)
    with pytest.raises(ValueError, match="label"):
        apply(x, condition, label[0])
