"""Files that appear whole or not at all, and a folder that one process writes at a time."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_PART = ".part"


def write_whole(path: Path, data: bytes | str) -> None:
    """Write `data` beside `path`, flush it to the disk and rename it into place.

    Raises:
        OSError: the disk is full or the folder is not writable; an older `path` is then untouched.
    """
    # Not mkstemp: its files are private, a run is as readable as any file that its user makes, and the umask that says
    # how readable that is cannot be asked for without changing it under the other threads.
    name = path.parent / f".{path.name}.{secrets.token_hex(8)}{_PART}"
    try:
        with name.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder` and one level below."""
    for pattern in (f".*{_PART}", f"*/.*{_PART}"):
        for part in folder.glob(pattern):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder/.lock`, which names this process, until the block ends.

    The kernel drops the lock with the process, so that of a dead one never blocks, whatever number it left in the file.

    Raises:
        ValueError: a living process holds it.
    """
    path = folder / ".lock"
    handle = _lock(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise ValueError(
                f"{path.parent} is being written by process {owner}; wait for it, or name another folder with --out"
            ) from None
        # The holder before us removes the file as it lets go: what we locked must still be what the name means.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)
