"""Copy the results of a finished run into the package of its experiment, to be kept in git."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from experiments.ledger.runs import Run, read_object, read_run

_FIGURE_BYTES = 200_000
_FIGURE_ENDINGS = (".png", ".svg")


def keep(path: Path, root: Path) -> Path:
    """Copy claims.json, environment.json and the figures under 200 KB of a run.

    A whole run replaces what was kept of its preset. A run of a part lays the rows that it measured over the kept ones,
    each row with the commit that it was measured at.

    Args:
        path: Directory of a finished run.
        root: The checkout.

    Returns:
        The folder `experiments/NAME/results/PRESET`, which changes as a whole or not at all.
    """
    run = read_run(path) if (path / "environment.json").is_file() else None
    if run is None:
        raise ValueError(f"{path} is not the directory of a finished run; finish it first: --resume {path}")
    package = root / "experiments" / run.package
    if not (package / "__init__.py").is_file():
        raise ValueError(f"{path}: there is no experiment {run.experiment!r} at {package}")
    results = package / "results"
    results.mkdir(exist_ok=True)
    target = results / run.preset
    older = read_run(target, kept=True) if run.part is not None and target.exists() else None
    stage = Path(tempfile.mkdtemp(dir=results, prefix=".keep-"))
    try:
        if older and (target / "figures").is_dir():
            shutil.copytree(target / "figures", stage / "figures", dirs_exist_ok=True)
        _write(stage / "claims.json", _merge(older, run) if older else list(run.rows))
        # What was kept of a part stays one, until a whole run is kept.
        part = run.part if older is None or older.part is not None else None
        _write(stage / "environment.json", {**read_object(path / "environment.json"), "part": part})
        _copy_figures(path / "figures", stage / "figures")
        stage.chmod(0o755)
        _swap(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


def _merge(older: Run, run: Run) -> list[dict[str, Any]]:
    rows = {row["id"]: {"commit": older.commit, "dirty": older.dirty, **row} for row in older.rows}
    for row in run.rows:
        if row["id"] not in rows or row["verdict"] != "not run":
            rows[row["id"]] = {**row, "commit": run.commit, "dirty": run.dirty}
    return list(rows.values())


def _copy_figures(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for figure in sorted(source.iterdir()) if source.is_dir() else []:
        # A link could lead out of the run directory.
        plain = figure.is_file() and not figure.is_symlink()
        if plain and figure.suffix in _FIGURE_ENDINGS and figure.stat().st_size < _FIGURE_BYTES:
            shutil.copyfile(figure, target / figure.name)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _swap(stage: Path, target: Path) -> None:
    """Put a finished folder in the place of another; the old one comes back if the second rename fails."""
    aside = stage.with_name(stage.name + "-old")
    with contextlib.suppress(FileNotFoundError):
        os.replace(target, aside)
    try:
        os.replace(stage, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
