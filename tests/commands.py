"""What the tests of the experiments' commands share."""

import contextlib

import jax
import numpy as np
import pytest

from experiments import cli


@contextlib.contextmanager
def hastily_compiled():
    """Compile with little optimisation: nearly all of the time of a tiny run is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def finish(path, *argv):
    """Run a command to its end in this process, without a cache of programs, and return where it wrote."""
    with pytest.MonkeyPatch.context() as patch, hastily_compiled():
        patch.setenv("JAXGEN_COMPILATION_CACHE", "off")
        assert cli.main([*argv, "--out", str(path)]) == 0
    return path


def stored_arrays(run):
    """Read all arrays of a run, and close the file."""
    with np.load(run / "arrays.npz", allow_pickle=False) as stored:
        return dict(stored)


def files(folder):
    """Return the files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_refused(result, folder, error):
    """Exit 2, one sentence, nothing written."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert error in err
    assert list(folder.iterdir()) == []
