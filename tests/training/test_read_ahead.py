import gc
import threading
import time
import weakref

import pytest

from jaxgen.training.read_ahead import ReadAhead


def until(condition):
    """Wait for what another thread does."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 5 s")


def reading():
    return any(thread.name == "read-ahead" for thread in threading.enumerate())


def counted(made, closed=None, last=10**9):
    try:
        for number in range(last):
            made.append(number)
            yield number
        raise OSError("the disk is gone")
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_items_are_made_than_may_wait(ahead):
    made = []
    items = ReadAhead(counted(made), ahead)
    until(lambda: len(made) == ahead)
    time.sleep(0.05)
    assert len(made) == ahead
    assert [items.take() for _ in range(5)] == list(range(5))
    until(lambda: len(made) == 5 + ahead)
    time.sleep(0.05)
    assert len(made) == 5 + ahead
    items.close()


def test_an_error_comes_in_its_turn_and_again():
    closed = []
    items = ReadAhead(counted([], closed, last=2), 4)
    assert [items.take(), items.take()] == [0, 1]
    for _ in range(3):
        with pytest.raises(OSError, match="the disk is gone"):
            items.take()
    until(lambda: closed == ["read-ahead"])
    items.close()


@pytest.mark.parametrize("taken", [0, 3])
def test_closing_ends_the_thread_and_the_generator(taken):
    closed = []
    items = ReadAhead(counted([], closed), 2)
    for _ in range(taken):
        items.take()
    items.close()
    items.close()
    assert closed == ["read-ahead"]
    assert not reading()


def test_closing_wakes_whoever_waits():
    gate = threading.Event()

    def slow():
        gate.wait()
        yield 0

    items, raised = ReadAhead(slow(), 1), []

    def take():
        try:
            items.take()
            items.take()
        except RuntimeError as error:
            raised.append(str(error))

    taker = threading.Thread(target=take)
    taker.start()
    closer = threading.Thread(target=items.close)
    closer.start()
    gate.set()
    taker.join(5)
    closer.join(5)
    assert raised == ["the batches have been closed"]
    assert not reading()


def test_the_thread_does_not_hold_what_made_it():
    class Owner:
        def __init__(self):
            self.items = ReadAhead(counted([]), 1)
            weakref.finalize(self, self.items.close)

    owner = Owner()
    del owner
    gc.collect()
    assert not reading()
