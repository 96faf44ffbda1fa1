"""What wrong sharing costs, by simulation; and shrinkage, which does not lose in the error weighted by samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.statistics.conditional_mle import gaussian_mle, sample_sources
from jaxgen.statistics.sharing import crossover_spread, james_stein_means, squared_error


def test_squared_errors_of_sources_that_differ():
    found = [squared_error(500, 5, 5, 5, spread, shared=True) for spread in (0.0, 0.004, 0.008, 0.02)]
    np.testing.assert_allclose(found, [0.06, 0.08004, 0.10008, 0.1602], rtol=1e-14)
    assert squared_error(500, 5, 5, 5, 0.02, shared=False) == pytest.approx(0.1, rel=1e-14)


def test_simulated_squared_errors_meet_the_formula():
    p_y, mask = jnp.full(5, 0.2), np.arange(10) >= 5
    spread = 0.008
    pattern = np.linspace(-1, 1, 5) / np.std(np.linspace(-1, 1, 5)) * np.sqrt(spread)
    means = jnp.asarray(np.where(mask, pattern[:, None], 0.0), jnp.float32)

    def errors(number):
        x, y = sample_sources(jax.random.fold_in(jax.random.key(0), number), means, p_y, 500)
        fits = [gaussian_mle(x, y, 5, mask, shared=shared).means for shared in (True, False)]
        return jnp.stack([jnp.sum((fit - means) ** 2) / 5 for fit in fits])

    found = np.asarray(jax.jit(lambda numbers: jax.lax.map(errors, numbers))(jnp.arange(1000)))
    mean, error = found.mean(0), found.std(0) / np.sqrt(1000)
    # Random numbers of samples raise E[1 / N] by K (K - 1) / n^2, on 5 own coordinates or on all 10.
    more = 5 * 4 / 500**2 * np.array([5, 10])
    expected = [squared_error(500, 5, 5, 5, spread, shared=shared) for shared in (True, False)]
    assert np.all(np.abs(mean - expected - more) < 4 * error)
    assert mean[1] == pytest.approx(0.1008, abs=0.003)


@given(st.integers(2, 10_000), st.integers(2, 20), st.integers(0, 9), st.integers(1, 9))
def test_sharing_changes_nothing_at_the_crossover(n, sources, own, common):
    spread = crossover_spread(n, sources)
    arms = [squared_error(n, sources, own, common, spread, shared=shared) for shared in (True, False)]
    assert arms[0] == pytest.approx(arms[1], rel=1e-12)
    assert squared_error(n, sources, own, common, 0.9 * spread, shared=True) < arms[1]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1])
def test_shrunk_means_beat_separate_ones_at_every_spread(spread):
    rng, sources, count, draws = np.random.default_rng(3), 6, 50, 4000
    truth = np.sqrt(spread) * np.linspace(-1.5, 1.5, sources)[:, None] * np.ones(4)
    means = truth + rng.standard_normal((draws, sources, 4)) / np.sqrt(count)
    shrink = jax.jit(jax.vmap(lambda means: james_stein_means(means, jnp.full(sources, count), jnp.ones(4, bool))))
    shrunk = np.asarray(shrink(means.astype(np.float32)))
    gain = ((means - truth) ** 2 - (shrunk - truth) ** 2).sum((1, 2))
    assert gain.mean() > 3 * gain.std() / np.sqrt(draws)
    if spread == 0:  # of K sources the mean costs one, and the rest nearly nothing
        assert ((shrunk - truth) ** 2).sum((1, 2)).mean() < 0.5 * ((means - truth) ** 2).sum((1, 2)).mean()


@pytest.mark.parametrize("apart", [0.0, 0.05, 3.0])
def test_with_unequal_counts_shrinkage_wins_by_samples_and_may_lose_by_sources(apart):
    rng, counts, draws = np.random.default_rng(4), np.array([1000, 1000, 1000, 1]), 40_000
    truth = np.array([0.0, 0.0, 0.0, apart])[:, None]
    means = truth + rng.standard_normal((draws, 4, 1)) / np.sqrt(counts)[:, None]
    shrink = jax.jit(jax.vmap(lambda means: james_stein_means(means, jnp.asarray(counts), jnp.ones(1, bool))))
    shrunk = np.asarray(shrink(means.astype(np.float32)))
    gain = ((means - truth) ** 2 - (shrunk - truth) ** 2)[..., 0]
    by_samples = gain @ counts
    assert by_samples.mean() > 3 * by_samples.std() / np.sqrt(draws)
    if apart == 3:
        by_sources = gain.sum(1)
        assert by_sources.mean() < -3 * by_sources.std() / np.sqrt(draws)


@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
@settings(max_examples=25, deadline=None)
def test_shrinkage_lies_between_separate_and_common_means(seed, zeros, scale):
    rng = np.random.default_rng(seed)
    means = (scale * rng.standard_normal((6, 3))).astype(np.float32)
    counts = np.where(np.arange(6) < zeros, 0, rng.integers(1, 50, 6)) if zeros < 6 else np.zeros(6, int)
    mask = np.array([True, False, True])
    found = np.asarray(james_stein_means(means, counts, mask))
    chex.assert_tree_all_finite(found)
    np.testing.assert_array_equal(found[:, ~mask], means[:, ~mask])
    common = counts @ means / max(counts.sum(), 1)
    seen, shared = counts > 0, np.flatnonzero(mask)
    np.testing.assert_allclose(
        found[~seen][:, shared], np.broadcast_to(common[shared], ((~seen).sum(), 2)), atol=1e-4 * max(scale, 1)
    )
    if 0 < seen.sum() <= 3:
        np.testing.assert_allclose(found[seen], means[seen], atol=1e-4 * max(scale, 1e-6))
    near = np.abs(found - common[None])[seen] <= np.abs(means - common[None])[seen] + 1e-4 * max(scale, 1e-6)
    assert np.all(near)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: squared_error(0, 5, 1, 1, shared=True), "n must be at least 1, got 0"),
        (lambda: squared_error(9, 0, 1, 1, shared=True), "num_sources must be at least 1, got 0"),
        (lambda: squared_error(9, 2, 0, 0, shared=True), "must be at least 0 with a sum of at least 1"),
        (lambda: squared_error(9, 2, 1, 1, -0.1, shared=True), "spread must be at least 0, got -0.1: it is a variance"),
        (lambda: crossover_spread(0, 2), "n must be at least 1, got 0"),
        (lambda: crossover_spread(9, 0), "num_sources must be at least 1, got 0"),
        (
            lambda: james_stein_means(np.zeros((4, 3)), np.ones(4, int), np.ones(2, bool)),
            r"a mask for each coordinate, got \[4, 3\], \[4\] and \[2\]",
        ),
        (lambda: james_stein_means(np.zeros((4, 3)), np.ones(4, int), np.ones(3)), "shared_mask must be boolean"),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call()


def test_entries_lower_for_every_platform_in_single_precision():
    shapes = jax.eval_shape(lambda: (jnp.zeros((5, 3)), jnp.zeros(5, jnp.int32), jnp.zeros(3, bool)))
    exported = jax.export.export(jax.jit(james_stein_means), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert "f64" not in exported.mlir_module()
