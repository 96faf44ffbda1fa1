import getpass
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import jax

from experiments import environment


def test_the_description_says_what_ran_where_and_nothing_private():
    found = environment.describe("digits", "ci", 3)
    assert (found["experiment"], found["preset"], found["seed"], found["finished"]) == ("digits", "ci", 3, None)
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["scipy"] == importlib.metadata.version("scipy")
    assert found["devices"] == {"cpu": jax.device_count()}
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    kib = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1])
    assert abs(found["machine"]["memory_gib"] - kib / 2**20) < 0.1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["started"])
    text = json.dumps(found)
    assert platform.node() not in text
    assert "/" not in re.sub("[0-9]/[0-9]", "", text)
    assert getpass.getuser() not in text.split('"')


def test_the_commit_is_that_of_a_checkout_that_tracks_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", tmp_path, *author, *arguments], check=True, capture_output=True, text=True
        ).stdout

    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    git("init", "-q")
    (tmp_path / "experiments").mkdir()
    code = tmp_path / "experiments" / "environment.py"
    code.write_text("")
    assert environment.code_version() == (None, None)  # in somebody else's checkout
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert environment.code_version() == (commit, False)
    (tmp_path / "notes.txt").write_text("not code")
    assert environment.code_version() == (commit, False)
    code.write_text("changed")
    assert environment.code_version() == (commit, True)
    code.write_text("")
    (tmp_path / "experiments" / "new.py").write_text("")
    assert environment.code_version() == (commit, True)


def test_no_git_means_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.code_version() == (None, None)
