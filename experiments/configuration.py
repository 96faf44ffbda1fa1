"""Configurations as JSON and back: what a resumed run compares, and what another run was trained with."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments import strict_json

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `config.json` holds of a run."""

    experiment: str
    preset: str
    seed: int
    config: Any
    mesh: str | None = None
    part: str | None = None
    source: Path | None = None
    fully_sharded: bool = False

    def to_json(self) -> dict[str, Any]:
        """Turn the settings into the content of `config.json`."""
        return {
            **{name: getattr(self, name) for name in ("experiment", "preset", "seed", "mesh", "fully_sharded", "part")},
            "from": str(self.source) if self.source else None,
            "config": to_json(self.config),
        }


def check_finite(config: Any) -> None:
    """Refuse a configuration with a number that is NaN or infinite: no such setting means anything to a run.

    Raises:
        ValueError: names the first such field.
    """
    for name, value in _leaves(to_json(config)).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"--{name.replace('_', '-')} must be finite, got {number}")


def to_json(config: Any) -> dict[str, Any]:
    """Turn a configuration (a dataclass of numbers, text, paths, tuples and dataclasses) into what JSON gives back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(kind: type[ConfigT], stored: Mapping[str, Any]) -> ConfigT:
    """Build a configuration of type `kind` from what `to_json` made of it.

    Raises:
        ValueError: a field is unknown or missing, or holds what its annotation does not allow.
    """
    return _build(kind, stored, kind.__name__)


def read_run(run: Path) -> dict[str, Any]:
    """Read `config.json` of the run in `run`: experiment, preset, seed, part, from, mesh and the `config` itself.

    Raises:
        ValueError: there is no such file, or it is not what a run writes.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"{run} is no run: it holds no config.json")
    settings = strict_json.parse(strict_json.read_text(path), path)
    if not isinstance(settings, dict) or not {"experiment", "preset", "seed", "config"} <= set(settings):
        raise ValueError(f"{path} does not hold the settings of a run")
    return settings


def finished(run: Path) -> str | None:
    """Return the UTC time at which the run in `run` finished, None where it has not.

    Raises:
        ValueError: its `environment.json` is not what a run writes.
    """
    path = run / "environment.json"
    if not path.exists():
        return None
    found = strict_json.parse(strict_json.read_text(path), path)
    if not isinstance(found, dict) or "finished" not in found:
        raise ValueError(f"{path} does not hold the environment of a run")
    return found["finished"]


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Name every field in which two JSON configurations differ, nested ones with dots, with both values."""
    before, after = _leaves(stored), _leaves(given)
    return [
        f"{name} is {_show(before, name)} in the run and {_show(after, name)} here"
        for name in dict.fromkeys([*before, *after])
        if _show(before, name) != _show(after, name)
    ]


def _show(leaves: Mapping[str, Any], name: str) -> str:
    return json.dumps(leaves[name]) if name in leaves else "absent"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map the dotted names of the leaves to their values."""
    leaves = {}
    for name, value in tree.items():
        leaves.update(_leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return leaves


def _build(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build_dataclass(hint, value, where)
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return _build_union(arguments, value, where)
    if kind is tuple and isinstance(value, list):
        hints = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        if len(hints) == len(value):
            return tuple(
                _build(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(hints, value, strict=True))
            )
    elif kind is typing.Literal and value in arguments:
        return value
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:  # bool is an int, but not here
        return value
    raise ValueError(f"{where} holds {value!r}, which is no {getattr(hint, '__name__', hint)}")


def _build_dataclass(kind: type, value: Any, where: str) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(value, Mapping) or set(value) != set(names):
        found = sorted(value) if isinstance(value, Mapping) else value
        raise ValueError(f"{where} has the fields {names}, but what is stored has {found}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in names})


def _build_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    for hint in hints:
        if hint is type(None) and value is None:
            return None
        try:
            return _build(hint, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where} holds {value!r}, which is none of {hints}")
