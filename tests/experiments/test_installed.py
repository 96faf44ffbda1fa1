"""What a user installs holds everything that the command needs, and nothing more."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# `python -m experiments` as it is, with what came along told on the standard error.
PROBE = """
import json, runpy, sys
try:
    runpy.run_module("experiments", run_name="__main__", alter_sys=True)
finally:
    files = {name: sys.modules[name].__file__ for name in ("experiments", "jax") if name in sys.modules}
    print(json.dumps(files), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of this tree, built by what is installed: no network, and nothing written into the tree."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("jaxgen", "experiments", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, folder / "wheels"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "wheels").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel in a folder of its own: a wheel of pure Python is installed by unpacking it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    subprocess.run([sys.executable, "-m", "compileall", "-q", folder], check=True, timeout=120)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Run a program in an empty folder with the installed packages before those of the checkout."""

    def run(*argv):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        process = subprocess.Popen(
            [sys.executable, *argv],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, err = process.stdout.read(), process.stderr.read()  # little enough for the pipes to hold
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.communicate()
        return process.returncode, out, err, usage.ru_utime + usage.ru_stime

    return run


def test_the_wheel_holds_the_packages_with_their_data_and_the_licence_but_no_tests(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    information = metadata.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {"jaxgen", "experiments", information}
    sources = {
        str(path.relative_to(REPOSITORY))
        for package in ("jaxgen", "experiments")
        for path in (REPOSITORY / package).rglob("*")
        if path.suffix in (".csv", ".html", ".md", ".py") or path.name == "py.typed"
    }
    assert {"jaxgen/py.typed", "experiments/report.html", "experiments/ledger/ledger.html"} <= sources
    assert sources <= names
    assert f"{information}/licenses/LICENSE" in names
    assert not [name for name in names if "test" in name]
    assert "License-Expression: Apache-2.0\n" in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "digits"),
        (["--help"], "python -m experiments NAME"),
        (["digits", "--help"], "--label-dropout"),
        (["ledger", "--help"], "--readme"),
    ],
)
def test_list_and_help_come_from_the_installed_files_within_a_second_of_cpu_time(run, installed, tmp_path, argv, says):
    code, out, err, spent = run("-c", PROBE, *argv)
    files = json.loads(err)
    assert code == 0
    assert says in out
    assert Path(files.pop("experiments")).parent.parent == installed
    assert files == {}  # no jax
    assert spent < 1.0
    assert run("-m", "experiments", *argv)[:3] == (0, out, "")
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_tells_bad_arguments_and_the_kept_ledger(run, tmp_path):
    code, out, err, _ = run("-m", "experiments", "digts")
    assert (code, out) == (2, "")
    assert err.startswith("error: there is no experiment 'digts'; the nearest is 'digits'")
    code, out, err, _ = run("-m", "experiments", "ledger")
    assert (code, err) == (0, "")
    for path in (REPOSITORY / "experiments").glob("*/results/*/claims.json"):
        assert all(claim["id"] in out for claim in json.loads(path.read_text()))
    assert list(tmp_path.iterdir()) == []
