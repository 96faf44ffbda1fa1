"""One of several processes that train `regression_run` together: `process_run.py PORT PROCESSES PROCESS FOLDER STEPS`.

Each has as many of the eight devices as there are for it. It prints a line of JSON: the losses it saw, the step at
which it ended and the bytes of the state that its devices hold. It waits after step 5 for a file `go` in the folder.
"""

import json
import signal
import sys
import time
from pathlib import Path

import jax

DEVICES = 8


def main(port, processes, process, folder, steps):
    jax.config.update("jax_num_cpu_devices", DEVICES // int(processes))
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process), initialization_timeout=60)

    import regression_run

    from jaxgen.training import Checkpoints, make_mesh, read_config

    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    folder = Path(folder)
    mesh = make_mesh(f"data={DEVICES // 2},model=2")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        print("ready", flush=True)
        while not (folder / "go").exists():
            time.sleep(0.02)
        state, losses = regression_run.run(
            mesh,
            steps=int(steps),
            fully_sharded=True,
            checkpoints=checkpoints,
            resume=True,
            save_every=20,
            stop=lambda: bool(stopped),
            steps_per_call=4,
        )
    # Right after the last process has closed its checkpoints, all of which read the same files.
    assert read_config(folder / "checkpoints") == {}
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(state.opt_state) for shard in leaf.addressable_shards)
    print(json.dumps({"losses": losses, "step": int(state.step), "bytes": held}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
