import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training import accumulated_gradient, make_mesh, shard_batch


def loss(params, batch):
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(batch["key"])
    hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ params["kernel"])
    return jnp.mean((hidden @ params["out"] - batch["y"]) ** 2)


def arguments(size=24):
    random = np.random.default_rng(0)
    params = {"kernel": random.standard_normal((4, 8)), "out": random.standard_normal((8, 3))}
    batch = {"x": random.standard_normal((size, 4)), "y": random.standard_normal((size, 3))}
    params, batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, batch))
    return params, {**batch, "key": jax.random.split(jax.random.key(3), size)}


@pytest.mark.parametrize("parts", [1, 2, 3, 24])
def test_parts_give_the_gradient_of_the_whole_batch(parts):
    params, batch = arguments()
    value, gradient = jax.jit(accumulated_gradient, static_argnums=(0, 3))(loss, params, batch, parts)
    expected = jax.value_and_grad(loss)(params, batch)
    # Sums of 24 float32 numbers in another order.
    chex.assert_trees_all_close((value, gradient), expected, rtol=2e-6, atol=2e-6)


def test_only_one_part_is_held_at_a_time():
    _, batch = arguments(4096)
    wide = {"kernel": jnp.ones((4, 512)), "out": jnp.ones((512, 3))}

    def temporary(parts):
        lowered = jax.jit(accumulated_gradient, static_argnums=(0, 3)).lower(loss, wide, batch, parts)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(1) / 8


def test_the_examples_of_a_device_stay_on_it():
    mesh = make_mesh("data=8")
    params, batch = arguments(64)
    batch = shard_batch({name: batch[name] for name in ("x", "y")}, mesh)

    def plain(params, batch):
        return jnp.mean((jnp.tanh(batch["x"] @ params["kernel"]) @ params["out"] - batch["y"]) ** 2)

    compiled = jax.jit(accumulated_gradient, static_argnums=(0, 3)).lower(plain, params, batch, 4).compile().as_text()
    assert "all-reduce" in compiled
    for moving in ("all-to-all", "collective-permute", "all-gather"):
        assert moving not in compiled


def test_parts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="a batch of 24 cannot be split evenly into 5 parts"):
        accumulated_gradient(loss, *arguments(), 5)
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        accumulated_gradient(loss, *arguments(), 0)
