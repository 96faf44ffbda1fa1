"""Where the metrics of a training go: `metrics.jsonl`, and TensorBoard where it was asked for."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.run_directory import RunDirectory
from jaxgen.training import Asynchronous, TensorBoard


@contextlib.contextmanager
def metric_lines(run: RunDirectory, *, saved: int | None = None, name: str = "") -> Iterator[Asynchronous]:
    """Yield what is called as `write(step, metrics)` and never holds up the training.

    Args:
        run: whose files are written.
        saved: step of the checkpoint that the training goes on from: TensorBoard forgets what came after it.
        name: of the network, where several write; it is a folder of TensorBoard's.
    """

    def lines(step: int, metrics: Mapping[str, Any]) -> None:
        run.metrics(step, **{key: float(value) for key, value in metrics.items()})

    writers: list[Any] = [lines]
    if run.tensorboard and run.writes:
        writers.append(
            TensorBoard(run.path / "tensorboard" / name, purge_step=(saved or 0) + 1 if run.resumed else None)
        )
    with Asynchronous(*writers) as write:
        yield write
