import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import filled_params

from jaxgen.models import (
    AutoregressiveMLP,
    AutoregressiveMLPConfig,
    abstract_params,
    init_params,
    logical_axes,
)
from jaxgen.training import create, make_mesh, state_shardings

SMALL = AutoregressiveMLPConfig(tokens=3, length=4, embedding=6, width=8, layers=3)
STATES = np.array(list(itertools.product(range(3), repeat=4)))


@functools.cache
def small_params():
    return filled_params(AutoregressiveMLP(SMALL), scale=0.7)


def run(tokens, position, params=None, config=SMALL):
    return _run(tokens, position, small_params() if params is None else params, config)


@functools.partial(jax.jit, static_argnames="config")
def _run(tokens, position, params, config):
    return AutoregressiveMLP(config).apply({"params": params}, tokens, position)


def every_position():
    """All sequences at all positions: tokens [states, length, length] and positions [states, length]."""
    shape = (len(STATES), SMALL.length)
    return np.broadcast_to(STATES[:, None], (*shape, 4)), np.broadcast_to(np.arange(4), shape)


def numpy_logits(tokens, position):
    """The network written again in float64 numpy, for one sequence."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small_params())
    h = params["condition"] + params["positions"][position]
    for i in range(position):
        h = h + params["mixing"][i] * params["tokens"][tokens[i]] * params["positions"][i]
    for index in range(SMALL.layers):
        h = h @ params[f"dense_{index}"]["kernel"] + params[f"dense_{index}"]["bias"]
        h = h if index == SMALL.layers - 1 else np.maximum(h, 0.0)
    return h


def test_output_equals_the_network_written_in_numpy():
    tokens, positions = every_position()
    found = run(tokens, positions)
    assert found.shape == (81, 4, 3)
    for state in (0, 17, 80):
        for position in range(4):
            wanted = numpy_logits(STATES[state], position)
            np.testing.assert_allclose(found[state, position], wanted, rtol=1e-4, atol=1e-5)  # float32 over 4 layers


def test_probabilities_of_all_sequences_sum_to_one_since_no_token_sees_itself_or_later_ones():
    tokens, positions = every_position()
    log_p = np.asarray(jax.nn.log_softmax(run(tokens, positions)), np.float64)
    chosen = np.take_along_axis(log_p, STATES[:, :, None], axis=2)[..., 0]
    assert np.exp(chosen.sum(axis=1)).sum() == pytest.approx(1.0, abs=1e-5)
    changed = (tokens + 1) % 3
    kept = np.where(np.arange(4) < positions[..., None], tokens, changed)
    np.testing.assert_array_equal(run(kept, positions), run(tokens, positions))
    # Every earlier token counts, and so does its place.
    assert np.ptp(log_p[:, 3].round(4), axis=0).min() > 0
    assert len(np.unique(log_p[:, 3, 0].round(5))) == 27


def test_single_sequences_leading_axes_and_vmap_agree():
    tokens, positions = every_position()
    whole = run(tokens, positions)
    mapped = jax.vmap(run)(tokens.reshape(-1, 4), positions.reshape(-1))
    np.testing.assert_allclose(mapped.reshape(whole.shape), whole, rtol=1e-5, atol=1e-6)  # another order of sums
    np.testing.assert_allclose(run(tokens[5, 2], positions[5, 2]), whole[5, 2], rtol=1e-5, atol=1e-6)


def test_the_condition_is_one_parameter_that_sources_do_not_share():
    conditions = jnp.stack([small_params()["condition"], jnp.zeros(6)])
    axes = {name: 0 if name == "condition" else None for name in small_params()}
    of_sources = jax.vmap(run, in_axes=(None, None, axes))
    found = of_sources(STATES[0], np.int32(2), small_params() | {"condition": conditions})
    np.testing.assert_allclose(found[0], run(STATES[0], np.int32(2)), rtol=1e-5, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_number_of_parameters_is_that_of_the_bound():
    count = lambda config: sum(  # noqa: E731
        math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(AutoregressiveMLP(config)))
    )
    mlp = (6 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 3
    assert count(SMALL) == mlp + 4 + (4 + 3 + 1) * 6  # S + D + (D + M + 1) d_e
    assert count(AutoregressiveMLPConfig()) == 1_865


def test_initial_logits_are_of_order_one_and_float32():
    config = AutoregressiveMLPConfig(length=32, width=256, embedding=64)
    params = init_params(AutoregressiveMLP(config), jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    tokens = jax.random.randint(jax.random.key(1), (64, 32), 0, 3)
    logits = run(tokens, jnp.full(64, 31), params, config)
    assert 0.3 < float(jnp.std(logits)) < 5.0


def test_every_other_axis_is_split_over_the_devices_of_a_model_axis():
    model = AutoregressiveMLP(SMALL)
    state = create(jax.random.key(0), small_params())
    places = state_shardings(state, make_mesh({"data": 4, "model": 2}), logical_axes(model)).params
    split = {name: tuple(places[name]["kernel"].spec) for name in ("dense_0", "dense_1", "dense_2")}
    assert split == {"dense_0": (None, "model"), "dense_1": ("model", None), "dense_2": (None, None)}


def test_forward_and_gradient_lower_for_every_platform():
    tokens, positions = every_position()
    loss = jax.jit(jax.grad(lambda p: jnp.mean(AutoregressiveMLP(SMALL).apply({"params": p}, tokens, positions) ** 2)))
    exported = jax.export.export(loss, platforms=["cpu", "cuda", "tpu"])(small_params())
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [("tokens", 1, 2), ("length", 0, 1), ("embedding", 0, 1), ("width", 0, 1), ("layers", 0, 1)],
)
def test_configuration_out_of_range_is_refused(field, value, least):
    with pytest.raises(ValueError, match=f"{field} must be at least {least}, got {value}"):
        AutoregressiveMLPConfig(**{field: value})


def test_shapes_that_do_not_belong_together_are_refused():
    apply = functools.partial(AutoregressiveMLP(SMALL).apply, {"params": small_params()})
    with pytest.raises(ValueError, match="tokens must have the shape of position and 4 more"):
        apply(jnp.zeros((5, 3), jnp.int32), jnp.zeros(5, jnp.int32))
