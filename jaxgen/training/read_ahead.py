"""A thread that makes things ahead of their use, and processes that do not outlive the one that started them."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Generator
from multiprocessing import resource_tracker
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE = 60  # seconds that a process goes on after SIGTERM, and a thread is waited for


class ReadAhead(Generic[_Item]):
    """Runs an endless generator in a thread, so that at most `ahead` items wait to be taken.

    The generator is started, advanced and closed in that thread alone. An exception in it ends it, and reaches
    whoever takes the next item.
    """

    def __init__(self, items: Generator[_Item, None, None], ahead: int):
        self._slots = threading.Semaphore(ahead)
        self._ready: queue.SimpleQueue[tuple[_Item | None, BaseException | None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        # A daemon, since a thread that hangs in the file system must not hold up the end of the program.
        arguments = (items, self._slots, self._ready, self._stop)
        self._thread = threading.Thread(target=_produce, args=arguments, name="read-ahead", daemon=True)
        self._thread.start()

    def take(self) -> _Item:
        """Wait for the next item; raises what the generator raised, again and again."""
        if self._error is None:
            item, self._error = self._ready.get()
            self._slots.release()
        if self._error is not None:
            raise self._error
        return item  # pyright: ignore[reportReturnType, reportPossiblyUnboundVariable]

    def close(self) -> None:
        """End the thread, after the item that it is making; whoever waits for an item gets a RuntimeError."""
        self._stop.set()
        self._slots.release()
        # The garbage collector may come by here in any thread.
        if threading.current_thread() is not self._thread:
            self._thread.join(_GRACE)


def _produce(items, slots: threading.Semaphore, ready: queue.SimpleQueue, stop: threading.Event) -> None:
    error: BaseException = RuntimeError("the batches have been closed")
    try:
        while slots.acquire() and not stop.is_set():
            ready.put((next(items), None))
    except BaseException as raised:
        error = raised
    finally:
        # First of all, so that nobody waits for the end of processes to learn of an error.
        ready.put((None, error))
        items.close()


def shield_processes() -> None:
    """Block signals in this thread, and so in the processes that it starts until they have settled.

    A Ctrl-C in their first second would kill them otherwise.
    """
    # Its start, at the first need, would lift the block.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def settle_in_process(index: int, count: int) -> None:
    """Prepare a process that reads: it leaves signals to its parent, and ends when that does.

    Ctrl-C and the end of a batch job reach every process of a group, but the training process has a state to save and
    may need the next batch for it.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_later(*_: object) -> None:
    timer = threading.Timer(_GRACE, os._exit, (128 + signal.SIGTERM,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
