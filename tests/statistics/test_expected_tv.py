"""Expected total variation: the 15 published cells, Student's t, an independent double quadrature, and simulation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from jaxgen.statistics.expected_tv import (
    expected_average_tv,
    expected_source_tv,
    expected_tv_categorical,
    expected_tv_gaussian,
    tables_by_count,
)

# (K, n, shared dimensions of 10): expectation of separate and of shared models, derived independently to 1e-10
CELLS = {
    (1, 500, 5): (0.0549778420, 0.0549778420),
    (3, 500, 5): (0.0951923703, 0.0773504966),
    (5, 500, 5): (0.1228509288, 0.0943513485),
    (10, 500, 5): (0.1735859521, 0.1271961338),
    (15, 500, 5): (0.2124066452, 0.1532102680),
    (5, 100, 5): (0.2728933150, 0.2107818125),
    (5, 300, 5): (0.1584295482, 0.1217862152),
    (5, 1000, 5): (0.0869382030, 0.0667253328),
    (5, 5000, 5): (0.0389046740, 0.0298437216),
    (5, 500, 0): (0.1228509288, 0.1228509288),
    (5, 500, 3): (0.1228509288, 0.1066158153),
    (5, 500, 7): (0.1228509288, 0.0804667578),
    (5, 500, 10): (0.1228509288, 0.0549778420),
}


def double_quadrature(n, p, dim_specific, dim_shared, nodes=120):
    """Average erf over two chi variables and the binomial: the definition, without the reduction to one angle."""

    def chi(dim):
        low, high = max(np.sqrt(dim) - 9.5, 0.0), np.sqrt(dim) + 9.5
        at, weights = np.polynomial.legendre.leggauss(nodes)
        r = low + (high - low) * (at + 1) / 2
        return r, weights * (high - low) / 2 * scipy.stats.chi.pdf(r, dim)

    (x, u), (w, v) = chi(dim_specific), chi(dim_shared)
    counts = np.arange(1, n + 1)
    mass = scipy.stats.binom.pmf(counts, n, p)
    kept = mass > 1e-17
    errors = [
        u @ special.erf(np.sqrt(x[:, None] ** 2 / count + w[None] ** 2 / n) / np.sqrt(8)) @ v for count in counts[kept]
    ]
    return np.dot(mass[kept], errors) / mass[kept].sum()


@pytest.mark.parametrize(("dtype", "tolerance", "first"), [("float64", 1e-10, 0), ("float32", 1e-7, 8)])
def test_the_cells_of_the_paper(dtype, tolerance, first):
    # The references are rounded to 1e-10; in float32, where a third of them is enough, the last digits are rounding.
    with jax.enable_x64(dtype == "float64"):
        for (sources, n, common), expected in list(CELLS.items())[first:]:
            p_y = np.full(sources, 1 / sources, dtype)
            found = [expected_average_tv(n, p_y, 10 - common, common, shared=shared) for shared in (False, True)]
            chex.assert_type(found, dtype)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_student_form_against_scipy_and_published_numbers():
    with jax.enable_x64(True):
        known = {
            (100, 10): 0.122485647261593,
            (500, 10): 0.054977841972291,
            (7, 3): 0.235068711609888,
            (100, 1): 2 / np.pi * np.arctan(1 / 20),
        }
        for (count, dim), value in known.items():
            np.testing.assert_allclose(expected_tv_gaussian(count, dim), value, rtol=1e-13)
        counts = np.array([1, 2, 10, 10**6])
        student = 2 * scipy.stats.t.cdf(np.sqrt(7 / counts) / 2, 7) - 1
        np.testing.assert_allclose(expected_tv_gaussian(counts, 7), student, rtol=1e-10)
        np.testing.assert_allclose(jax.jit(expected_tv_gaussian, static_argnums=1)(0.0, 3), 1.0)  # not looked at
        chex.assert_numerical_grads(lambda count: expected_tv_gaussian(count, 4), (jnp.array(9.0),), order=1)
    assert expected_tv_gaussian(3, 2).dtype == jnp.float32


@pytest.mark.parametrize(("dims", "n", "p"), [((1, 1), 30, 0.4), ((2, 7), 400, 0.03), ((30, 4), 60, 0.5)])
def test_one_angle_does_what_two_chi_variables_do(dims, n, p):
    with jax.enable_x64(True):
        found = expected_source_tv(n, np.array([p, 1 - p]), *dims, shared=True)
    expected = [double_quadrature(n, q, *dims) for q in (p, 1 - p)]
    # two chi variables of one dimension have a cone at the corner, which costs the oracle digits
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-8 if dims == (1, 1) else 1e-12)


def test_interpolation_over_many_samples_and_high_dimensions_are_exact():
    with jax.enable_x64(True):
        # One source has all n samples, so that Student's t is exact whatever the split into dimensions.
        for n, dims in ((300, (3, 4)), (100_000, (1, 20)), (5000, (1000, 1000))):
            found = expected_average_tv(n, np.ones(1), *dims, shared=True)
            np.testing.assert_allclose(found, expected_tv_gaussian(n, sum(dims)), rtol=1e-10)


def test_simulation_of_uneven_sources_meets_the_expectation():
    rng, n, p_y = np.random.default_rng(0), 40, np.array([0.6, 0.3, 0.1])
    counts = rng.multinomial(n, p_y, 100_000)
    shared = rng.standard_normal((100_000, 2)) / np.sqrt(n)
    errors = []
    for k in range(3):
        own = rng.standard_normal((100_000, 3)) / np.sqrt(np.maximum(counts[:, k], 1))[:, None]
        tv = special.erf(np.sqrt((own**2).sum(1) + (shared**2).sum(1)) / np.sqrt(8))
        errors.append(tv[counts[:, k] > 0])
    found = expected_source_tv(n, p_y.astype(np.float32), 3, 2, shared=True)
    for value, draws in zip(found, errors, strict=True):
        assert abs(value - draws.mean()) < 4 * draws.std() / np.sqrt(len(draws))
    np.testing.assert_allclose(
        expected_average_tv(n, p_y.astype(np.float32), 3, 2, shared=True), p_y @ found, rtol=1e-6
    )
    with_empty = expected_source_tv(n, p_y.astype(np.float32), 3, 2, shared=True, empty=1.0)
    np.testing.assert_allclose(with_empty, found + (1 - found) * (1 - p_y) ** n, rtol=1e-5)


def test_without_shared_coordinates_both_arms_are_one_and_with_all_n_samples_count():
    with jax.enable_x64(True):
        p_y = np.array([0.5, 0.3, 0.2])
        arms = [expected_average_tv(80, p_y, 6, 0, shared=shared) for shared in (True, False)]
        assert arms[0] == arms[1]
        np.testing.assert_allclose(expected_average_tv(80, p_y, 0, 6, shared=True), expected_tv_gaussian(80, 6))


@given(st.sampled_from([1, 37]), st.integers(0, 4), st.integers(0, 4), st.floats(0.05, 0.95), st.booleans())
@settings(max_examples=15, deadline=None)
def test_expectations_lie_between_0_and_1_and_sharing_never_hurts(n, own, common, p, uneven):
    if own + common == 0:
        return
    p_y = np.array([p, 1 - p] if uneven else [0.5, 0.5], np.float32)
    errors = [np.asarray(expected_source_tv(n, p_y, own, common, shared=shared)) for shared in (True, False)]
    assert np.all((errors[0] > 0) & (errors[1] < 1))
    assert np.all(errors[0] <= errors[1] * (1 + 1e-5))


def test_gradients_are_right_inside_and_finite_at_the_corners():
    with jax.enable_x64(True):

        def risk(p_y, n=60):
            return expected_average_tv(n, p_y, 3, 2, shared=True)

        chex.assert_numerical_grads(jax.jit(risk), (jnp.array([0.3, 0.7]),), order=1, atol=1e-6, rtol=1e-6)
        corner = jax.grad(risk)(jnp.array([0.0, 1.0]))
        # A source of probability p adds p times its error with one sample; at p = 1 the error falls as a sample goes.
        one, all_but_one, every = (
            double_quadrature(60, 1e-12, 3, 2),
            np.dot([1.0], [_error_of(59)]),
            expected_tv_gaussian(60, 5),
        )
        np.testing.assert_allclose(corner, [one, every + 60 * (every - all_but_one)], rtol=1e-9)
    for p_y in ([0.0, 1.0], [1.0, 0.0], [0.0, 0.5]):
        chex.assert_tree_all_finite(jax.grad(risk)(jnp.array(p_y, jnp.float32)))


def _error_of(count, n=60):
    """Integrate the error with `count` of n samples over the angle, by scipy."""
    share = lambda b: special.betainc(0.5, 2.5, (b / count + (1 - b) / n) / (4 + b / count + (1 - b) / n))  # noqa: E731
    return scipy.stats.beta(1.5, 1.0).expect(share, epsabs=1e-13, epsrel=1e-12)


def test_frequencies_of_a_categorical_law():
    known = {
        (100, (0.25,) * 4): 0.068849768825,
        (50, (0.5, 0.3, 0.2)): 0.076132674978,
        (400, (1 / 16,) * 16): 0.076996697264,
    }
    with jax.enable_x64(True):
        for (n, p), value in known.items():
            np.testing.assert_allclose(expected_tv_categorical(n, np.array(p)), value, atol=1e-12)
            counts = np.arange(n + 1)
            by_sum = sum(scipy.stats.binom.pmf(counts, n, q) @ np.abs(counts / n - q) / 2 for q in p)
            np.testing.assert_allclose(expected_tv_categorical(n, np.array(p)), by_sum, rtol=1e-10)
        assert float(expected_tv_categorical(9, np.array([1.0, 0.0]))) == 0.0
        chex.assert_tree_all_finite(jax.grad(lambda p: expected_tv_categorical(9, p))(jnp.array([1.0, 0.0])))
    single = [expected_tv_categorical(n, np.array(p, np.float32)) for n, p in known]
    np.testing.assert_allclose(single, list(known.values()), rtol=1e-4)


def test_whole_probabilities_are_taken():
    for whole in (np.array([1]), jnp.array([0, 1])):
        found = expected_average_tv(9, whole, 1, 2, shared=True)
        np.testing.assert_allclose(found, expected_tv_gaussian(9, 3), rtol=1e-5)
        assert expected_source_tv(9, whole, 1, 2, shared=True).dtype == jnp.float32
    assert expected_tv_categorical(9, np.array([1, 0])).dtype == jnp.float32
    assert float(expected_tv_categorical(9, np.array([1, 0]))) == 0.0


def test_kept_tables_cannot_be_written_to():
    for table in tables_by_count(9, 2, 3, shared=True):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda p: expected_average_tv(0, p, 1, 1, shared=True), "n must be at least 1, got 0"),
        (lambda p: expected_average_tv(5, p * 2, 1, 1, shared=True), "p_y must sum to 1 within 1e-6, got a sum of 2"),
        (lambda p: expected_average_tv(5, p * [-1, 3], 1, 1, shared=True), "p_y must not be negative"),
        (lambda p: expected_average_tv(5, p[:0], 1, 1, shared=True), "at least one source"),
        (lambda p: expected_average_tv(5, p, -1, 2, shared=True), "must be at least 0 with a sum of at least 1"),
        (lambda p: expected_average_tv(5, p, 0, 0, shared=True), "must be at least 0 with a sum of at least 1"),
        (lambda p: expected_average_tv(5, p, 1, 1, shared=True, nodes=0), "nodes must be at least 1, got 0"),
        (lambda p: expected_tv_gaussian(5, 0), "dim must be at least 1, got 0"),
        (lambda p: expected_tv_gaussian(0, 10), "count must be at least 1, got 0: a mean"),
        (lambda p: expected_tv_gaussian(np.array([3, -1]), 10), "count must be at least 1, got -1"),
        (lambda p: expected_tv_gaussian(np.nan, 10), "count must be at least 1, got nan"),
        (lambda p: expected_tv_categorical(5, p * np.nan), "probabilities must not be negative"),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call(np.array([0.5, 0.5]))


def test_entries_lower_for_every_platform_in_single_precision():
    def everything(p_y):
        arms = [expected_average_tv(100, p_y, 2, 3, shared=shared) for shared in (True, False)]
        return arms, expected_tv_categorical(100, p_y), expected_tv_gaussian(p_y, 3)

    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    exported = jax.export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(shape)
    assert "f64" not in exported.mlir_module()
