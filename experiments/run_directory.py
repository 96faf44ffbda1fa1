"""The folder of one run: settings, metrics, figures, arrays, claims and the report, written as the run goes."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments import claims as ledger
from experiments import environment, files, report, strict_json
from experiments.arrays_file import ArraysFile
from experiments.configuration import Settings
from experiments.live_report import LiveReport
from experiments.metrics_file import MetricsFile
from experiments.packages import nearest
from experiments.progress import Meter, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Interrupted(Exception):  # noqa: N818 - what happened, not an error
    """Raised by an experiment that saved its state because `RunDirectory.stop` said so."""


class RunDirectory:
    """Where an experiment puts what it measures, and what it may ask about its run.

    Every file but `metrics.jsonl`, which grows by whole lines, appears whole or not at all. What a run has recorded
    before it was interrupted is still there when it is resumed; recording it again replaces it.

    Where several processes run one experiment together, each has a RunDirectory of the same folder, and only that of
    the first writes into it: what the others are told they check and judge in memory.

    Attributes:
        path: the folder.
        preset: name of the preset that the settings started from.
        seed: seed of every random number.
        mesh: the `--mesh` text, already checked, or None for all devices.
        fully_sharded: whether parameters and optimiser state are split over `data` as well.
        part: the part of the experiment that is to run, None for all.
        source: the finished run whose networks are to be used (`--from`), or None.
        resumed: whether the run goes on from what `checkpoints` holds (`--resume`).
        stop: asks whether a signal wants the run to save and raise `Interrupted`.
        tensorboard: whether metrics are to be written for TensorBoard as well.
        writes: whether this process is the one that writes.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        claims: Sequence[ledger.Claim],
        *,
        resumed: bool = False,
        stop: Callable[[], bool] = lambda: False,
        console: Console | None = None,
        tensorboard: bool = False,
        writes: bool = True,
    ) -> None:
        """Describe a run without touching the disk; `open` creates it."""
        self.path, self.resumed, self.stop = path, resumed, stop
        self.preset, self.seed, self.mesh = settings.preset, settings.seed, settings.mesh
        self.fully_sharded, self.part, self.source = settings.fully_sharded, settings.part, settings.source
        self.tensorboard, self.writes = tensorboard, writes
        self._settings = settings.to_json()
        self._claims = {claim.id: claim for claim in claims}
        self._console = console or Console(quiet=not writes)
        self._environment: dict[str, Any] = {}
        self._rows: dict[str, dict] = {}
        self._captions: dict[str, str] = {}
        self._notes: list[str] = []
        self._arrays = ArraysFile(path / "arrays.npz", writes=writes)
        self._metrics = MetricsFile(path / "metrics.jsonl")
        self._report = LiveReport(path, self._content)
        self._held = contextlib.ExitStack()

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the experiment's own saved state."""
        return self.path / "checkpoints"

    def open(self) -> None:
        """Create the folder, or enter that of the run to resume, and lock it until `close`.

        A process that does not write looks for the folder that the first one has opened.

        Raises:
            ValueError: the folder cannot be written, is not empty, or belongs to a living process.
        """
        if not self.writes:
            self._follow()
            return
        now = environment.describe(*(self._settings[name] for name in ("experiment", "preset", "seed")))
        try:
            self.path.mkdir(parents=True, exist_ok=self.resumed or not self._occupied())
            self._held.enter_context(files.locked(self.path))
            if self.resumed:
                self._recall()
            elif self._occupied():
                raise FileExistsError
            for folder in (self.checkpoints, self.path / "figures"):
                folder.mkdir(exist_ok=True)
            self._continue_environment(now)
            self._write_json("environment.json", self._environment)
            self._write_json("config.json", self._settings)
        except FileExistsError as error:
            self.close()
            raise ValueError(
                f"{self.path} is not empty; name a new folder with --out, or go on with the run in it: "
                f"--resume {self.path}"
            ) from error
        except OSError as error:
            self.close()
            raise ValueError(f"{self.path} cannot be written ({error.strerror}); name another folder") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the folder."""
        self._metrics.close()
        self._held.close()

    def metrics(self, step: int, **values: float) -> None:
        """Append one line to `metrics.jsonl`; `step` says how many steps are done; what is not finite becomes null."""
        if self.writes:
            self._metrics.append(step, values)

    def resume_metrics(self, step: int, *, metric: str = "") -> None:
        """Drop the lines beyond `step`, which the resumed run writes again, and one that a kill cut short.

        Args:
            step: steps that are done in the state that was restored, 0 where none had been saved.
            metric: drop only lines that hold this metric, where several networks write to one file.
        """
        if self.writes:
            self._metrics.drop_beyond(step, metric)

    def figure(self, name: str, figure: "Figure", caption: str) -> None:
        """Write `figures/NAME.png` and `.svg`; the report shows the figure over its caption, in order of first call."""
        from experiments import plots

        if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"a figure's name is letters, digits, - and _, got {name!r}")
        if self.writes:
            plots.save(figure, self.path / "figures" / name)
        self._captions[name] = caption
        self._write_notes()

    def arrays(self, **arrays: Any) -> None:
        """Add numeric or text arrays to `arrays.npz`, which is read without pickle."""
        self._arrays.add(**arrays)

    def note(self, text: str) -> None:
        """Add a paragraph to the report, once."""
        if text not in self._notes:
            self._notes.append(text)
            self._write_notes()

    def record(
        self, claim_id: str, cells: Sequence[ledger.Cell], *, seconds: float, scale: str = "full", reason: str = ""
    ) -> None:
        """Judge a claim by its measured cells and write its row to `claims.json`.

        Args:
            claim_id: id of the claim in `CLAIMS`.
            cells: the measured numbers with their raw data.
            seconds: what measuring took, in seconds.
            scale: `full`, or `reduced` where the sizes are below the paper's.
            reason: what explains the verdict.
        """
        claim = self._claim(claim_id)
        self._add(ledger.judge(claim, cells, seconds=seconds, preset=self.preset, scale=scale, reason=reason))

    def not_run(self, claim_id: str, reason: str) -> None:
        """Write a row that says why a claim was not measured."""
        self._add(ledger.not_run(self._claim(claim_id), reason, preset=self.preset))

    def progress(self, total: int, title: str) -> contextlib.AbstractContextManager[Meter]:
        """Show a loop of `total` steps: call `update(step, **metrics)` of what is yielded after each."""
        return progress(total, title, self._console)

    def finish(self) -> None:
        """Complete the claims by what they declare, write the report, and mark the run as finished.

        Raises:
            RuntimeError: a claim was neither recorded nor declared as not run.
        """
        missing = [claim for claim in self._claims.values() if claim.id not in self._rows]
        forgotten = [claim.id for claim in missing if self.preset not in claim.not_run]
        if forgotten and self.part is None:
            raise RuntimeError(
                f"the run left the claims {', '.join(forgotten)} open: record() them, or declare why not in not_run"
            )
        for claim in missing:
            self.not_run(claim.id, claim.not_run.get(self.preset, f"not in the part {self.part!r}"))
        self._environment["finished"] = environment.utc_now()
        self.write_report(f"Finished {self._environment['finished']}")
        self._write_json("environment.json", self._environment)

    def write_report(self, outcome: str) -> None:
        """Write `report.html` as the run stands; `outcome` says how it ended."""
        if self.writes:
            self._report.write(outcome)

    def live(self, interval: float = 30.0) -> contextlib.AbstractContextManager[None]:
        """Keep `report.html` up to date within the block, every `interval` seconds and beside the run.

        It shows how the training goes; an open page loads itself again. A page that cannot be written is told once and
        never stops the run.
        """
        if not self.writes:
            return contextlib.nullcontext()
        return self._report.live(interval, self._tell)

    def rows(self) -> list[dict]:
        """Return the rows of `claims.json` so far, in the order of the claims."""
        return [self._rows[claim_id] for claim_id in self._claims if claim_id in self._rows]

    def contradictions(self) -> list[str]:
        """Name the claims whose verdict, holds or refuted, is not the one that they expect."""
        return [
            row["id"]
            for row in self.rows()
            if row["verdict"] in ("holds", "refuted") and row["verdict"] != row["expected"]
        ]

    def _claim(self, claim_id: str) -> ledger.Claim:
        if claim_id not in self._claims:
            raise ValueError(f"CLAIMS has no {claim_id!r}{nearest(claim_id, self._claims)}")
        return self._claims[claim_id]

    def _add(self, row: dict) -> None:
        self._rows[row["id"]] = row
        self._write_json("claims.json", self.rows())

    def _tell(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _content(self) -> dict[str, Any]:
        """Return what the report shows."""
        # Another thread may ask while the run adds to these: each is copied in one step.
        pictures = [
            report.Picture(name, caption, (self.path / "figures" / f"{name}.png").read_bytes())
            for name, caption in list(self._captions.items())
        ]
        return {
            "title": self._settings["experiment"],
            "settings": self._settings,
            "environment": self._environment,
            "rows": self.rows(),
            "pictures": pictures,
            "notes": list(self._notes),
        }

    def _occupied(self) -> bool:
        return self.path.exists() and any(entry.name != ".lock" for entry in self.path.iterdir())

    def _recall(self) -> None:
        """Take up what the interrupted run had recorded."""
        if self.writes:
            files.remove_parts(self.path)
        self._environment = self._read_json("environment.json", {})
        if (self.path / "claims.json").exists():
            self._rows = {row["id"]: row for row in ledger.read_rows(self.path / "claims.json")}
        notes = self._read_json("notes.json", {"notes": [], "figures": {}})
        self._notes, self._captions = notes["notes"], notes["figures"]
        self._arrays.recall()

    def _follow(self) -> None:
        """Take up what the folder holds, which the process that writes has opened."""
        if not (self.path / "config.json").is_file():
            raise ValueError(f"{self.path} is not seen by this process; name a folder that all share with --out")
        if self.resumed:
            self._recall()

    def _continue_environment(self, now: dict[str, Any]) -> None:
        """Describe the process that writes from now on, keeping when the run started."""
        before = self._environment
        self._environment = {**now, "started": before.get("started", now["started"])}
        commits = before.get("commit"), now["commit"]
        if all(commits) and commits[0] != commits[1]:
            self.note(f"The run started with the code of commit {commits[0]} and went on with that of {commits[1]}.")

    def _read_json(self, name: str, absent: Any) -> Any:
        path = self.path / name
        return strict_json.parse(strict_json.read_text(path), path) if path.exists() else absent

    def _write_json(self, name: str, content: Mapping[str, Any] | Sequence[Any]) -> None:
        self._write(name, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _write(self, name: str, content: str | bytes) -> None:
        if self.writes:
            files.write_whole(self.path / name, content)

    def _write_notes(self) -> None:
        self._write_json("notes.json", {"notes": self._notes, "figures": self._captions})
