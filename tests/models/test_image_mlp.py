import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import filled_params

from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params, init_params

SMALL = ImageMLPConfig(image_shape=(3, 4), num_classes=3, width=16, hidden=24, blocks=2, embedding=8, frequencies=5)


def example(config, lead, seed=0):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((*lead, *config.image_shape)), jnp.float32)
    condition = jnp.asarray(random.uniform(-1, 1, lead), jnp.float32)
    return x, condition, jnp.asarray(random.integers(0, config.num_classes + 1, lead))


@functools.cache
def small_params():
    return filled_params(ImageMLP(SMALL))


def run(config, params, *inputs):
    """Apply the network in one compiled call: op by op, each small test would compile fifty programs."""
    return jax.jit(ImageMLP(config).apply)({"params": params}, *inputs)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def numpy_image_mlp(params, config, x, condition, label):
    """The network written again in float64 numpy, for one batch axis."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    angles = 2 * np.pi * np.outer(condition, np.geomspace(*config.frequency_range, config.frequencies))
    waves = np.sqrt(2) * np.concatenate([np.sin(angles), np.cos(angles)], -1)
    total = dense(params["noise"], waves) + params["classes"][label]
    c = silu(dense(params["mix"], silu(total)))
    h = dense(params["enter"], np.asarray(x, np.float64).reshape(len(x), -1))
    for index in range(config.blocks):
        block = params[f"block_{index}"]
        scale, shift = np.split(dense(block["film"], c), 2, -1)
        h = h + dense(block["contract"], silu(dense(block["expand"], norm(h) * (1 + scale) + shift)))
    return dense(params["leave"], norm(h)).reshape(x.shape)


@pytest.mark.parametrize("augmentation", [0, 6])
@pytest.mark.parametrize("blocks", [3, 5])
def test_number_of_parameters_is_the_closed_form(blocks, augmentation):
    config = ImageMLPConfig(blocks=blocks, augmentation=augmentation)
    pixels, width, hidden, embedding = 64, 256, 512, 128
    dense_count = lambda inputs, outputs: (inputs + 1) * outputs  # noqa: E731
    block = dense_count(embedding, 2 * width) + dense_count(width, hidden) + dense_count(hidden, width)
    condition = dense_count(64, embedding) + 11 * embedding + dense_count(embedding, embedding)
    condition += dense_count(augmentation, embedding) if augmentation else 0
    expected = dense_count(pixels, width) + condition + blocks * block + dense_count(width, pixels)
    params = abstract_params(ImageMLP(config))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == expected
    if (blocks, augmentation) == (3, 0):
        assert expected == 1_046_208  # the digits network of about 1.05 M parameters


def test_initial_parameters_are_plain_float32_and_give_zero_output():
    model = ImageMLP(SMALL)
    params = init_params(model, jax.random.key(1))
    expected = abstract_params(model)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, jnp.dtype("float32")), expected
    )
    assert np.std(params["block_0"]["expand"]["kernel"]) == pytest.approx(SMALL.width**-0.5, rel=0.2)  # 384 draws
    assert not np.any(run(SMALL, params, *example(SMALL, (5,))))


def test_output_equals_the_network_written_in_numpy():
    inputs = example(SMALL, (7,))
    output = run(SMALL, small_params(), *inputs)
    expected = numpy_image_mlp(small_params(), SMALL, *map(np.asarray, inputs))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)  # float32 over 9 layers


def test_float64_follows_from_float64_arguments():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), small_params())
        x, condition, label = (np.asarray(value) for value in example(SMALL, (4,)))
        inputs = (jnp.asarray(x, jnp.float64), jnp.asarray(condition, jnp.float64), label)
        output = run(SMALL, params, *inputs)
        assert output.dtype == jnp.float64
        np.testing.assert_allclose(output, numpy_image_mlp(params, SMALL, x, condition, label), rtol=1e-12, atol=1e-12)


def test_single_samples_leading_axes_and_vmap_agree():
    x, condition, label = example(SMALL, (2, 3))
    apply = functools.partial(run, SMALL, small_params())
    whole = apply(x, condition, label)
    assert whole.shape == (2, 3, 3, 4)
    mapped = jax.vmap(jax.vmap(apply))(x, condition, label)
    np.testing.assert_allclose(mapped, whole, rtol=1e-5, atol=1e-6)  # another order of float32 sums
    np.testing.assert_allclose(apply(x[1, 2], condition[1, 2], label[1, 2]), whole[1, 2], rtol=1e-5, atol=1e-6)


def test_vmap_over_samples_is_one_matrix_product_per_layer():
    apply = functools.partial(ImageMLP(SMALL).apply, {"params": small_params()})
    inputs = example(SMALL, (6,))
    single = jax.jit(apply).lower(*(value[0] for value in inputs)).as_text().count("dot_general")
    batched = jax.jit(jax.vmap(apply)).lower(*inputs).as_text()
    assert batched.count("stablehlo.dot_general") == single == 2 + 3 * SMALL.blocks + 2
    assert "batching_dims" not in batched


def test_null_label_is_a_class_of_its_own():
    x, condition, _ = example(SMALL, ())
    labels = jnp.arange(SMALL.num_classes + 1)
    outputs = jax.vmap(lambda label: run(SMALL, small_params(), x, condition, label))(labels)
    distances = jnp.abs(outputs[:, None] - outputs[None]).max((2, 3)) + 1.0 * jnp.eye(len(labels))
    assert SMALL.null_label == SMALL.num_classes
    assert distances.min() > 1e-4


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_blocks_equal_unrolled_blocks(remat):
    unrolled = small_params()
    blocks = [unrolled[f"block_{index}"] for index in range(SMALL.blocks)]
    scanned = {name: leaf for name, leaf in unrolled.items() if not name.startswith("block_")}
    scanned["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    inputs = example(SMALL, (4,))

    def value_and_gradient(params, scan):
        model = ImageMLP(dataclasses.replace(SMALL, scan=scan, remat=remat))
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.apply({"params": p}, *inputs) ** 2)))(params)

    value, gradient = value_and_gradient(scanned, True)
    expected_value, expected = value_and_gradient(unrolled, False)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for index in range(SMALL.blocks):
        jax.tree.map(
            lambda stacked, leaf, index=index: np.testing.assert_allclose(stacked[index], leaf, rtol=1e-4, atol=1e-5),
            gradient["blocks"],
            expected[f"block_{index}"],
        )


def test_gradients_are_finite_at_extreme_inputs():
    model = ImageMLP(SMALL)
    x = jnp.stack([jnp.zeros((3, 4)), jnp.full((3, 4), 1e4), jnp.full((3, 4), -1e-20)])

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.mean(model.apply({"params": params}, x, jnp.array([-3.0, 0.0, 3.0]), jnp.arange(3)) ** 2)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(small_params())))


def test_bfloat16_computes_in_bfloat16_and_returns_the_type_of_x():
    inputs = example(SMALL, (4,))
    model = ImageMLP(dataclasses.replace(SMALL, dtype="bfloat16"))
    lowered = jax.jit(model.apply).lower({"params": small_params()}, *inputs).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    assert all("bf16" in line and "f32" not in line for line in products)
    output = run(model.config, small_params(), *inputs)
    assert output.dtype == jnp.float32
    full = run(SMALL, small_params(), *inputs)
    np.testing.assert_allclose(output, full, atol=0.05 * float(jnp.abs(full).max()))  # 8 bits of mantissa


def test_dropout_draws_from_its_own_stream_and_is_off_by_default():
    inputs = example(SMALL, (4,))
    model = ImageMLP(dataclasses.replace(SMALL, dropout=0.5))
    np.testing.assert_array_equal(run(model.config, small_params(), *inputs), run(SMALL, small_params(), *inputs))

    @jax.jit
    def dropping(key):
        return model.apply({"params": small_params()}, *inputs, deterministic=False, rngs={"dropout": key})

    first, again, other = (dropping(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-4


def test_augmentation_condition_reaches_the_output():
    config = dataclasses.replace(SMALL, augmentation=2)
    model, inputs = ImageMLP(config), example(config, (3,))
    params = filled_params(model)
    outputs = [run(config, params, *inputs, jnp.full((3, 2), value)) for value in (0.0, 1.0)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-4
    with pytest.raises(ValueError, match="augmentation"):
        model.apply({"params": params}, *inputs)


def test_forward_and_gradient_lower_for_every_platform():
    model = ImageMLP(ImageMLPConfig(width=16, hidden=16, blocks=5, embedding=8, remat=True, dtype="bfloat16"))
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
        ("blocks", -1),
        ("image_shape", ()),
        ("image_shape", (8, 0)),
        ("frequency_range", (2.0, 1.0)),
        ("dropout", 1.0),
        ("augmentation", -1),
    ],
)
def test_configuration_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        ImageMLPConfig(**{field: value})


def test_shapes_that_do_not_belong_together_are_refused():
    x, condition, label = example(SMALL, (4,))
    apply = functools.partial(ImageMLP(SMALL).apply, {"params": small_params()})
    with pytest.raises(ValueError, match="image shape"):
        apply(x[..., :-1], condition, label)
    with pytest.raises(ValueError, match="noise_condition"):
        apply(x, condition[:3], label)
    with pytest.raises(ValueError, match="label"):
        apply(x, condition, label[0])
