"""Work in a process of its own."""

import math
import operator
import os
import time

import pytest

from experiments.benchmarks.processes import in_process
from experiments.run_directory import Interrupted


def going():
    return False


def test_the_process_is_another_one_and_returns_its_result():
    assert in_process(going, os.getpid) != os.getpid()
    assert in_process(going, math.log, 8, 2) == 3


def test_what_the_work_raises_is_told_in_one_line_above_its_traceback():
    with pytest.raises(RuntimeError) as caught:
        in_process(going, operator.truediv, 1, 0)
    first, *rest = str(caught.value).splitlines()
    assert first == "truediv failed in a process of its own: ZeroDivisionError: division by zero"
    assert rest[0] == "Traceback (most recent call last):"


def test_a_process_that_dies_is_an_error_and_not_a_wait():
    with pytest.raises(RuntimeError, match=r"_exit died \(exit code 3\)"):
        in_process(going, os._exit, 3)


def test_a_stop_ends_the_process():
    began = time.monotonic()
    with pytest.raises(Interrupted):
        in_process(lambda: True, time.sleep, 600)
    assert time.monotonic() - began < 60
