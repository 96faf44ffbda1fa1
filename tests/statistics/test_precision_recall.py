import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from jaxgen.statistics.precision_recall import precision_recall


def covered_by_sklearn(points, centres, neighbors):
    model = NearestNeighbors(n_neighbors=neighbors).fit(centres)
    radii = model.kneighbors()[0][:, -1]  # without an argument sklearn leaves each centre itself out
    distances = np.linalg.norm(points[:, None] - centres[None], axis=-1)
    return np.mean(np.any(distances <= radii[None], axis=1))


def covered_by_loops(points, centres, neighbors):
    balls = []
    for i, a in enumerate(centres):
        others = sorted(sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) for j, b in enumerate(centres) if j != i)
        balls.append((a, others[neighbors - 1]))
    inside = [any(sum((u - v) ** 2 for u, v in zip(p, a, strict=True)) <= r for a, r in balls) for p in points]
    return sum(inside) / len(points)


@pytest.mark.parametrize("block", [1, 64])
@pytest.mark.parametrize("neighbors", [1, 5])
def test_matches_sklearn_neighbors_at_any_block(neighbors, block):
    rng = np.random.default_rng(0)
    generated, real = 0.7 * rng.standard_normal((90, 4)), rng.standard_normal((70, 4))
    with jax.enable_x64(True):
        precision, recall = precision_recall(generated, real, neighbors=neighbors, block=block)
    np.testing.assert_allclose(precision, covered_by_sklearn(generated, real, neighbors), rtol=1e-12)
    np.testing.assert_allclose(recall, covered_by_sklearn(real, generated, neighbors), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=26, max_size=26))
def test_matches_loops_on_a_coarse_lattice_and_exchanges_with_its_arguments(values):
    # Lattice distances are exact, so a point on the surface of a ball counts as inside in both.
    points = np.float32(values).reshape(13, 2)
    generated, real = points[:6], points[6:]
    precision, recall = precision_recall(generated, real, neighbors=2)
    np.testing.assert_allclose(precision, covered_by_loops(generated.tolist(), real.tolist(), 2), rtol=1e-6)
    np.testing.assert_allclose(recall, covered_by_loops(real.tolist(), generated.tolist(), 2), rtol=1e-6)
    assert precision_recall(real, generated, neighbors=2) == (recall, precision)


def test_lost_modes_cost_recall_and_stray_samples_precision():
    rng = np.random.default_rng(1)
    centres = np.array([[-10.0, 0.0], [10.0, 0.0]])
    real = (centres[np.arange(400) % 2] + rng.standard_normal((400, 2))).astype(np.float32)
    one_mode = (centres[:1] + rng.standard_normal((400, 2))).astype(np.float32)
    precision, recall = precision_recall(one_mode, real)
    assert precision > 0.95
    assert recall < 0.55
    stray = np.concatenate([real[:100] + 50, real[100:]])
    precision, recall = precision_recall(stray, real)
    np.testing.assert_allclose(precision, 0.75, rtol=1e-6)
    assert recall > 0.95


def test_a_sample_that_is_not_finite_gives_nan():
    good = jnp.arange(8.0)[:, None]
    precision, recall = precision_recall(good.at[0].set(jnp.nan), good, neighbors=2)
    assert jnp.isnan(precision)
    assert jnp.isnan(recall)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="neighbors must be at least 1, got 0"):
        precision_recall(jnp.zeros((9, 1)), jnp.zeros((9, 1)), neighbors=0)
    with pytest.raises(ValueError, match="at least 6 samples are needed, got 5"):
        precision_recall(jnp.zeros((9, 1)), jnp.zeros((5, 1)))


def test_lowers_for_every_platform():
    samples = jax.ShapeDtypeStruct((40, 3), jnp.float32)
    exported = jax.export.export(jax.jit(precision_recall), platforms=["cpu", "cuda", "tpu"])(samples, samples)
    assert "f64" not in exported.mlir_module()
