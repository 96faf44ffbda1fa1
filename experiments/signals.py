"""SIGINT and SIGTERM as a question that the running experiment asks between its steps."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


class Stop:
    """Answers True once a signal asked the run to stop; `signal` is its number, 0 before."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        """Say whether a signal has come."""
        return self.signal != 0


@contextlib.contextmanager
def caught() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into the `Stop` that is yielded; the second SIGINT ends the process at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread alone.
        return

    def handle(number: int, frame: object) -> None:
        del frame
        stop.signal = number
        # The default action is the kernel's: it ends the process even while a compilation keeps Python waiting.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        message = f"{show_cursor}{signal.Signals(number).name}: saving; Ctrl-C ends the run without\n"
        os.write(2, message.encode())  # print() may be in the middle of a line of its own.

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
