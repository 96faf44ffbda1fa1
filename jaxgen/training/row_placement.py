"""Which rows of a batch a process has to read, and how they become one array over the devices of all processes."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgen.training.mesh import batch_sharding


def held_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Return the rows of a batch, int64 [rows] and rising, that the devices of this process hold.

    Raises:
        ValueError: if the mesh has no device of this process.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[index] for index in held if index is not None]
    if not rows:
        raise ValueError("the mesh must hold a device of every process that reads batches")
    return np.unique(np.concatenate(rows))


@dataclasses.dataclass(frozen=True)
class RowPlacement:
    """Puts the rows of this process [block, rows, ...] where a mesh wants them, of batches [block, batch, ...].

    Attributes:
        batch_size: examples in a batch, over all processes.
        rows: what `held_rows` returns.
        mesh: whose data axis splits a batch.
    """

    batch_size: int
    rows: np.ndarray
    mesh: Mesh

    def __call__(self, local: np.ndarray) -> jax.Array:
        """Return the batches of all processes, of which each hands in its own rows."""

        def part(index: Any) -> np.ndarray:
            first, last, _ = index[1].indices(self.batch_size)
            begin = int(np.searchsorted(self.rows, first))
            return local[:, begin : begin + last - first]

        shape = (local.shape[0], self.batch_size, *local.shape[2:])
        return jax.make_array_from_callback(shape, batch_sharding(self.mesh, 1), part)
