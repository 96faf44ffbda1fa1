"""Gradient descent against its exact recursions, and as the discretisation of the flow."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs import assert_portable

from jaxgen.flows.conserved import descended_delta
from jaxgen.flows.gradient_descent import gradient_descent, require_finite

# Derived: c2, u* = c2 / c1, step size, and a b at epoch 200 from (.1, .1), (.5, 1.5), (2, 2).
RUNS = {
    "gaussian .5": (18.375, 0.19190508852558863 / 0.25, 1e-3, (0.732560553, 0.767620284, 0.767951118)),
    "gaussian 1": (294.0, 0.19190508852558863, 1e-4, (0.191883294, 0.191905089, 0.191905844)),
    "gaussian 2": (4704.0, 0.19190508852558863 / 4, 2e-6, (0.0441419256, 0.0479762721, 0.0488089035)),
    "sparse .5": (1.225, 4.0, 3e-2, (3.99947182, 3.99999810, 4.0)),
    "sparse 1": (19.6, 1.0, 1e-3, (0.963199722, 0.999996816, 1.00024151)),
    "sparse 2": (313.6, 0.25, 1e-4, (0.249983373, 0.25, 0.250000453)),
}
STARTS = np.array([(0.1, 0.1), (0.5, 1.5), (2.0, 2.0)])


def scalar_loss(c2, limit):
    return lambda p: 0.5 * c2 * (limit - p["a"] * p["b"]) ** 2 / limit


@pytest.fixture(scope="module")
def table():
    """Every run of the two tables at once: laws along the first axis, starts along the second."""

    def run(c2, limit, eta, start):
        params = {"a": start[0], "b": start[1]}
        return gradient_descent(scalar_loss(c2, limit), params, optax.sgd(eta), 200)

    every = jax.jit(jax.vmap(jax.vmap(run, in_axes=(None, None, None, 0)), in_axes=(0, 0, 0, None)))
    with jax.enable_x64(True):
        columns = (jnp.array([law[i] for law in RUNS.values()]) for i in range(3))
        return jax.tree.map(np.asarray, every(*columns, jnp.asarray(STARTS)))


def test_the_products_at_epoch_200_are_those_of_the_table(table):
    got = table.params["a"] * table.params["b"]
    np.testing.assert_allclose(got, [law[3] for law in RUNS.values()], rtol=5e-9)  # nine digits are printed
    assert (table.first_bad == -1).all()


def test_epochs_count_updates_and_epoch_0_is_the_start(table):
    assert table.losses.shape == (6, 3, 201)
    assert table.observed["a"].shape == (6, 3, 201)
    np.testing.assert_array_equal(table.observed["a"][:, :, 0], np.broadcast_to(STARTS[:, 0], (6, 3)))
    np.testing.assert_array_equal(table.observed["b"][:, :, -1], table.params["b"])
    a, b = table.observed["a"], table.observed["b"]
    for index, (c2, limit, _, _) in enumerate(RUNS.values()):
        expected = 0.5 * c2 * (limit - a[index] * b[index]) ** 2 / limit
        np.testing.assert_allclose(table.losses[index], expected, rtol=1e-9, atol=1e-20)
    # From (.1, .1) at epoch 150.
    np.testing.assert_allclose((a * b)[1, [0, 2], 150], [0.191455065, 0.191920728], rtol=5e-9)


def test_delta_follows_its_exact_law(table):
    a, b = table.observed["a"], table.observed["b"]
    delta = a**2 - b**2
    for index, (c2, limit, eta, _) in enumerate(RUNS.values()):
        r = c2 - c2 / limit * (a * b)[index]
        with jax.enable_x64(True):
            expected = descended_delta(delta[index, :, :-1], eta, r[:, :-1])
        np.testing.assert_allclose(delta[index, :, 1:], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(delta[1, 1, -1], -1.97513, atol=5e-6)  # derived; the flow would keep -2


def test_descent_is_of_first_order_in_the_step():
    times, halvings = 0.5, np.arange(4)

    def run(eta):
        start = {"a": jnp.array(0.5), "b": jnp.array(1.5)}
        loss = scalar_loss(3.0, 1.5)
        return gradient_descent(loss, start, optax.sgd(eta), 800, observe=lambda p: p["a"] * p["b"], every=100)

    with jax.enable_x64(True):
        descents = jax.jit(jax.vmap(run))(jnp.asarray(times / 100 / 2**halvings))
    observed = np.asarray(descents.observed)
    assert observed.shape == (4, 9)
    # The closed form of the flow at this time, c1 = 2, c2 = 3.
    errors = np.abs(observed[halvings, 2**halvings] - 1.4701620974500555)
    slope = np.polyfit(np.log(2.0**-halvings), np.log(errors), 1)[0]
    np.testing.assert_allclose(slope, 1.0, atol=0.03)


def data_loss(x, y):
    return lambda p: 0.5 * jnp.mean(jnp.sum((jnp.tanh(x @ p["w"]) + p["c"][None] - y) ** 2, axis=1))


def data():
    random = np.random.default_rng(0)
    x, y, w = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((64, 3), (64, 2), (3, 2)))
    return x, y, {"w": w, "c": jnp.zeros(2)}


def test_a_descent_in_two_parts_is_the_whole_to_the_bit():
    x, y, start = data()
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 20))

    def run(steps):
        return jax.jit(lambda params, state: gradient_descent(data_loss(x, y), params, optimizer, steps, start=state))

    whole = run(20)(start, None)
    first = run(7)(start, None)
    second = run(13)(first.params, first.opt_state)
    chex.assert_trees_all_equal(second.params, whole.params)
    chex.assert_trees_all_equal(second.opt_state, whole.opt_state)
    np.testing.assert_array_equal(np.concatenate([first.losses[:-1], second.losses]), whole.losses)
    np.testing.assert_array_equal(second.observed["w"], whole.observed["w"][7:])


def test_step_size_start_and_data_never_trace_again():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(eta, x, y, start, mask):
        return gradient_descent(data_loss(x, y), start, optax.sgd(eta), 5, mask=mask, every=2)

    x, y, start = data()
    free = jax.tree.map(jnp.ones_like, start)
    usual = run(0.1, x, y, start, free)
    assert usual.observed["w"].shape == (3, 3, 2)
    for other in (
        run(0.2, x, y, start, free),
        run(0.1, 2 * x, y, start, free),
        run(0.1, x, y, jax.tree.map(lambda leaf: leaf + 1, start), free),
        run(0.1, x, y, start, jax.tree.map(jnp.zeros_like, start)),
    ):
        assert jnp.abs(other.params["w"] - usual.params["w"]).max() > 1e-4
    fixed = run(0.1, x, y, start, {"w": free["w"].at[0, 1].set(0.0), "c": free["c"]})
    assert fixed.params["w"][0, 1] == start["w"][0, 1]
    assert (fixed.params["w"] != start["w"]).sum() == 5


def test_the_mask_comes_before_the_optimiser():
    # Clipping by the global norm sees the masked gradient: (3, 0) becomes (1, 0), not (.6, 0).
    loss = lambda x: -(3 * x[0] + 4 * x[1])  # noqa: E731
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    descent = gradient_descent(loss, jnp.zeros(2), optimizer, 1, mask=jnp.array([1, 0]))
    np.testing.assert_allclose(descent.params, [1.0, 0.0], rtol=1e-6)


def test_a_sharded_batch_descends_alike():
    x, y, start = data()
    run = jax.jit(lambda x, y, start: gradient_descent(data_loss(x, y), start, optax.sgd(0.3), 20))
    one = run(x, y, start)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batch, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    placed = jax.device_put((x, y, start), (batch, batch, everywhere))
    assert len(placed[0].sharding.device_set) == 8
    many = run(*placed)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-6)
    np.testing.assert_allclose(many.observed["w"], one.observed["w"], atol=1e-6)


def test_a_descent_lowers_for_every_platform():
    def run(x, y, params, eta):
        return gradient_descent(data_loss(x, y), params, optax.sgd(eta), 50, mask=params)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (*data(), jnp.zeros(3)))
    assert_portable(jax.jit(jax.vmap(run, in_axes=(None, None, None, 0))), *shapes)


def test_a_diverging_member_is_named_with_its_epoch_and_settings():
    run = jax.jit(jax.vmap(lambda eta: gradient_descent(lambda x: 0.5 * x**2, 1.0, optax.sgd(eta), 40)))
    descents = run(jnp.array([0.5, 1e3, 1e6]))
    # |x| = (eta - 1)^k, and x^2 / 2 passes 2^128 at the k-th update.
    expected = [-1, *(int(np.ceil(128.5 * np.log(2) / np.log(eta - 1) / 2)) for eta in (1e3, 1e6))]
    assert descents.first_bad.tolist() == expected
    assert np.isfinite(descents.losses[1, : expected[1]]).all()
    message = f"the loss is not finite at epoch {expected[1]} (member 1) with sgd, step size 1e3: lower the step size"
    with pytest.raises(FloatingPointError, match="^" + re.escape(message) + "$"):
        require_finite(descents, settings="sgd, step size 1e3")
    good, bad = (jax.tree.map(lambda leaf, i=i: leaf[i], descents) for i in (0, 2))
    assert require_finite(good) is good
    with pytest.raises(FloatingPointError, match="^" + re.escape(f"the loss is not finite at epoch {expected[2]}: ")):
        require_finite(bad)


def refused(message, loss=lambda x: (x**2).sum(), params=None, steps=3, **options):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        gradient_descent(loss, jnp.ones(2) if params is None else params, optax.sgd(0.1), steps, **options)


def test_bad_arguments_are_named():
    refused("num_steps must be at least 1, got 0", steps=0)
    refused("every must be at least 1, got 0", every=0)
    refused("params must be real floating arrays, got int32; split", params=jnp.arange(2))
    refused("params must be real floating arrays, got complex64; split", params=jnp.ones(2, complex))
    refused("loss must return one real number of shape (), got shape (2,) of float32", loss=lambda x: x)
    refused("loss must return one real number of shape (), got shape () of complex64", loss=lambda x: 1j * x.sum())
    refused("loss must return one real number of shape (), got nothing", loss=lambda x: None)
    refused("mask must have the structure of params, got PyTreeDef([*]), expected PyTreeDef(*)", mask=[jnp.ones(2)])
    refused("mask must have the shapes of params, got (), expected (2,)", mask=1.0)
