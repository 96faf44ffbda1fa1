import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxgen.models import ImageConv, ImageConvConfig, ImageMLP, ImageMLPConfig, abstract_params
from jaxgen.training import make_mesh
from jaxgen.training.utilisation import count_flops, peak_flops, utilisation


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def device(kind):
    return types.SimpleNamespace(device_kind=kind)


def image_inputs(config, count):
    return shape(count, *config.image_shape), shape(count), shape(count, dtype=jnp.int32)


def network_loss(model, params, *inputs):
    return jnp.sum(model.apply({"params": params}, *inputs) ** 2)


def test_matrix_product_counts_two_flops_a_product():
    assert count_flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    assert count_flops(lambda a, b: jnp.einsum("bik,bjk->bij", a, b), shape(4, 3, 5), shape(4, 7, 5)) == 2 * 4 * 105
    assert count_flops(lambda a: jnp.tanh(a).sum(), shape(3, 5)) == 0
    complex_matrix = shape(3, 3, dtype=jnp.complex64)
    assert count_flops(jnp.matmul, complex_matrix, complex_matrix) == 8 * 27  # 4 multiplications and 4 additions each


def test_vmap_multiplies_by_the_batch():
    one = count_flops(jnp.matmul, shape(3, 5), shape(5, 7))
    assert count_flops(jax.vmap(jnp.matmul), shape(4, 3, 5), shape(4, 5, 7)) == 4 * one
    assert count_flops(jax.vmap(jnp.matmul, (0, None)), shape(4, 3, 5), shape(5, 7)) == 4 * one


def test_gradient_of_two_layers_is_three_forward_passes_less_the_gradient_of_the_data():
    batch, inputs, hidden, outputs = 8, 5, 6, 7

    def loss(weights, x):
        return jnp.sum((jnp.tanh(x @ weights[0]) @ weights[1]) ** 2)

    arguments = (shape(inputs, hidden), shape(hidden, outputs)), shape(batch, inputs)
    forward = 2 * batch * hidden * (inputs + outputs)
    assert count_flops(loss, *arguments) == forward
    assert count_flops(jax.jit(jax.value_and_grad(loss)), *arguments) == 3 * forward - 2 * batch * inputs * hidden
    assert count_flops(jax.grad(loss, (0, 1)), *arguments) == 3 * forward


def products_of_convolution(image, kernel, stride, low, high, hole, dilation):
    """Count by walking over outputs and taps of one axis, as the definition of a dilated convolution says."""
    dilated = (image - 1) * hole + 1
    reach = (kernel - 1) * dilation + 1
    starts = range(0, low + dilated + high - reach + 1, stride)
    places = [start + tap * dilation - low for start in starts for tap in range(kernel)]
    return sum(0 <= place < dilated and place % hole == 0 for place in places)


@pytest.mark.parametrize(
    ("stride", "padding", "hole", "dilation", "groups"),
    [(1, (0, 0), 1, 1, 1), (1, (1, 1), 1, 1, 1), (2, (1, 2), 1, 1, 2), (1, (2, 1), 2, 1, 1), (1, (3, 2), 1, 2, 4)],
)
def test_convolution_counts_the_products_that_meet_data(stride, padding, hole, dilation, groups):
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, 1),
        padding=(padding, (0, 0)),
        lhs_dilation=(hole, 1),
        rhs_dilation=(dilation, 1),
        feature_group_count=groups,
    )
    images, kernels = shape(3, 8, 9, 6), shape(4, 8 // groups, 3, 2)  # NCHW and OIHW
    along = products_of_convolution(9, 3, stride, *padding, hole, dilation)
    expected = 2 * 3 * 4 * (8 // groups) * along * 5 * 2
    assert count_flops(convolve, images, kernels) == expected
    # Each product of the forward pass appears once in the gradient of the image and once in that of the kernel.
    pullback = count_flops(
        lambda x, k: jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), (0, 1))(x, k), images, kernels
    )
    assert pullback == 3 * expected


def test_scan_counts_every_step_and_equals_the_unrolled_loop():
    def looped(x, weights):
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]

    def unrolled(x, weights):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    def gradient(network):
        return jax.grad(lambda weights, x: jnp.sum(network(x, weights)))

    assert count_flops(looped, shape(2, 3), shape(6, 3, 3)) == 6 * 2 * 2 * 3 * 3
    assert count_flops(unrolled, shape(2, 3), shape(6, 3, 3)) == 6 * 2 * 2 * 3 * 3
    backward = [count_flops(gradient(network), shape(6, 3, 3), shape(2, 3)) for network in (looped, unrolled)]
    # The scan also pulls back to the data, of which nothing is asked: one product of its first step.
    assert backward[0] == 3 * 6 * 36
    assert backward[1] == 3 * 6 * 36 - 36
    assert count_flops(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x), shape(3, 3)) == 5 * 54


