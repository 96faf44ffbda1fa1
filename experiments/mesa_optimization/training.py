"""Gradient descent on sampled sequences at the paper's settings: trained here, resumed, or taken from another run.

The correlations of a training set are formed once, over all blocks of the parameters; after that a step of full-batch
gradient descent is exact and does not look at a sequence. Whole parameter trajectories are kept in `checkpoints/`.
"""

import io
import json
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from experiments import configuration
from experiments.devices import check_divides, mesh_of
from experiments.files import write_whole
from experiments.mesa_optimization import references
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.flows import (
    Correlations,
    Ones,
    StartLaw,
    feature_weights,
    gaussian_start,
    gradient_descent,
    last_ratio,
    mean_over_draws,
    one_hot_correlations,
    one_hot_start,
    quartic_loss,
    sample_correlations,
    sample_sequences,
    sample_starts,
    sequences_from,
)
from jaxgen.models import diagonal_params, gaussian_params
from jaxgen.training import batch_sharding
from jaxgen.typing import Params, PRNGKey, Scalar

_TRAINED_BY = ("dimension", "length", "small_length", "sequences", "epochs", "seeds", "block_size", "test_lengths")
TABLES = ("gaussian", "sparse", "ones", "small")
MASKED = "masked"


class Runs(NamedTuple):
    """What is trained on one training set, one descent a row.

    Attributes:
        names: of the rows.
        starts: initial parameters of the rows, `[rows, ...]`.
        scales: what every token is multiplied by, `[rows]`.
        step_sizes: `[rows]`.
        masks: ones, or zeros where the gradient is masked, `[rows, ...]`.
    """

    names: tuple[str, ...]
    starts: Params
    scales: Float[np.ndarray, " rows"]
    step_sizes: Float[np.ndarray, " rows"]
    masks: Params


