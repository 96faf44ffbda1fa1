import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.models.edm2.magnitude import mp_cat, mp_silu, mp_sum, normalize


def test_silu_of_a_standard_normal_has_mean_square_one():
    with jax.enable_x64(True):
        x = np.linspace(-12, 12, 4001)  # trapezoids of a smooth function that vanishes at both ends
        density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
        root = np.sqrt(np.sum(density * np.asarray(mp_silu(jnp.asarray(x))) ** 2))
    assert root * 0.596 == pytest.approx(0.596469211123, abs=1e-12)  # 0.596 is the published constant
    assert root == pytest.approx(1, abs=1e-3)


def test_sum_and_concatenation_have_the_published_weights():
    with jax.enable_x64(True):
        assert float(mp_sum(jnp.asarray(1.0), jnp.asarray(2.0), 0.3)) == pytest.approx(1.7069836271763932, abs=1e-15)
        both = mp_cat(jnp.ones(192), jnp.ones(64), 0.5)
        assert both.dtype == jnp.float64
        np.testing.assert_allclose(both[:192], np.full(192, 0.8164965809277261), atol=1e-15)
        np.testing.assert_allclose(both[192:], np.full(64, 1.4142135623730951), atol=1e-15)


@settings(max_examples=20, deadline=None)
@given(t=st.floats(0, 1), first=st.integers(1, 40), second=st.integers(1, 40))
def test_concatenation_keeps_the_mean_square_and_gives_the_second_its_share(t, first, second):
    with jax.enable_x64(True):
        squares = np.asarray(mp_cat(jnp.ones(first), -jnp.ones(second), t)) ** 2
    assert squares.mean() == pytest.approx(1)
    assert squares[first:].sum() / squares.sum() == pytest.approx(t**2 / (t**2 + (1 - t) ** 2))


@settings(max_examples=20, deadline=None)
@given(t=st.floats(0, 1))
def test_sum_of_uncorrelated_inputs_keeps_the_mean_square(t):
    a, b = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, -1.0, 1.0, -1.0])  # orthogonal
    with jax.enable_x64(True):
        assert np.mean(np.asarray(mp_sum(jnp.asarray(a), jnp.asarray(b), t)) ** 2) == pytest.approx(1)


def test_normalize_divides_by_epsilon_plus_the_root_mean_square():
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    with jax.enable_x64(True):
        result = normalize(jnp.asarray(x), (0, 2), epsilon=0.25)
    root = np.linalg.norm(np.moveaxis(x, 1, 0).reshape(3, 10), axis=1) / np.sqrt(10)
    np.testing.assert_allclose(result, x / (0.25 + root[None, :, None]), rtol=1e-14)


def test_normalize_has_a_finite_gradient_everywhere():
    def of_first(scale):
        return normalize(scale * jnp.ones((1, 4)), (1,))[0, 0]

    np.testing.assert_allclose(jax.grad(of_first)(0.0), 1e4, rtol=1e-6)  # 1 / epsilon
    assert np.isfinite(jax.grad(of_first)(1e-30))  # whose square is 0 in float32
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3)))
        chex.assert_numerical_grads(lambda x: normalize(x, (1,)), (x,), order=1)


def test_bfloat16_is_summed_in_float32():
    x = jnp.ones((1, 4096), jnp.bfloat16)  # a sum of ones in bfloat16 stops at 256
    result = normalize(x, (1,))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(result, np.float32), np.ones((1, 4096)))


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        (lambda x: mp_sum(x, jnp.zeros_like(x), 0.3), 0.7 / np.hypot(0.7, 0.3)),
        (lambda x: mp_sum(jnp.zeros_like(x), x, 0.3), 0.3 / np.hypot(0.7, 0.3)),
        (lambda x: mp_cat(x, x, 0.3)[: x.size], np.sqrt(2) * 0.7 / np.hypot(0.7, 0.3)),
        (lambda x: mp_silu(20 + jnp.abs(x)), None),
    ],
)
def test_factors_of_bfloat16_are_not_rounded_to_bfloat16(function, factor):
    x = jnp.asarray(np.random.default_rng(2).standard_normal(8192), jnp.bfloat16)
    inputs = np.asarray(x, np.float64)
    if factor is None:
        inputs, factor = np.asarray(20 + jnp.abs(x), np.float64), 1 / 0.596  # where SiLU is the identity
    outputs = function(x)
    assert outputs.dtype == jnp.bfloat16
    slope = inputs @ np.asarray(outputs, np.float64) / (inputs @ inputs)
    assert slope == pytest.approx(factor, rel=1.5e-4)  # 8 roundings by 2**-9 each average out; a factor's would not
