"""Fits of several sources: by hand, source by source, masked where nothing was seen, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.statistics.conditional_mle import (
    categorical_mle,
    check_labels,
    check_sources,
    gaussian_mle,
    sample_sources,
)

MASK = np.array([True, False, True, False])


def data(n=40, sources=3, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)).astype(np.float32), np.arange(n) % sources


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_means_are_those_of_each_source_or_of_all(shared, dtype):
    with jax.enable_x64(dtype == "float64"):
        x, y = data()
        fit = gaussian_mle(x.astype(dtype), y, 3, MASK, shared=shared)
        chex.assert_type(fit.means, dtype)
    expected = np.stack([x[y == k].astype(np.float64).mean(0) for k in range(3)])
    if shared:
        expected[:, MASK] = x.astype(np.float64).mean(0)[MASK]
    np.testing.assert_allclose(fit.means, expected, atol=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_array_equal(fit.counts, [14, 13, 13])
    assert np.all(fit.observed)


@given(st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=10, deadline=None)
def test_any_coordinates_can_be_shared_and_none_changes_no_bit(mask):
    x, y = data()
    apart = np.asarray(gaussian_mle(x, y, 3, MASK, shared=False).means)
    together = np.asarray(gaussian_mle(x, y, 3, np.array(mask), shared=True).means)
    np.testing.assert_array_equal(together[:, ~np.array(mask)], apart[:, ~np.array(mask)])
    assert np.all(together[:, mask] == together[:1, mask])


def test_the_likelihood_falls_in_every_direction():
    x, y = (jnp.asarray(part) for part in data())
    fit = gaussian_mle(x, y, 3, MASK, shared=True)

    def log_likelihood(own, common):
        means = jnp.zeros((3, 4)).at[:, ~MASK].set(own).at[:, MASK].set(common[None])
        return -jnp.sum((x - means[y]) ** 2) / 2

    slopes = jax.grad(log_likelihood, argnums=(0, 1))(fit.means[:, ~MASK], fit.means[0, MASK])
    chex.assert_trees_all_close(slopes, jax.tree.map(jnp.zeros_like, slopes), atol=1e-5)  # sums of 40 in float32


class Compiled(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_a_source_without_samples_is_counted_and_never_nan(self):
        x, y = data(sources=2)
        fit = self.variant(lambda x, y: gaussian_mle(x, y, 4, MASK, shared=True, allow_empty=True))(x, jnp.asarray(y))
        chex.assert_tree_all_finite(fit)
        np.testing.assert_array_equal(fit.counts, [20, 20, 0, 0])
        np.testing.assert_array_equal(fit.observed, [True, True, False, False])
        assert np.all(np.asarray(fit.means)[2:, ~MASK] == 0)
        np.testing.assert_allclose(np.asarray(fit.means)[2:, MASK], np.tile(x.mean(0)[MASK], (2, 1)), atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_samples_have_the_law_that_was_asked_for(self):
        means, p_y = np.array([[0.0, 3.0], [1.0, -1.0], [9.0, 9.0], [5.0, 0.0]]), np.array([0.7, 0.1, 0.0, 0.2])
        draw = self.variant(lambda key, means, p_y: sample_sources(key, means, p_y, 20_000))
        x, y = draw(jax.random.key(0), means.astype(np.float32), p_y.astype(np.float32))
        counts = np.bincount(y, minlength=4)
        assert counts[2] == 0
        np.testing.assert_allclose(counts / 20_000, p_y, atol=4 * np.sqrt(0.25 / 20_000))  # 4 standard errors
        residual = np.asarray(x) - means[np.asarray(y)]
        np.testing.assert_allclose(residual.mean(0), 0, atol=4 / np.sqrt(20_000))
        np.testing.assert_allclose(np.cov(residual.T), np.eye(2), atol=0.05)
        moved, labels = draw(jax.random.key(0), (means + 1).astype(np.float32), p_y.astype(np.float32))
        np.testing.assert_array_equal(labels, y)
        np.testing.assert_allclose(moved, np.asarray(x) + 1, atol=1e-5)


def test_replicates_run_together_and_agree_with_one():
    means, p_y = jnp.zeros((3, 4)), jnp.full(3, 1 / 3)

    def replicate(key):
        return gaussian_mle(*sample_sources(key, means, p_y, 30), 3, MASK, shared=True)

    keys = jax.random.split(jax.random.key(1), 5)
    many, one = jax.jit(jax.vmap(replicate))(keys), replicate(keys[3])
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[3], many), one, atol=1e-6)


def test_a_last_source_of_probability_zero_is_never_drawn():
    p_y = np.array([0.1] * 10 + [0.0], np.float32)  # whose sum, in float32, is not 1
    _, y = sample_sources(jax.random.key(2), np.zeros((11, 1), np.float32), p_y, 200_000)
    assert int(np.max(y)) == 9


def test_frequencies_of_each_source():
    fit = categorical_mle(np.array([0, 2, 2, 1, 0]), np.array([0, 0, 0, 1, 1]), 3, 3)
    np.testing.assert_allclose(fit.probabilities, [[1 / 3, 0, 2 / 3], [1 / 2, 1 / 2, 0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_array_equal(fit.observed, [True, True, False])
    np.testing.assert_array_equal(fit.counts, [3, 2, 0])
    few_bits = categorical_mle(np.array([199, 0], np.uint8), np.array([2, 0], np.uint8), 3, 200)
    np.testing.assert_array_equal(few_bits.probabilities[np.array([0, 2]), np.array([0, 199])], [1, 1])


def test_whole_means_and_probabilities_are_taken():
    means, p_y = np.array([[0, 3], [1, 2]]), np.array([0, 1])
    x, y = sample_sources(jax.random.key(0), means, p_y, 50)
    expected = sample_sources(jax.random.key(0), means.astype(np.float32), p_y.astype(np.float32), 50)
    chex.assert_trees_all_equal((x, y), expected)
    assert np.all(y == 1)
    assert np.std(x) > 0.5  # noise that was not rounded away


def test_labels_outside_are_counted_nowhere_under_a_trace():
    fit = jax.jit(lambda c, y: categorical_mle(c, y, 2, 3))(jnp.array([0, 3, -1, 2]), jnp.array([0, 0, 1, 5]))
    np.testing.assert_allclose(fit.probabilities, [[0.5, 0, 0], [0, 0, 0]], atol=1e-6)
    x = jnp.ones((3, 1))
    fit = jax.jit(lambda x, y: gaussian_mle(x, y, 2, np.array([False]), shared=False))(x, jnp.array([-1, 0, 2]))
    np.testing.assert_array_equal(fit.counts, [1, 0])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x, y: gaussian_mle(x, y, 2, MASK, shared=True), r"y must lie in \[0, 2\), got labels from 0 to 2"),
        (
            lambda x, y: gaussian_mle(x, y - 1, 3, MASK, shared=True),
            "got labels from -1 to 1: count the sources from 0",
        ),
        (lambda x, y: gaussian_mle(x, y, 0, MASK, shared=True), "num_sources must be at least 1, got 0"),
        (
            lambda x, y: gaussian_mle(x, y, 4, MASK, shared=False),
            r"y has no samples of the sources \[3\].* allow_empty",
        ),
        (lambda x, y: gaussian_mle(x, y, 3, MASK[:3], shared=True), "shared_mask must say for each of 4 coordinates"),
        (lambda x, y: gaussian_mle(x[:0], y[:0], 3, MASK, shared=True), "at least one sample"),
        (
            lambda x, y: gaussian_mle(x, y, 3, MASK.astype(int), shared=True),
            r"shared_mask must be boolean, .* got int32: pass shared_mask.astype\(bool\)",
        ),
        (
            lambda x, y: gaussian_mle(x, y.astype(float), 3, MASK, shared=True),
            r"y must hold integers, got float32: pass y.astype\(int\)",
        ),
        (lambda x, y: categorical_mle(y, y + 0.5, 3, 3), "y must hold integers, got float32"),
        (lambda x, y: categorical_mle(y + 0.5, y, 3, 3), "y_categories must hold integers, got float32"),
        (lambda x, y: check_labels(y, 5, allow_empty=False), r"no samples of the sources \[3, 4\]"),
        (lambda x, y: check_sources(np.array([0.5, 0.6]), 3), "p_y must sum to 1 within 1e-6, got a sum of 1.1"),
        (lambda x, y: check_sources(np.array([0.5, 0.5 + 2e-6]), 3), "p_y must sum to 1"),
        (lambda x, y: check_sources(np.array([1.5, -0.5]), 3), "p_y must not be negative"),
        (lambda x, y: check_sources(np.array([]), 3), "at least one source"),
        (lambda x, y: check_sources(np.array([1.0]), 0), "n must be at least 1, got 0"),
        (lambda x, y: sample_sources(jax.random.key(0), x, np.ones(40), 9), "p_y must sum to 1"),
        (lambda x, y: categorical_mle(y, y, 3, 2), r"y_categories must lie in \[0, 2\), got 0 to 2"),
        (lambda x, y: categorical_mle(y, y, 3, 0), "num_categories must be at least 1, got 0"),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call(*data())


def test_a_sum_within_rounding_of_1_is_taken():
    check_sources(np.array([0.5, 0.5 + 5e-7]), 1)


def test_entries_lower_for_every_platform_in_single_precision():
    def everything(key, means, p_y, mask):
        x, y = sample_sources(key, means, p_y, 20)
        arms = [gaussian_mle(x, y, 3, mask, shared=shared) for shared in (True, False)]
        return arms, categorical_mle(y, y, 3, 3)

    shapes = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((3, 4)), jnp.zeros(3), jnp.zeros(4, bool)))
    exported = jax.export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert "f64" not in exported.mlir_module()
