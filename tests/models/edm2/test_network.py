import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from programs import assert_portable
from support import filled_params

from jaxgen.models import (
    EDM2,
    EDM2Config,
    abstract_params,
    abstract_variables,
    edm2_config,
    init_variables,
    logical_axes,
)
from jaxgen.training import create, make_mesh, state_shardings

TINY = EDM2Config(
    image_shape=(4, 4, 2),
    num_classes=3,
    width=16,
    multipliers=(1,),
    blocks=1,
    attention_sides=(),
    channels_per_head=8,
    uncertainty_width=16,
)
TOY = EDM2Config(
    image_shape=(8, 8, 1),
    num_classes=3,
    width=16,
    multipliers=(1, 2),
    blocks=1,
    attention_sides=(8, 4),
    channels_per_head=16,
    uncertainty_width=16,
)


def example(config, lead, seed=0):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((*lead, *config.image_shape)), jnp.float32)
    condition = jnp.asarray(random.uniform(-1, 0.5, lead), jnp.float32)
    return x, condition, jnp.asarray(random.integers(0, config.num_classes + 1, lead))


@functools.cache
def variables_of(config, gain=0.3):
    """Standard normal kernels, which are what the initialisers draw, and gains that are not zero."""
    model, random = EDM2(config), np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.full((), gain), filled_params(model, scale=1.0))
    draw = lambda leaf: jnp.asarray(2 * np.pi * random.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    return {"params": params, **jax.tree.map(draw, abstract_variables(model))}


def with_params(variables, **changes):
    return {**variables, "params": {**variables["params"], **changes}}


@functools.cache
def program(config):
    return jax.jit(EDM2(config).apply)


def run(config, variables, *inputs):
    """Apply the network in one compiled call: op by op, each small test would compile a hundred programs."""
    return program(config)(variables, *inputs)


def test_variables_have_the_documented_names():
    params = abstract_params(EDM2(dataclasses.replace(TOY, attention_sides=(4,))))
    outside = {"noise", "label", "uncertainty", "enter", "leave", "leave_gain"}
    down = {"encoder_0_0", "encoder_1_down", "encoder_1_0"}
    up = {f"decoder_{name}" for name in ("1_in0", "1_in1", "1_0", "1_1", "0_up", "0_0", "0_1")}
    assert set(params) == outside | down | up
    attending = {name for name, block in params.items() if name != "leave_gain" and "query_key_value" in block}
    assert attending == {"encoder_1_0", "decoder_1_in0", "decoder_1_0", "decoder_1_1"}
    widened = {name for name, block in params.items() if name != "leave_gain" and "skip" in block}
    assert widened == {"encoder_1_0", "decoder_1_0", "decoder_1_1", "decoder_0_0", "decoder_0_1"}
    buffers = abstract_variables(EDM2(TOY))["buffers"]
    assert jax.tree.map(lambda leaf: leaf.shape, buffers) == {
        "noise_waves": {"frequencies": (16,), "phases": (16,)},
        "uncertainty_waves": {"frequencies": (16,), "phases": (16,)},
    }


def test_initial_variables_are_plain_float32_and_give_zero_output():
    model = EDM2(dataclasses.replace(TINY, dtype="bfloat16"))
    params, others = init_variables(model, jax.random.key(1, impl="rbg"))
    like = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype("float32")), tree)  # noqa: E731
    of = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert of(params) == like(abstract_params(model))
    assert of(others) == like(abstract_variables(model))
    kernel = np.asarray(params["encoder_0_0"]["residual_0"]["kernel"])
    assert [kernel.mean(), kernel.std()] == pytest.approx([0, 1], abs=0.15)  # 4 standard errors of 576 draws
    assert params["leave_gain"] == params["encoder_0_0"]["embed_gain"] == 0
    waves = others["buffers"]
    assert np.abs(waves["noise_waves"]["phases"] - waves["uncertainty_waves"]["phases"]).min() > 0
    assert not np.any(run(model.config, {"params": params, **others}, *example(TINY, (4,))))


def test_neither_label_nor_noise_reaches_the_output_before_the_gains_move():
    variables = variables_of(TINY, gain=0.0)
    variables = with_params(variables, leave_gain=jnp.ones(()))
    x, condition, label = example(TINY, (4,))
    output = run(TINY, variables, x, condition, label)
    assert jnp.abs(output).max() > 0.1
    np.testing.assert_array_equal(run(TINY, variables, x, condition + 0.3, (label + 1) % 4), output)


