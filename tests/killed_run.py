"""Trains on a folder of images in a process of its own, which a test may kill: `killed_run.py FOLDER IMAGES WORKERS`.

It continues what is in the folder. It prints `begin` once everything is imported, a line with the number and the loss
of every step, and `end`; then it waits until its input is closed, so that a kill never comes too late.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.training import Checkpoints, create, ema, fit, open_images, streamed

SIZE, BATCH, STEPS = 23, 5, 69  # fifteen epochs, whose ends fall into batches
EPOCHS = STEPS * BATCH // SIZE
SIDE = 8
_NUMBERS, _WIDTH = 3 * SIDE**2, 512
_OPTIMISER = optax.adam(1e-3)
_AVERAGE = ema(half_life=10.0)


def start():
    random = np.random.default_rng(0)
    enter, leave = (random.standard_normal(shape) / 20 for shape in ((_NUMBERS, _WIDTH), (_WIDTH, _NUMBERS)))
    params = {"enter": jnp.asarray(enter, jnp.float32), "leave": jnp.asarray(leave, jnp.float32)}
    extra = {"seen": jnp.zeros((EPOCHS, SIZE), jnp.int32)}
    return create(jax.random.key(1), params, _OPTIMISER.init(params), ema=_AVERAGE.init(params), extra=extra)


def update(state, constants, batch):
    """A step of denoising that also counts, for each epoch, how often it has seen each example."""
    x0 = batch["image"].reshape(BATCH, _NUMBERS) / 127.5 - 1
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), x0.shape)

    def loss(params):
        return jnp.mean((jnp.tanh((x0 + constants["sigma"] * noise) @ params["enter"]) @ params["leave"] - x0) ** 2)

    value, gradient = jax.value_and_grad(loss)(state.params)
    change, opt_state = _OPTIMISER.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, change)
    epoch = (state.step * BATCH + jnp.arange(BATCH)) // SIZE
    extra = {"seen": state.extra["seen"].at[epoch, batch["index"]].add(1)}
    average = _AVERAGE.update(state.ema, params)
    return state._replace(params=params, opt_state=opt_state, ema=average, extra=extra), {"loss": value}


def _main(folder, images, workers):
    def say(line):
        # In one write, which a kill cannot cut.
        print(f"{line}\n", end="", flush=True)

    def report(step, metrics):
        say(f"{step} {float(metrics['loss']).hex()}")
        time.sleep(0.025)

    say("begin")
    examples = open_images(images, SIDE, index=Path(folder) / "images.json")
    constants = {"sigma": jnp.asarray(0.5)}
    with (
        streamed(examples, BATCH, 3, block=3, workers=int(workers), threads=2) as batches,
        Checkpoints(Path(folder) / "checkpoints", config={"sigma": 0.5}, keep=2) as checkpoints,
    ):
        options = {"steps": STEPS, "save_every": 4, "steps_per_call": 2, "resume": True, "on_metrics": report}
        fit(update, start(), constants, batches, checkpoints=checkpoints, **options)
    say("end")
    sys.stdin.read()


if __name__ == "__main__":
    _main(*sys.argv[1:])
