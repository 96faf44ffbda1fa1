"""Gradient descent on sampled sequences at the paper's settings: trained here, resumed, or taken from another run.

The correlations of a training set are formed once, over all blocks of the parameters; after that a step of full-batch
gradient descent is exact and does not look at a sequence. Whole parameter trajectories are kept in `checkpoints/`.
"""

import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
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
from experiments.keys import key_of
from experiments.mesa_optimization import references
from experiments.mesa_optimization.tables import TABLES, Runs, law_of, runs_of, seeds_of
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.flows import (
    Correlations,
    Descent,
    StartLaw,
    feature_weights,
    gradient_descent,
    last_ratio,
    mean_over_draws,
    one_hot_correlations,
    quartic_loss,
    require_finite,
    sample_correlations,
    sample_sequences,
    sample_starts,
    sequences_from,
)
from jaxgen.training import batch_sharding
from jaxgen.typing import Params, PRNGKey, Scalar

_TRAINED_BY = ("dimension", "length", "small_length", "sequences", "epochs", "seeds", "block_size", "test_lengths")
RATIO_FLOOR = 0.1  # of the scale of a token: smaller targets count as 0, .03 % of the mean of a Gaussian


class Trained(NamedTuple):
    """What came of the descents of one table, over all seeds.

    Attributes:
        names: of the rows.
        kq: W^KQ at the epochs 0 ... epochs, `[seeds, rows, epochs + 1, 2d, 2d]`.
        pv: W^PV, `[seeds, rows, epochs + 1, d, 2d]`.
        losses: on the training set, `[seeds, rows, epochs + 1]`.
        ratios: mean ratio of prediction to target at the last position of the test sequences of each length, in
            which targets below `RATIO_FLOOR` count as 0, `[seeds, lengths, rows, epochs + 1]`; of Gaussian tokens, no
            lengths elsewhere.
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


def scale_of(config: Any, sequences: int) -> str:
    """Return "full" where what is measured on so many sequences has the paper's size."""
    shape = config.dimension, config.length, config.small_length
    paper = references.DIMENSION, references.LENGTH, references.SMALL_LENGTH
    return "full" if shape == paper and sequences >= 10_000 and config.epochs >= references.EPOCHS else "reduced"


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
    stamps = {table: _stamp(config, run, table) for table in TABLES}
    for table, seed in _sets(config):
        path = _path(run.source, table, seed)
        if not path.is_file():
            raise ValueError(f"{run.source} holds no {path.name}; name a run that has finished its training")
        _load(path, stamps[table], fields=())


