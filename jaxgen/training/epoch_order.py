"""The order of the examples of a stream, computed on the host for one batch at a time."""

import dataclasses
import math

import numpy as np

_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """Epochs that follow one another without a gap, each in an order of its own.

    Position p of the stream belongs to epoch p // size, and the batch of step n is at the positions n * batch_size ...
    n * batch_size + batch_size - 1.
    """

    size: int
    batch_size: int
    seed: int
    shuffle: bool

    def batch(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Return the numbers of the examples in some rows of the batch of a step.

        Args:
            step: any, however late.
            rows: int64 [n], each in [0, batch_size).
        """
        # In Python integers up to the epoch, so that no run is too long.
        first, start = divmod(step * self.batch_size, self.size)
        epochs, places = np.divmod(start + rows, self.size)
        if self.shuffle:
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                places[here] = permuted(places[here], self.size, self.seed, first + epoch)
        return places


def permuted(places: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Return where the random permutation of an epoch sends places, without forming the permutation.

    The network of `permuted_index`, whose rounds are keyed by numpy's SeedSequence: a checkpoint names no more than
    the step and the seed, so the order must be that of any release of any library. (Grain's `index_shuffle` walks
    through at least 2^16 values, which takes milliseconds an index for a few examples.)

    Args:
        places: int64 [n], each in [0, size).
        size: length of the permutation, below 2^31.
        seed: at least 0.
        epoch: selects the permutation, at least 0.
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(_ROUNDS)
    value = places.astype(np.uint32)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = np.divmod(value[outside], np.uint32(columns))
        for number in range(0, _ROUNDS, 2):
            left = (left + _mix(right ^ keys[number]) % np.uint32(rows)) % np.uint32(rows)
            right = (right + _mix(left ^ keys[number + 1]) % np.uint32(columns)) % np.uint32(columns)
        value[outside] = left * np.uint32(columns) + right
        outside = value >= size
    return value.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    # The finaliser of MurmurHash3.
    value = (value ^ (value >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    value = (value ^ (value >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return value ^ (value >> np.uint32(16))
