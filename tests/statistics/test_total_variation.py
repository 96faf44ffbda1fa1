"""Total variation: closed form, sums and Monte-Carlo estimates agree; the intervals cover; nothing underflows."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.statistics.total_variation import (
    tv_enumerated,
    tv_gaussian,
    tv_mc_bounded,
    tv_mc_mixture,
    tv_mc_ratio,
    tv_quadrature,
)

laws = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).filter(lambda p: sum(p) > 0.1)


def log_gaussian(x, mean):
    return -(((x - mean) ** 2).sum(-1)) / 2 - x.shape[-1] / 2 * np.log(2 * np.pi)


def test_closed_form_at_four_distances():
    with jax.enable_x64(True):
        found = tv_gaussian(np.array([0.1, 0.5, 1.0, 2.0]))
    expected = [0.039877611676744924, 0.19741265136584743, 0.3829249225480261, 0.6826894921370859]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_whole_and_negative_distances_are_taken():
    assert tv_gaussian(1).dtype == jnp.float32
    np.testing.assert_allclose(tv_gaussian(1), 0.3829249225, rtol=1e-6)
    np.testing.assert_allclose(tv_gaussian(np.array([0, 2, -2])), [0, 0.6826894921, 0.6826894921], rtol=1e-6)
    np.testing.assert_allclose(tv_gaussian(-1.0), 0.3829249225, rtol=1e-6)
    assert np.isnan(tv_gaussian(np.nan))
    np.testing.assert_allclose(jax.grad(tv_gaussian)(0.0), 1 / np.sqrt(2 * np.pi), rtol=1e-6)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    @parameterized.parameters(np.float32, np.float64)
    def test_dtype_and_batch_of_the_input_are_kept(self, dtype):
        with jax.enable_x64(True):
            log_p, log_q = np.log(np.array([[0.5, 0.5], [1.0, 0.0]], dtype) + dtype(1e-30)), np.log(dtype([0.75, 0.25]))
            log_q = np.broadcast_to(log_q, (2, 2))
            found = [
                self.variant(tv_enumerated)(log_p, log_q),
                self.variant(tv_quadrature)(log_p, log_q, np.ones(2, dtype)),
                self.variant(tv_mc_ratio)(log_q, log_q),
                *self.variant(tv_mc_bounded)(log_q, log_p),
                *self.variant(tv_mc_mixture)(log_q, log_p),
                self.variant(tv_gaussian)(np.ones(2, dtype)),
            ]
        for value in found:
            chex.assert_shape(value, (2,))
            chex.assert_type(value, dtype)
        np.testing.assert_allclose(found[0], [0.25, 0.25], rtol=1e-6)
        np.testing.assert_allclose(found[1], [0.25, 0.25], rtol=1e-6)


@given(laws, laws)
@settings(max_examples=30, deadline=None)
def test_a_sum_over_states_is_a_distance_between_0_and_1(p, q):
    p, q = (np.array(law, np.float32) / np.float32(sum(law)) for law in (p, q))
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log(q)
    found = float(tv_enumerated(log_p, log_q))
    assert -1e-6 <= found <= 1 + 1e-6
    assert found == float(tv_enumerated(log_q, log_p))
    assert float(tv_enumerated(log_p, log_p)) == 0.0
    np.testing.assert_allclose(found, np.maximum(p - q, 0).sum(), atol=1e-6)  # the largest gap over all events
    middle = np.log((p + q) / 2 + 1e-30)
    assert found <= float(tv_enumerated(log_p, middle)) + float(tv_enumerated(middle, log_q)) + 1e-6


def test_five_total_variations_agree_on_one_problem():
    rng, mean, count = np.random.default_rng(0), np.array([0.5, -0.3]), 200_000
    with jax.enable_x64(True):
        exact = float(tv_gaussian(np.linalg.norm(mean)))
        at, weights = np.polynomial.legendre.leggauss(300)
        grid = np.stack(np.meshgrid(9 * at, 9 * at), -1).reshape(-1, 2)
        weights = 81 * np.outer(weights, weights).ravel()
        logs = log_gaussian(grid, mean), log_gaussian(grid, 0.0)
        # The kink of |p - q| costs Gauss-Legendre all but its second order.
        np.testing.assert_allclose(tv_quadrature(*logs, weights), exact, atol=1e-4)
        with np.errstate(divide="ignore"):
            states = [log + np.log(weights) for log in logs]
        np.testing.assert_allclose(tv_enumerated(*states), exact, atol=1e-4)
        of_p = rng.standard_normal((count, 2))
        of_both = of_p + np.where(rng.random(count) < 0.5, 1.0, 0.0)[:, None] * mean
        pairs = [(log_gaussian(x, mean), log_gaussian(x, 0.0)) for x in (of_p, of_both)]
        ratio, bounded, mixture = tv_mc_ratio(*pairs[0]), tv_mc_bounded(*pairs[0]), tv_mc_mixture(*pairs[1])
        for found in (bounded, mixture):
            assert abs(float(found.value) - exact) < 4 * float(found.stderr)
            assert float(found.lower) < exact < float(found.upper)
        assert float(mixture.stderr) < float(bounded.stderr)
    terms = np.abs(np.expm1(pairs[0][0] - pairs[0][1])) / 2
    assert abs(float(ratio) - exact) < 4 * terms.std() / np.sqrt(count)


def test_hoeffding_intervals_cover_at_least_at_their_level():
    with jax.enable_x64(True):
        rng, exact = np.random.default_rng(1), float(tv_gaussian(np.array(0.8)))
        x = rng.standard_normal((2000, 50, 1))
        mixed = x + np.where(rng.random((2000, 50, 1)) < 0.5, 0.8, 0.0)
        for estimate, points in ((tv_mc_bounded, x), (tv_mc_mixture, mixed)):
            found = estimate(log_gaussian(points, 0.8), log_gaussian(points, 0.0), level=0.9)
            covered = (found.lower <= exact) & (exact <= found.upper)
            assert np.mean(covered) >= 0.9  # Hoeffding is wide: nearly all
            np.testing.assert_allclose(found.value.std(), np.mean(found.stderr), rtol=0.05)  # 2000 replicates
            # half a width is sqrt(log(2 / 0.1) / 100), where [0, 1] does not cut it
            np.testing.assert_allclose(np.max(found.upper - found.value), 0.17308, rtol=1e-4)


def test_densities_that_underflow_do_no_harm():
    # Two laws in 3,000 dimensions: log densities near -4,000, where float32 has no densities.
    log_p = np.full(8, -4000.0, np.float32)
    log_q = log_p + np.float32(0.25)
    np.testing.assert_allclose(tv_mc_ratio(log_q, log_p), np.expm1(0.25) / 2, rtol=1e-5)
    np.testing.assert_allclose(tv_mc_mixture(log_q, log_p).value, np.tanh(0.125), rtol=1e-5)
    np.testing.assert_allclose(tv_mc_bounded(log_p, log_q).value, -np.expm1(-0.25), rtol=1e-5)
    nowhere = np.full(8, -np.inf, np.float32)
    assert float(tv_mc_bounded(nowhere, log_p).value) == 1.0
    assert float(tv_mc_mixture(log_p, nowhere).value) == 1.0


def test_a_gradient_where_laws_agree_is_finite():
    with jax.enable_x64(True):
        log_p = jnp.log(jnp.array([0.2, 0.3, 0.5]))
        for function in (tv_enumerated, tv_mc_ratio, lambda p, q: tv_mc_mixture(p, q).value):
            chex.assert_tree_all_finite(jax.grad(function)(log_p, log_p))
        chex.assert_numerical_grads(lambda d: tv_gaussian(d), (jnp.array(0.7),), order=1)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: tv_mc_bounded(x, x, level=1.0), r"level must lie in \(0, 1\), got 1.0"),
        (lambda x: tv_mc_mixture(x[:1], x[:1]), "at least 2 points, got .1. and .1."),
        (lambda x: tv_mc_ratio(x[:0], x[:0]), "at least 1 points"),
        (lambda x: tv_enumerated(x[:0], x[:0]), r"one shape \[..., states\] with at least 1 states"),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call(np.zeros(3, np.float32))


def test_entries_lower_for_every_platform_in_single_precision():
    shape = jax.ShapeDtypeStruct((4, 30), jnp.float32)

    def everything(log_q, log_p):
        weights = jnp.ones(log_p.shape[-1:])
        return (
            tv_enumerated(log_q, log_p),
            tv_quadrature(log_q, log_p, weights),
            tv_mc_ratio(log_q, log_p),
            partial(tv_mc_bounded, level=0.9)(log_q, log_p),
            tv_mc_mixture(log_q, log_p),
            tv_gaussian(log_p),
        )

    exported = jax.export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(shape, shape)
    assert "f64" not in exported.mlir_module()
