"""The benchmark of training one linear attention layer: sweeps over starts against the loop of the official code."""

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Complex

from experiments import compilation_cache
from experiments.benchmarks import figures
from experiments.benchmarks.attention_port import Port, attention_port
from experiments.benchmarks.processes import in_process
from experiments.claims import Cell
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.flows import (
    Correlations,
    Descent,
    gaussian_start,
    gradient_descent,
    mean_over_draws,
    quartic_loss,
    sample_correlations,
    sample_sequences,
)
from jaxgen.models import diagonal_params
from jaxgen.typing import Params

COUNTS = {"P9": (3,), "P10": (8, 16)}
TARGETS = {"P9": 50.0, "P10": 200.0}
_PAPER_STARTS = (0.1, 0.1), (0.5, 1.5), (2.0, 2.0)
_PAPER_SIZES = {"sequences": 10_000, "timed_sequences": 10_000, "length": 100, "dimension": 5, "epochs": 200}
_STEP_SIZE = 1e-4
_PORT_EPOCHS = 2
_PROTOCOL = (
    "A sweep trains one layer from several starts on the same {sequences:,} sequences of {length} tokens with "
    "{dimension} coordinates, for {epochs} epochs of full-batch gradient descent with all blocks. jaxgen's time is "
    "that of the whole of it, from the sequences as arrays to every start's last parameters: the correlations of all "
    "features, once, and the descents side by side; only compiling is left out. The peer is the training loop of the "
    "official code, restated in torch: two epochs from one start are timed with each number of threads, {threads}, "
    "after one on a few sequences, and its sweep takes the time of the faster as often as it has epochs and starts. "
    "Epochs and correlations are timed on {timed_sequences:,} sequences and scaled up to all in proportion. jaxgen may "
    "use every core; the sides take turns. {units}"
)
_UNITS = {
    True: "Each repetition is a process of its own, and these are the units of the test.",
    False: "All repetitions are of one process, and these are the units of the test.",
}
_T = TypeVar("_T")


class Seconds(NamedTuple):
    """What one repetition took, in seconds.

    Attributes:
        epoch: one epoch of the peer from one start, for each number of threads.
        correlations: of jaxgen, which serve every start.
        descents: all epochs of jaxgen, for each number of starts.
    """

    epoch: dict[int, float]
    correlations: float
    descents: dict[int, float]

    def ratio(self, starts: int, epochs: int, times: float) -> float:
        """Return the time of the peer over that of jaxgen for a sweep with `times` as many sequences as were timed."""
        theirs = starts * epochs * times * min(self.epoch.values())
        return theirs / (times * self.correlations + self.descents[starts])


def starts(count: int) -> np.ndarray:
    """Return (a, b) of `count` diagonal starts, `[count, 2]`: the paper's three, then others between them."""
    others = np.random.default_rng(0).uniform(0.1, 2.0, (count, 2))
    others[: len(_PAPER_STARTS)] = _PAPER_STARTS[:count]
    return others.astype(np.float32)


@partial(jax.jit, static_argnames="block")
def correlate(x: Complex[Array, "batch time dim"], *, block: int) -> Correlations:
    """Return the correlations of all 8 d^3 features, block by block, so that the features of one stay in the cache."""

    def take(key: Array, block: int, first: Array) -> Array:
        del key  # the sequences are given
        return jax.lax.dynamic_slice_in_dim(x, first, block)

    return mean_over_draws(partial(sample_correlations, full=True), jax.random.key(0), take, len(x), block=block)


@partial(jax.jit, static_argnames="epochs")
def descend(correlations: Correlations, starts: Array, *, epochs: int) -> Descent:
    """Train from each start, `[starts, 2]`."""
    dimension = len(correlations.cross)

    def loss(params: Params) -> Array:
        return jnp.asarray(quartic_loss(params, correlations))

    def train(start: Array) -> Descent:
        params = diagonal_params(start[0], start[1], dimension)
        return gradient_descent(loss, params, optax.sgd(_STEP_SIZE), epochs)

    return jax.vmap(train)(starts)


def port_of(x: np.ndarray, start: np.ndarray, *, real: bool = False) -> Port:
    """Set the peer up on the same sequences, from one of the starts; with complex parameters unless `real`."""
    params = diagonal_params(float(start[0]), float(start[1]), x.shape[-1])
    return attention_port(x, np.asarray(params["kq"]), np.asarray(params["pv"]), _STEP_SIZE, real=real)


def measure(config: Any, run: RunDirectory) -> None:
    """Measure and record every claim of this group, on the CPU; nothing at `gpu`, where the claims say why.

    Raises:
        Interrupted: a signal came; a resumed run measures anew.
    """
    if run.preset == "gpu":
        return
    sizes = config.flows
    found, seconds = _measure(config, run)
    if isinstance(found, str):
        for claim in COUNTS:
            run.not_run(claim, found)
        return
    times = sizes.sequences / sizes.timed_sequences
    targets = {count: TARGETS[claim] for claim, counts in COUNTS.items() for count in counts}
    ratios = {count: np.array([of.ratio(count, sizes.epochs, times) for of in found]) for count in targets}
    told = " ".join(filter(None, (_told(sizes.timed_sequences, found), _check(sizes, run, ratios))))
    full = all(getattr(sizes, name) == size for name, size in _PAPER_SIZES.items())
    for claim, counts in COUNTS.items():
        cells = [Cell(f"{count} starts", values=ratios[count]) for count in counts]
        run.record(claim, cells, seconds=seconds, scale="full" if full else "reduced", reason=told)
    run.note(_PROTOCOL.format(**dataclasses.asdict(sizes), units=_UNITS[config.isolated]))
    run.note(told)
    run.arrays(
        flow_starts=list(ratios),
        flow_ratios=np.stack(list(ratios.values())),
        flow_threads=sizes.threads,
        flow_seconds_epoch=[list(of.epoch.values()) for of in found],
        flow_seconds_correlations=[of.correlations for of in found],
        flow_seconds_descents=[list(of.descents.values()) for of in found],
    )
    figures.sweeps(run, ratios, targets, sizes.sequences)


