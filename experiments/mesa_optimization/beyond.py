"""Processes that the theory does not cover: noise in every step, and W that is not diagonal."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from experiments.claims import Cell
from experiments.devices import mesh_of
from experiments.keys import key_of
from experiments.mesa_optimization import figures_beyond
from experiments.mesa_optimization.capability import train_sector
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.flows import (
    Correlations,
    feature_weights,
    gaussian_start,
    mean_over_draws,
    quartic_loss,
    sample_correlations,
    sample_haar_sequences,
    sample_noisy_sequences,
    start_at,
)
from jaxgen.training import batch_sharding
from jaxgen.typing import PRNGKey


class Process(NamedTuple):
    """A way to draw sequences, as a function of a noise level, and that level."""

    draw: Callable
    noise_std: float


_LAW = gaussian_start()
_DIAGONAL = partial(sample_noisy_sequences, law=_LAW)
_UNITARY = partial(sample_haar_sequences, law=_LAW)
_ORTHOGONAL = partial(sample_haar_sequences, law=_LAW, real=True)
PROCESSES: Mapping[str, Process] = {
    "diagonal W": Process(_DIAGONAL, 0.0),
    "diagonal W, noise .05": Process(_DIAGONAL, 0.05),
    "diagonal W, noise .2": Process(_DIAGONAL, 0.2),
    "unitary W": Process(_UNITARY, 0.0),
    "unitary W, noise .05": Process(_UNITARY, 0.05),
    "orthogonal W": Process(_ORTHOGONAL, 0.0),
}
_NEW = tuple(PROCESSES)[1:]


def measure(config: Any, run: RunDirectory) -> None:
    """Train W32 and W12 on sequences of each process, and compare the product with the formula on fresh sequences."""
    began = time.perf_counter()
    found = {name: np.zeros((config.seeds, 4)) for name in PROCESSES}
    with jax.enable_x64(True), run.progress(len(PROCESSES), "training on other processes") as progress:
        for number, (name, process) in enumerate(PROCESSES.items(), start=1):
            for seed in range(config.seeds):
                if run.stop():
                    raise Interrupted
                keys = jax.random.split(key_of(run, name, seed))
                train, fresh = (_correlations(config, run, process, key) for key in keys)
                found[name][seed] = _compare(train, fresh)
            progress.update(number)
    cells = [Cell(name, values=found[name][:, 0] / found[name][:, 1]) for name in _NEW]
    run.record("B18", cells, seconds=time.perf_counter() - began)
    run.arrays(process_names=list(PROCESSES), process_measured=np.stack(list(found.values())))
    figures_beyond.processes(run, found)


def _correlations(config: Any, run: RunDirectory, process: Process, key: PRNGKey) -> Correlations:
    sizes = {"count": config.process_sequences, "block": config.block_size}
    shape = {"length": config.length, "dimension": config.dimension}
    sharding = batch_sharding(mesh_of(run))
    return _correlate(key, jnp.asarray(process.noise_std), draw=process.draw, **sizes, **shape, sharding=sharding)


@partial(jax.jit, static_argnames=("draw", "count", "block", "length", "dimension", "sharding"))
def _correlate(
    key: PRNGKey,
    noise_std: Array,
    *,
    draw: Callable,
    count: int,
    block: int,
    length: int,
    dimension: int,
    sharding: NamedSharding,
) -> Correlations:
    """Return the correlations of W32 and W12 over sequences of a process, in single precision, summed in double."""

    def of_block(key: PRNGKey, block: int, first: Array) -> Array:
        x = draw(key, count=block, length=length, dimension=dimension, noise_std=noise_std, first=first)
        return x.astype(jnp.complex64)

    return mean_over_draws(sample_correlations, key, of_block, count, block=block, sharding=sharding)


@jax.jit
def _compare(train: Correlations, fresh: Correlations) -> Any:
    """Return the trained product, that of the formula on fresh sequences, the share of W32 off its diagonal, R^2."""
    d = train.cross.shape[0]
    c1, c2 = _rates(train)
    params = train_sector(train, c1, c2)
    product = (jnp.diagonal(params["kq"]) * jnp.diagonal(params["pv"])).mean()
    fresh_c1, fresh_c2 = _rates(fresh)
    off = params["kq"] * (1.0 - jnp.eye(d))
    share = jnp.linalg.norm(off) / jnp.linalg.norm(params["kq"])
    return jnp.stack([product, fresh_c2 / fresh_c1, share, 1.0 - quartic_loss(params, fresh) / fresh.constant])


def _rates(correlations: Correlations) -> tuple[Any, Any]:
    """Return c1 and c2 of the loss of W32 = a I, W12 = b I: d (constant + c1 u^2 / 2 - c2 u) with u = ab."""
    d = correlations.cross.shape[0]
    weights = feature_weights(start_at(1.0, 1.0, d))
    return (weights * (weights @ correlations.gram)).sum() / d, (weights * correlations.cross).sum() / d
