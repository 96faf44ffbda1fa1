"""What was trained on samples, held against the theorem, the exact curve of each epoch, and the predicted scatter."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claims import Cell
from experiments.mesa_optimization import figures, references, training
from experiments.mesa_optimization.training import MASKED, Trained, start_name
from experiments.run_directory import RunDirectory
from jaxgen.flows import (
    gaussian_start,
    gradient_descent,
    gradient_flow,
    one_hot_correlations,
    one_hot_start,
    quartic_loss,
    require_finished,
    sample_correlations,
    sample_sequences,
    sector_of,
    start_at,
)
from jaxgen.models import autoregressive_loss, diagonal_params
from jaxgen.typing import Params, PRNGKey

_PLOTTED = {"gaussian": (200, 150, 200), "sparse": (200, 200, 120)}
"""Epochs that the paper plots, by scale."""


def measure(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """Measure what the trained layers are, in float64."""
    with jax.enable_x64(True):
        _products(config, run, trained)
        _ratio(config, run, trained)
        _sparse(config, run, trained)
        _small(config, run, trained)
        _ones(config, run, trained)
        _dense(config, run, trained)
        _scatter(config, run)
        _off_diagonals(run, trained["gaussian"])
        _routes(config, run)
    seconds = sum(float(of.seconds[0]) for of in trained.values())
    reason = f"Training sets, {config.epochs} epochs of every run of the tables, first seed, compiling included."
    run.record("B16", [Cell("one seed of all settings", values=[seconds], error=0.0)], seconds=seconds, reason=reason)
    for table, of in trained.items():
        run.arrays(**{f"{table}_products": of.products(of.names[0]).mean(axis=-1)})
    figures.sampled(config, run, trained)


def exact_curve(config: Any, table: str, start: tuple[float, float], scale: float) -> np.ndarray:
    """Return ab of exact gradient descent on the population, epoch by epoch."""
    name = {"gaussian": "Gaussian", "sparse": "one-hot", "small": "Gaussian", "ones": "Rademacher"}[table]
    length = config.small_length if table == "small" else config.length
    rates = references.LAWS[name].rates(config.dimension, length, scale)
    return np.array(references.descend(start, rates, step_of(table, scale), config.epochs))


def step_of(table: str, scale: float) -> float:
    """Return the step size of a table at a scale."""
    if table in ("small", "ones"):
        return references.SMALL_STEP if table == "small" else references.ONES_STEP
    steps = references.GAUSSIAN_STEPS if table == "gaussian" else references.SPARSE_STEPS
    return dict(zip(references.SCALES, steps, strict=True))[scale]


def _products(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """B1-sampled, B13, B13-reported: the mean diagonal product of Gaussian runs."""
    began, of = time.perf_counter(), trained["gaussian"]
    law, d = references.LAWS["Gaussian"], config.dimension
    epochs = dict(zip(references.SCALES, _PLOTTED["gaussian"], strict=True))
    finite, reported, converged = [], [], []
    for scale, line in zip(references.SCALES, references.REPORTED_PRODUCTS, strict=True):
        epoch = min(epochs[scale], config.epochs)
        for start in references.STARTS:
            name = f"scale {scale:g}, {start_name(start)}"
            found = of.products(name)[:, epoch].mean(axis=-1)
            shown = f"sigma = {scale:g}, {start_name(start)}, epoch {epoch}"
            wanted = exact_curve(config, "gaussian", start, scale)[epoch]
            finite.append(Cell(shown, values=found, reference=wanted, margin=0.05 * wanted))
            reported.append(Cell(shown, values=found, reference=line, margin=0.05 * line))
            limit = law.limit(d, config.length, scale)
            if abs(wanted / limit - 1.0) < 1e-3:
                converged.append(Cell(shown, values=found, reference=limit, margin=0.05 * limit))
    seconds = time.perf_counter() - began
    scale = _scale(config)
    run.record("B13", finite, seconds=seconds, scale=scale)
    run.record("B13-reported", reported, seconds=seconds, scale=scale)
    if converged:
        run.record("B1-sampled", converged, seconds=seconds, scale=scale)
    else:
        run.not_run("B1-sampled", f"no exact curve has converged after {config.epochs} epochs; the paper takes 200")


def _ratio(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """B7 and B7-finite: the mean ratio of prediction to target at the last position of test sequences."""
    began, of = time.perf_counter(), trained["gaussian"]
    row = of.row(f"scale 1, {start_name(references.STARTS[1])}")
    wanted = references.LAWS["Gaussian"].limit(config.dimension, config.length)
    cells, reported = [], []
    for number, length in enumerate(config.test_lengths):
        found = of.ratios[:, number, row, -1]
        name = f"test sequences of {length}"
        cells.append(Cell(name, values=found, reference=wanted))
        reported.append(Cell(name, values=found))
    run.record("B7-finite", cells, seconds=time.perf_counter() - began, scale=_scale(config))
    run.record("B7", reported, seconds=time.perf_counter() - began, scale=_scale(config))


def _sparse(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """B9 and B9-limit: sparse tokens, epoch by epoch and in the limit."""
    began, of, d = time.perf_counter(), trained["sparse"], config.dimension
    epochs = dict(zip(references.SCALES, _PLOTTED["sparse"], strict=True))
    cells = []
    for scale in references.SCALES:
        epoch = min(epochs[scale], config.epochs)
        for start in references.STARTS:
            if start[0] * start[1] * scale**2 == 1.0:  # starts in its limit
                continue
            name = f"scale {scale:g}, {start_name(start)}"
            found = of.products(name)[:, epoch].mean(axis=-1)
            wanted = exact_curve(config, "sparse", start, scale)[epoch]
            shown = f"c = {scale:g}, {start_name(start)}, epoch {epoch}"
            cells.append(Cell(shown, values=found, reference=wanted, margin=0.02 * wanted))
    run.record("B9", cells, seconds=time.perf_counter() - began, scale=_scale(config))
    began = time.perf_counter()
    rows = {"values": [], "control": []}
    for seed in range(min(config.seeds, 4)):
        x = sample_sequences(
            training.key_of(run, "sparse limit", seed), one_hot_start(), config.sequences, config.length, d
        )
        correlations = one_hot_correlations(x)
        flow = require_finished(_limit_on_samples(correlations, start_at(*references.STARTS[0], d)))
        rows["values"] += np.asarray(jnp.diagonal(flow.params["kq"]) * jnp.diagonal(flow.params["pv"])).tolist()
        rows["values"] += [float(flow.loss)]
        rows["control"] += [1.0] * d + [0.0]
    run.record("B9-limit", [Cell("products and loss on the samples", **rows)], seconds=time.perf_counter() - began)


@jax.jit
def _limit_on_samples(correlations: Any, start: Params) -> Any:
    loss = lambda params: quartic_loss(params, correlations)  # noqa: E731
    return gradient_flow(loss, start, 100.0, rtol=1e-10, stationary=1e-8, curvature=False)


def _small(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """B14: sequences as short as the tokens are wide."""
    began, of = time.perf_counter(), trained["small"]
    wanted = references.LAWS["Gaussian"].limit(config.dimension, config.small_length)
    cells = [
        Cell(
            f"{start_name(start)}, epoch {config.epochs}",
            values=of.products(start_name(start))[:, -1].mean(axis=-1),
            reference=wanted,
            margin=0.05 * wanted,
        )
        for start in references.STARTS
    ]
    run.record("B14", cells, seconds=time.perf_counter() - began, scale=_scale(config))


def _ones(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """B11-sampled and B12-sampled: tokens of ones, with and without the mask."""
    began, of, d = time.perf_counter(), trained["ones"], config.dimension
    wanted = references.LAWS["Rademacher"].limit(d, config.length)
    cells = [
        Cell(
            start_name(start),
            values=of.products(f"{MASKED}, {start_name(start)}")[:, -1].mean(axis=-1),
            reference=wanted,
        )
        for start in references.STARTS
    ]
    run.record("B11-sampled", cells, seconds=time.perf_counter() - began, scale=_scale(config))
    if (config.dimension, config.length) not in references.ONES_LIMITS:
        known = ", ".join(map(str, references.ONES_LIMITS))
        run.not_run("B12-sampled", f"limits are tabled for (d, T) = {known}")
        return
    a, alpha, b, beta, _ = references.ONES_LIMITS[config.dimension, config.length]
    off = ~np.eye(d, dtype=bool)
    cells = []
    for start in references.STARTS[:1]:
        w32, w12 = (block[:, -1] for block in of.sector(start_name(start)))
        for name, block, value in (("W32", w32, alpha), ("W12", w12, beta)):
            cells.append(
                Cell(
                    f"mean off-diagonal of {name}",
                    values=block[:, off].mean(axis=-1),
                    reference=value,
                    margin=0.1 * abs(value),
                )
            )
        product = of.products(start_name(start))[:, -1].mean(axis=-1)
        cells.append(Cell("mean diagonal product", values=product, reference=a * b, margin=0.05 * a * b))
    run.record("B12-sampled", cells, seconds=time.perf_counter() - began, scale=_scale(config))


def _dense(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """B15 and its parts: Gaussian initial values of all parameters."""
    began, of = time.perf_counter(), trained["gaussian"]
    diagonal = f"scale 1, {start_name(references.STARTS[1])}"
    limit = [block[:, -1] for block in of.sector(diagonal)]
    length = config.test_lengths.index(config.length) if config.length in config.test_lengths else 0
    shares, ratios, apart, signs = [], [], [], []
    for std in references.INITIAL_STDS:
        name = f"std {std:g}"
        blocks = [block[:, -1] for block in of.sector(name)]
        for block, title in zip(blocks, ("W32", "W12"), strict=True):
            shares.append(Cell(f"{name}: {title}", values=_off_share(block)))
        ratios.append(
            Cell(
                name, values=of.ratios[:, length, of.row(name), -1], control=of.ratios[:, length, of.row(diagonal), -1]
            )
        )
        distance = [
            np.linalg.norm(new - old, axis=(1, 2)) / np.linalg.norm(old, axis=(1, 2))
            for new, old in zip(blocks, limit, strict=True)
        ]
        apart.append(Cell(name, values=np.mean(distance, axis=0)))
        first, last = (
            [np.diagonal(block[:, epoch], axis1=-2, axis2=-1) for block in of.sector(name)] for epoch in (0, -1)
        )
        agree = np.sign(first[0] + first[1]) == np.sign(last[0])
        signs.append(Cell(name, successes=int(agree.sum()), trials=agree.size))
    seconds, scale = time.perf_counter() - began, _scale(config)
    run.record("B15", shares, seconds=seconds, scale=scale)
    run.record("B15-ratio", ratios, seconds=seconds, scale=scale)
    run.record("B15-apart", apart, seconds=seconds, scale=scale)
    run.record("B15-signs", signs, seconds=seconds, scale=scale)
    of, cells, moved = trained["sparse"], [], []
    off = ~np.eye(config.dimension, dtype=bool)
    for std in references.INITIAL_STDS:
        name = f"std {std:g}"
        w32, w12 = of.sector(name)
        cells += [
            Cell(f"{name}: {title}", values=_off_share(block[:, -1])) for title, block in (("W32", w32), ("W12", w12))
        ]
        moved.append(float(np.abs(w32[:, -1][:, off] - w32[:, 0][:, off]).max()))
    run.record("B15-sparse", cells, seconds=seconds, scale=scale)
    names = [f"std {std:g}" for std in references.INITIAL_STDS]
    still = [Cell(name, values=[value], control=[0.0]) for name, value in zip(names, moved, strict=True)]
    run.record("B15-flat", still, seconds=seconds, scale=scale)


def _off_share(block: np.ndarray) -> np.ndarray:
    """Return the share of the Frobenius norm that lies off the diagonal, seed by seed."""
    off = block * ~np.eye(block.shape[-1], dtype=bool)
    return np.linalg.norm(off, axis=(1, 2)) / np.linalg.norm(block, axis=(1, 2))


def _scatter(config: Any, run: RunDirectory) -> None:
    """B1-scatter: how far the limits of training sets lie from each other, at a small size and on many sets."""
    began = time.perf_counter()
    d, length, count = references.SCATTER_DIMENSION, references.SCATTER_LENGTH, references.SCATTER_SEQUENCES
    _, c2 = references.LAWS["Gaussian"].rates(d, length)

    @jax.jit
    def train(key: PRNGKey) -> Any:
        x = sample_sequences(key, gaussian_start(), count, length, d)
        loss = partial(quartic_loss, correlations=sample_correlations(x))
        descent = gradient_descent(loss, start_at(0.4, 0.4, d), optax.sgd(0.2 / c2), 300, observe=lambda params: ())
        return (jnp.diagonal(descent.params["kq"]) * jnp.diagonal(descent.params["pv"])).mean()

    found = np.array([float(train(training.key_of(run, "scatter", seed))) for seed in range(config.scatter_seeds)])
    squares = ((found - found.mean()) / references.SCATTER_STD) ** 2 * len(found) / (len(found) - 1)
    mean = {"reference": references.SCATTER_MEAN, "margin": 0.0015, "margin_reason": "a fifth of the scatter"}
    spread = {"reference": 1.0, "margin": 0.3, "margin_reason": "15 % of the standard deviation"}
    cells = [Cell("mean", values=found, **mean), Cell("variance over the predicted one", values=squares, **spread)]
    run.record("B1-scatter", cells, seconds=time.perf_counter() - began)
    run.arrays(scatter_products=found)
    figures.scatter(run, found)


def _off_diagonals(run: RunDirectory, of: Trained) -> None:
    """B1-off: entries off the diagonals have the size that the number of sequences predicts."""
    began = time.perf_counter()
    name = f"scale 1, {start_name(references.STARTS[1])}"
    off = ~np.eye(of.pv.shape[-2], dtype=bool)
    cells = [
        Cell(f"largest of {title}", values=np.abs(block[:, -1][:, off]).max(axis=-1))
        for title, block in zip(("W32", "W12"), of.sector(name), strict=True)
    ]
    run.record("B1-off", cells, seconds=time.perf_counter() - began)


def _routes(config: Any, run: RunDirectory) -> None:
    """B1-routes: gradient descent on the correlations is gradient descent on the layer itself."""
    began, d = time.perf_counter(), config.dimension
    key = training.key_of(run, "routes", 0)
    x = sample_sequences(key, gaussian_start(), config.direct_sequences, config.length, d)
    start, optimizer = diagonal_params(*references.STARTS[1], d), optax.sgd(references.GAUSSIAN_STEPS[1])

    @jax.jit
    def direct(x: Any) -> Params:
        loss = partial(autoregressive_loss, x=x)
        return gradient_descent(loss, start, optimizer, config.direct_epochs).observed

    @jax.jit
    def by_correlations(x: Any) -> Params:
        loss = partial(quartic_loss, correlations=sample_correlations(x, full=True))
        return gradient_descent(loss, start, optimizer, config.direct_epochs).observed

    ways = [sector_of(jax.tree.map(lambda leaf: leaf[-1], way(x))) for way in (direct, by_correlations)]
    cells = [
        Cell(
            f"{name} after {config.direct_epochs} epochs",
            values=np.ravel(ways[1][field]),
            control=np.ravel(ways[0][field]),
        )
        for field, name in (("kq", "W32"), ("pv", "W12"))
    ]
    run.record("B1-routes", cells, seconds=time.perf_counter() - began)


def _scale(config: Any) -> str:
    return "full" if config.sequences >= 10_000 else "reduced"
