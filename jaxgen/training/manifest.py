"""What the files of a checkpoint were when they were written: their sha256, in two files of our own.

`manifest.json` names every file that orbax has finished before the folder gets its name. Orbax writes the time of the
commit into one more file afterwards; `seal.json`, written last, names that file and the manifest itself. A process that
is killed between the two leaves a checkpoint without a seal, which is good: nothing that is restored is in that file.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from jaxgen.training.processes import agreed, told_by_first

MANIFEST, _SEAL = "manifest.json", "seal.json"
# Orbax rewrites these when it renames the folder; they hold times.
_BOOKKEEPING = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_manifest(folder: Path) -> None:
    """Write the sha256 of every file that orbax no longer changes."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    _write(folder / MANIFEST, _digests(folder, [name for name in names if name not in _BOOKKEEPING]))


def seal(folder: Path) -> None:
    """Write the sha256 of the manifest and of what orbax wrote after it, once; for a folder that has its name."""
    if (folder / MANIFEST).is_file() and not (folder / _SEAL).exists():
        _write(folder / _SEAL, _digests(folder, [MANIFEST, *(n for n in _BOOKKEEPING if (folder / n).is_file())]))


def damage(folder: Path) -> str | None:
    """Say what in a checkpoint is not what was written, None if everything is.

    Several processes share the files among them and agree on the answer; the first one says which files there are.
    """
    found, files = json.loads(told_by_first(json.dumps(_listed(folder) if jax.process_index() == 0 else None)))
    wrong = _share_out(folder, files) if found is None else [found]
    return f"{folder} is damaged: {wrong[0]}" if wrong else None


def _listed(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return what is wrong with the lists themselves, and the digest of every file that they name."""
    files: dict[str, str] = {}
    for name in (MANIFEST, _SEAL):
        if name == _SEAL and not (folder / name).exists():
            problem = _unsealed(folder)
            return problem, files
        try:
            listed = json.loads((folder / name).read_bytes())
        except (OSError, ValueError) as error:
            return f"{name}: {one_sentence(error)}", {}
        if not isinstance(listed, dict) or not listed:
            return f"{name} is not what was written", {}
        files |= listed
    return None, files


def _unsealed(folder: Path) -> str | None:
    """Check that the bookkeeping of a checkpoint without a seal can at least be read."""
    path = folder / _BOOKKEEPING[0]
    try:
        return None if isinstance(json.loads(path.read_bytes()), dict) else f"{path.name} is not what was written"
    except (OSError, ValueError) as error:
        return f"{path.name}: {one_sentence(error)}"


def _share_out(folder: Path, files: dict[str, str]) -> list[str]:
    """Compare the files with their digests, each process its share, and return the wrong ones, the same on all."""
    names = sorted(files)
    wrong = np.zeros(len(names), np.uint8)
    for number in range(jax.process_index(), len(names), jax.process_count()):
        wrong[number] = _digest_or_none(folder / names[number]) != files[names[number]]
    wrong = agreed(wrong, np.maximum.reduce)
    return [f"{name} is not what was written" for name, bad in zip(names, wrong, strict=True) if bad]


def _digest_or_none(file: Path) -> str | None:
    try:
        return sha256(file)
    except (OSError, ValueError):  # absent, or a name that no file can have
        return None


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256(folder / name) for name in names}


def sha256(file: Path) -> str:
    """Return the sha256 of a file, which is read piece by piece."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, content: dict[str, str]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, separators=(",", ":")))
    os.replace(part, path)


def one_sentence(error: BaseException) -> str:
    """Return an error's text on one line, cut to 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
