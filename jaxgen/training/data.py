"""Where the batches of a training run come from."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Integer, PyTree, UInt

from jaxgen.training.mesh import replicate
from jaxgen.training.tree_paths import fingerprint
from jaxgen.typing import ArrayLike, PRNGKey

_ROUNDS = 8


@runtime_checkable
class Batches(Protocol):
    """A source of batches: what the host loads for a span of steps, and how the device picks a step's batch from it.

    A source whose arrays live on the device hands out the same arrays each time and a position in them; a source
    that streams from files hands out the next batches, stacked.
    """

    select: Callable[[PyTree, Int[Array, ""]], PyTree]
    """`select(payload, offset)` is the batch of step `first + offset`; pure, traced, and hashable by value."""

    @property
    def block(self) -> int | None:
        """No span of steps that `load` is asked for crosses a multiple of it; None sets no bound."""
        ...

    def load(self, first: int, count: int) -> PyTree:
        """Return the payload for steps first ... first + count - 1; its shapes never depend on either."""
        ...

    def position(self, step: int) -> Mapping[str, Any]:
        """Return what a checkpoint at `step` keeps (JSON) so that `seek` finds the batch of `step` again."""
        ...

    def seek(self, position: Mapping[str, Any]) -> None:
        """Continue from a position that `position` returned; ValueError if it belongs to other data."""
        ...


class _Window(NamedTuple):
    """The payload of arrays in memory: the arrays, and where in the stream of epochs a span of steps begins."""

    arrays: PyTree
    key: PRNGKey
    epoch: Any
    start: Any


@dataclasses.dataclass(frozen=True)
class _Indexed:
    """Pick the examples of a batch from arrays on the device."""

    size: int
    batch_size: int
    shuffle: bool

    def __call__(self, window: _Window, offset: Int[Array, ""]) -> PyTree:
        position = window.start + offset * self.batch_size + jnp.arange(self.batch_size)
        index = position % self.size
        if self.shuffle:
            epoch = window.epoch + (position // self.size).astype(jnp.uint32)
            index = jax.vmap(permuted_index, in_axes=(None, 0, 0, None))(window.key, epoch, index, self.size)
        return jax.tree.map(lambda array: array[index], window.arrays)


class InMemory:
    """Batches of arrays that live on the device; see `in_memory`."""

    block: int | None = None

    def __init__(self, window: _Window, select: _Indexed):
        self.select = select
        self._window = window

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        window = self._window
        return {**dataclasses.asdict(self.select), "arrays": fingerprint((window.arrays, window.key))}

    def load(self, first: int, count: int) -> _Window:
        """Return the arrays and where the batch of step `first` begins."""
        del count
        # In Python integers, so that no run is too long for 32 bits.
        epoch, start = divmod(first * self.select.batch_size, self.select.size)
        return self._window._replace(epoch=np.uint32(epoch % 2**32), start=np.int32(start))

    def position(self, step: int) -> dict[str, Any]:
        """Return the step and what else determines the batch: the sizes, the order's key and the arrays."""
        return {"step": step, **self._identity}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Check that a position belongs to these arrays in this order."""
        for name, value in self._identity.items():
            if position.get(name) != value:
                raise ValueError(f"the data has {name} {value}, but the checkpoint was made with {position.get(name)}")


def in_memory(
    arrays: PyTree, batch_size: int, key: PRNGKey, *, shuffle: bool = True, mesh: Mesh | None = None
) -> InMemory:
    """Draw batches from arrays, without replacement within an epoch.

    Epoch follows epoch without a gap: with 10 examples and batches of 4, the third batch holds the last 2 examples
    of the first epoch and 2 of the second. Every epoch has its own order, computed on the device.

    Args:
        arrays: a pytree of arrays with the same leading length; a batch has the same structure.
        batch_size: examples in a batch.
        key: typed key of the order.
        shuffle: False keeps the order of the arrays.
        mesh: where the arrays are to lie, on every device; by default, on the first device.

    Raises:
        ValueError: if the arrays are empty or of different lengths, or the batch size is below 1.

    >>> batches = in_memory(jnp.arange(6), 3, jax.random.key(0))
    >>> epoch = [batches.select(batches.load(step, 1), jnp.asarray(0)) for step in range(2)]
    >>> sorted(jnp.concatenate(epoch).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    lengths = sorted({np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(arrays)})
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"arrays must have one common leading length of at least 1, got {lengths}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    arrays, key = jax.device_put((arrays, key)) if mesh is None else replicate((arrays, key), mesh)
    return InMemory(_Window(arrays, key, np.uint32(0), np.int32(0)), _Indexed(lengths[0], batch_size, shuffle))


def permuted_index(
    key: PRNGKey, epoch: Integer[ArrayLike, ""] | int, index: Int[Array, ""], size: int
) -> Int[Array, ""]:
    """Return where a random permutation of 0 ... size - 1 sends an index, without forming the permutation.

    A Feistel network on pairs (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", method 3) permutes
    0 ... rows * columns - 1; an image outside 0 ... size - 1 is sent on until it falls inside ("cycle walking").

    Args:
        key: typed key, consumed together with `epoch`.
        epoch: selects the permutation.
        index: in [0, size).
        size: length of the permutation, below 2^31.
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    rounds = jax.random.bits(jax.random.fold_in(key, epoch), (_ROUNDS,), jnp.uint32)

    def encipher(carry):
        left, right = carry[0] // columns, carry[0] % columns
        for number in range(0, _ROUNDS, 2):
            left = (left + _mix(right ^ rounds[number]) % rows) % rows
            right = (right + _mix(left ^ rounds[number + 1]) % columns) % columns
        return left * columns + right, jnp.asarray(False)

    start = index.astype(jnp.uint32), jnp.asarray(True)
    value, _ = jax.lax.while_loop(lambda carry: carry[1] | (carry[0] >= size), encipher, start)
    return value.astype(index.dtype)


def _mix(value: UInt[Array, ""]) -> UInt[Array, ""]:
    # The finaliser of MurmurHash3: every input bit changes every output bit with probability near one half.
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)
