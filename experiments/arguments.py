"""Parse the command line of an experiment, and say what is wrong with it in one sentence."""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import tyro

from experiments import cluster, configuration
from experiments.cluster import Coordinates
from experiments.packages import nearest, summary

_HARDWARE = {
    "ci": "at most 75 s on 2 CPU cores",
    "default": "at most 15 minutes on 2 CPU cores",
    "gpu": "at most 60 minutes on one GPU; runs unchanged, slower, on a CPU",
    "paper": "the paper's own sizes, on a mesh of devices",
}
_MESH_AXES = ("data", "model")
_MAX_SEED = 2**32 - 1
_TOP_LEVEL = tyro.conf.arg(name="")  # its fields are options by their own names, those of dataclasses in it with a dot


@dataclasses.dataclass(frozen=True)
class Options:
    """What every experiment takes."""

    preset: Annotated[
        str | None, tyro.conf.arg(metavar="PRESET", help_behavior_hint="(default: default, or that of RUN)")
    ] = None
    """Sizes to start from; single fields override them."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 0)")] = None
    """Seed of every random number of the run, 0 to 2^32 - 1."""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/NAME/<UTC time>-<seed>)")
    ] = None
    """Folder to write, new or empty."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(optional)")] = None
    """Unfinished run to go on with, under the settings it has."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN", help_behavior_hint="(optional)")] = None
    """Finished run whose trained networks and settings are used, without training again."""
    part: Annotated[str | None, tyro.conf.arg(metavar="PART", help_behavior_hint="(optional)")] = None
    """Only this part of the experiment; the ledger joins the parts."""
    mesh: Annotated[str | None, tyro.conf.arg(metavar="data=N,model=M", help_behavior_hint="(default: data=all)")] = (
        None
    )
    """Devices along each axis of the mesh, a count each."""
    fully_sharded: tyro.conf.FlagCreatePairsOff[bool] = False
    """Split parameters and optimiser state over `data` as well."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="(optional)")] = None
    """Address of process 0 where several run together; found by itself under Slurm, Open MPI, Kubernetes, TPU pods."""
    num_processes: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(optional)")] = None
    """How many processes run together."""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(optional)")] = None
    """Which of them this is, from 0; process 0 writes the folder, which all must see."""
    initialization_timeout: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 300
    """How long to wait until all processes are there, in seconds."""
    tensorboard: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the metrics for TensorBoard as well."""
    strict: tyro.conf.FlagCreatePairsOff[bool] = False
    """Exit 3 when a verdict contradicts what its claim expects."""
    traceback: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the Python traceback of a failure."""

    def coordinates(self) -> Coordinates:
        """Return how this process finds the others."""
        return Coordinates(self.coordinator, self.num_processes, self.process_id, self.initialization_timeout)


class Request(NamedTuple):
    """A checked command line: the options, and the settings of the run that they come to."""

    options: Options
    config: Any
    preset: str
    seed: int
    part: str | None
    source: Path | None


def parse(package: ModuleType, command: str, argv: Sequence[str]) -> Request:
    """Parse `argv` for an experiment; prints the help and exits 0 where it is asked for.

    Raises:
        ValueError: one sentence on the first thing that is wrong.
    """
    # The preset, and the run that is resumed or sampled from, decide the defaults of all other fields.
    options, _ = _tyro(Options, None, argv, command, "", add_help=False)
    _check(options, package, command)
    run = options.resume or options.source
    stored = _stored(run, command, finished=options.resume is None) if run else None
    preset = _preset(options, package, command, stored)
    base = package.PRESETS[preset] if stored is None or _restarts(options) else _stored_config(package, run, stored)
    both = dataclasses.make_dataclass(
        "Arguments",
        [("common", Annotated[Options, _TOP_LEVEL]), ("experiment", Annotated[package.Config, _TOP_LEVEL])],
    )
    parsed, unknown = _tyro(both, both(Options(), base), argv, command, _description(package))
    if unknown:
        raise ValueError(_unknown(unknown, package, command))
    configuration.check_finite(parsed.experiment)
    request = Request(options, parsed.experiment, preset, options.seed or 0, options.part, options.source)
    return _resumed(request, stored, base) if stored is not None and options.resume else request


def parse_mesh(text: str) -> dict[str, int]:
    """Read `data=4,model=2` as the number of devices along each axis.

    Raises:
        ValueError: an axis is unknown or named twice, or a count is not a positive whole number.
    """
    axes: dict[str, int] = {}
    for item in text.split(","):
        name, _, count = item.partition("=")
        if name not in _MESH_AXES or name in axes or not re.fullmatch("[1-9][0-9]{0,6}", count):
            raise ValueError(
                f"--mesh takes axes out of {', '.join(_MESH_AXES)}, each once with a positive count, "
                f"as in data=4,model=2; got {text!r}"
            )
        axes[name] = int(count)
    return axes


def _check(options: Options, package: ModuleType, command: str) -> None:
    if options.seed is not None and not 0 <= options.seed <= _MAX_SEED:
        raise ValueError(f"--seed must lie between 0 and {_MAX_SEED}, got {options.seed}")
    if options.mesh is not None:
        parse_mesh(options.mesh)
    cluster.check(options.coordinates())
    if options.preset is not None and options.preset not in package.PRESETS:
        raise ValueError(_one_of("preset", options.preset, package.PRESETS, command))
    parts = getattr(package, "PARTS", {})
    if options.part is not None and options.part not in parts:
        raise ValueError(
            _one_of("part", options.part, parts, command) if parts else f"{command} has no parts; drop --part"
        )
    for name in ("out", "source"):
        if options.resume and getattr(options, name):
            raise ValueError(
                f"--resume goes on in {options.resume} itself; drop --{'from' if name == 'source' else name}"
            )


