import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from jaxgen.statistics import kernel as kernel_module
from jaxgen.statistics.kernel import median_bandwidth, polynomial_kernel, rbf_kernel, unbiased_mmd2


def mmd2_by_loops(kernel, first, second):
    """Lemma 6 of Gretton et al. 2012, one pair at a time."""

    def mean_distinct(samples):
        pairs = [kernel(a, b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]
        return sum(pairs) / len(pairs)

    across = sum(kernel(a, b) for a in first for b in second) / (len(first) * len(second))
    return mean_distinct(first) + mean_distinct(second) - 2 * across


@pytest.mark.parametrize("block", [1, 4, 256])
def test_matches_double_loops_at_any_block(block):
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((11, 3)), 0.5 + rng.standard_normal((7, 3))
    expected = mmd2_by_loops(lambda a, b: (np.dot(a, b) / 3 + 1) ** 3, first, second)
    with jax.enable_x64(True):
        measured = unbiased_mmd2(polynomial_kernel(), first, second, block=block)
        np.testing.assert_allclose(measured, expected, rtol=1e-12)
        np.testing.assert_allclose(unbiased_mmd2(polynomial_kernel(), second, first, block=block), expected, rtol=1e-12)


def test_takes_any_kernel_of_two_points():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((9, 2)), rng.standard_normal((9, 2))
    expected = mmd2_by_loops(lambda a, b: np.exp(-np.sum((a - b) ** 2) / 2), first, second)
    with jax.enable_x64(True):
        measured = unbiased_mmd2(lambda a, b: jnp.exp(-jnp.sum((a - b) ** 2) / 2), first, second)
    np.testing.assert_allclose(measured, expected, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_linear_kernel_without_offset_compares_means_alone(seed):
    # For k(a, b) = a.b / dim the population value is |m1 - m2|^2 / dim: a shift of both sets cancels exactly.
    rng = np.random.default_rng(seed)
    first, second, shift = rng.standard_normal((6, 2)), rng.standard_normal((5, 2)), 10 * rng.standard_normal(2)
    kernel = polynomial_kernel(degree=1, offset=0.0)
    with jax.enable_x64(True):
        plain, moved = unbiased_mmd2(kernel, first, second), unbiased_mmd2(kernel, first + shift, second + shift)
        bias = (np.var(first, axis=0, ddof=1) / 6 + np.var(second, axis=0, ddof=1) / 5).sum()
        expected = (np.sum((first.mean(0) - second.mean(0)) ** 2) - bias) / 2
    np.testing.assert_allclose(plain, expected, atol=1e-12)
    np.testing.assert_allclose(moved, plain, atol=1e-11)


def test_is_zero_in_the_mean_for_equal_laws_and_meets_the_closed_form_for_shifted_ones():
    # One dimension, cubic kernel, N(0, 1) against N(s, 1): MMD^2 = 3 d1^2 + 3 d2^2 + d3^2 over raw moments d_k.
    shift, draws = 0.5, 300
    truth = 3 * shift**2 + 3 * (shift**2) ** 2 + (shift**3 + 3 * shift) ** 2

    def values(key):
        first, second = jax.random.normal(key, (2, 30, 1))
        return jnp.stack([unbiased_mmd2(polynomial_kernel(), first, second + s) for s in (0.0, shift)])

    measured = jax.lax.map(values, jax.random.split(jax.random.key(0), draws))
    error = jnp.std(measured, axis=0, ddof=1) / draws**0.5
    assert abs(jnp.mean(measured[:, 0])) < 3 * error[0]
    assert abs(jnp.mean(measured[:, 1]) - truth) < 3 * error[1]


def test_float32_agrees_with_float64_on_features_of_hundreds():
    rng = np.random.default_rng(2)
    first, second = 4 * rng.random((300, 64)), 4 * rng.random((200, 64)) + 0.1
    with jax.enable_x64(True):
        exact = float(unbiased_mmd2(polynomial_kernel(), first, second))
    single = unbiased_mmd2(polynomial_kernel(), first.astype(np.float32), second.astype(np.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, atol=2e-3)  # a few roundings of kernel values of about 200: 1e-5 each


def test_memory_is_bounded_by_the_block():
    samples = jax.ShapeDtypeStruct((4096, 8), jnp.float32)

    def peak(block):
        compiled = jax.jit(lambda a, b: unbiased_mmd2(polynomial_kernel(), a, b, block=block)).lower(samples, samples)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert peak(16) < 4096 * 4096 * 4 / 64  # the whole kernel matrix would be 64 MiB; blocks of 16 rows are 256 KiB


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="degree must be at least 1, got 0"):
        polynomial_kernel(degree=0)
    with pytest.raises(ValueError, match="offset must be at least 0, got nan"):
        polynomial_kernel(offset=float("nan"))
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        unbiased_mmd2(polynomial_kernel(), jnp.zeros((2, 1)), jnp.zeros((2, 1)), block=0)
    with pytest.raises(ValueError, match="at least 2 samples are needed, got 1"):
        unbiased_mmd2(polynomial_kernel(), jnp.zeros((2, 1)), jnp.zeros((1, 1)))


def test_rbf_kernel_is_the_published_one_with_a_bandwidth_that_never_compiles_again():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((9, 2)), 0.5 + rng.standard_normal((6, 2))
    traces = []

    @jax.jit
    def by_traced(bandwidth, first, second):
        traces.append(1)
        return unbiased_mmd2(rbf_kernel(bandwidth), first, second)

    with jax.enable_x64(True):
        for bandwidth in (0.7, 2.0):
            expected = mmd2_by_loops(
                lambda a, b, s=bandwidth: np.exp(-np.sum((a - b) ** 2) / (2 * s**2)), first, second
            )
            np.testing.assert_allclose(unbiased_mmd2(rbf_kernel(bandwidth), first, second), expected, rtol=1e-12)
            np.testing.assert_allclose(by_traced(bandwidth, first, second), expected, rtol=1e-12)
        assert len(traces) == 1
        compiled = kernel_module._unbiased_mmd2._cache_size()
        unbiased_mmd2(rbf_kernel(3.0), first, second)
        assert kernel_module._unbiased_mmd2._cache_size() == compiled


def test_median_bandwidth_is_half_the_median_squared_distance():
    samples = np.random.default_rng(4).standard_normal((41, 3))
    with jax.enable_x64(True):
        np.testing.assert_allclose(median_bandwidth(samples), np.sqrt(np.median(pdist(samples) ** 2) / 2), rtol=1e-14)
        # Units: the kernel of scaled samples is that of the samples.
        np.testing.assert_allclose(median_bandwidth(7 * samples), 7 * median_bandwidth(samples), rtol=1e-14)
        with pytest.raises(ValueError, match="half of all pairs of samples coincide"):
            median_bandwidth(np.ones((41, 3)))


def test_bad_bandwidths_are_refused():
    for bandwidth in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"bandwidth must be positive and finite, got {bandwidth}"):
            rbf_kernel(bandwidth)
    with pytest.raises(ValueError, match="at least 2 samples are needed, got 1"):
        median_bandwidth(jnp.ones((1, 2)))
