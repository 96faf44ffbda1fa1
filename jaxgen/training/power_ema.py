"""Averages of parameters over a power function of time, whose width is a fraction of the run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxgen.training.ema import Ema

_WIDEST = 12**-0.5


class PowerEmaState(NamedTuple):
    """Averages of several widths and what is needed to continue them."""

    averages: tuple[PyTree, ...]
    """One average a width, in the structure and the dtypes of the parameters; before the first update, these."""
    count: Int[Array, "..."]
    """Number of updates; over stacked seeds, one each."""


def width_to_exponent(width: float) -> float:
    """Return the exponent gamma of the profile t^gamma on [0, 1] whose standard deviation is `width`.

    It is the largest real root of gamma^3 + 7 gamma^2 + (16 - width^-2) gamma + (12 - width^-2) (Karras et al. 2024,
    "Analyzing and Improving the Training Dynamics of Diffusion Models", eq. 126 and algorithm 2), in float64.

    Args:
        width: standard deviation of the profile relative to the length of the run, in (0, 1/sqrt(12)).

    Raises:
        ValueError: if `width` is out of range.

    >>> round(width_to_exponent(0.1), 12)
    6.937203937602
    """
    if not 0 < width < _WIDEST:
        raise ValueError(f"the width of an average must lie in (0, 1/sqrt(12) = {_WIDEST:.6f}), got {width}")
    precision = float(width) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision])
    # The three roots are real: for 0 < width < 1/sqrt(12) one is above 0, one in (-1, 0) and one below -3.
    return float(np.max(roots.real))


def exponent_to_width(gamma: float) -> float:
    """Return the standard deviation of the profile t^gamma on [0, 1]: the inverse of `width_to_exponent`.

    Source: Karras et al. 2024, eq. 123.

    Raises:
        ValueError: if `gamma` is below 0 or not finite.

    >>> round(exponent_to_width(6.94), 4)
    0.1
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"the exponent of a profile must be at least 0 and finite, got {gamma}")
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def power_ema(widths: Sequence[float]) -> Ema:
    """Average parameters with weights that grow as a power of time, for several widths at once.

    At the n-th update, average += (1 - beta) (params - average) with beta = (1 - 1/n)^(gamma + 1) (Karras et al. 2024,
    eq. 127), so that the weights follow the profile t^gamma over all of the run so far, the initial parameters
    have none, and the first update copies the parameters. Time is counted in updates of equal batches, since only its
    ratios matter. From averages of two widths, kept as a run goes, those of other widths follow (see `reconstruct`).

    Args:
        widths: the standard deviation of each profile relative to the length of the run, in (0, 1/sqrt(12)); the paper
            keeps 0.05 and 0.10.

    Returns:
        Pure functions `init(params)` and `update(state, params)` over a `PowerEmaState`, which may be vmapped over
        seeds. The arithmetic is in float32 at least; an average in half precision stands still once its steps are
        below its rounding, so keep the parameters of a long run in float32.

    Raises:
        ValueError: if there is no width, one occurs twice or one is out of range.

    >>> average = power_ema([0.1])
    >>> state = average.update(average.init(jnp.zeros(())), jnp.asarray(1.0))
    >>> round(float(average.update(state, jnp.asarray(2.0)).averages[0]), 4)  # 2 - 0.5^(gamma + 1)
    1.9959
    """
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"an average needs at least one width and each once, got {list(widths)}")
    exponents = [width_to_exponent(width) for width in widths]

    def init(params) -> Any:
        copies = tuple(jax.tree.map(jnp.copy, params) for _ in exponents)
        return PowerEmaState(copies, jnp.zeros((), jnp.int32))

    def update(state, params) -> Any:
        count = state.count + 1
        averages = tuple(
            jax.tree.map(lambda average, value, gamma=gamma: _move(average, value, count, gamma), held, params)
            for held, gamma in zip(state.averages, exponents, strict=True)
        )
        return PowerEmaState(averages, count)

    return Ema(init, update)


def _move(average: Float[Array, "..."], value: Float[Array, "..."], count: Int[Array, ""], gamma: float):
    dtype = jnp.promote_types(average.dtype, jnp.float32)
    # 1 - (1 - 1/n)^(gamma + 1), which is far below 1 where the power is not far from it.
    gain = -jnp.expm1((gamma + 1) * jnp.log1p(-1 / count.astype(dtype)))
    wide = average.astype(dtype)
    moved = (wide + gain * (value.astype(dtype) - wide)).astype(average.dtype)
    # The first gain is 1, but a rounded difference would leave something of the initial parameters.
    return jnp.where(count == 1, value, moved)
