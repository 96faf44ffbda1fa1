import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import filled_params

from jaxgen.models import MLP, MLPConfig, abstract_params, init_params, logical_axes
from jaxgen.training import create, make_mesh, state_shardings

SMALL = MLPConfig(dimension=3, width=8, layers=4)


def example(lead, seed=0):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((*lead, SMALL.dimension)), jnp.float32)
    return x, jnp.asarray(random.uniform(0, 1, lead), jnp.float32)


@functools.cache
def small_params(config=SMALL):
    return filled_params(MLP(config), scale=0.5)


def run(config, *inputs):
    return jax.jit(MLP(config).apply)({"params": small_params(config)}, *inputs)


def numpy_mlp(config, x, time):
    """The network written again in float64 numpy, for one batch axis."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small_params(config))
    encoded = time[:, None]
    if config.frequencies:
        angles = 2 * np.pi * np.outer(time, np.geomspace(*config.frequency_range, config.frequencies))
        encoded = np.sqrt(2) * np.concatenate([np.sin(angles), np.cos(angles)], -1)
    h = np.concatenate([x, encoded], -1)
    for index in range(config.layers):
        h = h @ params[f"dense_{index}"]["kernel"] + params[f"dense_{index}"]["bias"]
        h = h if index == config.layers - 1 else np.maximum(h, 0.0)
    return h


@pytest.mark.parametrize("frequencies", [0, 5])
def test_output_equals_the_network_written_in_numpy(frequencies):
    config = dataclasses.replace(SMALL, frequencies=frequencies)
    inputs = example((7,))
    expected = numpy_mlp(config, *(np.asarray(value, np.float64) for value in inputs))
    np.testing.assert_allclose(run(config, *inputs), expected, rtol=1e-5, atol=1e-5)  # float32 over 4 layers


def test_single_points_leading_axes_and_vmap_agree():
    x, time = example((2, 3))
    whole = run(SMALL, x, time)
    assert whole.shape == x.shape
    mapped = jax.vmap(jax.vmap(functools.partial(run, SMALL)))(x, time)
    np.testing.assert_allclose(mapped, whole, rtol=1e-5, atol=1e-6)  # another order of float32 sums
    np.testing.assert_allclose(run(SMALL, x[1, 2], time[1, 2]), whole[1, 2], rtol=1e-5, atol=1e-6)


def test_number_of_parameters_is_the_closed_form_and_the_default_is_three_layers_of_128():
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(MLP(MLPConfig()))))
    assert count == (3 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 2


def test_initial_signals_keep_their_size_through_the_layers():
    config = MLPConfig(width=512, layers=6)
    params = init_params(MLP(config), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (256, 2))
    outputs = jax.jit(MLP(config).apply)({"params": params}, x, jnp.zeros(256))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    # E[output^2] = 2 * E[x^2] * 2 / 3: fans 3 and 512, He's factor 2 undone by each ReLU but for the last, half kept.
    assert 0.3 < float(jnp.mean(outputs**2)) < 3.0


def test_gradients_are_finite_at_extreme_inputs():
    x = jnp.stack([jnp.zeros(3), jnp.full(3, 1e4), jnp.full(3, -1e-20)])
    loss = lambda params: jnp.mean(MLP(SMALL).apply({"params": params}, x, jnp.array([0.0, 0.5, 1.0])) ** 2)  # noqa: E731
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(small_params())))


def test_every_other_axis_is_split_over_the_devices_of_a_model_axis():
    model = MLP(SMALL)
    state = create(jax.random.key(0), small_params())
    places = state_shardings(state, make_mesh({"data": 4, "model": 2}), logical_axes(model)).params
    split = {name: tuple(of["kernel"].spec) for name, of in places.items()}
    assert split == {
        "dense_0": (None, "model"),
        "dense_1": ("model", None),
        "dense_2": (None, "model"),
        "dense_3": ("model", None),
    }


def test_bfloat16_computes_in_bfloat16_and_returns_the_type_of_x():
    config, inputs = dataclasses.replace(SMALL, dtype="bfloat16"), example((4,))
    lowered = jax.jit(MLP(config).apply).lower({"params": small_params()}, *inputs).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("bf16" in line and "f32" not in line for line in products)
    assert jax.eval_shape(functools.partial(run, config), *inputs).dtype == jnp.float32


def test_forward_and_gradient_lower_for_every_platform():
    model = MLP(SMALL)
    loss = jax.jit(jax.grad(lambda p, x, t: jnp.mean(model.apply({"params": p}, x, t) ** 2)))
    exported = jax.export.export(loss, platforms=["cpu", "cuda", "tpu"])(small_params(), *example((2,)))
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize(
    ("field", "value"),
    [("dimension", 0), ("width", 0), ("layers", 0), ("frequencies", -1), ("frequency_range", (2.0, 1.0))],
)
def test_configuration_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        MLPConfig(**{field: value})


def test_shapes_that_do_not_belong_together_are_refused():
    x, time = example((4,))
    apply = functools.partial(MLP(SMALL).apply, {"params": small_params()})
    with pytest.raises(ValueError, match="x must have the shape of time and 3 more"):
        apply(x[:, :2], time)
