"""Run the command on packages of the tests: adding one edits nothing."""

import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

import experiments
from experiments import cli

PACKAGES = Path(__file__).parent / "packages"
REPOSITORY = Path(__file__).parents[2]
# What `python -m experiments` does, with one folder of packages more; the heavy modules that came along are told.
HARNESS = f"""
import experiments, sys
experiments.__path__.append({str(PACKAGES)!r})
experiments.__path__.append("packages")
from experiments.cli import main
code = main(sys.argv[1:])
print("heavy:", [name for name in ("jax", "numpy", "jaxgen", "matplotlib") if name in sys.modules])
sys.exit(code)
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder; `packages` in it, where there is one, holds experiments beside those of the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXGEN_COMPILATION_CACHE", "off")
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(PACKAGES), str(tmp_path / "packages")])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("experiments.")]:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if origin.startswith((str(PACKAGES), str(tmp_path))):
            del sys.modules[name]
            vars(experiments).pop(name.removeprefix("experiments."), None)


@pytest.fixture
def command(folder, capsys):
    """Run the command in this process."""

    def run(*argv):
        capsys.readouterr()
        code = cli.main([str(word) for word in argv])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def spawn(folder):
    """Start the command in a process of its own, which dies with the test."""
    started = []

    def start(*argv, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HARNESS, *map(str, argv)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def package(folder):
    """Write an experiment: `package(name, body_of_run, **module_lines)`."""

    def write(name, body, *, claims="()", more=""):
        path = folder / "packages" / name / "__init__.py"
        path.parent.mkdir(parents=True)
        head = f'''
            import dataclasses
            from experiments.claims import Cell, Claim
            from experiments.run_directory import Interrupted

            @dataclasses.dataclass(frozen=True)
            class Config:
                """Written by a test."""

                steps: int = 3
                """Number of steps."""

            PRESETS = {{"ci": Config(steps=1), "default": Config()}}
            CLAIMS = {claims}
            '''
        parts = [textwrap.dedent(head), textwrap.dedent(more), "def run(config, run):\n"]
        path.write_text("\n".join(parts) + textwrap.indent(textwrap.dedent(body), "    "))
        importlib.invalidate_caches()

    return write
