import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import process_run
import pytest
import regression_run

from jaxgen.training import Checkpoints, make_mesh


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(folder, steps, processes=2, signalled=None):
    """Run processes that train together, and return what each printed; one may be told to stop at once."""
    folder.mkdir(exist_ok=True)
    (folder / "go").unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(process_run.__file__).parent)}
    port = free_port()
    command = [sys.executable, process_run.__file__, str(port), str(processes)]
    running = [
        subprocess.Popen(
            [*command, str(process), str(folder), str(steps)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        for process in running:
            # Gloo tells of its connections on standard output as well.
            assert any(line.strip() == "ready" for line in process.stdout), "a process ended before it was ready"
        if signalled is not None:
            running[signalled].send_signal(signal.SIGTERM)
        (folder / "go").touch()
        told = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, told
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two processes train 50 steps, after having been stopped by a signal to one of them, and after step 30."""
    folder = tmp_path_factory.mktemp("together") / "run"
    return folder, together(folder, 50, signalled=1), together(folder, 30), together(folder, 50)


def test_two_processes_give_the_losses_of_one(trained):
    _, _, first, second = trained
    expected = regression_run.run()[1]
    for process in range(2):
        losses = first[process]["losses"] + second[process]["losses"]
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_signal_to_one_process_stops_both_at_one_step(trained):
    _, stopped, _, _ = trained
    assert [of["step"] for of in stopped] == [0, 0]
    assert [of["losses"] for of in stopped] == [[], []]


def test_each_process_holds_half_of_the_state(trained):
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(regression_run.start().opt_state))
    for of in trained[3]:
        # What is split over data and model lies there once; the bias and its moments, of 64 numbers, are split over
        # the model axis alone and lie four times in all, the counter eight times.
        assert of["bytes"] == (whole - 4 - 512) / 2 + 512 * 2 + 4 * 4


def test_one_process_goes_on_where_two_were(trained, tmp_path):
    folder = trained[0]
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 50
        state, losses = regression_run.run(make_mesh("data=8"), steps=55, checkpoints=checkpoints, resume=True)
    expected_state, expected = regression_run.run(steps=55)
    np.testing.assert_allclose(losses, expected[50:], rtol=1e-5)
    np.testing.assert_allclose(state.params["enter"], expected_state.params["enter"], rtol=1e-3, atol=1e-5)


def test_every_process_wrote_into_one_checkpoint(trained):
    state = trained[0] / "checkpoints" / "40" / "state"
    assert {entry.name for entry in state.glob("ocdbt.process_*")} == {"ocdbt.process_0", "ocdbt.process_1"}
    assert {entry.name for entry in (trained[0] / "checkpoints" / "40").iterdir()} >= {"manifest.json", "seal.json"}
