"""Whether the code that a row speaks of has changed since the row was measured, asked of git."""

import ast
import re
import subprocess
from pathlib import Path


def freshness(commit: str | None, dirty: bool, *, package: str, root: Path) -> str:
    """Compare the files of an experiment, and of the rooms and experiments that it uses, with a commit.

    Args:
        commit: The commit at which the row was measured.
        dirty: Whether there were changes beside that commit.
        package: Name of the experiment's package.
        root: The checkout.

    Returns:
        "current", "stale" when a file differs, came or went since, or "unknown": no git, no such commit, or a row
        measured beside uncommitted changes.
    """
    if dirty or not commit or not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        return "unknown"
    folder = root / "experiments" / package
    used = [folder, *sorted(used_packages(folder, root))]
    names = [str(path.relative_to(root)) for path in used]
    paths = [*names, *(f":(exclude){name}/results" for name in names if name.startswith("experiments/"))]
    differing = _git(root, "diff", "--name-only", commit, "--", *paths)
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", *paths)
    if differing is None or untracked is None:
        return "unknown"
    return "stale" if differing or untracked else "current"


def used_packages(folder: Path, root: Path) -> set[Path]:
    """Find the rooms of jaxgen and the other experiments that a package imports, directly or through one of them.

    What every experiment shares (`experiments.claims` and its like) is left out.

    Returns:
        Folders or modules below `root`.
    """
    found: set[Path] = set()
    waiting = [folder]
    while waiting:
        for top, name in _imported(waiting.pop()):
            places = [root / top / name, root / top / f"{name}.py"][: 2 if top == "jaxgen" else 1]
            path = next((place for place in places if place.exists()), folder)
            if path != folder and path not in found:
                found.add(path)
                waiting.append(path)
    return found


def _imported(path: Path) -> set[tuple[str, str]]:
    """Name what the Python files at `path` import from jaxgen and experiments, one level below these."""
    names: set[str] = set()
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {
        (top, name) for top, name, *_ in (part for part in parts if len(part) > 1) if top in ("jaxgen", "experiments")
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
