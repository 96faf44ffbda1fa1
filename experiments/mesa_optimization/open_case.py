"""Tokens of ones: the case that the paper leaves open, masked as in theorem 4.3 and as it is."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import Cell
from experiments.mesa_optimization import figures_beyond, references
from experiments.mesa_optimization.population import diagonal_products, follow_to_minimum, stacked_starts
from experiments.run_directory import RunDirectory
from jaxgen.flows import Flow, Ones, population_correlations
from jaxgen.typing import Params

_DIMENSIONS, _LENGTHS = (2, 3, 5), (5, 10, 20, 50, 100, 200)


def measure(config: Any, run: RunDirectory) -> None:
    """Follow the flows of tokens of ones to their limits, in float64."""
    del config
    with jax.enable_x64(True):
        _masked(run)
        _unmasked(run)
        _map(run)


def _masked(run: RunDirectory) -> None:
    began, cells = time.perf_counter(), []
    for (d, length), (product, loss) in references.MASKED_LIMITS.items():
        flow = _limit(d, length, masked=True)
        found = diagonal_products(flow.params)[0]
        cells.append(Cell(f"d = {d}, T = {length}: ab", values=found, control=[product] * d, rtol=1e-8))
        cells.append(Cell(f"d = {d}, T = {length}: loss", values=np.asarray(flow.loss), control=[loss], rtol=2e-8))
    run.record("B11", cells, seconds=time.perf_counter() - began)


def _unmasked(run: RunDirectory) -> None:
    began, cells = time.perf_counter(), []
    for (d, length), (*scalars, loss) in references.ONES_LIMITS.items():
        flow = _limit(d, length)
        name = f"d = {d}, T = {length}"
        cells.append(Cell(f"{name}: (a, alpha, b, beta)", values=_scalars(flow.params), control=scalars))
        cells.append(Cell(f"{name}: loss", values=np.asarray(flow.loss), control=[loss], rtol=1e-9))
    far = _limit(references.DIMENSION, references.LENGTH, start=references.STARTS[1])
    cells.append(Cell("from (0.5, 1.5)", values=_scalars(far.params), control=references.ONES_LIMIT_FAR))
    whole = _limit(references.DIMENSION, references.LENGTH, full=True).params
    d = references.DIMENSION
    kq, pv = whole["kq"][0].at[d:, :d].set(0.0), whole["pv"][0].at[:, :d].set(0.0)
    rest = [float(jnp.abs(block).max()) for block in (kq, pv)]
    cells.append(Cell("largest entry of the blocks but W32 and W12", values=rest, control=[0.0, 0.0]))
    run.record("B12", cells, seconds=time.perf_counter() - began)


def _map(run: RunDirectory) -> None:
    """Draw the preconditioner and what it gains, over dimensions and lengths."""
    found = {
        (d, length): (_scalars((flow := _limit(d, length)).params), float(flow.loss[0]))
        for d in _DIMENSIONS
        for length in _LENGTHS
    }
    scalars = np.array([[found[d, length][0] for length in _LENGTHS] for d in _DIMENSIONS])
    losses = np.array([[found[d, length][1] for length in _LENGTHS] for d in _DIMENSIONS])
    zero = 0.5 * np.array(_DIMENSIONS)[:, None] * (np.array(_LENGTHS) - 2)
    masked = np.array(
        [[references.LAWS["Rademacher"].explained(d, length) for length in _LENGTHS] for d in _DIMENSIONS]
    )
    run.arrays(open_lengths=_LENGTHS, open_dimensions=_DIMENSIONS, open_scalars=scalars, open_losses=losses)
    figures_beyond.open_case(run, _DIMENSIONS, _LENGTHS, scalars, 1.0 - losses / zero, masked)


def _limit(
    d: int, length: int, *, start: tuple[float, float] = references.STARTS[0], masked: bool = False, full: bool = False
) -> Flow:
    correlations = population_correlations(Ones(), length, d, full=full)
    mask = dict.fromkeys(("kq", "pv"), jnp.eye(d)) if masked else None
    return follow_to_minimum(correlations, stacked_starts([start], d, full=full), float(length - 2), mask, end=1e4)


def _scalars(params: Params) -> list[float]:
    return [float(params[field][0, 0, j]) for field in ("kq", "pv") for j in (0, 1)]
