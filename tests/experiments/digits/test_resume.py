"""A killed run of the main job goes on to the same bits."""

import time

import chex
import numpy as np
import pytest

from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params
from jaxgen.training import restore_params

SETTINGS = {"width": 8, "hidden": 8, "blocks": 1, "batch-size": 8, "steps": 2000, "samples": 2, "sampling-steps": 2}
MODEL = ImageMLP(ImageMLPConfig(image_shape=(8, 8), width=8, hidden=8, blocks=1, augmentation=2))


def parameters(run):
    like = abstract_params(MODEL)
    folder = run / "checkpoints"
    return {name: restore_params(folder / name, like, field="ema.average") for name in ("denoiser", "flow")}


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, f"{path} did not appear in {seconds} s"
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_to_the_same_bits(spawn, folder):
    # Each in a process of its own: this one has eight devices, whose sums round otherwise.
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    # What the first has compiled, the others load.
    cache = {"JAXGEN_COMPILATION_CACHE": "on", "XDG_CACHE_HOME": str(folder / "cache")}
    killed = spawn("digits", *settings, "--sampler", "ddim", "--out", "killed", **cache)
    wait_for(folder / "killed" / "checkpoints" / "flow" / "500", killed)
    killed.kill()
    killed.wait()
    environment = (folder / "killed" / "environment.json").read_text()
    assert '"finished"' not in environment or '"finished": null' in environment
    runs = [
        spawn("digits", "--resume", "killed", **cache),
        spawn("digits", *settings, "--sampler", "ddim", "--out", "whole", **cache),
    ]
    for run in runs:
        error = run.communicate(timeout=120)[1]
        assert run.returncode == 0, error
    chex.assert_trees_all_equal(parameters(folder / "killed"), parameters(folder / "whole"))
    with np.load("killed/arrays.npz") as resumed, np.load("whole/arrays.npz") as whole:
        np.testing.assert_array_equal(resumed["samples"], whole["samples"])
    lines = [(folder / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert lines[0] == lines[1]
