"""Streams batches of a folder of images in a process of its own: `stream_run.py MODE FOLDER [PORT PROCESS]`.

`read` goes on until it is killed, `leave` ends without closing, `start` tells of its processes before they have
started, and goes on; the three print the ids of the processes that read. `host` is one of two hosts with four devices
each, and prints the rows of a batch that it holds.
"""

import json
import multiprocessing
import sys
import time

import jax
import numpy as np


def read(mode, folder):
    from jaxgen.training import image_folder, streamed

    batches = streamed(image_folder(folder, 8), 4, 0, workers=2, block=2, ahead=1)
    if mode == "start":
        _tell_of_processes_early()
    batches.load(0, 1)
    print(json.dumps([process.pid for process in multiprocessing.active_children()]), flush=True)
    for block in range(1, 10**9 if mode != "leave" else 1):
        batches.load(2 * block, 1)
        time.sleep(0.01)


def _tell_of_processes_early():
    start = multiprocessing.context.SpawnProcess.start

    def started(process):
        start(process)
        # In one piece, since two threads start processes.
        sys.stdout.write(f"[{process.pid}]\n")
        sys.stdout.flush()

    multiprocessing.context.SpawnProcess.start = started


def host(folder, port, process):
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), initialization_timeout=60)

    from jax.experimental import multihost_utils

    from jaxgen.training import Share, image_folder, make_mesh, streamed

    share = Share(jax.process_index(), jax.process_count(), multihost_utils.process_allgather)
    images, mesh = image_folder(folder, 8, share=share), make_mesh("data=8")
    with streamed(images, 16, 0, mesh=mesh, block=2) as batches:
        payload = batches.load(6, 1)
    held = {}
    for shard in payload.arrays["index"].addressable_shards:
        first, last, _ = shard.index[1].indices(16)
        held |= dict(zip(range(first, last), np.asarray(shard.data)[0].tolist(), strict=True))
    print(json.dumps({"held": held, "fingerprint": images.fingerprint}), flush=True)


if __name__ == "__main__":
    mode, folder, *rest = sys.argv[1:]
    host(folder, *rest) if mode == "host" else read(mode, folder)
