"""Fifty steps of training a network with enough numbers to shard, for comparisons across meshes and processes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jaxgen.training import accumulated_gradient, create, ema, fit, in_memory

STEPS = 50
AXES = {
    "enter": PartitionSpec("width", "hidden"),
    "bias": PartitionSpec("hidden"),
    "leave": PartitionSpec("hidden", "width"),
}
_OPTIMISER = optax.adamw(3e-3)
_AVERAGE = ema(half_life=10.0)


def start():
    random = np.random.default_rng(0)
    params = {
        "enter": random.standard_normal((32, 64)) / 6,
        "bias": random.standard_normal(64),
        "leave": random.standard_normal((64, 32)) / 8,
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return create(jax.random.key(1), params, _OPTIMISER.init(params), ema=_AVERAGE.init(params))


def constants():
    """Frozen weights: the teacher whose answers are learned."""
    return {"teacher": jnp.asarray(np.random.default_rng(1).standard_normal((32, 32)) / 6, jnp.float32)}


def data(mesh=None):
    x = np.random.default_rng(2).standard_normal((96, 32)).astype(np.float32)
    return in_memory({"x": x, "index": np.arange(96)}, 16, jax.random.key(3), mesh=mesh)


def update(state, constants, batch, parts=1):
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(batch["x"]))

    def loss(params, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key, (32,)))(batch["key"])
        hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ params["enter"] + params["bias"][None])
        return jnp.mean((hidden @ params["leave"] - batch["x"] @ constants["teacher"]) ** 2)

    value, gradient = accumulated_gradient(loss, state.params, {**batch, "key": keys}, parts)
    change, opt_state = _OPTIMISER.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, change)
    return state._replace(params=params, opt_state=opt_state, ema=_AVERAGE.update(state.ema, params)), {"loss": value}


def in_parts(state, constants, batch):
    return update(state, constants, batch, parts=2)


def run(mesh=None, *, step=update, steps=STEPS, **options):
    """Train, and return the state and the losses."""
    losses = []
    state = fit(
        step,
        start(),
        constants(),
        data(mesh),
        steps=steps,
        mesh=mesh,
        axes=AXES if mesh is not None else None,
        on_metrics=lambda step, metrics: losses.append(float(metrics["loss"])),
        **options,
    )
    return state, losses