class Trained(NamedTuple):
    """What came of the descents of one table, over all seeds.

    Attributes:
        names: of the rows.
        kq: W^KQ at the epochs 0 ... epochs, `[seeds, rows, epochs + 1, 2d, 2d]`.
        pv: W^PV, `[seeds, rows, epochs + 1, d, 2d]`.
        losses: on the training set, `[seeds, rows, epochs + 1]`.
        ratios: mean ratio of prediction to target at the last position of the test sequences of each length, with
            targets of 0 left out, `[seeds, lengths, rows, epochs + 1]`; of Gaussian tokens, no lengths elsewhere.
        test_losses: on the test set, `[seeds, rows, epochs + 1]`; NaN where it was not measured.
        seconds: what the correlations and the descents of a seed took, `[seeds]`.
    """

    names: tuple[str, ...]
    kq: np.ndarray
    pv: np.ndarray
    losses: np.ndarray
    ratios: np.ndarray
    test_losses: np.ndarray
    seconds: np.ndarray

    def row(self, name: str) -> int:
        """Return the number of a row."""
        return self.names.index(name)

    def sector(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return W32 and W12 of a row, each `[seeds, epochs + 1, d, d]`."""
        d, row = self.pv.shape[-2], self.row(name)
        return self.kq[:, row, :, d:, :d], self.pv[:, row, :, :, :d]

    def products(self, name: str) -> Float[np.ndarray, "seeds epochs dim"]:
        """Return (W32)_jj (W12)_jj."""
        return np.prod([np.diagonal(block, axis1=-2, axis2=-1) for block in self.sector(name)], axis=0)


def start_name(start: tuple[float, float]) -> str:
    """Name a diagonal start."""
    return f"({start[0]:g}, {start[1]:g})"


def law_of(table: str) -> StartLaw:
    """Return the law of the first token at scale 1."""
    return {"gaussian": gaussian_start(), "small": gaussian_start(), "sparse": one_hot_start(), "ones": Ones()}[table]


def check(config: Any, run: RunDirectory) -> None:
    """Refuse a block that the devices cannot share, and a run that trained otherwise.

    Raises:
        ValueError: names the field and the mend.
    """
    check_divides(run, block_size=config.block_size)
    if run.source is None:
        return
    stored, asked = configuration.read_run(run.source), configuration.to_json(config)
    before = {name: stored["config"].get(name) for name in _TRAINED_BY} | {"seed": stored["seed"]}
    wanted = {name: asked[name] for name in _TRAINED_BY} | {"seed": run.seed}
    if found := configuration.differences(before, wanted):
        raise ValueError(f"--from {run.source} takes what was trained as it is, but {'; '.join(found)}")
    if missing := [name for name in _files(config) if not (run.source / "checkpoints" / name).is_file()]:
        raise ValueError(f"{run.source} holds no checkpoints/{missing[0]}; name a run that has finished its training")


def obtain(config: Any, run: RunDirectory) -> Mapping[str, Trained]:
    """Train every table on every seed, or read what the run to resume, or the one that `--from` names, has trained.

    Raises:
        Interrupted: a signal came; what was trained so far is saved.
        FloatingPointError: a loss is not finite; names the epoch and the settings.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {table: [] for table in TABLES}
    with run.progress(len(TABLES) * config.seeds, "training on samples") as progress, jax.enable_x64(True):
        for number, name in enumerate(_files(config), start=1):
            table, seed = name.removesuffix(".npz").rsplit("-", 1)
            if run.stop():
                raise Interrupted
            path = (run.source or run.path) / "checkpoints" / name
            if (run.source is None and not run.resumed) or not path.is_file():
                _save(run.checkpoints / name, _train_seed(config, run, table, int(seed)), _stamp(config, run))
                path = run.checkpoints / name
            found[table].append(_load(path, _stamp(config, run)))
            progress.update(number)
    return {
        table: Trained(
            _runs(config, table, jax.random.key(0)).names,
            *(np.stack([of[field] for of in seeds]) for field in Trained._fields[1:]),
        )
        for table, seeds in found.items()
    }


def descend(correlations: Correlations, runs: Runs, epochs: int) -> tuple[Params, Float[Array, "rows epochs"]]:
    """Train all rows side by side on one training set; the trajectories and the losses."""
    # The names stay outside of the compiled function.
    return _descend(correlations, tuple(runs[1:]), epochs)


@partial(jax.jit, static_argnames=("epochs",))
def _descend(correlations: Correlations, rows: tuple, epochs: int) -> tuple[Params, Array]:
    def one(start: Params, scale: Scalar, step_size: Scalar, mask: Params) -> tuple[Params, Array]:
        loss = partial(scaled_loss, correlations=correlations, scale=scale)
        descent = gradient_descent(loss, start, optax.sgd(step_size), epochs, mask=mask)
        return descent.observed, (descent.losses, descent.first_bad)

    observed, (losses, bad) = jax.vmap(one)(*rows)
    return observed, jnp.where(bad[:, None] >= 0, jnp.nan, losses)


def scaled_loss(params: Params, correlations: Correlations, scale: Scalar) -> Scalar:
    """Return the loss on the sequences with every token multiplied by `scale`, without copying the correlations.

    Predictions of scaled tokens are the scale times those of a layer whose two matrices are multiplied by it.
    """
    return scale**2 * quartic_loss(jax.tree.map(lambda leaf: scale * leaf, params), correlations)


def correlations_of(
    config: Any, run: RunDirectory, key: PRNGKey, law: StartLaw, count: int, *, length: int, full: bool = True
) -> Correlations:
    """Draw a training set in single precision and return its correlations, summed in double."""
    starts = _draw_starts(key, law, count=count, dimension=config.dimension)
    return _correlate(
        key, starts, length=length, block=config.block_size, full=full, sharding=batch_sharding(mesh_of(run))
    )


# The first tokens are arguments, so that one program serves all laws.
@partial(jax.jit, static_argnames=("length", "block", "full", "sharding"))
def _correlate(
    key: PRNGKey,
    starts: Float[Array, "count dim"],
    *,
    length: int,
    block: int,
    full: bool,
    sharding: NamedSharding,
) -> Correlations:
    statistic = partial(sample_correlations, full=full)
    return mean_over_draws(statistic, key, _drawing(starts, length), len(starts), block=block, sharding=sharding)


@partial(jax.jit, static_argnames=("count", "dimension"))
def _draw_starts(key: PRNGKey, law: StartLaw, *, count: int, dimension: int) -> Float[Array, "count dim"]:
    """Draw first tokens in single precision."""
    return sample_starts(key, law, count, dimension).astype(jnp.float32)


def _drawing(starts: Float[Array, "count dim"], length: int) -> Callable[[PRNGKey, int, Array], Array]:
    """Draw a block of the sequences with these first tokens."""

    def draw(key: PRNGKey, block: int, first: Array) -> Array:
        chosen = jax.lax.dynamic_slice_in_dim(starts, first, block)
        return sequences_from(key, chosen, length, first=first)

    return draw


def key_of(run: RunDirectory, name: str, seed: int) -> PRNGKey:
    """Return the key of one purpose and seed of a run."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(run.seed), zlib.crc32(name.encode())), seed)


def _files(config: Any) -> list[str]:
    return [f"{table}-{seed}.npz" for seed in range(config.seeds) for table in TABLES]


def _train_seed(config: Any, run: RunDirectory, table: str, seed: int) -> dict[str, np.ndarray]:
    began = time.perf_counter()
    train_key, test_key, start_key = jax.random.split(key_of(run, table, seed), 3)
    law, runs = law_of(table), _runs(config, table, start_key)
    length = config.small_length if table == "small" else config.length
    test_losses = np.full((len(runs.names), config.epochs + 1), np.nan)
    if table == "sparse":
        train, test = (
            one_hot_correlations(sample_sequences(key, law, config.sequences, length, config.dimension), full=True)
            for key in (train_key, test_key)
        )
    else:
        train, test = correlations_of(config, run, train_key, law, config.sequences, length=length), None
    observed, losses = jax.block_until_ready(descend(train, runs, config.epochs))
    seconds = time.perf_counter() - began
    losses = np.asarray(losses)
    _require_finite(losses, runs, table, seed)
    # What is measured is measured from what is kept.
    kept = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), observed)
    if test is not None:
        test_losses = np.asarray(_losses_along(kept, test, runs.scales))
    lengths = config.test_lengths if table == "gaussian" else ()
    ratios = np.zeros((0, *losses.shape))
    if lengths:
        ratios = np.stack([_ratios(config, test_key, law, kept, runs.scales, length) for length in lengths])
    return {
        **{"kq": kept["kq"], "pv": kept["pv"], "losses": losses, "ratios": ratios},
        **{"test_losses": test_losses, "seconds": np.array(seconds)},
    }


def _runs(config: Any, table: str, key: PRNGKey) -> Runs:
    """List what is trained: the paper's diagonal starts at its scales and steps, and Gaussian starts at one scale."""
    d, rows = config.dimension, []
    ones = {"kq": jnp.ones((2 * d, 2 * d)), "pv": jnp.ones((d, 2 * d))}

    def add(name: str, start: Params, scale: float, step: float, mask: Params = ones) -> None:
        rows.append((name, start, scale, step, mask))

    if table in ("gaussian", "sparse"):
        steps = references.GAUSSIAN_STEPS if table == "gaussian" else references.SPARSE_STEPS
        for scale, step in zip(references.SCALES, steps, strict=True):
            for start in references.STARTS:
                add(f"scale {scale:g}, {start_name(start)}", diagonal_params(*start, d), scale, step)
        for number, std in enumerate(references.INITIAL_STDS):
            drawn = gaussian_params(jax.random.fold_in(key, number), d, std)
            add(f"std {std:g}", drawn, 1.0, references.GAUSSIAN_START_STEPS[table])
    else:
        step = references.SMALL_STEP if table == "small" else references.ONES_STEP
        for start in references.STARTS:
            add(start_name(start), diagonal_params(*start, d), 1.0, step)
        if table == "ones":
            for start in references.STARTS:
                add(f"{MASKED}, {start_name(start)}", diagonal_params(*start, d), 1.0, step, _off_diagonals_masked(d))
    names, starts, scales, steps, masks = zip(*rows, strict=True)
    stack = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    return Runs(names, stack(*starts), np.array(scales), np.array(steps), stack(*masks))


def _off_diagonals_masked(d: int) -> Params:
    """Mask the off-diagonal entries of W32 and of W12, as the paper does, and nothing else."""
    kq, pv = np.ones((2 * d, 2 * d)), np.ones((d, 2 * d))
    kq[d:, :d] = pv[:, :d] = np.eye(d)
    return {"kq": jnp.asarray(kq), "pv": jnp.asarray(pv)}


@jax.jit
def _losses_along(observed: Params, test: Correlations, scales: Array) -> Float[Array, "rows epochs"]:
    at_all = jax.vmap(scaled_loss, in_axes=(0, None, None))
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), observed)
    return jax.lax.map(lambda row: at_all(row[0], test, row[1]), (wide, jnp.asarray(scales)))


