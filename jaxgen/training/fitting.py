"""Whether a checkpoint fits the run that wants it, and the errors that say what does not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgen.training.tree_paths import flatten_json


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not fit the run that wants it."""


class CheckpointDamagedError(CheckpointError):
    """The files of a checkpoint are not what was written."""


def compare_configs(folder: Path, stored: Any, wanted: Any) -> None:
    """Refuse another configuration, naming every field that differs."""
    old, new = flatten_json(stored), flatten_json(wanted)
    differing = [
        f"{name} was {old.get(name, 'absent')}, now {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    ]
    if differing:
        raise CheckpointError(f"{folder} was made with another configuration: {'; '.join(differing)}")


def compare_arrays(folder: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse arrays of other paths, shapes or dtypes, naming the first five."""
    differing = [
        f"{path} is {stored.get(path, 'absent')}, expected {wanted.get(path, 'none')}"
        for path in sorted(stored.keys() | wanted.keys())
        if stored.get(path) != wanted.get(path)
    ]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise CheckpointError(f"{folder} holds another state: {'; '.join(differing[:5])}{more}")
