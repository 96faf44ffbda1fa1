from types import SimpleNamespace

import numpy as np
import pytest

from experiments.benchmarks import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only where a side of a comparison says so; it remembers who moved it."""
    clock = SimpleNamespace(now=0.0, calls=[])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)

    def side(name, seconds, pause_at=-1):
        def call():
            clock.now += 1000 * seconds if len(clock.calls) == pause_at else seconds
            clock.calls.append(name)

        return call

    clock.side = side
    return clock


def test_a_ratio_above_one_says_that_ours_is_faster(clock):
    found = timing.compare(clock.side("ours", 0.01), clock.side("theirs", 0.03), repetitions=8, seconds=0.5)
    np.testing.assert_allclose(found.ours, np.full(8, 0.01))
    np.testing.assert_allclose(found.theirs, np.full(8, 0.03))
    np.testing.assert_allclose(found.speedup, np.full(8, 3.0))


def test_a_repetition_takes_about_the_time_that_it_is_given(clock):
    timing.compare(clock.side("ours", 0.01), clock.side("theirs", 0.03), repetitions=8, seconds=0.5)
    # Twelve rounds of 0.04 s, and two calls of each before.
    assert len(clock.calls) == 4 + 8 * 12 * 2


def test_the_sides_take_turns_and_the_first_of_a_round_alternates(clock):
    sides = clock.side("ours", 1.0), clock.side("theirs", 1.0)
    timing.compare(*sides, repetitions=2, seconds=1e-9)
    # Five rounds a repetition are the fewest.
    there, back = ["ours", "theirs"], ["theirs", "ours"]
    assert clock.calls[4:] == (there + back + there + back + there) * 2


def test_one_pause_of_the_machine_moves_no_ratio(clock):
    sides = clock.side("ours", 0.01), clock.side("theirs", 0.02, pause_at=25)
    found = timing.compare(*sides, repetitions=8, seconds=0.1)
    assert clock.now > 20  # there was one
    np.testing.assert_allclose(found.speedup, np.full(8, 2.0))
