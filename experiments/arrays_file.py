"""`arrays.npz`: the numbers behind the figures of a run, read and written without pickle."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import files

if TYPE_CHECKING:
    import numpy as np


class ArraysFile:
    """Collects arrays by name; every time some are added, the file is written anew."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Name the file, which the first arrays create; without `writes` they are checked and forgotten."""
        self._path, self._writes = path, writes
        self._arrays: dict[str, np.ndarray] = {}

    def recall(self) -> None:
        """Take up what the file holds, where there is one."""
        import numpy as np

        if self._writes and self._path.exists():
            with np.load(self._path, allow_pickle=False) as stored:
                self._arrays = dict(stored)

    def add(self, **arrays: Any) -> None:
        """Add arrays, or put others in their place.

        Raises:
            ValueError: one holds other than numbers or text.
        """
        import numpy as np

        found = {name: np.asarray(array) for name, array in arrays.items()}
        for name, array in found.items():
            if array.dtype.kind not in "biufcSU":
                raise ValueError(f"{self._path.name} holds numbers and text; {name!r} has dtype {array.dtype}")
        if self._writes:
            self._arrays |= found
            data = io.BytesIO()
            np.savez_compressed(data, allow_pickle=False, **self._arrays)
            files.write_whole(self._path, data.getvalue())
