import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import files

REPOSITORY = Path(files.__file__).parents[1]
SIZE = 1 << 20


def test_a_file_is_replaced_whole_and_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    files.write_whole(tmp_path / "file", b"first")
    files.write_whole(tmp_path / "file", "zwölf")
    assert (tmp_path / "file").read_bytes() == "zwölf".encode()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "plain"]


def test_a_process_killed_at_any_moment_leaves_one_version_whole(tmp_path):
    code = f"""
import sys
from pathlib import Path
from experiments.files import write_whole
path = Path(sys.argv[1]) / "file"
while True:
    for letter in b"ab":
        write_whole(path, bytes([letter]) * {SIZE})
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    cut = 0
    for attempt in range(10):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=environment)
        end = time.monotonic() + 20
        while not (tmp_path / "file").exists():
            assert time.monotonic() < end
        time.sleep(0.003 * attempt)
        process.kill()
        process.wait()
        data = (tmp_path / "file").read_bytes()
        assert data in (b"a" * SIZE, b"b" * SIZE)
        cut += len(list(tmp_path.glob(".*.part")))
        files.remove_parts(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        (tmp_path / "file").unlink()
    assert cut > 0, "no kill came in the middle of a write: the test shows nothing"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, "before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write_whole(path, b"x" * (2 * SIZE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_one_holder_at_a_time_who_is_named(tmp_path):
    refused = f"is being written by process {os.getpid()}; wait for it"
    with files.locked(tmp_path), pytest.raises(ValueError, match=refused), files.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with files.locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    code = "import sys, time\nfrom pathlib import Path\nfrom experiments.files import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"written by process {process.pid}"), files.locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / ".lock").exists()
    with files.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
