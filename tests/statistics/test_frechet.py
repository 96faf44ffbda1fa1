import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.statistics.frechet import Moments, frechet_distance, sample_moments, unbiased_frechet_distance


def random_moments(seed, dim=5):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((dim, 2 * dim))
    return Moments(rng.standard_normal(dim), factor @ factor.T / dim)


def test_matches_scipy_matrix_root():
    with jax.enable_x64(True):
        for seed in range(5):
            first, second = random_moments(2 * seed), random_moments(2 * seed + 1)
            root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
            expected = np.sum((first.mean - second.mean) ** 2)
            expected += np.trace(first.covariance + second.covariance - 2 * root.real)
            np.testing.assert_allclose(frechet_distance(first, second), expected, rtol=1e-10)  # condition about 1e2


def test_matches_closed_form_for_diagonal_gaussians():
    mean, scale = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 2.0, 0.0])
    other = Moments(jnp.zeros(3), jnp.diag(jnp.array([1.0, 9.0, 4.0])))
    expected = jnp.sum(mean**2) + jnp.sum((scale - jnp.array([1.0, 3.0, 2.0])) ** 2)
    np.testing.assert_allclose(frechet_distance(Moments(mean, jnp.diag(scale**2)), other), expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_is_symmetric_invariant_to_rotation_and_scales_with_the_squared_unit(seed, unit):
    with jax.enable_x64(True):
        first, second = random_moments(seed), random_moments(seed + 1)
        distance = frechet_distance(first, second)
        rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))[0] * unit
        moved = [Moments(rotation @ m.mean, rotation @ m.covariance @ rotation.T) for m in (first, second)]
        assert distance > 0
        np.testing.assert_allclose(frechet_distance(second, first), distance, rtol=1e-9)
        np.testing.assert_allclose(frechet_distance(*moved), unit**2 * distance, rtol=1e-9)
        np.testing.assert_allclose(frechet_distance(first, first), 0, atol=1e-11)


def test_sample_moments_match_numpy_on_shifted_data():
    samples = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32) + 100
    moments = sample_moments(samples)
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-6)
    # A mean of 100 squared in float32 errs by 1e-3: only centred sums meet this.
    np.testing.assert_allclose(moments.covariance, np.cov(samples.T.astype(np.float64)), atol=2e-6)


def test_fewer_samples_than_dimensions_give_the_exact_rank_deficient_distance():
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((count, 40)).astype(np.float32) for count in (7, 12))
    distance = frechet_distance(sample_moments(first), sample_moments(second))
    assert distance.dtype == jnp.float32
    # The overlap is the nuclear norm of one centred data matrix against the other, which needs no matrix root.
    a, b = (x.astype(np.float64) - x.mean(0) for x in (first, second))
    overlap = np.linalg.norm(a @ b.T, "nuc") / np.sqrt(6 * 11)
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.sum(a**2) / 6 + np.sum(b**2) / 11 - 2 * overlap
    np.testing.assert_allclose(distance, expected, rtol=1e-3)  # roots of eigenvalues that should be 0: 3e-4 each
    np.testing.assert_allclose(frechet_distance(sample_moments(first), sample_moments(first)), 0, atol=1e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_follows_the_dtype_of_its_inputs(dtype):
    with jax.enable_x64(True):
        samples = np.random.default_rng(0).standard_normal((40, 2)).astype(dtype)
        assert unbiased_frechet_distance(samples, samples[::2], groups=4).dtype == dtype
        assert frechet_distance(sample_moments(samples), sample_moments(samples)).dtype == dtype


@pytest.mark.parametrize(("count", "other"), [(200, 200), (2000, 2000), (203, 911)])
def test_corrected_distance_is_unbiased_on_gaussians_where_the_plain_one_is_not(count, other):
    dim, draws = 8, 100
    scale = jnp.linspace(0.8, 1.5, dim)
    truth = jnp.sum((scale - 1) ** 2) + dim * 0.2**2

    @jax.jit
    def distances(key):
        one, two = (jax.random.normal(k, (n, dim)) for k, n in zip(jax.random.split(key), (count, other), strict=True))
        two = 0.2 + two * scale[None]
        return frechet_distance(sample_moments(one), sample_moments(two)), unbiased_frechet_distance(one, two)

    plain, corrected = jax.lax.map(distances, jax.random.split(jax.random.key(0), draws))
    error = jnp.std(corrected, ddof=1) / draws**0.5
    assert abs(jnp.mean(corrected) - truth) < 3 * error  # the seed is fixed; for a new one it fails once in 370
    assert jnp.mean(plain) - truth > 5 * error
    assert jnp.std(corrected) < 1.5 * jnp.std(plain)  # the correction costs little variance


def test_corrected_distance_of_equal_laws_is_zero_in_64_dimensions():
    def distances(key):
        one, two = jax.random.normal(key, (2, 597, 64))
        return frechet_distance(sample_moments(one), sample_moments(two)), unbiased_frechet_distance(one, two)

    plain, corrected = jax.lax.map(distances, jax.random.split(jax.random.key(1), 16))
    assert jnp.mean(plain) > 3.5
    assert abs(jnp.mean(corrected)) < 3 * jnp.std(corrected, ddof=1) / 16**0.5


def test_finishes_in_a_process_with_one_device_and_default_threads():
    # Eight host devices bring a pool of eight threads, which hides a deadlock of batched decompositions in two.
    code = (
        "import numpy as np; from jaxgen.statistics.frechet import unbiased_frechet_distance as distance;"
        "x = np.random.default_rng(0).standard_normal((2, 597, 64)).astype(np.float32);"
        "print([float(distance(*x)) for _ in range(5)][-1])"
    )
    keep = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=keep, timeout=100, check=True, capture_output=True, text=True
    )
    assert abs(float(done.stdout)) < 1


def test_too_few_samples_for_the_correction_are_refused():
    with pytest.raises(ValueError, match=r"keep more than 8 samples when one of 10 groups is left out, got 8 of 9"):
        unbiased_frechet_distance(np.zeros((20, 8)), np.zeros((9, 8)))
    with pytest.raises(ValueError, match="groups must be at least 2, got 1"):
        unbiased_frechet_distance(np.zeros((20, 8)), np.zeros((20, 8)), groups=1)


def test_moments_of_different_dimensions_are_refused():
    with pytest.raises(ValueError, match="moments must share one dimension, got 5 and 4"):
        frechet_distance(random_moments(0), random_moments(1, dim=4))


def test_lowers_for_every_platform():
    samples = jax.ShapeDtypeStruct((40, 3), jnp.float32)
    exported = jax.export.export(jax.jit(unbiased_frechet_distance), platforms=["cpu", "cuda", "tpu"])(samples, samples)
    assert "f64" not in exported.mlir_module()
