import os
import signal
import threading

import pytest

from experiments import signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_answer_within_the_block_and_itself_after_it(number, capfd):
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    with signals.caught() as stop:
        assert (stop(), stop.signal) == (False, 0)
        os.kill(os.getpid(), number)
        assert (stop(), stop.signal) == (True, number)
        # The next SIGINT is the kernel's to act on.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert {one: signal.getsignal(one) for one in before} == before
    assert capfd.readouterr().err == f"{number.name}: saving; Ctrl-C ends the run without\n"


def test_a_thread_gets_an_answer_that_stays_no():
    answers = []

    def ask():
        with signals.caught() as stop:
            answers.append(stop())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]
