"""What is trained on each training set: the paper's laws, scales, step sizes and starts, a table for each law."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.mesa_optimization import references
from jaxgen.flows import Ones, StartLaw, gaussian_start, one_hot_start
from jaxgen.models import diagonal_params, gaussian_params
from jaxgen.typing import Params, PRNGKey

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


def start_name(start: tuple[float, float]) -> str:
    """Name a diagonal start."""
    return f"({start[0]:g}, {start[1]:g})"


def law_of(table: str) -> StartLaw:
    """Return the law of the first token at scale 1."""
    return {"gaussian": gaussian_start(), "small": gaussian_start(), "sparse": one_hot_start(), "ones": Ones()}[table]


def seeds_of(config: Any, table: str) -> int:
    """Return how many training sets a table has: many where they cost little, fewer where nothing varies much."""
    return {"small": 12 * config.seeds, "ones": max(2, config.seeds // 2)}.get(table, config.seeds)


def step_of(config: Any, table: str, scale: float) -> float:
    """Return the step size of a table's diagonal starts at a scale: the paper's, in units of its T - 2."""
    if table == "small":
        return references.SMALL_STEP * (references.SMALL_LENGTH - 2) / (config.small_length - 2)
    if table == "ones":
        return references.ONES_STEP * _in_units(config.length)
    steps = references.GAUSSIAN_STEPS if table == "gaussian" else references.SPARSE_STEPS
    return dict(zip(references.SCALES, steps, strict=True))[scale] * _in_units(config.length)


def exact_curve(config: Any, table: str, start: tuple[float, float], scale: float) -> np.ndarray:
    """Return ab of exact gradient descent on the population, epoch by epoch."""
    name = {"gaussian": "Gaussian", "sparse": "one-hot", "small": "Gaussian", "ones": "Rademacher"}[table]
    length = config.small_length if table == "small" else config.length
    rates = references.LAWS[name].rates(config.dimension, length, scale)
    return np.array(references.descend(start, rates, step_of(config, table, scale), config.epochs))


def _in_units(length: int) -> float:
    # The loss is a sum over T - 2 positions.
    return (references.LENGTH - 2) / (length - 2)


def runs_of(config: Any, table: str, key: PRNGKey) -> Runs:
    """List what is trained: the paper's diagonal starts at its scales and steps, and Gaussian starts at one scale."""
    d, rows = config.dimension, []
    ones = {"kq": jnp.ones((2 * d, 2 * d)), "pv": jnp.ones((d, 2 * d))}

    def add(name: str, start: Params, scale: float, step: float, mask: Params = ones) -> None:
        rows.append((name, start, scale, step, mask))

    if table in ("gaussian", "sparse"):
        for scale in references.SCALES:
            for start in references.STARTS:
                name = f"scale {scale:g}, {start_name(start)}"
                add(name, diagonal_params(*start, d), scale, step_of(config, table, scale))
        for number, std in enumerate(references.INITIAL_STDS):
            drawn = gaussian_params(jax.random.fold_in(key, number), d, std)
            add(f"std {std:g}", drawn, 1.0, _in_units(config.length) * references.GAUSSIAN_START_STEPS[table])
    else:
        step = step_of(config, table, 1.0)
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
