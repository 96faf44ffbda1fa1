"""Batches that are read from files while the device computes."""

import dataclasses
import os
import shutil
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from jaxgen.training.epoch_order import EpochOrder
from jaxgen.training.mesh import check_batch
from jaxgen.training.read_ahead import ReadAhead, settle_in_process, shield_processes
from jaxgen.training.row_placement import RowPlacement, held_rows

_ENDLESS = 2**62  # steps
_SHARED_MEMORY = "/dev/shm"
_UNDER_WAY = 5  # batches that a process, its queues and their reader hold
_PROFILING = "grain_enable_multiprocess_worker_profiling"


@runtime_checkable
class Examples(Protocol):
    """Examples that are read one at a time, by any thread; they are pickled where processes read them."""

    @property
    def fingerprint(self) -> str:
        """Identifies the examples and their order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """Return an example of arrays, whose names, shapes and dtypes are those of every other."""
        ...


class _Block(NamedTuple):
    """The payload: the batches of a block of steps, and the number of a span's first step within it."""

    arrays: PyTree
    start: Any


class _Reading(NamedTuple):
    """How batches are read."""

    workers: int
    threads: int
    ahead: int


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Reads some rows of the batch of a step."""

    examples: Examples
    order: EpochOrder
    rows: np.ndarray

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        chosen = [self.examples[index] for index in self.order.batch(step, self.rows).tolist()]
        return {name: np.stack([example[name] for example in chosen]) for name in chosen[0]}


class Streamed:
    """Batches read from files ahead of their use, as a context manager that ends the reading; see `streamed`."""

    def __init__(
        self,
        rows: _Rows,
        block: int,
        reading: _Reading,
        place: Callable[[np.ndarray], jax.Array],
    ):
        self.select = _pick
        self.block = block
        self._rows, self._reading, self._place = rows, reading, place
        self._ahead: ReadAhead[PyTree] | None = None
        self._next: int | None = None
        self._held: tuple[int, PyTree] | None = None
        self._end: Callable[[], object] = lambda: None
        self._closed = False

    def __enter__(self) -> "Streamed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, first: int, count: int) -> _Block:
        """Return the block of steps that holds steps first ... first + count - 1; waits until it has been read.

        Blocks are read in their order, so that asking for another one than this or the next begins anew there.

        Raises:
            ValueError: if the steps lie in different blocks.
            RuntimeError: if the batches have been closed; what reading raised, such as DamagedImageError.
        """
        number, start = divmod(first, self.block)
        if count < 1 or start + count > self.block:
            last = first + count - 1
            raise ValueError(f"steps {first} ... {last} must lie between two multiples of the block of {self.block}")
        if self._closed:
            raise RuntimeError("the batches have been closed")
        if self._held is None or self._held[0] != number:
            # Let go of the block before, which the device may still be using, before there is one more.
            self._held = None
            self._held = number, self._take(number)
        return _Block(self._held[1], np.int32(start))

    def position(self, step: int) -> dict[str, Any]:
        """Return the step and what the order depends on.

        No state of an iterator is kept, because the step alone determines the batch.
        """
        return {"step": step, **self._identity()}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Check that a position belongs to these examples in this order; the next `load` says where to continue.

        Raises:
            ValueError: naming what differs.
        """
        for name, value in self._identity().items():
            if position.get(name) != value:
                raise ValueError(f"the data has {name} {value}, but the checkpoint was made with {position.get(name)}")

    def close(self) -> None:
        """End the threads and processes that read; may be called again."""
        self._closed = True
        self._held = None
        self._end()

    def _identity(self) -> dict[str, Any]:
        return {"examples": self._rows.examples.fingerprint, **dataclasses.asdict(self._rows.order)}

    def _take(self, number: int) -> PyTree:
        ahead = self._ahead if self._next == number else None
        if ahead is None:
            self._end()
            ahead = ReadAhead(_blocks(self._rows, self.block, number, self._reading, self._place), self._reading.ahead)
            # Also when this object is forgotten, and at the end of the program.
            self._end = weakref.finalize(self, ahead.close)
            self._ahead, self._next = ahead, number
        try:
            arrays = ahead.take()
        except Exception:
            self._end()
            self._ahead = None
            raise
        self._next = number + 1
        return arrays


