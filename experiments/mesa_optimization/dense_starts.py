"""Gaussian initial values of all parameters: what survives of the diagonal form, and what is only a change of signs."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Cell
from experiments.mesa_optimization import references
from experiments.mesa_optimization.tables import start_name
from experiments.mesa_optimization.training import Trained, scale_of
from experiments.run_directory import RunDirectory

_NAMES = tuple(f"std {std:g}" for std in references.INITIAL_STDS)


def measure(config: Any, run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """Measure B15 and its parts."""
    _gaussian(config, run, trained["gaussian"])
    _sparse(config, run, trained["sparse"])


def _gaussian(config: Any, run: RunDirectory, of: Trained) -> None:
    began = time.perf_counter()
    # Of the diagonal starts, (.1, .1) shares a^2 - b^2 = 0 with small random values.
    diagonal = f"scale 1, {start_name(references.STARTS[0])}"
    length = config.test_lengths.index(config.length)
    wanted = [block[:, -1] for block in of.sector(diagonal)]
    shares, ratios, apart, gauge, signs = [], [], [], [], []
    for name in _NAMES:
        blocks = [block[:, -1] for block in of.sector(name)]
        for block, title in zip(blocks, ("W32", "W12"), strict=True):
            shares.append(Cell(f"{name}: {title}", values=_off_share(block)))
        found = (of.ratios[:, length, of.row(row), -1] for row in (name, diagonal))
        ratios.append(Cell(name, values=next(found), control=next(found)))
        apart.append(Cell(name, values=_distance(blocks, wanted)))
        gauge.append(
            Cell(name, values=_distance([np.abs(block) for block in blocks], [np.abs(block) for block in wanted]))
        )
        first, last = (
            [np.diagonal(block[:, epoch], axis1=-2, axis2=-1) for block in of.sector(name)] for epoch in (0, -1)
        )
        agree = (np.sign(first[0] + first[1]) == np.sign(last[0])).all(axis=1)
        signs.append(Cell(name, successes=int(agree.sum()), trials=agree.size))
    seconds, scale = time.perf_counter() - began, scale_of(config, config.sequences)
    for claim, cells in (
        ("B15", shares),
        ("B15-ratio", ratios),
        ("B15-apart", apart),
        ("B15-gauge", gauge[:2]),
        ("B15-signs", signs),
    ):
        run.record(claim, cells, seconds=seconds, scale=scale)
    reached = ", ".join(f"{np.mean(cell.values or ()):.1%} at {cell.name}" for cell in gauge)
    run.note(
        "From Gaussian initial values the limit differs from that of the diagonal start (.1, .1) mostly by signs, "
        f"which no loss can see: sizes of entries differ by {reached}, in the norm, averaged over W32 and W12."
    )


def _sparse(config: Any, run: RunDirectory, of: Trained) -> None:
    began = time.perf_counter()
    off = ~np.eye(config.dimension, dtype=bool)
    shares, still, losses = [], [], []
    for name in _NAMES:
        w32, _ = of.sector(name)
        shares.append(Cell(name, values=_off_share(w32[:, -1])))
        moved = np.abs(w32[:, :, off] - w32[:, :1, off]).max()
        still.append(Cell(name, values=[moved], control=[0.0]))
        losses.append(Cell(name, values=of.test_losses[:, of.row(name), -1] / (0.5 * (config.length - 2))))
    seconds, scale = time.perf_counter() - began, scale_of(config, config.sequences)
    run.record("B15-sparse", shares, seconds=seconds, scale=scale)
    run.record("B15-flat", still, seconds=seconds, scale=scale)
    run.record("B15-loss", losses, seconds=seconds, scale=scale)


def _off_share(block: np.ndarray) -> np.ndarray:
    """Return the share of the Frobenius norm that lies off the diagonal, seed by seed."""
    off = block * ~np.eye(block.shape[-1], dtype=bool)
    return np.linalg.norm(off, axis=(1, 2)) / np.linalg.norm(block, axis=(1, 2))


def _distance(blocks: list[np.ndarray], wanted: list[np.ndarray]) -> np.ndarray:
    """Return the distance in units of the norm, averaged over the blocks, seed by seed."""
    size = lambda block: np.linalg.norm(block, axis=(1, 2))  # noqa: E731
    return np.mean([size(new - old) / size(old) for new, old in zip(blocks, wanted, strict=True)], axis=0)
