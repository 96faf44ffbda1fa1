"""Run a flow from the base to the data."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgen.diffusion.flow_matching.pointwise import Velocity
from jaxgen.typing import ArrayLike, Sample


def run_flow(velocity: Velocity, x1: Sample, times: Float[ArrayLike, " times"]) -> Sample:
    """Follow dx/dt = -v by Euler steps, x_s = x_t + v(x_t, t) (t - s) (pseudocode 5); returns the shape of `x1`.

    Args:
        velocity: maps (x, t) to v; not asked at the last time.
        x1: where to start, at the first time.
        times: falling from 1 to 0 to sample; rising times run the flow backwards.

    Raises:
        ValueError: if there are fewer than two times, or they are known and not strictly monotone.
    """
    return _run(velocity, x1, times)[0]


def trace_flow(velocity: Velocity, x1: Sample, times: Float[ArrayLike, " times"]) -> Float[Array, "times ..."]:
    """Run a flow as `run_flow` does, and keep where it was at every time, the start included."""
    return jnp.concatenate([jnp.asarray(x1)[None], _run(velocity, x1, times)[1]])


def _run(velocity: Velocity, x1: Sample, times: ArrayLike) -> tuple[Sample, Sample]:
    _check(times)
    times = jnp.asarray(times, x1.dtype)

    def body(x: Sample, inputs: tuple) -> tuple[Sample, Sample]:
        now, next = inputs
        x = x + velocity(x, now) * (now - next)
        return x, x

    return jax.lax.scan(body, x1, (times[:-1], times[1:]))


def _check(times: ArrayLike) -> None:
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must be a row of at least 2, got shape {times.shape}")
    if not isinstance(times, Tracer):
        moves = np.diff(np.asarray(times))
        if not ((moves < 0).all() or (moves > 0).all()):
            raise ValueError("times must be strictly monotone; sort them and drop repeats")
