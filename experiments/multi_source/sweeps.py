"""The simulations of the paper: data sets of conditional Gaussians, fitted with and without a shared mean.

Every replicate is a data set of its own. Both arms are fitted on it and measured twice: by the exact total variation
of the fitted Gaussians, and by the paper's Monte-Carlo ratio on fresh points.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from experiments.devices import mesh_of
from experiments.multi_source import figures_sweeps, judging_sweeps, references
from experiments.multi_source.references import Setting
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.statistics.conditional_mle import gaussian_mle, sample_sources
from jaxgen.statistics.expected_tv import expected_average_tv
from jaxgen.statistics.total_variation import tv_gaussian, tv_mc_ratio
from jaxgen.training import batch_sharding
from jaxgen.typing import PRNGKey

BLOCK = 25
"""Replicates that one device holds at once. Fixed, since the last bits depend on it: nothing else changes them."""
_ARMS = (False, True)  # whether the arm shares: separate models, then the shared one


class Problem(NamedTuple):
    """What the data come from; arrays, so that one program serves all settings with as many samples.

    Attributes:
        means: true means; sources that a setting does not have are there with the probability 0.
        p_y: probabilities of the sources.
        shared_mask: which coordinates the shared model takes to have one mean for all sources.
    """

    means: Float[Array, "sources dim"]
    p_y: Float[Array, " sources"]
    shared_mask: Bool[Array, " dim"]


class Points(NamedTuple):
    """Samples and the sources that they come from."""

    x: Float[Array, "points dim"]
    y: Int[Array, " points"]


class Errors(NamedTuple):
    """Total variations of replicates to the truth, averaged over the sources; columns: separate models, shared model.

    Attributes:
        exact: of the fitted Gaussians.
        paper: the paper's estimate of it on fresh points.
        unseen: how many sources had no sample.
    """

    exact: Float[Array, "*replicates 2"]
    paper: Float[Array, "*replicates 2"]
    unseen: Int[Array, "*replicates"]


class Simulated(NamedTuple):
    """The same on the host, in float64, of all replicates of a setting."""

    exact: Float[np.ndarray, "replicates 2"]
    paper: Float[np.ndarray, "replicates 2"]
    unseen: Float[np.ndarray, " replicates"]


class Sweeps(NamedTuple):
    """What was found at each setting.

    Attributes:
        errors: the simulations.
        exact: expectations of `errors.exact` that no simulation enters, in float64.
    """

    errors: dict[Setting, Simulated]
    exact: dict[Setting, Float[np.ndarray, "2"]]


def problem_of(setting: Setting, rows: int | None = None) -> Problem:
    """Build the sources of a setting, as the first of `rows` sources where a number is given."""
    rows = setting.sources if rows is None else rows
    p_y = np.zeros(rows, np.float32)
    p_y[: setting.sources] = 1.0 / setting.sources
    means = np.zeros((rows, references.DIMENSION), np.float32)
    means[: setting.sources] = references.source_means(setting.sources, setting.dim_shared)
    shared_mask = np.arange(references.DIMENSION) >= setting.dim_specific
    return Problem(jnp.asarray(means), jnp.asarray(p_y), jnp.asarray(shared_mask))


def errors_of(train: Points, test: Points, problem: Problem) -> Errors:
    """Fit both arms on one sample, and measure them exactly and on the test points as the paper does."""
    sources = len(problem.p_y)
    fit = partial(gaussian_mle, train.x, train.y, sources, problem.shared_mask, allow_empty=True)
    arms = jnp.stack([fit(shared=shared).means for shared in _ARMS])
    log_p = _log_density(test, problem.means)

    def of_an_arm(means: Array) -> tuple[Array, Array]:
        distance = jnp.sqrt(jnp.sum((means - problem.means) ** 2, axis=1))
        return jnp.sum(problem.p_y * tv_gaussian(distance)), tv_mc_ratio(_log_density(test, means), log_p)

    unseen = jnp.sum((problem.p_y > 0) & (jnp.bincount(train.y, length=sources) == 0))
    # Both arms by one operation, so that equal fits have equal errors.
    return Errors(*jax.vmap(of_an_arm)(arms), unseen)


def draw(key: PRNGKey, problem: Problem, samples: int, test_points: int) -> tuple[Points, Points]:
    """Draw a sample and fresh points of one replicate; the key is consumed."""
    x, y = sample_sources(key, problem.means, problem.p_y, samples + test_points)
    return Points(x[:samples], y[:samples]), Points(x[samples:], y[samples:])


@partial(jax.jit, static_argnames=("samples", "test_points", "mesh"))
def simulate(
    key: PRNGKey,
    replicates: Int[Array, " replicates"],
    problem: Problem,
    *,
    samples: int,
    test_points: int,
    mesh: Mesh,
) -> Errors:
    """Draw and fit replicates, each of the key of its number: what comes of one does not depend on the others.

    Args:
        key: of the setting.
        replicates: numbers of the replicates, a multiple of `BLOCK` on each device of the mesh's data axis.
        problem: the sources.
        samples: of a data set.
        test_points: of the paper's estimate.
        mesh: shares the replicates out.
    """

    def one(key: PRNGKey, problem: Problem, replicate: Array) -> Errors:
        return errors_of(*draw(jax.random.fold_in(key, replicate), problem, samples, test_points), problem)

    def of_a_device(key: PRNGKey, problem: Problem, replicates: Array) -> Errors:
        # Blocks of a fixed shape on every device: the same program, and so the same bits, on any number of them.
        return jax.lax.map(partial(one, key, problem), replicates, batch_size=BLOCK)

    split, whole = batch_sharding(mesh).spec, PartitionSpec()
    share = jax.shard_map(of_a_device, mesh=mesh, in_specs=(whole, whole, split), out_specs=split)
    return share(key, problem, replicates)


def measure(config: Any, run: RunDirectory) -> None:
    """Simulate the three sweeps and record what they say."""
    began = time.perf_counter()
    key = jax.random.key(run.seed)
    errors = simulate_all(config, run, key)
    sweeps = Sweeps(errors, {setting: expectation(setting) for setting in references.settings()})
    judging_sweeps.record(config, run, sweeps, time.perf_counter() - began)
    figures_sweeps.draw(run, sweeps, curves())


def simulate_all(config: Any, run: RunDirectory, key: PRNGKey) -> dict[Setting, Simulated]:
    """Simulate every setting, `config.chunk` replicates a call.

    Raises:
        Interrupted: a signal came.
    """
    settings, found = references.settings(), {}
    mesh, rows = mesh_of(run), max(setting.sources for setting in settings)
    with run.progress(len(settings), "Gaussian sweeps") as progress:
        for number, (setting, own) in enumerate(zip(settings, setting_keys(key, settings), strict=True), start=1):
            parts = []
            for replicates in _chunks(config.replicates, config.chunk, mesh):
                if run.stop():
                    raise Interrupted
                sizes = {"samples": setting.samples, "test_points": config.test_points}
                parts.append(simulate(own, replicates, problem_of(setting, rows), **sizes, mesh=mesh))
            whole = zip(*jax.device_get(parts), strict=True)
            joined = (np.concatenate(part)[: config.replicates] for part in whole)
            found[setting] = Simulated(*(np.asarray(part, np.float64) for part in joined))
            progress.update(number, tv=float(found[setting].exact.mean()))
    return found


def setting_keys(key: PRNGKey, settings: list[Setting]) -> Iterator[PRNGKey]:
    """Yield the key of each setting; all of the sweep over similarity have one, so that they use the same numbers."""
    common = next(number for number, setting in enumerate(settings) if setting.sweep == "sim")
    for number in range(len(settings)):
        yield jax.random.fold_in(key, min(number, common))


def expectation(setting: Setting) -> np.ndarray:
    """Return the exact expectations of both arms, `[2]`, in float64."""
    with jax.enable_x64(True):
        # With sources of probability 0, so that fewer programs are compiled.
        p_y = np.zeros(max(setting.sources, max(references.SWEEPS["K"])))
        p_y[: setting.sources] = 1.0 / setting.sources
        dims = setting.dim_specific, setting.dim_shared
        return np.array([expected_average_tv(setting.samples, p_y, *dims, shared=shared) for shared in _ARMS])


def curves() -> dict[str, tuple[list[Setting], np.ndarray]]:
    """Return settings all along each sweep, with the exact expectations `[settings, 2]`."""
    base = references.SOURCES, references.SAMPLES, references.SIMILARITY
    along = {
        "K": [Setting("K", count, *base[1:]) for count in range(1, 16)],
        "n": [Setting("n", base[0], n, base[2]) for n in (100, 200, 300, 500, 1000, 2000, 5000)],
        "sim": [Setting("sim", *base[:2], share / 10) for share in range(11)],
    }
    return {sweep: (of, np.array([expectation(setting) for setting in of])) for sweep, of in along.items()}


def _chunks(replicates: int, chunk: int, mesh: Mesh) -> Iterator[Array]:
    """Yield the numbers of the replicates, in arrays of one size that the devices share, the last of them too long."""
    sharding = batch_sharding(mesh)
    least = BLOCK * mesh.shape.get("data", 1)
    size = -(-chunk // least) * least
    for first in range(0, replicates, size):
        yield jax.device_put(np.arange(first, first + size, dtype=np.int32), sharding)


def _log_density(points: Points, means: Float[Array, "sources dim"]) -> Float[Array, " points"]:
    """Return log N(x; mean of the source, I) up to the constant, which every density here has."""
    return -0.5 * jnp.sum((points.x - means[points.y]) ** 2, axis=1)