def test_condition_and_every_label_change_the_output():
    x, condition, _ = example(TINY, ())
    x, condition = (jnp.broadcast_to(array, (4, *array.shape)) for array in (x, condition))
    labels = jnp.arange(TINY.num_classes + 1)
    outputs = run(TINY, variables_of(TINY), x, condition, labels)
    distances = jnp.abs(outputs[:, None] - outputs[None]).max((2, 3, 4)) + 1.0 * jnp.eye(len(labels))
    assert TINY.null_label == TINY.num_classes
    assert distances.min() > 1e-3
    assert jnp.abs(run(TINY, variables_of(TINY), x, condition + 0.1, labels) - outputs).max((1, 2, 3)).min() > 1e-3


def test_null_label_reads_nothing_of_the_label_kernel():
    variables = variables_of(TINY)
    other = with_params(variables, label={"kernel": variables["params"]["label"]["kernel"][::-1] ** 3})
    x, condition, _ = example(TINY, (4,))
    labels = jnp.arange(4)
    change = jnp.abs(run(TINY, variables, x, condition, labels) - run(TINY, other, x, condition, labels)).max((1, 2, 3))
    assert change[TINY.null_label] == 0
    assert change[: TINY.num_classes].min() > 1e-3


def magnitudes(config, count):
    """The root mean square of every block and embedding for standard normal images, at initialisation."""
    model, inputs = EDM2(config), example(config, (count,))

    @jax.jit
    def measure(variables, *inputs):
        _, state = model.apply(variables, *inputs, capture_intermediates=True, mutable=["intermediates"])
        return jax.tree.map(lambda output: jnp.sqrt(jnp.mean(output**2)), state["intermediates"])

    measured = measure(variables_of(config, gain=0.0), *inputs)
    names = [name for name in measured if name.startswith(("encoder", "decoder"))] + ["enter", "noise", "label"]
    return {name: float(measured[name]["__call__"][0]) for name in names}


def test_every_block_of_a_small_network_keeps_the_magnitude():
    roots = magnitudes(TOY, 32)
    assert len(roots) == 13
    # Zero padding lowers them: half of the pixels of a 4x4 image and more lie at its border.
    assert all(0.55 < root < 1.25 for root in roots.values()), roots


@pytest.mark.slow
def test_every_block_of_a_published_size_keeps_the_magnitude():
    roots = magnitudes(edm2_config("XS", (32, 32, 4), 10), 2)
    assert len(roots) == 39
    assert all(0.7 < root < 1.15 for root in roots.values()), roots


def test_log_variance_is_a_dense_layer_over_cosines():
    model, variables = EDM2(TINY), variables_of(TINY)
    condition = jnp.asarray([[-1.0, 0.0, 0.7]])
    u = model.apply(variables, condition, method=model.log_variance)
    kernel = np.asarray(variables["params"]["uncertainty"]["kernel"], np.float64)[:, 0]
    waves = variables["buffers"]["uncertainty_waves"]
    angles = np.asarray(condition)[..., None] * np.asarray(waves["frequencies"]) + np.asarray(waves["phases"])
    expected = np.sqrt(2) * np.cos(angles) @ kernel / np.linalg.norm(kernel)
    np.testing.assert_allclose(u, expected, atol=5e-4)  # epsilon of the filter
    assert u.shape == (1, 3)
    assert u.dtype == jnp.float32
    single = model.apply(variables, jnp.asarray(0.7, jnp.bfloat16), method="log_variance")
    assert (single.shape, single.dtype) == ((), jnp.float32)


def loss_of(config):
    model = EDM2(config)

    def loss(variables, x, condition, label):
        output = model.apply(variables, x, condition, label)
        u = model.apply(variables, condition, method=model.log_variance)
        return jnp.mean(jnp.mean((output - jnp.roll(x, 1, 1)) ** 2, (1, 2, 3)) / jnp.exp(u) + u)

    return loss


@functools.cache
def gradient_program(config):
    return jax.jit(jax.grad(loss_of(config)))


