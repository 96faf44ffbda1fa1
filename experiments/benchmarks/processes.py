"""Work in a process of its own.

Where a program's arrays and threads come to lie changes a ratio of times by a few percent from process to process,
which repetitions within one process cannot tell.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

from experiments.run_directory import Interrupted

P = ParamSpec("P")
T = TypeVar("T")
_POLL_SECONDS = 0.2


def in_process(stop: Callable[[], bool], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fresh process, which shares nothing with this one, and return its result.

    Args:
        stop: asked five times a second; once it says True the process is ended.
        work: a function of a module, so that the process finds it.
        args: anything that can be pickled, as must the result.
        kwargs: likewise.

    Raises:
        Interrupted: `stop` said True.
        RuntimeError: the process died, or the function raised: its error is in the first line, its traceback below.
    """
    # A fork would share the threads' locks and the device of this process.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, work, args, kwargs), daemon=True)
    process.start()
    sender.close()
    try:
        while not receiver.poll(_POLL_SECONDS):
            if stop():
                raise Interrupted
        result, cause, trace = receiver.recv()
    except EOFError:
        if stop():  # the terminal sends Ctrl-C to both
            raise Interrupted from None
        process.join()
        raise RuntimeError(
            f"the process that was to call {work.__name__} died (exit code {process.exitcode})"
        ) from None
    finally:
        process.terminate()
        process.join()
        receiver.close()
    if cause:
        raise RuntimeError(f"{work.__name__} failed in a process of its own: {cause}\n{trace}")
    return result


def _call(sender: Connection, work: Callable, args: tuple, kwargs: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sender.send((work(*args, **kwargs), "", ""))
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}", traceback.format_exc()))
