"""Whether the code that a row speaks of has changed since the row was measured, asked of git."""

import ast
import re
import subprocess
from pathlib import Path


def freshness(commit: str | None, dirty: bool, *, package: str, root: Path) -> str:
    """Compare the files of an experiment, and of the rooms that it uses, with a commit.

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
    folder = f"experiments/{package}"
    paths = [folder, *sorted(f"jaxgen/{name}" for name in used_rooms(root / folder, root))]
    paths.append(f":(exclude){folder}/results")
    differing = _git(root, "diff", "--name-only", commit, "--", *paths)
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", *paths)
    if differing is None or untracked is None:
        return "unknown"
    return "stale" if differing or untracked else "current"


def used_rooms(folder: Path, root: Path) -> set[str]:
    """Find what a package imports from jaxgen, directly or through another room.

    Returns:
        Names below `jaxgen/`: of a folder, or of a module with its ending.
    """
    rooms: set[str] = set()
    waiting = [folder]
    while waiting:
        for name in _imported(waiting.pop()):
            path = next((p for p in (root / "jaxgen" / name, root / "jaxgen" / f"{name}.py") if p.exists()), None)
            if path and path.name not in rooms:
                rooms.add(path.name)
                waiting.append(path)
    return rooms


def _imported(path: Path) -> set[str]:
    """Name the rooms that the Python files at `path` import."""
    names: set[str] = set()
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("jaxgen.")}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