def _ratios(
    config: Any, key: PRNGKey, law: StartLaw, observed: Params, scales: np.ndarray, length: int
) -> Float[np.ndarray, "rows epochs"]:
    """Measure the ratio on test sequences of one length, for every row and epoch."""
    key = jax.random.fold_in(key, length)
    starts = _draw_starts(key, law, count=config.sequences, dimension=config.dimension)
    ratio, present = _measure_ratio(key, starts, length=length, block=config.block_size)
    return np.asarray(_ratios_along(observed, jnp.asarray(scales), ratio, present))


@partial(jax.jit, static_argnames=("length", "block"))
def _measure_ratio(key: PRNGKey, starts: Array, *, length: int, block: int) -> tuple[Array, Array]:
    statistic = partial(last_ratio, full=True)
    return mean_over_draws(statistic, key, _drawing(starts, length), len(starts), block=block)


@jax.jit
def _ratios_along(observed: Params, scales: Array, ratio: Array, present: Array) -> Float[Array, "rows epochs"]:
    weights = lambda params: (feature_weights(params) * ratio).sum(axis=1) / present  # noqa: E731
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), observed)
    return jax.vmap(jax.vmap(weights))(wide).mean(axis=-1) * scales[:, None] ** 2


def _require_finite(losses: np.ndarray, runs: Runs, table: str, seed: int) -> None:
    for row, name in enumerate(runs.names):
        bad = ~np.isfinite(losses[row])
        if bad.any():
            raise FloatingPointError(
                f"the loss of {table}, {name}, seed {seed} is not finite at epoch {int(bad.argmax())} with step size "
                f"{runs.step_sizes[row]:g}: lower the step size"
            )


def _stamp(config: Any, run: RunDirectory) -> dict[str, Any]:
    asked = configuration.to_json(config)
    return {name: asked[name] for name in _TRAINED_BY} | {"seed": run.seed}


def _save(path: Any, found: Mapping[str, np.ndarray], stamp: Mapping[str, Any]) -> None:
    data = io.BytesIO()
    np.savez_compressed(data, allow_pickle=False, stamp=np.array(json.dumps(stamp, sort_keys=True)), **found)
    write_whole(path, data.getvalue())


def _load(path: Any, stamp: Mapping[str, Any]) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        found = dict(stored)
    if found.pop("stamp").item() != json.dumps(stamp, sort_keys=True):
        raise ValueError(f"{path} was trained with other settings; start a new run")
    return found
