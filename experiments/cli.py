"""The command: list the experiments, or run one and say by the exit code how it went."""

import contextlib
import datetime
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console

from experiments import arguments, cluster, compilation_cache, configuration, packages, report, signals
from experiments.arguments import Request
from experiments.cluster import Place
from experiments.configuration import Settings
from experiments.run_directory import Interrupted, RunDirectory
from experiments.sentences import sentence

FINISHED, FAILED, REFUSED, CONTRADICTED = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (that of the process by default) and return the exit code.

    0 finished; 1 failed while running; 2 refused the arguments or the input, before anything was compiled or written;
    3 with `--strict`, a verdict contradicts what its claim expects; 128 + signal when one stopped the run, after
    saving.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # XLA and TensorFlow log to standard error below Python; what is the user's business comes as an exception.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        if not words or words[0] in ("-h", "--help"):
            return _list()
        package = packages.load(words[0])
        if hasattr(package, "main"):
            return package.main(words[1:])
        return _experiment(package, words[0].replace("_", "-"), words[1:])
    except SystemExit as exit:  # how tyro ends after the help
        return exit.code if isinstance(exit.code, int) else FINISHED
    except Exception as error:
        return _fail(error, REFUSED if isinstance(error, ValueError) else FAILED, "--traceback" in words)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _list() -> int:
    console = Console(highlight=False)
    console.print("python -m experiments NAME [options]; python -m experiments NAME --help\n", markup=False)
    names = packages.names()
    width = max(map(len, names), default=0)
    for name in names:
        console.print(f"  {name:<{width}}  {packages.summary(packages.load(name))}", markup=False, soft_wrap=True)
    return FINISHED


def _experiment(package: ModuleType, command: str, argv: Sequence[str]) -> int:
    """Run one experiment; a ValueError out of here is the user's to mend, and nothing was written before it."""
    request = arguments.parse(package, command, argv)
    options = request.options
    # First of all that uses jax; it may take the signals for itself, which `caught` then takes back.
    place = cluster.join(options.coordinates())
    console = Console(quiet=not place.first)
    with signals.caught() as stop:
        run = _prepare(package, command, request, place, stop, console)
        if stop():
            return 128 + stop.signal
        compilation_cache.enable()
        cluster.in_turn(place, run.open)
        try:
            with run.live():
                package.run(request.config, run)
            run.finish()
        except Interrupted:
            number = stop.signal or signal.SIGTERM
            _report(run, f"Interrupted by {signal.Signals(number).name}")
            console.print(f"saved; go on with --resume {run.path}", markup=False, highlight=False, soft_wrap=True)
            return 128 + number
        except Exception as error:
            _report(run, f"Failed: {sentence(error)}")
            run.close()
            return cluster.leave(place, _fail(error, FAILED, options.traceback))
        finally:
            run.close()
    console.print(report.verdict_table(run.rows()))
    console.print(f"{run.path / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    if options.strict and (found := run.contradictions()):
        print(f"error: the verdict contradicts what is expected of {', '.join(found)}", file=sys.stderr)
        return CONTRADICTED
    return FINISHED


def _report(run: RunDirectory, outcome: str) -> None:
    # The disk may be what stopped the run: the first error is the one to tell.
    with contextlib.suppress(Exception):
        run.write_report(outcome)


def _prepare(
    package: ModuleType, command: str, request: Request, place: Place, stop: signals.Stop, console: Console
) -> RunDirectory:
    """Check the request against the devices and by the experiment's own `check`, before anything is written."""
    options = request.options
    settings = Settings(
        command,
        request.preset,
        request.seed,
        request.config,
        options.mesh,
        request.part,
        request.source,
        options.fully_sharded,
    )
    path, stated = options.resume or options.out or _new_path(command, request.seed), json.dumps(settings.to_json())
    if place.count > 1:
        # The name holds the time, and each process has its own clock: the first one chooses.
        path = Path(cluster.exchange(place, str(path))[0])
        stated = cluster.exchange(place, stated)[0]
    run = RunDirectory(
        path,
        settings,
        package.CLAIMS,
        resumed=options.resume is not None,
        stop=stop,
        console=console,
        tensorboard=options.tensorboard,
        writes=place.first,
    )
    cluster.together(place, lambda: _check(package, request, run, settings, json.loads(stated)))
    return run


def _check(package: ModuleType, request: Request, run: RunDirectory, settings: Settings, stated: dict) -> None:
    options = request.options
    if found := configuration.differences(stated, settings.to_json()):
        raise ValueError(f"every process takes the settings of process 0, but {'; '.join(found)}")
    if options.mesh:
        _check_devices(options.mesh)
    if options.tensorboard:
        from jaxgen.training.metrics import require_tensorboard

        require_tensorboard()
    if check := getattr(package, "check", None):
        check(request.config, run)


def _check_devices(mesh: str) -> None:
    import jax

    axes = arguments.parse_mesh(mesh)
    needed, found = math.prod(axes.values()), jax.device_count()
    if needed > found:
        raise ValueError(f"--mesh {mesh} takes {needed} devices and there are {found}; ask for at most {found} in all")


def _new_path(command: str, seed: int) -> Path:
    """Name a folder that does not exist: two runs may start in one second."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    path = first = Path("runs", command, f"{now}-{seed}")
    again = 2
    while path.exists():
        path = first.with_name(f"{first.name}-{again}")
        again += 1
    return path


def _fail(error: Exception, code: int, show_traceback: bool) -> int:
    if show_traceback:
        traceback.print_exception(error)
    print(f"error: {sentence(error)}", file=sys.stderr)
    return code
