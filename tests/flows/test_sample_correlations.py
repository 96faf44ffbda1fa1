"""Correlations of samples: slow loops, hand-made sequences, blocks and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgen.flows import (
    feature_weights,
    gaussian_start,
    last_ratio,
    mean_over_draws,
    one_hot_correlations,
    quartic_loss,
    sample_correlations,
    sample_features,
    sample_sequences,
    spiked_start,
    start_at,
)

KEY = jax.random.key(11)
COUNT, LENGTH, DIMENSION = 64, 5, 2
# Compiled once for every shape.
draw = jax.jit(sample_sequences, static_argnames=("count", "length", "dimension"))
features_of = jax.jit(sample_features, static_argnames="full")


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def sequences():
    return draw(KEY, gaussian_start(), COUNT, LENGTH, DIMENSION)


@pytest.fixture(scope="module")
def compiled_ratio():
    return jax.jit(last_ratio, static_argnames="full")


def dense(d, seed, *, full):
    random = np.random.default_rng(seed)
    n = 2 * d if full else d
    return {"kq": jnp.asarray(random.normal(size=(n, n))), "pv": jnp.asarray(random.normal(size=(d, n)))}


def all_blocks(params, d):
    """Put W32 and W12 where they stand among all blocks."""
    kq, pv = (np.asarray(params[name]) for name in ("kq", "pv"))
    if kq.shape == (d, d):
        kq = np.block([[np.zeros((d, 2 * d))], [kq, np.zeros((d, d))]])
        pv = np.block([pv, np.zeros((d, d))])
    return kq, pv


def predictions(params, sequence):
    """The layer on one sequence by its definition: y_t for t = 2 ... T-1."""
    length, d = sequence.shape
    kq, pv = all_blocks(params, d)
    tokens = [np.concatenate([sequence[i], sequence[i - 1] if i else np.zeros(d)]) for i in range(length)]
    found = []
    for t in range(2, length):
        total = sum(np.outer(tokens[i], tokens[i].conj()) for i in range(t))
        found.append(pv @ total @ kq @ tokens[t - 1] / (t - 1))
    return np.array(found)


def assert_close(left, right, tolerance):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("full", [False, True], ids=["sector", "all blocks"])
def test_the_loss_is_the_mean_over_sequences_of_its_definition(sequences, full):
    correlations = sample_correlations(sequences, full=full)
    features = np.asarray(features_of(sequences, full=full))
    for seed in range(3):
        params = dense(DIMENSION, seed, full=full)
        expected = 0.0
        for sequence, feature in zip(np.asarray(sequences), features, strict=True):
            y = predictions(params, sequence)
            expected += 0.5 * (np.abs(y - sequence[2:]) ** 2).sum() / COUNT
            np.testing.assert_allclose(feature @ np.asarray(feature_weights(params)).T, y, rtol=1e-11, atol=1e-12)
        assert float(quartic_loss(params, correlations)) == pytest.approx(expected, rel=1e-12)


def test_the_gradients_of_both_matrices_scale_alike_on_samples(sequences):
    for full in (False, True):
        params = dense(DIMENSION, 5, full=full)
        gradient = jax.grad(quartic_loss)(params, sample_correlations(sequences, full=full))
        first, second = (float((params[name] * gradient[name]).sum()) for name in ("kq", "pv"))
        assert first == pytest.approx(second, rel=1e-12)


def test_the_hand_made_sequences_are_predicted_as_they_should():
    # One coordinate turning by i is predicted exactly at ab = 1.
    turn = 1j ** np.arange(6)
    features = features_of(turn[None, :, None])
    np.testing.assert_allclose(features[0] @ feature_weights(start_at(1.0, 1.0, 1)).T, turn[2:, None], atol=1e-15)
    # Two coordinates, of which one stands and one alternates, interfere at even t.
    pair = np.stack([np.ones(4), (-1.0) ** np.arange(4)], axis=1).astype(complex)
    weights = feature_weights(start_at(1.0, 1.0, 2))
    np.testing.assert_allclose(features_of(pair[None])[0] @ weights.T, [[0, 0], [1, -1]], atol=1e-15)


def test_turning_all_phases_turns_the_predictions_of_the_sector(sequences):
    # x_t -> exp(i phi (t-1)) x_t turns y_t by exp(i phi t): the key is conjugated.
    phi = 0.7
    turned = sequences * jnp.exp(1j * phi * jnp.arange(LENGTH))[None, :, None]
    factor = jnp.exp(1j * phi * jnp.arange(2, LENGTH))[None, :, None]
    np.testing.assert_allclose(features_of(turned), features_of(sequences) * factor, atol=1e-11)
    assert_close(sample_correlations(turned), sample_correlations(sequences), 1e-12)


@pytest.mark.parametrize("full", [False, True], ids=["sector", "all blocks"])
@pytest.mark.parametrize("law", [gaussian_start(), spiked_start(0.4)], ids=["gaussian", "with zeros"])
def test_the_ratio_at_the_last_position_is_that_of_a_loop(compiled_ratio, law, full):
    x = np.asarray(draw(KEY, law, 20, LENGTH, DIMENSION))
    found, present = compiled_ratio(x, full=full)
    params = dense(DIMENSION, 2, full=full)
    ratio = (feature_weights(params) * found).sum(axis=1)
    expected, counted = np.zeros(DIMENSION), np.zeros(DIMENSION)
    for sequence in x:
        y = predictions(params, sequence)[-1]
        for j in range(DIMENSION):
            if sequence[-1, j] != 0:
                expected[j] += (y[j] / sequence[-1, j]).real / len(x)
                counted[j] += 1 / len(x)
    np.testing.assert_allclose(ratio, expected, rtol=1e-11)
    np.testing.assert_allclose(present, counted, rtol=1e-14)
    assert (counted.min() < 1) == (law != gaussian_start())


def test_the_mean_ratio_of_the_diagonal_model_is_its_product_times_the_variance(compiled_ratio):
    # For any length; here another than that of the training.
    x = draw(KEY, gaussian_start(), 20_000, 6, DIMENSION)
    parts = [compiled_ratio(part)[0] for part in x.reshape(20, 1000, 6, DIMENSION)]
    ratios = np.array([(feature_weights(start_at(0.5, 0.4, DIMENSION)) * part).sum(axis=1) for part in parts])
    error = ratios.std(axis=0, ddof=1) / np.sqrt(20)
    assert (np.abs(ratios.mean(axis=0) - 0.2) < 5 * error).all()
    assert (error < 0.01).all()


@pytest.mark.parametrize("full", [False, True], ids=["sector", "all blocks"])
def test_one_hot_sequences_have_the_same_correlations_by_the_short_way(full):
    phases = np.exp(2j * np.pi * np.random.default_rng(0).uniform(size=(8, 1, 1)) * np.arange(LENGTH)[:, None])
    place = np.array([2, 0, 1, 2, 0, 2, 1, 2])
    x = np.linspace(1, 2, 8)[:, None, None] * phases * np.eye(3)[place][:, None]
    assert_close(one_hot_correlations(x, full=full), sample_correlations(x, full=full), 1e-13)
    # A coordinate that no sequence has.
    x = x[place != 1]
    assert_close(one_hot_correlations(x, full=full), sample_correlations(x, full=full), 1e-13)


def test_the_short_way_refuses_sequences_of_several_coordinates(sequences):
    for x in (sequences, 0 * sequences):
        with pytest.raises(ValueError, match="must have exactly one coordinate that is not 0; use sample_correlations"):
            one_hot_correlations(x)


def test_a_mean_over_blocks_is_the_mean_over_all(sequences):
    def draw_block(key, block, first):
        return sample_sequences(key, gaussian_start(), block, LENGTH, DIMENSION, first=first)

    def statistic(x):
        return sample_correlations(x), last_ratio(x)

    mean = jax.jit(mean_over_draws, static_argnames=("statistic", "draw", "count", "block", "sharding"))
    expected = jax.jit(statistic)(sequences)
    assert_close(mean(statistic, KEY, draw_block, COUNT, block=16), expected, 1e-12)
    # Over the devices of a mesh.
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    assert_close(mean(statistic, KEY, draw_block, COUNT, block=16, sharding=sharding), expected, 1e-12)


def test_samples_split_over_devices_have_the_same_correlations(sequences):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(sequences, NamedSharding(mesh, PartitionSpec("data")))
    assert len(split.sharding.device_set) == 8
    found = sample_correlations(split)
    assert_close(found, sample_correlations(sequences), 1e-13)
    assert found.gram.is_fully_replicated


def test_sums_over_blocks_are_double_where_enabled():
    # 1 + 2^-30 is lost in single precision.
    def statistic(x):
        return jnp.float32(1.0) + 0 * x.sum().astype(jnp.float32), 1 + 2.0**-30 + 0 * x.sum()

    single, double = mean_over_draws(statistic, KEY, lambda key, block, first: jnp.ones(block), 6, block=2)
    assert single.dtype == double.dtype == jnp.float64
    assert float(double) == 1 + 2.0**-30


@pytest.mark.parametrize("count", [0, -250, 100, 251])
def test_a_count_that_is_no_multiple_of_the_block_is_refused(count):
    message = f"count must be a positive multiple of the block of 250 sequences, got {count}"
    with pytest.raises(ValueError, match=message):
        mean_over_draws(sample_correlations, KEY, lambda *_: None, count)
    with pytest.raises(ValueError, match="count must be a positive multiple of the block of 0"):
        mean_over_draws(sample_correlations, KEY, lambda *_: None, 10, block=0)


@pytest.mark.parametrize("statistic", [sample_features, sample_correlations, last_ratio, one_hot_correlations])
def test_short_sequences_are_refused(statistic):
    with pytest.raises(ValueError, match="length must be an integer of at least 3 tokens, got 2"):
        statistic(np.ones((4, 2, 1), complex))


def test_samples_are_read_in_single_precision_on_every_platform(sequences):
    with jax.enable_x64(False):
        x = jax.ShapeDtypeStruct((8, LENGTH, DIMENSION), jnp.complex64)
        exported = jax.export.export(jax.jit(sample_correlations), platforms=("cpu", "cuda", "tpu"))(x)
        found = sample_correlations(np.asarray(sequences, np.complex64))
    assert "f64" not in exported.mlir_module()
    # Sums of some hundred rounded numbers.
    assert_close(found, sample_correlations(sequences), 2e-6)
