"""Which examples of a set of files are damaged: found once, before training, and remembered from run to run."""

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from jaxgen.training.image_decoding import DamagedImageError, UnreadableImageError

_FORMAT = 1
_CHUNK = 32  # examples a task: so many that the queue of a large folder stays short
_ELSEWHERE = "is damaged, as another process found"


class Damage(NamedTuple):
    """An example that is left out, and why."""

    name: str
    reason: str


class Files(NamedTuple):
    """Files in order: relative names, sizes in bytes, times of the last change in ns, numbers of examples."""

    names: list[str]
    sizes: np.ndarray
    times: np.ndarray
    counts: np.ndarray


class Share(NamedTuple):
    """How several processes, which all see the same files, divide the scan.

    For hosts of `jax.distributed` this is `Share(jax.process_index(), jax.process_count(),
    jax.experimental.multihost_utils.process_allgather)`.
    """

    process: int
    processes: int
    gather: Callable[[np.ndarray], Any]
    """Takes an array of each process, all of one shape, and returns them stacked, in every process."""


class _Findings(NamedTuple):
    """Reasons by number of the example, and those among them that need not hold the next time."""

    reasons: dict[int, str]
    passing: set[int]


def find_damage(
    files: Files,
    examine: Callable[[int], None],
    *,
    index: Path | None = None,
    threads: int | None = None,
    share: Share | None = None,
) -> dict[int, str]:
    """Examine every example once, in threads, and return the reasons of the damaged ones by their number.

    Args:
        files: what is to be examined; the examples are numbered through all files.
        examine: raises DamagedImageError if the example of a number is damaged.
        index: a JSON file that keeps the verdicts. Only files that are new, or of another size or time of change, are
            examined again, and those that could not be read. One that is malformed is made anew.
        threads: that examine; as many as there are processors by default.
        share: how several processes divide the work.

    Raises:
        ValueError: if `threads` or `share` is out of range, the folder of the index does not exist, or the processes
            do not see the same files.
    """
    _check_arguments(index, threads, share)
    if share is not None:
        _check_same_files(files, share)
    known = _read_index(index, files) if index is not None else {}
    starts = np.cumsum(files.counts) - files.counts
    fresh = np.array([name not in known for name in files.names], bool)
    numbers = np.flatnonzero(np.repeat(fresh, files.counts))
    if share is not None:
        # By the number and not by the rank, because the indices of the processes may differ.
        numbers = numbers[numbers % share.processes == share.process]
    reasons, passing = _examine(numbers, examine, threads or os.cpu_count() or 1)
    for start, name in zip(starts.tolist(), files.names, strict=True):
        reasons |= {start + int(part): reason for part, reason in known.get(name, {}).items()}
    if share is not None and files.names:
        flags = np.zeros(int(files.counts.sum()), np.uint8)
        flags[list(reasons)] = 1
        damaged = np.flatnonzero(np.asarray(share.gather(flags)).reshape(-1, flags.size).max(axis=0)).tolist()
        passing |= set(damaged) - reasons.keys()
        reasons = {number: reasons.get(number, _ELSEWHERE) for number in damaged}
    if index is not None and fresh.any():
        _write_index(index, files, starts, _Findings(reasons, passing))
    return dict(sorted(reasons.items()))


def report_damage(where: Path, damaged: Sequence[Damage], total: int) -> None:
    """Warn once of the examples that are left out.

    Raises:
        ValueError: if there are none, or none is left.
    """
    if not total:
        raise ValueError(f"{where} holds no images")
    if not damaged:
        return
    listed = "; ".join(f"{name!r} {reason}" for name, reason in damaged[:5])
    more = f"; and {len(damaged) - 5} more" if len(damaged) > 5 else ""
    if len(damaged) == total:
        raise ValueError(f"all {total} images of {where} are damaged: {listed}{more}")
    text = f"{len(damaged)} of {total} images of {where} are damaged and left out: {listed}{more}"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def digest(*parts: Iterable[object]) -> str:
    """Return the sha256 of the texts of values, told apart by their lengths."""
    sha = hashlib.sha256()
    for part in parts:
        values = list(part)
        sha.update(f"{len(values)};".encode())
        for value in values:
            text = os.fsencode(str(value))
            sha.update(b"%d:%b" % (len(text), text))
    return sha.hexdigest()


def _check_arguments(index: Path | None, threads: int | None, share: Share | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if share is not None and not 0 <= share.process < share.processes:
        raise ValueError(f"process must be in 0 ... {share.processes - 1}, got {share.process}")
    if index is not None and not index.absolute().parent.is_dir():
        raise ValueError(f"the index {index} must lie in a folder that exists")


def _check_same_files(files: Files, share: Share) -> None:
    mine = np.frombuffer(bytes.fromhex(digest(files.names, files.sizes.tolist(), files.counts.tolist())), np.uint8)
    if (np.asarray(share.gather(mine)).reshape(-1, mine.size) != mine).any():
        raise ValueError("the processes see different files: they must share a folder, or have equal copies of it")


def _examine(numbers: np.ndarray, examine: Callable[[int], None], threads: int) -> _Findings:
    findings = _Findings({}, set())

    def run(chunk: list[int]) -> None:
        for number in chunk:
            try:
                examine(number)
            except DamagedImageError as error:
                findings.reasons[number] = str(error)
                if isinstance(error, UnreadableImageError):
                    findings.passing.add(number)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="scan")
    try:
        for _ in pool.map(run, (numbers[at : at + _CHUNK].tolist() for at in range(0, numbers.size, _CHUNK))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return findings


def _head() -> dict[str, Any]:
    return {"format": _FORMAT, "pillow": PIL.__version__}


def _read_index(index: Path, files: Files) -> dict[str, dict[str, str]]:
    """Return the reasons by part (the example's number within its file) of the files that have not changed."""
    try:
        stored = json.loads(index.read_bytes())
        if {name: stored[name] for name in _head()} != _head():
            return {}
        known = {}
        for name, size, time, count in zip(files.names, *map(np.ndarray.tolist, files[1:]), strict=True):
            entry = stored["files"].get(name)
            if entry is not None and entry[:3] == [size, time, count]:
                known[name] = _checked(entry[3], count)
        return known
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return {}


def _checked(verdict: dict[str, str], count: int) -> dict[str, str]:
    if not all(0 <= int(part) < count and isinstance(reason, str) for part, reason in verdict.items()):
        raise ValueError("a verdict is malformed")
    return verdict


def _write_index(index: Path, files: Files, starts: np.ndarray, findings: _Findings) -> None:
    verdicts: dict[int, dict[str, str]] = {}
    skipped = set()
    for number, reason in findings.reasons.items():
        file = int(np.searchsorted(starts, number, side="right")) - 1
        verdicts.setdefault(file, {})[str(number - int(starts[file]))] = reason
        if number in findings.passing:
            skipped.add(file)
    columns = zip(files.names, *map(np.ndarray.tolist, files[1:]), strict=True)
    entries = {name: [*kind, verdicts.get(n, {})] for n, (name, *kind) in enumerate(columns) if n not in skipped}
    try:
        _write_whole(index, json.dumps(_head() | {"files": entries}, separators=(",", ":")))
    except OSError as error:
        warnings.warn(f"the index {index} could not be written: {error}", RuntimeWarning, stacklevel=2)


def _write_whole(path: Path, text: str) -> None:
    # Under a name of its own, since other processes may be writing the same file.
    with tempfile.NamedTemporaryFile("w", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
