"""The sampler protocol, and the one loop that runs it.

    key ----fold_in(n)----> step key
    state_n --[ step(key, state, grid[n], grid[n + 1]) ]--> state_{n+1}        n = first, first + 1, ...

A sampler is for one sample; `jax.vmap` it over keys for many. Build it inside the jitted function from that
function's arguments: what is closed over outside becomes a constant of the program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxgen.diffusion.denoisers import Memory
from jaxgen.diffusion.grids import check_grid
from jaxgen.diffusion.levels import Level
from jaxgen.typing import PRNGKey, Sample

State: TypeAlias = Any
Info: TypeAlias = Any


def any_grid(grid: Level) -> None:
    """Accept every grid."""
    del grid


class Sampler(NamedTuple):
    """A kernel between two levels, for ONE sample of any shape.

    Attributes:
        init: maps a sample to the sampler's state, a NamedTuple whose first field is `x`.
        step: maps (key, state, now, next) to (state, info), with any number of network evaluations. The state is
            carried; the info is diagnostics of this step alone.
        check: raises ValueError for a known grid that the kernel cannot follow, such as a rising one where noise is
            drawn on the way down.
    """

    init: Callable[[Sample], State]
    step: Callable[[PRNGKey, State, Level, Level], tuple[State, Info]]
    check: Callable[[Level], None] = any_grid


class Markov(NamedTuple):
    """The state of a one-step sampler: the sample, and its denoiser's memory."""

    x: Sample
    memory: Memory


def _intervals(sampler: Sampler, state: State, grid: Level, first: int | jax.Array) -> tuple:
    check_grid(grid)
    sampler.check(grid)
    # The grid is float64 on the host; it joins the computation in the sample's own precision.
    grid = jax.tree.map(lambda leaf: jnp.asarray(leaf, state.x.dtype), grid)
    now = jax.tree.map(lambda leaf: leaf[:-1], grid)
    next = jax.tree.map(lambda leaf: leaf[1:], grid)
    return first + jnp.arange(len(now.sigma)), now, next


def advance(sampler: Sampler, key: PRNGKey, state: State, grid: Level, first: int | jax.Array = 0) -> State:
    """Run the steps between the levels of `grid`, as one scan.

    Args:
        sampler: the kernel.
        key: step n uses `fold_in(key, n)`.
        state: the state before the first step.
        grid: levels `[steps + 1]`, strictly monotone in sigma / alpha.
        first: number of the first step. A run cut into segments, each told its first step, is the whole run to the bit.

    Returns:
        The state after the last step. No trajectory is kept: memory does not grow with the number of steps.

    Raises:
        ValueError: if the grid is known before compilation and no sampler, or not this one, can follow it.
    """

    def body(state: State, inputs: tuple) -> tuple[State, None]:
        n, now, next = inputs
        return sampler.step(jax.random.fold_in(key, n), state, now, next)[0], None

    return jax.lax.scan(body, state, _intervals(sampler, state, grid, first))[0]


def sample(sampler: Sampler, key: PRNGKey, x: Sample, grid: Level) -> Sample:
    """Run a sampler from `x`, at the first level of `grid`, to the last level; returns the shape of `x`.

    Where the last sigma is above 0, as on `VarianceExploding`, the sample still has that noise.

    Raises:
        ValueError: as `advance`.

    >>> from jaxgen.diffusion import ddim, denoiser, gaussian_mixture, karras_grid, predict_exactly
    >>> law = gaussian_mixture([1.0], [[2.0]], [[[1.0]]])  # N(2, 1)
    >>> model = denoiser(lambda x, level: predict_exactly(law, x, level))
    >>> x = sample(ddim(model), jax.random.key(0), jnp.array([82.0]), karras_grid(100))
    >>> round(float(x[0]), 1)  # one standard deviation above the mean, as it was in N(2, 1 + 80^2)
    3.0
    """
    return advance(sampler, key, sampler.init(x), grid).x


def record(
    sampler: Sampler, key: PRNGKey, x: Sample, grid: Level, keep: Callable[[Sample, Info], PyTree]
) -> tuple[Sample, PyTree]:
    """Run a sampler and keep a function of every step, with the same draws as `sample`.

    Args:
        sampler: the kernel.
        key: as in `advance`.
        x: at the first level.
        grid: as in `advance`.
        keep: maps the sample after a step and the step's info to what is kept, for example a norm or a thumbnail: with
            many steps a trajectory of the samples themselves is most of the memory.

    Returns:
        The last sample, and what was kept, stacked along a leading axis of `steps`.

    Raises:
        ValueError: as `advance`.
    """
    state = sampler.init(x)

    def body(state: State, inputs: tuple) -> tuple[State, PyTree]:
        n, now, next = inputs
        state, info = sampler.step(jax.random.fold_in(key, n), state, now, next)
        return state, keep(state.x, info)

    state, kept = jax.lax.scan(body, state, _intervals(sampler, state, grid, 0))
    return state.x, kept


def trajectory(sampler: Sampler, key: PRNGKey, x: Sample, grid: Level) -> tuple[Sample, Info]:
    """Run a sampler and keep every step, with the same draws as `sample`; `record` keeps less.

    Returns:
        The samples `[steps + 1, ...]`, the start included, and the stacked infos `[steps, ...]`.

    Raises:
        ValueError: as `advance`.
    """
    xs, infos = record(sampler, key, x, grid, lambda x, info: (x, info))[1]
    return jnp.concatenate([x[None], xs]), infos
