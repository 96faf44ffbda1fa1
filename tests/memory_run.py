"""Restore a checkpoint and print how much memory that took, as a multiple of the state: `memory_run.py HOW FOLDER`.

HOW is `save`, `restore` (the checkpoint alone) or `fit` (a resumed run, which begins with a state of its own).
"""

import os
import sys
import threading
import time

import jax
import jax.numpy as jnp

from jaxgen.training import Checkpoints, create, fit, in_memory

ARRAYS, SIZE = 8, 2**23


def start(size=SIZE):
    return create(jax.random.key(0), {str(i): jnp.full(size, i + 1, jnp.float32) for i in range(ARRAYS)})


def update(state, constants, batch):
    return state._replace(params=jax.tree.map(jnp.negative, state.params)), {"loss": jnp.zeros(())}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(folder, state, steps, **options):
    batches = in_memory(jnp.zeros(1), 1, jax.random.key(0))
    with Checkpoints(folder) as checkpoints:
        return fit(update, state, (), batches, steps=steps, checkpoints=checkpoints, **options)


def main(how, folder):
    if how == "save":
        train(folder, start(), 3)
        train(folder + "-small", start(1), 3)
        return
    train(folder + "-small", start(1), 3, resume=True)  # what a first restore loads and compiles
    state = jax.block_until_ready(start())
    size = 4 * ARRAYS * SIZE
    before, peak = resident() - size, 0

    def watch():
        nonlocal peak
        while True:
            peak = max(peak, resident())
            time.sleep(0.0005)

    threading.Thread(target=watch, daemon=True).start()
    if how == "fit":
        state = train(folder, state, 3, resume=True)
    else:
        like = jax.eval_shape(lambda: state)
        jax.tree.map(lambda leaf: leaf.delete(), state)
        with Checkpoints(folder) as checkpoints:
            state = checkpoints.restore(like).state
    assert float(state.params["3"][-1]) == -4.0
    print((peak - before) / size)


if __name__ == "__main__":
    main(*sys.argv[1:])
