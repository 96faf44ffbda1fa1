"""Training many networks at once: each learns alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from commands import hastily_compiled

from experiments.stacked import Rate, StackedUpdate, initial_state
from jaxgen.models import MLP, MLPConfig


def squared_distance(model, params, key, target):
    x = jax.random.normal(key, (2,))
    return jnp.sum((model.apply({"params": params}, x, jnp.zeros(())) - target) ** 2)


@hastily_compiled()
def test_stacked_networks_train_as_each_does_alone():
    model, rate = MLP(MLPConfig(width=4)), Rate(np.asarray(0.01, np.float32), np.asarray(10.0, np.float32))
    update = jax.jit(StackedUpdate(model, squared_distance))
    targets = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    state = initial_state(model, jax.random.key(0), 3)
    batch = np.arange(4, dtype=np.int32)
    together, metrics = update(state, (rate, targets), batch)
    assert metrics["loss"].shape == (3,)
    pick = lambda tree: jax.tree.map(lambda leaf: leaf[1:2], tree)  # noqa: E731
    second = state._replace(**{name: pick(getattr(state, name)) for name in ("params", "opt_state", "key")})
    alone, _ = update(second, (rate, pick(targets)), batch)
    chex.assert_trees_all_close(pick(together.params), alone.params, rtol=1e-6, atol=1e-7)  # float32, other sums


@hastily_compiled()
def test_the_learning_rate_falls_from_its_peak_to_nothing_along_a_cosine():
    # The first step of Adam moves each parameter by the learning rate against the sign of its gradient.
    model, peak = MLP(MLPConfig(width=4)), 0.01
    update = jax.jit(StackedUpdate(model, squared_distance))
    state = initial_state(model, jax.random.key(0), 1)
    for done, share in ((0, 1.0), (5, 0.5), (10, 0.0)):
        rate = Rate(np.asarray(peak, np.float32), np.asarray(10.0, np.float32))
        at = state._replace(step=jnp.asarray(done, jnp.int32))
        after, _ = update(at, (rate, np.ones((1, 2), np.float32)), np.arange(4, dtype=np.int32))
        # Of the last layer's biases, none of which has a gradient near 0.
        moved = after.params["dense_2"]["bias"] - state.params["dense_2"]["bias"]
        np.testing.assert_allclose(np.abs(moved), peak * share, rtol=1e-4, atol=1e-9)
