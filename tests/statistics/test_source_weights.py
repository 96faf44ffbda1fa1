"""Shares of the sources: the law of many samples, stationarity, corners, and what is gained."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxgen.statistics.source_weights import optimal_source_weights, weighted_expected_tv

TARGET = np.array([0.6, 0.2, 0.1, 0.1])


def test_separate_models_of_many_samples_take_the_power_two_thirds():
    with jax.enable_x64(True):
        found = optimal_source_weights(TARGET, 100_000, 3, 3, shared=False)
    expected = TARGET ** (2 / 3) / np.sum(TARGET ** (2 / 3))
    np.testing.assert_allclose(found, expected, atol=1e-4)  # what 1 / n leaves


@pytest.mark.parametrize("shared", [False, True])
def test_no_other_optimizer_finds_less(shared):
    with jax.enable_x64(True):
        risk = jax.jit(
            jax.value_and_grad(
                lambda logits: weighted_expected_tv(TARGET, jax.nn.softmax(logits), 90, 3, 4, shared=shared)
            )
        )
        other = scipy.optimize.minimize(lambda z: tuple(map(np.asarray, risk(z))), np.zeros(4), jac=True, tol=1e-12)
        found = optimal_source_weights(TARGET, 90, 3, 4, shared=shared)
        np.testing.assert_allclose(found, jax.nn.softmax(other.x), atol=1e-5)
        least = float(weighted_expected_tv(TARGET, found, 90, 3, 4, shared=shared))
        assert least <= other.fun + 1e-12
        for share in (TARGET, np.full(4, 0.25)):
            assert least < float(weighted_expected_tv(TARGET, share, 90, 3, 4, shared=shared)) - 1e-4


def test_single_precision_finds_the_same():
    single = optimal_source_weights(TARGET.astype(np.float32), 90, 3, 4, shared=True)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = optimal_source_weights(TARGET, 90, 3, 4, shared=True)
    np.testing.assert_allclose(single, double, atol=1e-4)


def test_equal_targets_equal_shares_and_sources_of_no_weight_get_nothing():
    np.testing.assert_allclose(optimal_source_weights(np.full(4, 0.25), 90, 3, 4, shared=True), 0.25, atol=1e-6)
    with_none = optimal_source_weights(np.array([0.5, 0.0, 0.5, 0.0]), 90, 3, 4, shared=True)
    np.testing.assert_allclose(with_none, [0.5, 0, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(optimal_source_weights(np.array([1]), 90, 3, 4, shared=True), [1.0], rtol=1e-6)


def test_few_samples_go_where_they_count_and_stay_finite():
    # One sample: the risk is linear in the shares, so that all goes to the source of the largest weight.
    for n in (1, 2):
        found = optimal_source_weights(TARGET.astype(np.float32), n, 2, 2, shared=True)
        chex.assert_tree_all_finite(found)
        np.testing.assert_allclose(np.sum(found), 1, rtol=1e-5)
    np.testing.assert_allclose(optimal_source_weights(TARGET, 1, 2, 2, shared=True), [1, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda t: optimal_source_weights(2 * t, 9, 1, 1, shared=True), "target must sum to 1"),
        (lambda t: optimal_source_weights(t, 0, 1, 1, shared=True), "n must be at least 1, got 0"),
        (lambda t: optimal_source_weights(t, 9, 0, 0, shared=True), "with a sum of at least 1"),
        (lambda t: weighted_expected_tv(-t, t, 9, 1, 1, shared=True), "target must not be negative"),
        (lambda t: weighted_expected_tv(t, -t, 9, 1, 1, shared=True), "p_y must not be negative"),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call(TARGET)


def test_entries_lower_for_every_platform_in_single_precision():
    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    function = jax.jit(lambda target: optimal_source_weights(target, 90, 2, 3, shared=True))
    exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(shape)
    assert "f64" not in exported.mlir_module()
