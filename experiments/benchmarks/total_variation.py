"""The benchmark of the Gaussian simulations: data sets in one program against the per-point loop of the official code.

The peer is that of Wang et al. 2025 (ML-GSAI/Multi-Souce-GM), restated in torch: for every test point and every law it
builds one `torch.distributions.MultivariateNormal` and takes the exponential of its log density. Left out, to its
favour, is that it draws and fits the data set, which jaxgen's time holds, and records a graph for gradients.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from experiments import compilation_cache
from experiments.benchmarks.processes import in_process
from experiments.benchmarks.timing import Timing, compare
from experiments.claims import Cell
from experiments.multi_source import references, sweeps
from experiments.multi_source.references import Setting
from experiments.run_directory import RunDirectory
from jaxgen.training import make_mesh

CLAIM = "P11"
MISSING = "needs torch, which is not installed here: pip install -e '.[peers]'"
SETTING = Setting("K", references.SOURCES, references.SAMPLES, references.SIMILARITY)
_PROTOCOL = (
    "A replicate is a data set of {samples} samples of {sources} sources in {dimension} dimensions, fitted with and "
    "without a shared mean, and the paper's estimate of both total variations on {points} fresh points. jaxgen's time "
    "is that of {replicates} replicates from the key to the estimates, over their number; that of the peer is one "
    "estimate of both on {timed_points} points, scaled up in proportion. The sides take turns; jaxgen may use every "
    "core, torch has one thread. {units}"
)
_UNITS = {
    True: "Each repetition is a process of its own, and these are the units of the test.",
    False: "All repetitions are of one process, and these are the units of the test.",
}


class Sample(NamedTuple):
    """One data set as numpy arrays, with what was fitted to it.

    Attributes:
        x: test points.
        y: the source of each.
        truth: true means.
        single: means of separate models.
        multi: means of the shared model.
    """

    x: Float[np.ndarray, "points dim"]
    y: np.ndarray
    truth: Float[np.ndarray, "sources dim"]
    single: Float[np.ndarray, "sources dim"]
    multi: Float[np.ndarray, "sources dim"]


def per_point_loop(sample: Sample) -> Callable[[], Float[np.ndarray, "2"]]:
    """Build the estimate of both total variations, point by point, with one thread of torch from now on.

    Returns:
        A function that estimates those of separate models and of the shared one.

    Raises:
        ImportError: torch is not installed; says so.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(MISSING) from None
    torch.set_num_threads(1)
    x, truth, *fitted = (torch.from_numpy(np.array(part)) for part in (sample.x, *sample[2:]))
    labels, covariance = sample.y.tolist(), torch.eye(x.shape[1])

    def densities(means: Any) -> Any:
        found = torch.zeros(len(x))
        for i, label in enumerate(labels):
            law = torch.distributions.MultivariateNormal(means[label], covariance_matrix=covariance)
            found[i] = law.log_prob(x[i]).exp()
        return found

    def estimate() -> Float[np.ndarray, "2"]:
        with torch.no_grad():
            estimated = [densities(means) for means in fitted]
            true = densities(truth)
            return np.array([0.5 * (density / true - 1.0).abs().mean().item() for density in estimated])

    return estimate


def sample_of(seed: int, setting: Setting, points: int) -> Sample:
    """Draw one data set and fit both arms as the official code does: class means, then the mean of all where shared."""
    problem = sweeps.problem_of(setting)
    draw = jax.jit(sweeps.draw, static_argnums=(2, 3))
    train, test = jax.device_get(draw(jax.random.key(seed), problem, setting.samples, points))
    single = np.stack([train.x[train.y == source].mean(axis=0) for source in range(setting.sources)])
    multi = np.where(np.asarray(problem.shared_mask), train.x.mean(axis=0), single)
    return Sample(test.x, test.y, np.asarray(problem.means), single, multi)


def measure(config: Any, run: RunDirectory) -> None:
    """Measure and record the claim of this group, on the CPU; nothing at `gpu`, where the claim says why."""
    if run.preset == "gpu":
        return
    sizes, began = config.simulations, time.perf_counter()
    timed = _timed(config, run)
    if isinstance(timed, str):
        run.not_run(CLAIM, timed)
        return
    ours, theirs = timed.ours / sizes.replicates, timed.theirs * sizes.points / sizes.timed_points
    told = (
        f"A replicate took {1e3 * np.median(theirs):.4g} ms with the per-point loop and {1e3 * np.median(ours):.3g} ms "
        "with jaxgen, medians."
    )
    cell = Cell("time of the peer / time of jaxgen, a replicate", values=theirs / ours)
    full = (sizes.points, sizes.timed_points) == (references.TEST_POINTS, references.TEST_POINTS)
    seconds = time.perf_counter() - began
    run.record(CLAIM, [cell], seconds=seconds, scale="full" if full else "reduced", reason=told)
    shape = {"samples": SETTING.samples, "sources": SETTING.sources, "dimension": references.DIMENSION}
    counts = {name: getattr(sizes, name) for name in ("points", "timed_points", "replicates")}
    run.note(_PROTOCOL.format(**shape, **counts, units=_UNITS[config.isolated]))
    run.note(told)
    run.arrays(simulation_seconds_ours=ours, simulation_seconds_theirs=theirs)


def _timed(config: Any, run: RunDirectory) -> Timing | str:
    """Return the times of every repetition, or what is missing here."""
    if not config.isolated:
        return time_replicates(config.simulations, run.seed, config.repetitions, config.seconds)
    found = []
    with run.progress(config.repetitions, "timing simulations") as progress:
        for number in range(config.repetitions):
            once = in_process(run.stop, _time_once, config.simulations, run.seed + number, config.seconds)
            if isinstance(once, str):
                return once
            found.append(once)
            progress.update(number + 1)
    return Timing(*(np.concatenate(side) for side in zip(*found, strict=True)))


def _time_once(sizes: Any, seed: int, seconds: float) -> Timing | str:
    compilation_cache.enable()
    return time_replicates(sizes, seed, 1, seconds)


def time_replicates(sizes: Any, seed: int, repetitions: int, seconds: float) -> Timing | str:
    """Time both sides in turns in this process; they compute on the CPU.

    Args:
        sizes: `SimulationSizes`.
        seed: of the data sets.
        repetitions: how many times.
        seconds: about how long a repetition takes.

    Returns:
        Seconds of all replicates of jaxgen, and of one estimate of the peer; or what is missing here.
    """
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        try:
            theirs = per_point_loop(sample_of(seed, SETTING, sizes.timed_points))
        except ImportError as error:
            return str(error)
        key, problem = jax.random.key(seed), sweeps.problem_of(SETTING)
        numbers = np.arange(sizes.replicates, dtype=np.int32)
        shape = {"samples": SETTING.samples, "test_points": sizes.points, "mesh": make_mesh({"data": 1}, [cpu])}
        program = sweeps.simulate.lower(key, numbers, problem, **shape).compile()
        return compare(
            lambda: jax.device_get(program(key, numbers, problem)), theirs, repetitions=repetitions, seconds=seconds
        )