def test_conditional_counts_its_largest_branch():
    def either(condition, x):
        return jax.lax.cond(condition, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_flops(either, shape(dtype=jnp.bool_), shape(3, 3)) == 2 * 54


def test_while_loop_is_refused_only_if_it_holds_products():
    def loop(body):
        return lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, body, x)

    with pytest.raises(ValueError, match="while loop"):
        count_flops(loop(lambda x: x @ x), shape(3, 3))
    assert count_flops(loop(lambda x: x + 1), shape(3, 3)) == 0


def test_recomputation_is_refused_and_a_checkpointed_forward_pass_counts_once():
    def layer(x, weight):
        return jnp.tanh(x @ weight)

    def loss(weight, x):
        return jnp.sum(jax.checkpoint(layer)(x, weight) ** 2)

    assert count_flops(loss, shape(3, 3), shape(2, 3)) == 36
    with pytest.raises(ValueError, match="remat=False"):
        count_flops(jax.grad(loss), shape(3, 3), shape(2, 3))


def test_custom_derivatives_count_what_they_call():
    @jax.custom_vjp
    def product(x, y):
        return x @ y

    product.defvjp(lambda x, y: (product(x, y), (x, y)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    arguments = shape(2, 3), shape(3, 4)
    assert count_flops(product, *arguments) == 48
    assert count_flops(jax.grad(lambda x, y: jnp.sum(product(x, y) ** 2), (0, 1)), *arguments) == 3 * 48

    @jax.custom_jvp
    def other(x, y):
        return x @ y

    other.defjvp(lambda primals, tangents: (other(*primals), tangents[0] @ primals[1]))
    assert count_flops(jax.jit(other), *arguments) == 48


def test_shard_map_counts_all_devices():
    split, whole = PartitionSpec("data"), PartitionSpec()
    # The body is written for each part of the data axis; the compiler shares it out along the other one.
    product = jax.shard_map(
        jnp.matmul, mesh=make_mesh("data=4,model=2"), in_specs=(split, whole), out_specs=split, axis_names={"data"}
    )
    assert count_flops(product, shape(8, 3), shape(3, 5)) == 2 * 8 * 3 * 5


def test_scanned_network_counts_as_the_unrolled_one():
    config = ImageMLPConfig(width=16, hidden=24, blocks=6, embedding=8)
    counts = []
    for scan in (True, False):
        model = ImageMLP(dataclasses.replace(config, scan=scan))
        loss = functools.partial(network_loss, model)
        counts.append(count_flops(loss, abstract_params(model), *image_inputs(config, 4)))
    per_sample = 64 * 16 + 16 * 64 + 64 * 8 + 8 * 8 + 6 * (16 * 24 * 2 + 8 * 32)
    assert counts == [2 * 4 * per_sample] * 2


def test_gradient_of_a_convolutional_network_agrees_with_xla():
    config = ImageConvConfig(image_shape=(8, 8, 3), width=32, multipliers=(1, 2), blocks=1, embedding=8)
    model = ImageConv(config)
    arguments = abstract_params(model), *image_inputs(config, 4)
    gradient = jax.grad(functools.partial(network_loss, model))
    measured = jax.jit(gradient).lower(*arguments).cost_analysis()
    # XLA counts element-wise operations, too, which are a few percent at 32 features; there is no loop here.
    assert 0.9 * measured["flops"] < count_flops(gradient, *arguments) < measured["flops"]


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla T4", 65),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("TPU v2", 23),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_peak_is_the_data_sheet_s(kind, teraflops):
    assert peak_flops(device(kind)) == pytest.approx(1e12 * teraflops, rel=1e-12)


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA A10G", "NVIDIA L40", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "TPU v9", ""]
)
def test_peak_of_unknown_hardware_is_none(kind):
    assert peak_flops(device(kind)) is None
    assert peak_flops(jax.devices("cpu")[0]) is None


def test_utilisation_is_the_share_of_all_peaks():
    devices = [device("NVIDIA A100-SXM4-40GB")] * 2
    assert utilisation(312e12, 1.0, devices) == pytest.approx(0.5, rel=1e-12)
    assert utilisation(312e12, 2.0, np.asarray(devices, object).tolist()) == pytest.approx(0.25, rel=1e-12)
    assert utilisation(1e12, 1.0, [*devices, device("cpu")]) is None


@pytest.mark.parametrize(
    ("flops", "seconds", "devices", "name"),
    [(1.0, 0.0, 1, "seconds_per_step"), (-1.0, 1.0, 1, "flops_per_step"), (1.0, 1.0, 0, "devices")],
)
def test_utilisation_out_of_range_is_refused(flops, seconds, devices, name):
    with pytest.raises(ValueError, match=name):
        utilisation(flops, seconds, [device("TPU v4")] * devices)
