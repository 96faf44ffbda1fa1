import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import filled_params

from jaxgen.models import EnergyMLP, EnergyMLPConfig, abstract_params, init_params, logical_axes
from jaxgen.training import create, make_mesh, state_shardings

SMALL = EnergyMLPConfig(dimension=2, embedding=3, width=8, layers=3)


@functools.cache
def small_params():
    return filled_params(EnergyMLP(SMALL), scale=0.7)


def run(x, params=None, config=SMALL):
    return _run(x, small_params() if params is None else params, config)


@functools.partial(jax.jit, static_argnames="config")
def _run(x, params, config):
    return EnergyMLP(config).apply({"params": params}, x)


def points(*lead):
    return np.random.default_rng(0).uniform(size=(*lead, 2)).astype(np.float32)


def numpy_energy(x):
    """The network written again in float64 numpy, for one batch axis."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small_params())
    h = np.concatenate([np.sqrt(12) * (x - 0.5), np.tile(params["condition"], (len(x), 1))], axis=1)
    for index in range(SMALL.layers):
        h = h @ params[f"dense_{index}"]["kernel"] + params[f"dense_{index}"]["bias"]
        h = h if index == SMALL.layers - 1 else np.maximum(h, 0.0)
    return h[:, 0]


def test_output_equals_the_network_written_in_numpy():
    x = points(9)
    np.testing.assert_allclose(run(x), numpy_energy(x.astype(np.float64)), rtol=1e-4, atol=1e-5)  # float32, 3 layers


def test_single_points_leading_axes_and_vmap_agree():
    x = points(2, 3)
    whole = run(x)
    assert whole.shape == (2, 3)
    np.testing.assert_allclose(jax.vmap(jax.vmap(run))(x), whole, rtol=1e-5, atol=1e-6)  # another order of sums
    np.testing.assert_allclose(run(x[1, 2]), whole[1, 2], rtol=1e-5, atol=1e-6)


def test_the_condition_is_one_parameter_that_sources_do_not_share():
    conditions = jnp.stack([small_params()["condition"], jnp.zeros(3)])
    axes = {name: 0 if name == "condition" else None for name in small_params()}
    found = jax.vmap(run, in_axes=(None, axes))(points(5), small_params() | {"condition": conditions})
    np.testing.assert_allclose(found[0], run(points(5)), rtol=1e-5, atol=1e-6)
    # Sources differ in more than a constant, which no density would show.
    assert np.ptp(found[0] - found[1]) > 1e-3


def test_number_of_parameters_is_that_of_the_bound():
    count = lambda config: sum(  # noqa: E731
        math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(EnergyMLP(config)))
    )
    assert count(SMALL) == 3 + (5 + 1) * 8 + (8 + 1) * 8 + (8 + 1)
    assert count(EnergyMLPConfig()) == 1_317


def test_initial_energies_are_of_order_one_and_float32():
    config = EnergyMLPConfig(width=256)
    params = init_params(EnergyMLP(config), jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert 0.1 < float(jnp.std(run(points(256), params, config))) < 3.0


def test_every_other_axis_is_split_over_the_devices_of_a_model_axis():
    state = create(jax.random.key(0), small_params())
    places = state_shardings(state, make_mesh({"data": 4, "model": 2}), logical_axes(EnergyMLP(SMALL))).params
    split = {name: tuple(places[name]["kernel"].spec) for name in ("dense_0", "dense_1", "dense_2")}
    assert split == {"dense_0": (None, "model"), "dense_1": ("model", None), "dense_2": (None, None)}


def test_forward_and_gradient_lower_for_every_platform():
    loss = jax.jit(jax.grad(lambda p, x: jnp.mean(EnergyMLP(SMALL).apply({"params": p}, x) ** 2)))
    exported = jax.export.export(loss, platforms=["cpu", "cuda", "tpu"])(small_params(), points(4))
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize("field", ["dimension", "embedding", "width", "layers"])
def test_configuration_out_of_range_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        EnergyMLPConfig(**{field: 0})


def test_points_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"x must have 2 coordinates on its last axis, got shape \(4, 3\)"):
        EnergyMLP(SMALL).apply({"params": small_params()}, jnp.zeros((4, 3)))
