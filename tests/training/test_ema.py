import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training import ema


def averages(average, values):
    """The average after each update, as one scan."""

    def step(state, value):
        state = average.update(state, {"w": value})
        return state, state.average["w"]

    return jax.lax.scan(step, average.init({"w": jnp.full_like(values[0], 1e6)}), values)[1]


def weighted(values, decays):
    """The same mean from its definition: the weight of p_i is (1 - d_i) d_{i+1} ... d_n, normalised."""
    results = []
    for n in range(1, len(values) + 1):
        weights = np.array([(1 - decays[i]) * np.prod(decays[i + 1 : n]) for i in range(n)])
        results.append(np.tensordot(weights / weights.sum(), values[:n], 1))
    return np.stack(results)


def test_average_equals_the_weighted_mean_without_the_initial_value():
    values = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    result = averages(ema(decay=0.9), jnp.asarray(values))
    np.testing.assert_allclose(result, weighted(values, np.full(40, 0.9)), rtol=1e-4, atol=1e-5)  # 40 float32 updates


def test_half_life_and_decay_agree():
    values = jnp.linspace(0, 1, 30)
    np.testing.assert_allclose(averages(ema(half_life=5.0), values), averages(ema(decay=0.5**0.2), values), rtol=1e-6)
    # A step from 0 to 1 has half its weight after one half-life, once the start is forgotten.
    step = averages(ema(half_life=5.0), jnp.asarray([0.0] * 200 + [1.0] * 5))
    np.testing.assert_allclose(step[-1], 0.5, rtol=1e-5)


def test_rampup_limits_the_half_life_by_the_number_of_updates():
    values = np.random.default_rng(1).standard_normal((60, 2)).astype(np.float32)
    half_lives = np.minimum(4.0, 0.1 * np.arange(1, 61))
    expected = weighted(values, 0.5 ** (1 / half_lives))
    np.testing.assert_allclose(averages(ema(half_life=4.0, rampup=0.1), jnp.asarray(values)), expected, atol=1e-5)


def test_zero_decay_keeps_the_last_value():
    values = jnp.arange(5.0)
    np.testing.assert_array_equal(averages(ema(decay=0.0), values), values)


def test_average_of_a_constant_is_that_constant_from_the_first_update():
    np.testing.assert_allclose(averages(ema(decay=0.999), jnp.full(50, 3.0)), 3.0, rtol=1e-6)


def test_types_of_the_parameters_are_kept():
    average = ema(half_life=3.0)
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    state = average.update(average.init(params), params)
    assert jax.tree.map(lambda leaf: leaf.dtype, state.average) == jax.tree.map(lambda leaf: leaf.dtype, params)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "decay"),
        ({"decay": 0.9, "half_life": 3.0}, "half_life"),
        ({"decay": 1.0}, r"1\.0"),
        ({"decay": -0.1}, r"-0\.1"),
        ({"half_life": 0.0}, "half_life"),
        ({"half_life": float("inf")}, "inf"),
        ({"decay": 0.9, "rampup": 0.0}, "rampup"),
    ],
)
def test_options_out_of_range_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        ema(**options)