def streamed(
    examples: Examples,
    batch_size: int,
    seed: int,
    *,
    mesh: Mesh | None = None,
    block: int = 8,
    workers: int = 0,
    threads: int | None = None,
    ahead: int = 2,
    shuffle: bool = True,
) -> Streamed:
    """Read batches of examples in threads or processes, and put them on the devices ahead of their use.

    The batch of a step depends on the examples, the batch size and the seed alone, not on how it is read, on how many
    hosts or after which restart. Epoch follows epoch without a gap, as for `in_memory`: every example is seen once in
    each, and a batch may hold examples of two or more. Several hosts each read the rows that their devices hold.

    Args:
        examples: from `image_folder`, `image_records` or of the like.
        batch_size: examples in a batch, over all hosts.
        seed: of the order, the same on every host.
        mesh: devices over which a batch is split; by default it lies on the first device.
        block: steps whose batches travel to the device together; `ahead + 2` blocks have to fit there.
        workers: processes that read, beside each of which costs its memory and seconds to start; 0 reads in threads of
            this process. Decoding small images takes the interpreter's lock, so that threads alone do not scale.
        threads: that read, in each process, a batch each; by default the processors are shared out.
        ahead: blocks that may wait on the device.
        shuffle: False keeps the order of the examples.

    Raises:
        ValueError: for bad arguments, or if the processes would not find enough shared memory.

    >>> class Squares:
    ...     fingerprint = "the squares of 0 ... 9"
    ...
    ...     def __len__(self):
    ...         return 10
    ...
    ...     def __getitem__(self, index):
    ...         return {"square": np.int32(index**2)}
    >>> with streamed(Squares(), 4, seed=0, shuffle=False) as batches:
    ...     batch = batches.select(batches.load(2, 1), jax.numpy.asarray(0))
    >>> batch["square"].tolist()
    [64, 81, 0, 1]
    """
    least = {"batch_size": 1, "block": 1, "workers": 0, "threads": 1, "ahead": 1, "seed": 0}
    threads = max(1, (os.cpu_count() or 1) // max(1, workers)) if threads is None else threads
    given = {"batch_size": batch_size, "block": block, "workers": workers, "threads": threads, "ahead": ahead}
    for name, value in {**given, "seed": seed}.items():
        if value < least[name]:
            raise ValueError(f"{name} must be at least {least[name]}, got {value}")
    size = len(examples)
    if not 1 <= size < 2**31:
        raise ValueError(f"there must be at least 1 example and fewer than 2^31, got {size}")
    rows = np.arange(batch_size)
    place: Callable[[np.ndarray], jax.Array] = jax.device_put
    if mesh is not None:
        check_batch(batch_size, mesh)
        rows = held_rows(batch_size, mesh)
        place = RowPlacement(batch_size, rows, mesh)
    reader = _Rows(examples, EpochOrder(size, batch_size, seed, shuffle), rows)
    if workers:
        _check_shared_memory(reader, workers)
    return Streamed(reader, block, _Reading(workers, threads, ahead), place)


def _pick(payload: _Block, offset: Int[Array, ""]) -> PyTree:
    """Return the batch of a step of a block."""
    at = payload.start + offset
    return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, at, keepdims=False), payload.arrays)


def _blocks(
    rows: _Rows, block: int, number: int, reading: _Reading, place: Callable[[np.ndarray], jax.Array]
) -> Generator[PyTree, None, None]:
    """Yield a block, the next one and so on, each with its arrays [block, batch, ...] on the devices."""
    # Batches are formed before the steps are dealt out to the processes, so that their number changes no batch.
    steps = grain.MapDataset.range(0, _ENDLESS)[number * block :].map(rows)
    batches = steps.to_iter_dataset(grain.ReadOptions(reading.threads, prefetch_buffer_size=reading.threads))
    if reading.workers:
        shield_processes()
        # Grain (0.2.18) asks for this option of its command line, whether or not there has been a command line.
        if _PROFILING in flags.FLAGS:
            flags.FLAGS[_PROFILING].present = True
        options = grain.MultiprocessingOptions(reading.workers, per_worker_buffer_size=1)
        batches = batches.mp_prefetch(options, worker_init_fn=settle_in_process)
    iterator = iter(batches)
    try:
        while True:
            yield jax.tree.map(place, _stack(iterator, block))
    finally:
        iterator.close()


def _stack(batches: Iterator[Mapping[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for number in range(count):
        for name, array in next(batches).items():
            if not number:
                arrays[name] = np.empty((count, *array.shape), array.dtype)
            arrays[name][number] = array
    return arrays


def _check_shared_memory(rows: _Rows, workers: int) -> None:
    # Processes hand over their batches in it. Where it runs out they die without a word; containers have 64 MB.
    if os.path.isdir(_SHARED_MEMORY):
        batch = len(rows.rows) * sum(np.asarray(array).nbytes for array in rows.examples[0].values())
        needed, free = _UNDER_WAY * workers * batch, shutil.disk_usage(_SHARED_MEMORY).free
        if needed > free:
            raise ValueError(
                f"workers={workers} need {needed / 1e6:.0f} MB of shared memory, but {_SHARED_MEMORY} has "
                f"{free / 1e6:.0f} MB free: use fewer workers, or give the container more (--shm-size)"
            )
