import io

import pytest
from rich.console import Console

from experiments import progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_lines_come_first_every_thirty_seconds_and_last(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    console = Console(file=io.StringIO(), width=40)
    with progress.progress(1000, "noise [network]", console) as meter:
        for step in range(1, 91):
            meter.update(step, loss=1 / step)
            clock.now += 1.0
    assert console.file.getvalue().splitlines() == [
        "noise [network]: 1/1000, loss 1",
        "noise [network]: 31/1000, 1 steps/s, 969 s left, loss 0.03226",
        "noise [network]: 61/1000, 1 steps/s, 939 s left, loss 0.01639",
        "noise [network]: 90/1000, 1 steps/s, 910 s left, loss 0.01111",
    ]


def test_the_rate_counts_neither_the_compilation_nor_the_steps_before_a_resumption():
    clock, shown = Clock(), []
    meter = progress.Meter(600, lambda meter: shown.append(meter.status()), interval=1.0, clock=clock)
    clock.now += 60.0  # compiling
    meter.update(500)
    clock.now += 2.0
    meter.update(504)
    assert shown == ["", "2 steps/s, 48 s left"]


def test_the_last_line_comes_even_when_the_loop_is_left_by_an_error():
    console = Console(file=io.StringIO())

    def fail():
        with progress.progress(9, "walks", console) as meter:
            meter.update(1)
            meter.update(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert console.file.getvalue().splitlines()[-1].startswith("walks: 2/9")


def test_a_terminal_gets_a_bar_with_rate_time_left_and_metrics(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with progress.progress(10, "walks", console) as meter:
        for step in range(1, 10):
            meter.update(step, loss=0.25)
            clock.now += 0.5
    drawn = console.file.getvalue().split("\r")[-1]
    assert drawn.strip("\x1b[2K").startswith("walks ")
    assert "9/10 2 steps/s, 0 s left, loss 0.25" in drawn


def test_a_step_costs_the_loop_little():
    # The design gives a training step 200 microseconds of host time; the bar may take a tenth of them.
    import time

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress.progress(20_000, "walks", console) as meter:
        began = time.process_time()
        for step in range(20_000):
            meter.update(step, loss=0.25)
        spent = time.process_time() - began
    assert spent / 20_000 < 20e-6
