"""Exponential moving averages of parameters, free of start-up bias."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxgen.typing import Params


class EmaState(NamedTuple):
    """An average and what is needed to continue it."""

    average: PyTree
    """The weighted mean of the parameters seen so far; before the first update, the initial parameters."""
    weight: Float[Array, ""]
    """One minus the product of all decays so far: the mass that the average stands for."""
    count: Int[Array, ""]
    """Number of updates."""


class Ema(NamedTuple):
    """An exponential moving average as two pure functions."""

    init: Callable[[Params], EmaState]
    update: Callable[[EmaState, Params], EmaState]


def ema(decay: float | None = None, *, half_life: float | None = None, rampup: float | None = None) -> Ema:
    """Average parameters with weights that fall off exponentially into the past.

    After updates with p_1 ... p_n at a constant decay d, the average is sum_i d^(n-i) p_i / sum_i d^(n-i): the
    initial parameters have no weight (the correction of Kingma & Ba 2015, section 3).

    Args:
        decay: factor per update, in [0, 1); give it or `half_life`.
        half_life: updates after which a weight has halved, above 0.
        rampup: if given, the half-life is at most `rampup` times the number of updates so far (Karras et al. 2022,
            table 1 uses 0.05), so that a short run does not average over its beginning.

    Returns:
        Pure functions `init(params)` and `update(state, params)`, which may be vmapped over seeds.

    Raises:
        ValueError: if not exactly one of `decay` and `half_life` is given, or a value is out of range.

    >>> average = ema(decay=0.5)
    >>> state = average.update(average.init(jnp.zeros(())), jnp.asarray(1.0))
    >>> float(average.update(state, jnp.asarray(4.0)).average)
    3.0
    """
    longest = _half_life(decay, half_life)
    if rampup is not None and not 0 < rampup < math.inf:
        raise ValueError(f"rampup must be above 0, got {rampup}")

    def init(params):
        return EmaState(jax.tree.map(jnp.copy, params), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(state, params):
        count = state.count + 1
        factor = _decay(count, longest, rampup).astype(state.weight.dtype)
        weight = factor * state.weight + (1 - factor)
        # The debiased mean satisfies average += (1 - d) / weight * (p - average), a form whose fixed point is exact.
        gain = (1 - factor) / weight

        def move(average, value):
            # The first gain is 1, but a rounded difference would leave something of the initial parameters.
            return jnp.where(count == 1, value, average + gain.astype(average.dtype) * (value - average))

        return EmaState(jax.tree.map(move, state.average, params), weight, count)

    return Ema(init, update)


def _half_life(decay: float | None, half_life: float | None) -> float:
    if (decay is None) == (half_life is None):
        raise ValueError(f"give one of decay and half_life, got decay={decay} and half_life={half_life}")
    if decay is not None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        return math.log(0.5) / math.log(decay) if decay > 0 else 0.0
    assert half_life is not None
    if not 0 < half_life < math.inf:
        raise ValueError(f"half_life must be above 0 and finite, got {half_life}")
    return half_life


def _decay(count: Int[Array, ""], longest: float, rampup: float | None) -> Float[Array, ""]:
    if rampup is None:
        return jnp.asarray(0.5 ** (1 / longest) if longest else 0.0)
    return 0.5 ** (1 / jnp.minimum(longest, rampup * count))