def _measure(config: Any, run: RunDirectory) -> tuple[list[Seconds] | str, float]:
    """Return every repetition, or why there is none, and how long measuring took."""
    began, found = time.perf_counter(), []
    with run.progress(config.repetitions, "timing sweeps") as progress:

        def on_repetition(count: int) -> None:
            progress.update(count)
            if run.stop():
                raise Interrupted

        if not config.isolated:
            there = time_sweeps(config.flows, run.seed, config.repetitions, on_repetition=on_repetition)
            return there, time.perf_counter() - began
        for number in range(config.repetitions):
            once = in_process(run.stop, _time_once, config.flows, run.seed, number)
            if isinstance(once, str):
                return once, 0.0
            found += once
            progress.update(number + 1)
    return found, time.perf_counter() - began


def _time_once(sizes: Any, seed: int, number: int, sequences: int | None = None) -> list[Seconds] | str:
    compilation_cache.enable()
    return time_sweeps(sizes, seed, 1, first=number, sequences=sequences)


def time_sweeps(
    sizes: Any,
    seed: int,
    repetitions: int,
    *,
    first: int = 0,
    sequences: int | None = None,
    on_repetition: Callable[[int], None] = lambda count: None,
) -> list[Seconds] | str:
    """Time both sides in turns in this process; they compute on the CPU.

    Args:
        sizes: `FlowSizes`.
        seed: of the sequences.
        repetitions: how many times.
        first: number of the first repetition; the side that goes first alternates.
        sequences: how many, `timed_sequences` where None.
        on_repetition: called with the number of finished repetitions after each; may raise.

    Returns:
        The seconds of each repetition, or what is missing here.
    """
    count = sizes.timed_sequences if sequences is None else sequences
    with jax.default_device(jax.devices("cpu")[0]):
        draw = jax.jit(lambda key: sample_sequences(key, gaussian_start(), count, sizes.length, sizes.dimension))
        x, first_start = np.asarray(draw(jax.random.key(seed))), starts(1)[0]
        try:
            few, port = (port_of(part, first_start) for part in (x[: sizes.block], x))
        except ImportError as error:
            return str(error)
        for threads in sizes.threads:
            few.epoch(threads)

        def theirs() -> dict[int, float]:
            return {n: _clock(lambda n=n: [port.epoch(n) for _ in range(_PORT_EPOCHS)])[0] for n in sizes.threads}

        ours = _compiled(x, sizes)
        found = []
        with _no_collection():
            for number in range(first, first + repetitions):
                if number % 2:
                    epochs, there = theirs(), ours()
                else:
                    there, epochs = ours(), theirs()
                found.append(Seconds({n: taken / _PORT_EPOCHS for n, taken in epochs.items()}, *there))
                on_repetition(len(found))
    return found


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage now and not in the middle of a call, of whose time it would be counted as a part."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _compiled(x: np.ndarray, sizes: Any) -> Callable[[], tuple[float, dict[int, float]]]:
    """Compile jaxgen's route, and return what times it: seconds of the correlations, and of each sweep after them."""
    given = {count: starts(count) for counts in COUNTS.values() for count in counts}
    correlations_of = correlate.lower(x, block=sizes.block).compile()
    shapes = jax.eval_shape(partial(correlate, block=sizes.block), x)
    descents_of = {count: descend.lower(shapes, of, epochs=sizes.epochs).compile() for count, of in given.items()}

    def timed() -> tuple[float, dict[int, float]]:
        seconds, correlations = _clock(lambda: jax.block_until_ready(correlations_of(x)))
        descents = {
            count: _clock(lambda count=count: jax.device_get(descents_of[count](correlations, given[count])))[0]
            for count in given
        }
        return seconds, descents

    return timed


def _clock(call: Callable[[], _T]) -> tuple[float, _T]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _check(sizes: Any, run: RunDirectory, ratios: dict[int, np.ndarray]) -> str:
    """Measure once on all sequences, and tell what became of the ratios."""
    if not sizes.check or sizes.sequences == sizes.timed_sequences:
        return ""
    once = in_process(run.stop, _time_once, sizes, run.seed, 0, sizes.sequences)
    if isinstance(once, str):
        raise RuntimeError(f"torch was there for the repetitions and then missing: {once}")
    found = {count: once[0].ratio(count, sizes.epochs, 1.0) for count in ratios}
    run.arrays(
        flow_check_ratios=list(found.values()),
        flow_check_seconds_epoch=list(once[0].epoch.values()),
        flow_check_seconds_correlations=once[0].correlations,
    )
    told = ", ".join(f"{found[count]:.4g} ({ratios[count].mean():.4g}) with {count} starts" for count in ratios)
    return (
        f"Measured once on all {sizes.sequences:,} sequences the ratios are {told}, in brackets the means that were "
        f"scaled up. {_told(sizes.sequences, once)}"
    )


def _told(sequences: int, found: Sequence[Seconds]) -> str:
    def listed(name: str, unit: str) -> str:
        columns = [getattr(of, name) for of in found]
        return ", ".join(f"{np.median([of[n] for of in columns]):.3g} ({n} {unit})" for n in columns[0])

    return (
        f"On {sequences:,} sequences an epoch of the peer took {listed('epoch', 'threads')} s, the correlations "
        f"{np.median([of.correlations for of in found]):.3g} s, the descents {listed('descents', 'starts')} s"
        f"{', medians' if len(found) > 1 else ''}."
    )
