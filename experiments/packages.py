"""Find the experiments: every package below `experiments` is a command, and adding one edits nothing else.

A package imports neither jax nor numpy as it is imported, and has

- `Config`: a frozen dataclass; its docstring is the line of the list, that of each field its help, with the unit;
- `PRESETS`: a `Config` for each of `ci`, `default`, `gpu`, `paper` that it has;
- `CLAIMS`: a tuple of `experiments.claims.Claim`;
- `run(config, run_directory)`: measures every claim, through `experiments.run_directory.RunDirectory`.

It may have

- `check(config, run_directory)`: raises ValueError on what cannot run, before anything is written or compiled;
- `PRESET_NOTES`: hardware, time and expected result of a preset, for the help;
- `PARTS`: what `--part` may name, each with a line for the help;
- `SUMMARY`: the line of the list, where it is not that of `Config`;
- `main(argv)`: takes the command line itself and returns the exit code; nothing else is then needed.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType

import experiments


def names() -> list[str]:
    """List the commands, as typed: packages below `experiments.__path__`, words joined by hyphens."""
    found = pkgutil.iter_modules(experiments.__path__)
    return sorted(module.name.replace("_", "-") for module in found if module.ispkg and module.name[0] != "_")


def load(name: str) -> ModuleType:
    """Import the package of the command `name`, whose words are joined by hyphens or underscores.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    command = name.replace("_", "-")
    if command not in names():
        raise ValueError(
            f"there is no experiment {name!r}{nearest(command, names())}; `python -m experiments` lists them"
        )
    return importlib.import_module(f"experiments.{command.replace('-', '_')}")


def summary(package: ModuleType) -> str:
    """Say in one line what a package does: its `SUMMARY`, else the first line of its `Config` or of itself."""
    text = getattr(package, "SUMMARY", None) or inspect.getdoc(getattr(package, "Config", package)) or ""
    return text.strip().partition("\n")[0]


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; the nearest is ...`, or nothing where no word is near."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f"; the nearest is {found[0]!r}" if found else ""
