"""How two computations are timed against each other in one process."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 200


class Timing(NamedTuple):
    """Seconds that one call of each side took, one number a repetition.

    Attributes:
        ours: `[repetitions]`.
        theirs: `[repetitions]`.
    """

    ours: Float[np.ndarray, " repetitions"]
    theirs: Float[np.ndarray, " repetitions"]

    @property
    def speedup(self) -> Float[np.ndarray, " repetitions"]:
        """Return theirs / ours of each repetition: above 1 where jaxgen is faster."""
        return self.theirs / self.ours


def compare(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    repetitions: int,
    seconds: float,
) -> Timing:
    """Time two computations in turns, so that what slows the machine down slows both.

    Each is called twice beforehand, to compile and to warm up. A repetition is a number of rounds, at least 5; a round
    calls both once, and the one that goes first alternates. The time of a repetition is the median over its rounds,
    which two pauses of the machine do not move.

    Args:
        ours: returns when its result is there (`jax.block_until_ready`).
        theirs: likewise.
        repetitions: how many ratios to measure.
        seconds: about how long a repetition takes; decides the number of rounds.
    """
    once = [min(_clock(side) for _ in range(2)) for side in (ours, theirs)]
    rounds = int(np.clip(seconds / sum(once), _FEWEST_ROUNDS, _MOST_ROUNDS))
    # A collection in the middle of a call would be counted as its time.
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        medians = [_repeat(ours, theirs, rounds) for _ in range(repetitions)]
    finally:
        if collecting:
            gc.enable()
    return Timing(*np.array(medians).T)


def _repeat(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            times[side].append(_clock((ours, theirs)[side]))
    return statistics.median(times[0]), statistics.median(times[1])


def _clock(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