def _one_of(what: str, value: str, allowed: Mapping[str, Any], command: str) -> str:
    return f"{command} has the {what}s {', '.join(allowed)}; got {value!r}{nearest(value, allowed)}"


def _restarts(options: Options) -> bool:
    """Say whether a preset named beside --from takes the place of the settings of that run."""
    return options.resume is None and options.preset is not None


def _stored(run: Path, command: str, finished: bool) -> dict[str, Any]:
    """Read the settings of a run, which has to be a finished or an unfinished one of this experiment."""
    stored = configuration.read_run(run)
    if stored["experiment"] != command:
        raise ValueError(f"{run} is a run of {stored['experiment']!r}, not of {command!r}")
    ended = configuration.finished(run)
    if ended and not finished:
        raise ValueError(f"{run} finished at {ended}; start a new run, or use what it trained with --from {run}")
    if finished and not ended:
        raise ValueError(f"{run} has not finished; go on with it first: --resume {run}")
    return stored


def _preset(options: Options, package: ModuleType, command: str, stored: Mapping[str, Any] | None) -> str:
    if stored is None or _restarts(options):
        return options.preset or ("default" if "default" in package.PRESETS else next(iter(package.PRESETS)))
    if stored["preset"] not in package.PRESETS:
        raise ValueError(_one_of("preset", stored["preset"], package.PRESETS, command))
    return stored["preset"]


def _stored_config(package: ModuleType, run: Path | None, stored: Mapping[str, Any]) -> Any:
    try:
        return configuration.from_json(package.Config, stored["config"])
    except ValueError as error:
        raise ValueError(f"{run} was made by another version of this experiment: {error}") from error


def _resumed(request: Request, stored: Mapping[str, Any], base: Any) -> Request:
    """Give a request the settings of the run it resumes; refuse any other settings field by field."""
    options = request.options
    kept = {name: stored.get(name) for name in ("preset", "seed", "part")}
    given = {name: value if (value := getattr(options, name)) is not None else kept[name] for name in kept}
    found = configuration.differences(
        {**kept, **configuration.to_json(base)}, {**given, **configuration.to_json(request.config)}
    )
    if found:
        raise ValueError(f"{options.resume} cannot go on with other settings: {'; '.join(found)}")
    source = stored.get("from")
    return request._replace(seed=stored["seed"], part=kept["part"], source=Path(source) if source else None)


def _description(package: ModuleType) -> str:
    notes = {**_HARDWARE, **getattr(package, "PRESET_NOTES", {})}
    lines = [summary(package), "", "presets:"]
    lines += [f"  {name:<9} {notes.get(name, '')}".rstrip() for name in package.PRESETS]
    if parts := getattr(package, "PARTS", {}):
        lines += ["", "parts:", *(f"  {name:<9} {meaning}" for name, meaning in parts.items())]
    return "\n".join(lines)


def _unknown(unknown: Sequence[str], package: ModuleType, command: str) -> str:
    word = unknown[0].partition("=")[0]
    if not word.startswith("-"):
        return f"{command} takes options that begin with --, got {word!r}"
    known = ["--from" if name == "source" else f"--{name.replace('_', '-')}" for name in _fields(Options)]
    known += [f"--{name.replace('_', '-')}" for name in _fields(package.Config)]
    return f"{command} has no option {word}{nearest(word.replace('_', '-'), known)}; --help lists them"


def _fields(kind: type) -> list[str]:
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        names += [f"{name}.{inner}" for inner in _fields(hint)] if nested else [name]
    return names


def _tyro(kind: Any, default: Any, argv: Sequence[str], command: str, description: str, add_help: bool = True) -> Any:
    """Parse with tyro, whose boxed report becomes one sentence."""
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            return tyro.cli(
                kind,
                prog=f"python -m experiments {command}",
                description=description,
                args=argv,
                add_help=add_help,
                return_unknown_args=True,
                **({} if default is None else {"default": default}),
            )
    except SystemExit as exit:
        if not exit.code:
            raise
        raise ValueError(_sentence(report.getvalue())) from None


def _sentence(report: str) -> str:
    """Take the sentence out of the box that tyro draws; a value it cannot read is told with the form it should have."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).strip("│ ") for line in report.splitlines()]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if re.search("[─-]{10}", line):
            blocks.append([])
        elif line:
            blocks[-1].append(line)
    # A terminal that is not UTF-8 gets rules for a box, and the title in a block of its own.
    message, *others = [block for block in blocks if block][0 if "╭" in report else 1 :]
    text = " ".join(message).rstrip(".")
    form = next((block[1] for block in others if block[0] == "Argument helptext:"), "")
    if form and (problem := re.match(r"Error parsing \S+: (.*)", text)):
        option, _, values = form.partition(" ")
        text = f"{option} takes {values}, got {problem[1].rpartition(': ')[2]}"
    return f"{text}; --help shows every option"
