import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_portable

from jaxgen.models import (
    attend_by_scores,
    full_params,
    looped_attention,
    next_token_loss,
    stacked_attention,
    stacked_gaussian_params,
)

LAYERS, LENGTH, DIMENSION = 3, 6, 2
stacked = jax.jit(stacked_attention)


def sequences(seed=0, length=LENGTH, d=DIMENSION, count=2):
    random = np.random.default_rng(seed)
    start, angles = random.standard_normal((count, 1, d)), random.uniform(0, 2 * np.pi, (count, 1, d))
    return start * np.exp(1j * np.arange(length)[:, None] * angles)


def dense(seed=10, layers=LAYERS, d=DIMENSION, scale=0.4):
    random = np.random.default_rng(seed)
    return {name: scale * random.standard_normal((layers, 3 * d, 3 * d)) for name in ("kq", "pv")}


def by_hand(params, x):
    """The layers as they are written, token by token in float64, for one sequence."""
    length, d = x.shape
    before = np.vstack([np.zeros((1, d)), x[:-1]])
    tokens = np.hstack([np.zeros((length, d)), x, before]).astype(complex)
    for kq, pv in zip(params["kq"], params["pv"], strict=True):
        added = np.zeros_like(tokens)
        for t in range(1, length + 1):
            query = kq @ tokens[t - 1]
            for i in range(1, t + 1):
                added[t - 1] += pv @ tokens[i - 1] * np.vdot(tokens[i - 1], query) / max(t - 1, 1)
        tokens = tokens + added
    return tokens[1:-1, :d]


def assert_equal(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)  # float64, growing over three layers


def test_layers_equal_the_printed_formula():
    x = sequences()
    with jax.enable_x64(True):
        assert_equal(stacked(dense(), x), [by_hand(dense(), one) for one in x])
    got = stacked(jax.tree.map(jnp.float32, dense()), jnp.asarray(x, jnp.complex64))
    assert got.dtype == jnp.complex64
    expected = np.array([by_hand(dense(), one) for one in x])
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()  # float32, growing over three layers


def test_shortest_sequence_and_one_coordinate():
    x = sequences(length=3, d=1)
    with jax.enable_x64(True):
        assert_equal(stacked(dense(d=1), x), [by_hand(dense(d=1), one) for one in x])


def test_one_layer_into_the_first_block_is_the_layer_of_the_paper():
    random, x = np.random.default_rng(3), sequences()
    layer = {"kq": random.standard_normal((4, 4)), "pv": random.standard_normal((2, 4))}
    with jax.enable_x64(True):
        assert_equal(stacked(full_params(layer), x), jax.jit(attend_by_scores)(layer, x))


def test_layers_that_write_nothing_leave_zero_predictions_and_change_nothing():
    with jax.enable_x64(True):
        params, x = dense(), sequences()
        silent = {**params, "pv": np.zeros_like(params["pv"])}
        np.testing.assert_array_equal(stacked(silent, x), 0)
        last = {**params, "pv": params["pv"] * np.array([1, 1, 0])[:, None, None]}
        fewer = jax.tree.map(lambda leaf: leaf[:2], params)
        assert_equal(stacked(last, x), [by_hand(fewer, one) for one in x])


def test_looped_layer_is_a_stack_of_equal_layers():
    params = dense(layers=1)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    with jax.enable_x64(True):
        same = jax.tree.map(lambda leaf: np.repeat(leaf, LAYERS, axis=0), params)
        got = jax.jit(looped_attention, static_argnums=2)(one, sequences(), LAYERS)
        assert_equal(got, [by_hand(same, x) for x in sequences()])


def test_leading_axes_and_vmap_agree():
    params, x = jax.tree.map(jnp.float32, dense()), jnp.asarray(sequences(), jnp.complex64)
    whole = stacked(params, x)
    for other in (jax.vmap(stacked, (None, 0))(params, x), stacked(params, x[:, None])[:, 0]):
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-5)  # another order of float32 sums


def test_sequences_that_are_real_stay_real():
    x = sequences().real
    with jax.enable_x64(True):
        got = stacked(dense(), x)
        assert got.dtype == jnp.float64
        assert_equal(got, [by_hand(dense(), one).real for one in x])


def test_gradients_are_those_of_finite_differences():
    x = sequences(length=4, d=1, count=1)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, dense(d=1, layers=2))
        loss = jax.jit(lambda kq, pv: next_token_loss(stacked_attention({"kq": kq, "pv": pv}, x), x))
        chex.assert_numerical_grads(loss, (params["kq"], params["pv"]), order=1)


def test_initial_entries_have_the_standard_deviation():
    params = stacked_gaussian_params(jax.random.key(0), 4, 5, 0.1)
    entries = np.stack([np.ravel(params[name]) for name in ("kq", "pv")])
    assert params["kq"].shape == params["pv"].shape == (4, 15, 15)
    assert abs(entries.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * entries.size)  # 4 standard deviations
    assert len(np.unique(entries)) > 0.99 * entries.size


def shapes(layers):
    params = {name: jax.ShapeDtypeStruct((layers, 3 * DIMENSION, 3 * DIMENSION), jnp.float32) for name in ("kq", "pv")}
    return params, jax.ShapeDtypeStruct((2, LENGTH, DIMENSION), jnp.complex64)


def test_program_does_not_grow_with_the_layers():
    few, many = (stacked.lower(*shapes(layers)).as_text().count("\n") for layers in (2, 50))
    assert few == many


def test_forward_and_gradient_lower_for_every_platform():
    loss = lambda params, x: next_token_loss(stacked_attention(params, x), x)  # noqa: E731
    assert_portable(jax.jit(jax.value_and_grad(loss)), *shapes(LAYERS))


def refuse(text, function, *arguments):
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert str(caught.value) == text


def test_arguments_out_of_range_are_refused():
    params, x = jax.tree.map(jnp.float32, dense()), jnp.asarray(sequences(), jnp.complex64)
    layer = jax.tree.map(lambda leaf: leaf[0], params)
    short = "T must be at least 3, got 2; the first token to be predicted is x_3"
    refuse(short, stacked_attention, params, x[:, :2])
    refuse(short, looped_attention, layer, x[:, :2], 1)
    refuse("d must be at least 1, got 0", stacked_attention, params, x[..., :0])
    refuse(
        "params must have the shapes {'kq': (3, 3, 3), 'pv': (3, 3, 3)}, got {'kq': (3, 6, 6), 'pv': (3, 6, 6)}",
        stacked_attention,
        params,
        x[..., :1],
    )
    refuse(
        "params must have the shapes {'kq': (6, 6), 'pv': (6, 6)}, got {'kq': (3, 6, 6), 'pv': (3, 6, 6)}",
        looped_attention,
        params,
        x,
        2,
    )
    refuse("loops must be at least 1, got 0", looped_attention, layer, x, 0)
    key = jax.random.key(0)
    refuse("layers must be at least 1, got 0", stacked_gaussian_params, key, 0, 2, 0.1)
    refuse("d must be at least 1, got 0", stacked_gaussian_params, key, 1, 0, 0.1)
    refuse("std must be at least 0 and finite, got -0.1", stacked_gaussian_params, key, 1, 2, -0.1)