def gradient_of(config):
    return gradient_program(config)(variables_of(TINY), *example(TINY, (4,)))["params"]


def test_gradient_is_tangential_to_every_filter():
    gradient = jax.tree_util.tree_leaves_with_path(gradient_of(TINY))
    checked = 0
    for (path, slope), kernel in zip(gradient, jax.tree.leaves(variables_of(TINY)["params"]), strict=True):
        fan_in = math.prod(kernel.shape[:-1])
        if fan_in >= 16:
            slope, kernel = (np.asarray(leaf, np.float64).reshape(fan_in, -1) for leaf in (slope, kernel))
            norms = np.linalg.norm(slope, axis=0) * np.linalg.norm(kernel, axis=0)
            assert norms.min() > 0, path
            cosines = np.sum(slope * kernel, 0) / norms
            assert np.abs(cosines).max() < 1e-3, path  # epsilon of the normalisation
            checked += 1
        elif kernel.ndim == 0:
            assert slope != 0, path
    assert checked == 4 + 5 * 3 + 2 + 2  # outside the blocks, in each, for attention, for the width


def test_applying_changes_no_variable():
    model, variables, inputs = EDM2(TINY), variables_of(TINY), example(TINY, (4,))
    apply = jax.jit(functools.partial(model.apply, mutable=["params", "buffers"]))
    _, after = apply(variables, *inputs)
    jax.tree.map(np.testing.assert_array_equal, dict(after), variables)


def test_single_samples_leading_axes_and_vmap_agree():
    x, condition, label = example(TINY, (4,))
    apply = functools.partial(run, TINY, variables_of(TINY))
    whole = apply(x, condition, label)
    assert whole.shape == (4, 4, 4, 2)
    paired = apply(x.reshape(2, 2, 4, 4, 2), condition.reshape(2, 2), label.reshape(2, 2))
    # Another order of float32 sums.
    np.testing.assert_allclose(paired.reshape(whole.shape), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(apply)(x, condition, label), whole, rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(apply, x[:0], condition[:0], label[:0]).shape == (0, 4, 4, 2)


def test_float64_agrees_with_float32():
    single = run(TINY, variables_of(TINY), *example(TINY, (4,)))
    with jax.enable_x64(True):
        double = lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64)  # noqa: E731
        x, condition, label = example(TINY, (4,))
        variables = jax.tree.map(double, variables_of(TINY))
        lowered = jax.jit(EDM2(TINY).apply).lower(variables, double(x), double(condition), label)
        assert "f32" not in lowered.as_text()
        output = lowered.compile()(variables, double(x), double(condition), label)
        assert output.dtype == jnp.float64
    np.testing.assert_allclose(output, single, rtol=1e-5, atol=1e-5)  # float32 over 12 convolutions


def test_bfloat16_keeps_parameters_gradients_norms_embeddings_and_output_in_float32():
    config, inputs = dataclasses.replace(TINY, dtype="bfloat16"), example(TINY, (4,))
    lowered = jax.jit(EDM2(config).apply).lower(variables_of(TINY), *inputs).as_text().splitlines()
    products = [line.rsplit("->", 1)[0] for line in lowered if "stablehlo.convolution" in line]
    assert ["xf32>" in line for line in products] == [False] * (len(products) - 1) + [True]  # the last layer
    embeddings = [line for line in lowered if "stablehlo.dot_general" in line and "-> tensor<4x16x" in line]
    assert len(embeddings) == 5 + 2  # of each block, of the noise and of the label
    assert not [line for line in embeddings if "bf16" in line]
    assert not [line for line in lowered if "stablehlo.sqrt" in line and "bf16" in line]
    assert not [line for line in lowered if "stablehlo.reduce(" in line and "bf16" in line]
    output = run(config, variables_of(TINY), *inputs)
    assert output.dtype == jnp.float32
    full = run(TINY, variables_of(TINY), *inputs)
    np.testing.assert_allclose(output, full, atol=0.05 * float(jnp.abs(full).max()))  # 8 bits of mantissa
    assert np.abs(output - full).max() > 0
    gradient = jax.eval_shape(jax.grad(loss_of(config)), variables_of(TINY), *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_output_has_the_type_of_the_images():
    x, condition, label = example(TINY, (4,))
    output = jax.eval_shape(EDM2(TINY).apply, variables_of(TINY), x.astype(jnp.bfloat16), condition, label)
    assert (output.shape, output.dtype) == (x.shape, jnp.bfloat16)


def test_rematerialisation_leaves_the_gradients():
    config = dataclasses.replace(TINY, remat=True)
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5),  # float32 sums reordered
        gradient_of(config),
        gradient_of(TINY),
    )
    program = str(jax.make_jaxpr(EDM2(config).apply)(variables_of(TINY), *example(TINY, (4,))))
    assert program.count("remat") == len(
        ["encoder_0_0", "decoder_0_in0", "decoder_0_in1", "decoder_0_0", "decoder_0_1"]
    )


