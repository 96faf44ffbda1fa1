"""Find finished runs and kept results, and join them to one row a claim."""

import dataclasses
import datetime
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import claims, strict_json
from experiments.ledger.freshness import freshness


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run, or the results of one that are kept in git."""

    path: Path
    experiment: str
    preset: str
    started: datetime.datetime
    commit: str | None
    dirty: bool
    part: str | None
    kept: bool
    rows: tuple[dict[str, Any], ...]

    @property
    def package(self) -> str:
        """Return the name of the experiment's package."""
        return self.experiment.replace("-", "_")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One claim in the ledger: its row after Holm's correction and as it was judged, its run, and how fresh it is."""

    experiment: str
    row: dict[str, Any]
    judged: dict[str, Any]
    run: Run
    state: str

    @property
    def contradicts(self) -> bool:
        """Tell whether the row is decided otherwise than its claim expects."""
        return claims.contradicts(self.row)


@dataclasses.dataclass(frozen=True)
class Paper:
    """The claims of one experiment."""

    experiment: str
    entries: tuple[Entry, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Count the rows of each verdict."""
        return {verdict: sum(e.row["verdict"] == verdict for e in self.entries) for verdict in claims.VERDICTS}

    @property
    def presets(self) -> str:
        """Name the presets that the rows come from, the largest first."""
        found = {entry.run.preset for entry in self.entries}
        return ", ".join(preset for preset in reversed(claims.PRESETS) if preset in found)


def finished_runs(folder: Path) -> tuple[list[Run], list[Path]]:
    """Read the runs at `folder` and up to two levels below; returns those that finished, and the paths of the others.

    Raises:
        ValueError: The folder does not exist (a missing `runs` is an empty one), or a file is malformed.
    """
    if not folder.is_dir():
        if folder == Path("runs") and not folder.exists():
            return [], []
        raise ValueError(f"{folder} is not a folder; name one that holds run directories")
    paths = sorted(p.parent for depth in ("", "*/", "*/*/") for p in folder.glob(f"{depth}environment.json"))
    found = [(path, read_run(path)) for path in paths]
    return [run for _, run in found if run], [path for path, run in found if not run]


def kept_runs(root: Path) -> list[Run]:
    """Read the results that are kept in git: `experiments/NAME/results/PRESET/`."""
    paths = sorted(p.parent for p in (root / "experiments").glob("*/results/[a-z]*/environment.json"))
    found = [(path, read_run(path, kept=True)) for path in paths]
    for path, run in found:
        if run is None or (run.package, run.preset) != (path.parents[1].name, path.name):
            raise ValueError(f"{path}: kept results must be those of a finished run of this experiment and preset")
    return [run for _, run in found if run]


def read_run(path: Path, *, kept: bool = False) -> Run | None:
    """Read a run directory, or return None where the run has not finished; a malformed file is a ValueError."""
    environment = read_object(path / "environment.json")
    if not environment.get("finished") or not (path / "claims.json").exists():
        return None
    where = path / "environment.json"
    experiment, preset = environment.get("experiment"), environment.get("preset")
    # The name becomes a path of the checkout, so nothing but a package name may pass.
    if not isinstance(experiment, str) or not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", experiment):
        raise ValueError(f"{where}:1: experiment must be the name of one, got {experiment!r}")
    if preset not in claims.PRESETS:
        raise ValueError(f"{where}:1: preset must be one of {', '.join(claims.PRESETS)}, got {preset!r}")
    try:
        started = datetime.datetime.fromisoformat(str(environment.get("started")))
    except ValueError:
        raise ValueError(f"{where}:1: started must be an ISO 8601 time, got {environment.get('started')!r}") from None
    commit, config = environment.get("commit"), path / "config.json"
    return Run(
        path=path,
        experiment=experiment.replace("_", "-"),
        preset=preset,
        started=started if started.tzinfo else started.replace(tzinfo=datetime.UTC),
        commit=commit if isinstance(commit, str) else None,
        dirty=bool(environment.get("dirty")),
        part=(environment if kept or not config.exists() else read_object(config)).get("part"),
        kept=kept,
        rows=tuple(claims.read_rows(path / "claims.json")),
    )


def join(runs: Iterable[Run], root: Path) -> list[Paper]:
    """Choose one row for each claim of each experiment, and correct each paper's rows for their number.

    The newest whole run of the largest preset counts; runs of a part that started later replace the rows that they
    measured. A whole run that measured nothing, because only images were asked for, hides none that did. A claim that
    this preset did not run is taken from the next smaller preset that did.
    """
    fresh = functools.cache(functools.partial(freshness, root=root))
    by_experiment: dict[str, list[Run]] = {}
    for run in runs:
        by_experiment.setdefault(run.experiment, []).append(run)
    papers = []
    for experiment, found in sorted(by_experiment.items()):
        chosen: dict[str, tuple[dict[str, Any], Run]] = {}
        for preset in reversed(claims.PRESETS):
            for key, candidate in _join_parts([run for run in found if run.preset == preset]).items():
                if key not in chosen or (_open(chosen[key][0]) and not _open(candidate[0])):
                    chosen[key] = candidate
        adjusted = claims.adjust([row for row, _ in chosen.values()])
        entries = [
            Entry(experiment, row, judged, run, fresh(*_version(judged, run), package=run.package))
            for row, (judged, run) in zip(adjusted, chosen.values(), strict=True)
        ]
        papers.append(Paper(experiment, tuple(entries)))
    return papers


def _join_parts(runs: Sequence[Run]) -> dict[str, tuple[dict[str, Any], Run]]:
    """Lay the parts that are newer than the newest whole run that measured something over it."""
    ordered = sorted(runs, key=lambda run: run.started)
    whole = [index for index, run in enumerate(ordered) if run.part is None]
    measured = [index for index in whole if not all(map(_open, ordered[index].rows))]
    first = (measured or whole or [0])[-1]
    chosen: dict[str, tuple[dict[str, Any], Run]] = {}
    for run in ordered[first:]:
        for row in run.rows:
            if row["id"] not in chosen or not _open(row):
                chosen[row["id"]] = row, run
    return chosen


def _open(row: dict[str, Any]) -> bool:
    return row["verdict"] == "not run"


def _version(row: dict[str, Any], run: Run) -> tuple[str | None, bool]:
    """Return the commit at which a row was measured: a kept row of a part carries its own."""
    if "commit" not in row:
        return run.commit, run.dirty
    return row["commit"] if isinstance(row["commit"], str) else None, bool(row.get("dirty"))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; a ValueError names file and line."""
    found = strict_json.parse(strict_json.read_text(path), path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}:1: must hold a JSON object, got {type(found).__name__}")
    return found
