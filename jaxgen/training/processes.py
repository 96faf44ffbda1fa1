"""What several processes of one run have to agree on; with one process, nothing waits for anybody."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def agreed(values: np.ndarray, combine: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Combine one array of every process by a reduction over the first axis; with one process, return it."""
    if jax.process_count() == 1:
        return values
    return combine(np.asarray(multihost_utils.process_allgather(values)).reshape(-1, *values.shape))


def told_by_first(text: str) -> str:
    """Return the text of the first process in every process."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(encoded.size)))
    buffer = np.zeros(size, np.uint8)
    buffer[: min(size, encoded.size)] = encoded[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes().decode()


def on_first(act: Callable[[], object]) -> None:
    """Act in the first process while the others wait; where that fails, it fails in all of them.

    Raises:
        OSError: in the other processes; in the first one, what `act` raised.
    """
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            act()
        except Exception as error:
            failure = error
    failed = bool(agreed(np.array([failure is not None]), np.maximum.reduce)[0])
    if failure is not None:
        raise failure
    if failed:
        raise OSError("process 0 could not write")


class Agreement:
    """Lets all processes run calls of one length, and stop together when one is told to.

    What a process asks is answered one call later: the device finds the answer between two calls of the training
    step, and no host waits for it.
    """

    def __init__(self):
        self._mesh = Mesh(np.array(jax.devices()), ("all",)) if jax.process_count() > 1 else None
        self._answer: jax.Array | None = None

    def __call__(self, stopping: bool, count: int) -> tuple[bool, int]:
        """Say whether to stop and how many steps the next call has, by what the processes asked for last time."""
        if self._mesh is None:
            return stopping, count
        if self._answer is None:
            self._answer = self._ask(stopping, count)
        stopped, most = np.asarray(self._answer).tolist()
        self._answer = self._ask(stopping, count)
        return bool(stopped), -most

    def _ask(self, stopping: bool, count: int) -> jax.Array:
        assert self._mesh is not None
        mine = np.tile(np.array([[stopping, -count]], np.int32), (jax.local_device_count(), 1))
        asked = jax.make_array_from_process_local_data(NamedSharding(self._mesh, PartitionSpec("all")), mine)
        return _largest(asked, NamedSharding(self._mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=1)
def _largest(asked: jax.Array, whole: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(asked, axis=0), whole)
