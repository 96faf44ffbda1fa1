"""A training run of milliseconds, in a process of its own when started as a script: `tiny_run.py FOLDER [HOLD]`.

It prints a line for every step, and hangs for ever inside the write of checkpoint HOLD, so that a test can kill it at
a known moment.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.training import Checkpoints, create, ema, fit, in_memory, manifest

STEPS = 24
CONFIG = {"width": 5, "optimiser": {"name": "adam", "rate": 0.01}}
_OPTIMISER = optax.adam(0.01)
_AVERAGE = ema(half_life=4.0)


def update(state, constants, batch):
    """A step of regression with noise, whose every draw and average has to survive a restart."""
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), batch["y"].shape)

    def loss(params):
        predicted = jnp.tanh(batch["x"] @ params["kernel"] + params["bias"][None]) * constants["scale"]
        return jnp.mean((predicted - batch["y"] - 0.1 * noise) ** 2)

    value, gradient = jax.value_and_grad(loss)(state.params)
    change, opt_state = _OPTIMISER.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, change)
    state = state._replace(params=params, opt_state=opt_state, ema=_AVERAGE.update(state.ema, params))
    return state, {"loss": value, "size": jnp.linalg.norm(gradient["kernel"])}


def start(seed=0):
    random = np.random.default_rng(seed)
    params = {"kernel": jnp.asarray(random.standard_normal((3, 4)), jnp.float32), "bias": jnp.zeros(4)}
    return create(jax.random.key(seed), params, _OPTIMISER.init(params), ema=_AVERAGE.init(params))


def data(mesh=None, batch_size=8):
    random = np.random.default_rng(7)
    arrays = {"x": random.standard_normal((37, 3)), "y": random.standard_normal((37, 4))}
    arrays = jax.tree.map(lambda array: array.astype(np.float32), arrays)
    return in_memory(arrays, batch_size, jax.random.key(5), mesh=mesh)


def constants():
    return {"scale": jnp.asarray(2.0)}


def run(path=None, *, steps=STEPS, mesh=None, **options):
    """Train with checkpoints in `path`, or without any."""
    options = {"steps_per_call": 2, "call_seconds": None, **options}
    if path is None:
        return fit(update, start(), constants(), data(mesh), steps=steps, mesh=mesh, **options)
    with Checkpoints(path, config=CONFIG, keep=2) as saved:
        options = {"save_every": 5, **options}
        return fit(update, start(), constants(), data(mesh), steps=steps, mesh=mesh, checkpoints=saved, **options)


def _main(path, hold=None):
    digest = manifest.sha256

    def hanging(file):
        if hold is not None and file.parts[-3].startswith(f"{hold}."):
            # In one write: another thread prints steps, and a line of both would be waited for in vain.
            print("holding\n", end="", flush=True)
            time.sleep(600)
        return digest(file)

    manifest.sha256 = hanging

    def announce(step, metrics):
        print(f"step {step}\n", end="", flush=True)
        time.sleep(0.05)

    run(path, on_metrics=announce)


if __name__ == "__main__":
    _main(*sys.argv[1:])