def test_dropout_draws_from_its_own_stream_and_is_off_by_default():
    config, inputs = dataclasses.replace(TINY, dropout=0.5), example(TINY, (4,))
    np.testing.assert_array_equal(run(config, variables_of(TINY), *inputs), run(TINY, variables_of(TINY), *inputs))

    @jax.jit
    def dropping(variables, key):
        return EDM2(config).apply(variables, *inputs, deterministic=False, rngs={"dropout": key})

    first, again, other = (dropping(variables_of(TINY), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-3


def test_gradients_are_finite_at_extreme_inputs():
    values = np.asarray([0.0, 1e4, -1e-20, 1e-40], np.float32)
    x = jnp.asarray(np.broadcast_to(values[:, None, None, None], (4, 4, 4, 2)))
    condition = jnp.asarray([-3.0, 0.0, 3.0, 100.0], jnp.float32)
    gradient = gradient_program(TINY)(variables_of(TINY), x, condition, jnp.arange(4))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_every_axis_is_named_and_tensor_parallelism_splits_the_inner_features():
    model = EDM2(dataclasses.replace(TOY, width=64))
    params, axes = abstract_params(model), logical_axes(model)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, names: len(names) == leaf.ndim and all(names), params, axes)))
    state, mesh = create(jax.random.key(0), params, ()), make_mesh({"data": 4, "model": 2})
    places = state_shardings(state, mesh, axes).params
    split = {
        "residual_0": (None, None, None, "model"),
        "residual_1": (None, None, "model", None),
        "embed": (None, "model"),
        "query_key_value": (None, None, None, "model"),
        "attend": (None, None, "model", None),
        "skip": (None, None, None, None),
    }
    for layer, names in split.items():
        assert places["encoder_1_0"][layer]["kernel"].spec == PartitionSpec(*names)
    assert places["leave"]["kernel"].is_fully_replicated
    assert places["leave_gain"].is_fully_replicated
    block = state_shardings(state, mesh, axes, fully_sharded=True).params["encoder_1_0"]
    assert block["residual_0"]["kernel"].spec == PartitionSpec(None, None, "data", "model")
    assert block["skip"]["kernel"].spec == PartitionSpec(None, None, None, "data")


def test_two_devices_of_tensor_parallelism_compute_what_one_does():
    mesh, inputs, variables = make_mesh({"model": 2}), example(TINY, (4,)), variables_of(TINY)
    state = create(jax.random.key(0), variables["params"], ())
    places = state_shardings(state, mesh, logical_axes(EDM2(TINY))).params
    split = {**variables, "params": jax.device_put(variables["params"], places)}
    np.testing.assert_allclose(
        run(TINY, split, *inputs), run(TINY, variables, *inputs), rtol=1e-5, atol=1e-5
    )  # another order of sums


def test_forward_and_gradient_lower_for_every_platform():
    config = dataclasses.replace(TOY, remat=True, dtype="bfloat16")
    model = EDM2(config)
    variables = {"params": abstract_params(model), **abstract_variables(model)}
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), example(config, (2,)))
    assert_portable(jax.jit(jax.value_and_grad(loss_of(config))), variables, *shapes)


def test_shapes_that_do_not_belong_together_are_refused():
    x, condition, label = example(TINY, (4,))
    apply = functools.partial(EDM2(TINY).apply, variables_of(TINY))
    with pytest.raises(ValueError, match="image shape"):
        apply(x[..., :-1], condition, label)
    with pytest.raises(ValueError, match="noise_condition"):
        apply(x, condition[:3], label)
    with pytest.raises(ValueError, match="label"):
        apply(x, condition, label[0])
