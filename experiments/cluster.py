"""Several processes as one run: who belongs together, how they join, and how they agree on what is wrong.

Every process of a run executes the same command. The first one, process 0, writes the folder of the run.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, NoReturn, TypeVar

from experiments.sentences import sentence

ResultT = TypeVar("ResultT")

SWITCH = "JAXGEN_DISTRIBUTED"
"""Environment variable: `off` keeps every process by itself, `on` lets jax look for the others where nothing here
names them (a pod of TPU machines that are known to their metadata server alone)."""

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
_MOST_SECONDS = 86_400
# jax ends the process with a stack trace when its own time is over: ours has to be over first.
_MARGIN_SECONDS = 60
# The service that the others report to lives in process 0: those that fail with it may leave before it does.
_LEAVE_SECONDS = 2.0


class Place(NamedTuple):
    """Which of how many processes this is."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Say whether this is the process that writes."""
        return self.index == 0


class Coordinates(NamedTuple):
    """How a process finds the others, as the command line says it: all three, or none."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = 300
    """Seconds until all have to be there."""


def check(coordinates: Coordinates) -> None:
    """Refuse coordinates that no process can have.

    Raises:
        ValueError: names the option, what it takes and what it got.
    """
    coordinator, num_processes, process_id, timeout = coordinates
    if not 1 <= timeout <= _MOST_SECONDS:
        raise ValueError(f"--initialization-timeout must lie between 1 and {_MOST_SECONDS} seconds, got {timeout}")
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise ValueError(f"{', '.join(given)} belong together; add {' and '.join(missing)}, or drop the others")
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"--coordinator takes HOST:PORT with a port from 1 to 65535, as in 10.0.0.1:1234; got {coordinator!r}"
        )
    if num_processes < 1:
        raise ValueError(f"--num-processes must be at least 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process-id must lie between 0 and {num_processes - 1}, one less than --num-processes; got {process_id}"
        )


def detected(environ: Mapping[str, str]) -> str | None:
    """Name what started this process as one of several, where its environment variables say so, else return None.

    Looks for what jax's own detection needs, in its order, and for more than one process: a job of one process, a batch
    script outside of `srun` and a machine with all its TPU chips are by themselves.

    Raises:
        ValueError: the variable `JAXGEN_DISTRIBUTED` holds something else than `on` or `off`.
    """
    switch = environ.get(SWITCH, "").lower()
    if switch not in ("", "on", "off"):
        raise ValueError(f"{SWITCH} takes on or off, got {environ[SWITCH]!r}")
    if switch == "off":
        return None
    if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if _number(environ, "SLURM_NTASKS") > 1 and all(name in environ for name in _SLURM):
        return "Slurm"
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    if "," in workers or _number(environ, "MEGASCALE_NUM_SLICES") > 1:
        return "the TPU pod"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "Kubernetes"
    return f"{SWITCH}=on" if switch == "on" else None


def join(coordinates: Coordinates) -> Place:
    """Join the other processes of the run, where there are any; nothing may have used jax before.

    The process ends with exit code 2 and one sentence when the others are not there in time: jax cannot be asked to
    give up otherwise.

    Raises:
        ValueError: jax does not find out from the environment who the others are, or the port is taken.
    """
    address = coordinates.coordinator
    starter = "the command line" if address is not None else detected(os.environ)
    if starter is None:
        return Place()
    if address is not None and coordinates.process_id == 0:
        _check_port(address)
    import jax

    seconds = coordinates.timeout
    others = f"the coordinator {address}" if address is not None else f"the other processes of {starter}"
    with _deadline(seconds, _late(coordinates, others)), _stoppable():
        try:
            jax.distributed.initialize(
                address,
                coordinates.num_processes,
                coordinates.process_id,
                initialization_timeout=seconds + _MARGIN_SECONDS,
            )
            return Place(jax.process_index(), jax.process_count())
        except Exception as error:
            why = sentence(error).rstrip(".")
            raise ValueError(
                f"jax did not join {others} ({why}); name them with --coordinator, --num-processes and --process-id, "
                f"or keep the process by itself with {SWITCH}=off"
            ) from error


def together(place: Place, action: Callable[[], ResultT]) -> ResultT:
    """Do something on every process, and fail on all where one fails.

    Raises:
        ValueError: another process raised one; its own error a process raises as it is.
        RuntimeError: another process raised any other error.
    """
    if place.count == 1:
        return action()
    try:
        result, failure = action(), None
    except Exception as error:
        result, failure = None, error
    told = "" if failure is None else f"{'V' if isinstance(failure, ValueError) else 'R'}{sentence(failure)}"
    found = exchange(place, told)
    if failure is not None:
        raise failure
    for process, text in enumerate(found):
        if text:
            raise (ValueError if text[0] == "V" else RuntimeError)(f"process {process}: {text[1:]}")
    return result  # pyright: ignore[reportReturnType] - no failure, so it is what the action returned


def in_turn(place: Place, action: Callable[[], None]) -> None:
    """Do something on the first process, then on the others, and go on when all are through; fails as `together`."""
    together(place, action if place.first else lambda: None)
    if place.count > 1:
        together(place, (lambda: None) if place.first else action)


def exchange(place: Place, text: str) -> list[str]:
    """Return the texts of all processes, in their order."""
    if place.count == 1:
        return [text]
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size], np.int32)).reshape(-1)
    padded = np.zeros(sizes.max(initial=1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(place.count, -1)
    return [
        row[:size].tobytes().decode(errors="surrogateescape") for row, size in zip(np.asarray(rows), sizes, strict=True)
    ]


def leave(place: Place, code: int) -> int:
    """Return the exit code of a run that failed; where there are others, end the process with it at once.

    An ordinary exit would wait for the others for minutes, while they wait for this one in the middle of a step, and
    then end in a stack trace.
    """
    if place.count == 1:
        return code
    if place.first:
        time.sleep(_LEAVE_SECONDS)
    _end(code)


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def _check_port(address: str) -> None:
    # jax crashes on a port that is taken.
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"--coordinator {address}: process 0 cannot listen on port {port} ({error.strerror}); name a free one"
            ) from error


def _late(coordinates: Coordinates, others: str) -> str:
    if coordinates.process_id == 0:
        return (
            f"not all of the {coordinates.num_processes} processes came to {others} within {coordinates.timeout} s; "
            "start them all, or give them longer with --initialization-timeout"
        )
    return (
        f"{others} did not answer within {coordinates.timeout} s; see that all processes run and that the port is "
        "open, or give them longer with --initialization-timeout"
    )


@contextlib.contextmanager
def _deadline(seconds: float, text: str) -> Iterator[None]:
    """End the process when the block takes longer."""
    over = threading.Event()

    def wait() -> None:
        if not over.wait(seconds):
            print(f"error: {text}", file=sys.stderr)
            _end(2)

    threading.Thread(target=wait, name="deadline", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C end the process while Python waits for a library that does not return."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
