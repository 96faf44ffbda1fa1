import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.training import NonfiniteState, zero_nonfinite, zeroing_nonfinite


def gradient():
    random = np.random.default_rng(0)
    leaves = {"a": random.standard_normal((3, 4)), "b": [-0.0, 1e-42, 3.4e38]}
    return {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).view(np.uint32), tree)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_entry_becomes_zero_and_leaves_all_others_to_the_bit(bad):
    clean, spoilt = gradient(), gradient()
    spoilt["a"][1, 2] = bad
    mended, count = jax.jit(zero_nonfinite)(spoilt)
    clean["a"][1, 2] = 0.0
    for name in clean:
        np.testing.assert_array_equal(bits(mended)[name], bits(clean)[name])
    assert int(count) == 1
    assert count.dtype == jnp.int32


def test_a_finite_gradient_is_left_alone():
    mended, count = zero_nonfinite(gradient())
    for name, leaf in bits(gradient()).items():
        np.testing.assert_array_equal(bits(mended)[name], leaf)
    assert int(count) == 0
    assert int(zero_nonfinite({})[1]) == 0


def test_types_are_kept():
    mended, count = zero_nonfinite({"h": jnp.asarray([jnp.inf, 1], jnp.bfloat16), "w": jnp.asarray([jnp.nan])})
    assert (mended["h"].dtype, mended["w"].dtype) == (jnp.bfloat16, jnp.float32)
    assert int(count) == 2


def test_seeds_are_counted_alone():
    stacked = {"w": jnp.asarray([[1.0, 2.0], [jnp.nan, jnp.inf], [3.0, jnp.nan]])}
    mended, counts = jax.vmap(zero_nonfinite)(stacked)
    np.testing.assert_array_equal(counts, [0, 2, 1])
    np.testing.assert_array_equal(mended["w"], [[1, 2], [0, 0], [3, 0]])


def test_an_optimiser_behind_it_sees_zeros_and_its_state_counts():
    optimiser = optax.chain(zeroing_nonfinite(), optax.adam(0.1, b1=0.9, b2=0.99))
    plain = optax.adam(0.1, b1=0.9, b2=0.99)
    params = jnp.asarray([1.0, 2.0])
    state, expected_state = optimiser.init(params), plain.init(params)
    gradients = [[1.0, jnp.nan], [2.0, 1.0], [jnp.inf, -jnp.inf]]
    counted = []
    for entries in gradients:
        update, state = optimiser.update(jnp.asarray(entries), state, params)
        zeros = jnp.asarray([entry if abs(entry) < 10 else 0.0 for entry in entries])
        expected, expected_state = plain.update(zeros, expected_state, params)
        np.testing.assert_array_equal(update, expected)
        counted.append((int(state[0].last), int(state[0].total)))
    assert counted == [(1, 1), (0, 1), (2, 3)]


def test_the_total_stops_at_the_largest_number():
    most = jnp.iinfo(jnp.int32).max
    state = NonfiniteState(jnp.zeros((), jnp.int32), jnp.asarray(most - 1, jnp.int32))
    _, state = zeroing_nonfinite().update(jnp.full(3, jnp.nan), state)
    assert (int(state.last), int(state.total)) == (3, most)


def test_it_lowers_for_every_platform_in_single_precision():
    transformation = zeroing_nonfinite()
    shapes = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
    state = jax.eval_shape(transformation.init, shapes)
    exported = jax.export.export(jax.jit(transformation.update), platforms=["cpu", "cuda", "tpu"])(shapes, state)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "f64" not in exported.mlir_module()
