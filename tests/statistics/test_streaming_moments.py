import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.statistics import streaming_moments
from jaxgen.statistics.streaming_moments import MomentState

DIM = 5


def correlated(seed, count, mean=0.0):
    rng = np.random.default_rng(seed)
    return mean + rng.standard_normal((count, DIM)) @ rng.standard_normal((DIM, DIM))


def streamed(samples, cuts, update=streaming_moments.update):
    state = streaming_moments.init(DIM, samples.dtype)
    for batch in np.split(samples, cuts):
        state = update(state, batch)
    return state


def assert_is_the_batch_result(state, samples):
    mean, covariance = streaming_moments.moments(state)
    assert int(state.count) == len(samples)
    np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-14, atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(samples.T), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_uneven_batches_give_the_batch_result_on_the_host_without_x64(mean):
    assert not jax.config.read("jax_enable_x64")
    samples = correlated(0, 1000, mean)
    state = streamed(samples, [1, 1, 3, 200, 999])
    assert state.mean.dtype == state.scatter.dtype == np.float64
    assert_is_the_batch_result(state, samples)


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_compiled_updates_sharded_over_eight_devices_give_the_batch_result(mean):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    samples = correlated(1, 800, mean)
    with jax.enable_x64(True):
        update = jax.jit(streaming_moments.update)
        state = streaming_moments.init(DIM, np.float64)
        for batch in np.split(samples, 2):
            placed = jax.device_put(batch, NamedSharding(mesh, P("data")))
            assert len({shard.device for shard in placed.addressable_shards}) == 8
            state = update(state, placed)
        assert state.mean.dtype == jnp.float64
        assert_is_the_batch_result(state, samples)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 60), max_size=6), st.sampled_from([0.0, 1e6]))
def test_merging_parts_in_any_order_is_the_batch_result(seed, cuts, mean):
    samples = correlated(seed, 60, mean)
    parts = [
        streaming_moments.update(streaming_moments.init(DIM, np.float64), part)
        for part in np.split(samples, sorted(cuts))
    ]
    whole = streaming_moments.init(DIM, np.float64)
    for part in np.random.default_rng(seed).permutation(len(parts)):
        whole = streaming_moments.merge(parts[part], whole)
    assert_is_the_batch_result(whole, samples)


@pytest.mark.parametrize("compiled", [False, True])
def test_masked_rows_do_not_count_whatever_stands_in_them(compiled):
    samples = correlated(2, 40).astype(np.float32)
    padded = np.concatenate([samples, np.full((24, DIM), np.nan, np.float32)])
    order = np.random.default_rng(0).permutation(64)
    update = jax.jit(streaming_moments.update) if compiled else streaming_moments.update
    state = update(streaming_moments.init(DIM), padded[order], (np.arange(64) < 40)[order])
    assert int(state.count) == 40
    np.testing.assert_allclose(state.mean, samples.mean(0), atol=1e-6)
    np.testing.assert_allclose(streaming_moments.moments(state).covariance, np.cov(samples.T), rtol=1e-5, atol=1e-5)


def test_a_batch_that_is_masked_whole_changes_nothing():
    before = streamed(correlated(3, 10), [])
    after = streaming_moments.update(before, np.full((4, DIM), np.inf), np.zeros(4, bool))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)


def test_float32_keeps_the_covariance_of_a_mean_far_from_zero():
    samples = correlated(4, 4096, 1e4).astype(np.float32)
    state = streamed(samples, [1000, 3000], jax.jit(streaming_moments.update))
    assert state.scatter.dtype == jnp.float32
    exact = np.cov(samples.T.astype(np.float64))
    # The rounded mean, 1e-3 off, enters squared; sums of squares would be off by 1e8 * 6e-8 = 6.
    np.testing.assert_allclose(streaming_moments.moments(state).covariance, exact, atol=1e-4)


def test_float64_states_refuse_arrays_of_jax_without_x64():
    with pytest.raises(ValueError, match=r"a float64 state needs numpy arrays or jax.enable_x64\(True\)"):
        streaming_moments.update(streaming_moments.init(2, np.float64), jnp.zeros((3, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: streaming_moments.init(0), "dim must be at least 1, got 0"),
        (lambda: streaming_moments.moments(streamed(np.ones((1, DIM)), [])), "at least 2 samples, got 1"),
        (lambda: streamed(np.ones((2, 3)), []), "the dimension of the state, 5, got 3"),
        (
            lambda: streaming_moments.merge(streaming_moments.init(2), streaming_moments.init(3)),
            "must share one dimension, got 2 and 3",
        ),
    ],
)
def test_what_cannot_be_added_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_update_and_merge_lower_for_every_platform():
    state = MomentState(*(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in streaming_moments.init(DIM)))
    batch = jax.ShapeDtypeStruct((16, DIM), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.bool_)

    def program(state, samples, mask):
        return streaming_moments.moments(streaming_moments.update(state, samples, mask))

    module = jax.export.export(jax.jit(program), platforms=["cpu", "cuda", "tpu"])(state, *batch).mlir_module()
    assert "f64" not in module
    assert "complex" not in module