def obtain(config: Any, run: RunDirectory) -> Mapping[str, Trained]:
    """Train every table on every seed, or read what the run to resume, or the one that `--from` names, has trained.

    Raises:
        Interrupted: a signal came; what was trained so far is saved.
        FloatingPointError: a loss is not finite; names the epoch and the settings.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {table: [] for table in TABLES}
    sets, stamps = _sets(config), {table: _stamp(config, run, table) for table in TABLES}
    if run.resumed:
        run.resume_metrics(0)
    with run.progress(len(sets), "training on samples") as progress, jax.enable_x64(True):
        for number, (table, seed) in enumerate(sets, start=1):
            if run.stop():
                raise Interrupted
            path, stamp = _path(run.source or run.path, table, seed), stamps[table]
            if run.source is None and not (run.resumed and path.is_file()):
                _save(path, _train_seed(config, run, table, seed), stamp)
            one = _load(path, stamp, fields=Trained._fields[1:])
            found[table].append(one)
            run.metrics(number, **{f"{table}_loss": one["losses"][0, -1]})
            progress.update(number, **{f"{table}_loss": one["losses"][0, -1]})
    return {
        table: Trained(
            runs_of(config, table, jax.random.key(0)).names,
            *(np.stack([of[field] for of in seeds]) for field in Trained._fields[1:]),
        )
        for table, seeds in found.items()
    }


def descend(correlations: Correlations, runs: Runs, epochs: int) -> Descent:
    """Train all rows side by side on one training set; what is observed are the whole trajectories."""
    # The names stay outside of the compiled function.
    return _descend(correlations, tuple(runs[1:]), epochs)


@partial(jax.jit, static_argnames=("epochs",))
def _descend(correlations: Correlations, rows: tuple, epochs: int) -> Descent:
    def one(start: Params, scale: Array, step_size: Array, mask: Params) -> Descent:
        loss = partial(scaled_loss, correlations=correlations, scale=scale)
        return gradient_descent(loss, start, optax.sgd(step_size), epochs, mask=mask)

    return jax.vmap(one)(*rows)


def scaled_loss(params: Params, correlations: Correlations, scale: Scalar) -> Float[Array, ""]:
    """Return the loss on the sequences with every token multiplied by `scale`, without copying the correlations.

    Predictions of scaled tokens are the scale times those of a layer whose two matrices are multiplied by it.
    """
    scale = jnp.asarray(scale)
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


def _sets(config: Any) -> list[tuple[str, int]]:
    """List the training sets, a seed of every table after the other, so that each is soon seen."""
    most = max(seeds_of(config, table) for table in TABLES)
    return [(table, seed) for seed in range(most) for table in TABLES if seed < seeds_of(config, table)]


def _path(run: Path, table: str, seed: int) -> Path:
    return run / "checkpoints" / f"{table}-{seed}.npz"


def _train_seed(config: Any, run: RunDirectory, table: str, seed: int) -> dict[str, np.ndarray]:
    began = time.perf_counter()
    train_key, test_key, start_key = jax.random.split(key_of(run, table, seed), 3)
    law, runs = law_of(table), runs_of(config, table, start_key)
    length = config.small_length if table == "small" else config.length
    test_losses = np.full((len(runs.names), config.epochs + 1), np.nan)
    if table == "sparse":
        train, test = (
            one_hot_correlations(sample_sequences(key, law, config.sequences, length, config.dimension), full=True)
            for key in (train_key, test_key)
        )
    else:
        train, test = correlations_of(config, run, train_key, law, config.sequences, length=length), None
    descent = jax.block_until_ready(descend(train, runs, config.epochs))
    seconds = time.perf_counter() - began
    listed = "; ".join(
        f"{row}: {name}, step size {size:g}"
        for row, (name, size) in enumerate(zip(runs.names, runs.step_sizes, strict=True))
    )
    require_finite(descent, settings=f"{table}, seed {seed} ({listed})")
    observed, losses = descent.observed, np.asarray(descent.losses)
    # Products, ratios and test losses are those of what is kept, in single precision; losses are of the descent.
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
    ratio = _measure_ratio(key, starts, length=length, block=config.block_size)
    return np.asarray(_ratios_along(observed, jnp.asarray(scales), ratio))


@partial(jax.jit, static_argnames=("length", "block"))
def _measure_ratio(key: PRNGKey, starts: Array, *, length: int, block: int) -> Float[Array, "dim features"]:
    def statistic(x: Array) -> Array:
        return last_ratio(x, full=True, floor=RATIO_FLOOR)[0]

    return mean_over_draws(statistic, key, _drawing(starts, length), len(starts), block=block)


@jax.jit
def _ratios_along(observed: Params, scales: Array, ratio: Array) -> Float[Array, "rows epochs"]:
    weights = lambda params: (feature_weights(params) * ratio).sum(axis=1)  # noqa: E731
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), observed)
    return jax.vmap(jax.vmap(weights))(wide).mean(axis=-1) * scales[:, None] ** 2


def _stamp(config: Any, run: RunDirectory, table: str) -> str:
    """Write down what a file of this table was trained with."""
    asked, runs = configuration.to_json(config), runs_of(config, table, jax.random.key(0))
    settings = {name: asked[name] for name in _TRAINED_BY} | {"seed": run.seed}
    rows = {"rows": runs.names, "scales": runs.scales.tolist(), "step_sizes": runs.step_sizes.tolist()}
    return json.dumps(settings | rows, sort_keys=True)


def _save(path: Path, found: Mapping[str, np.ndarray], stamp: str) -> None:
    data = io.BytesIO()
    np.savez_compressed(data, allow_pickle=False, stamp=np.array(stamp), **found)
    write_whole(path, data.getvalue())


def _load(path: Path, stamp: str, *, fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Read some arrays of a file, and refuse one that was trained otherwise or cannot be read.

    Raises:
        ValueError: it is.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            same, found = stored["stamp"].item() == stamp, {name: stored[name] for name in fields}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); start a new run") from error
    if not same:
        raise ValueError(f"{path} was trained with other settings; start a new run")
    return found
