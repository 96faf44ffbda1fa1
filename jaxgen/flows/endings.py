"""How a gradient flow ended: its result, the words for it, and the errors."""

import enum
from collections import Counter
from typing import NamedTuple

import diffrax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgen.typing import Params, Scalar


class Status(enum.IntEnum):
    """How a flow ended; the first that applies, from the bottom of this list upwards."""

    RUNNING = 0
    """The clock reached `t1` and the parameters still move."""
    FAILED = 1
    """The solver gave up before `t1`, for want of steps."""
    STATIONARY = 2
    """The gradient vanished; the curvature was not asked for."""
    MINIMUM = 3
    """The gradient vanished where no direction curves downwards; flat directions are allowed."""
    SADDLE = 4
    """The gradient vanished where some direction curves downwards.

    Rounding grows along that direction while the flow comes near, so that in float32 it may leave before its gradient
    is small enough: a larger `stationary` ends it in time.
    """
    BLEW_UP = 5
    """A parameter exceeded `blow_up`, something is not finite, or the flow outran the resolution of its clock."""


class Saves(NamedTuple):
    """What was kept along a flow, with a leading axis over `save_at`."""

    times: Float[Array, "*batch saves"]
    """The flow's own times t; equal to `save_at` where they were reached and there is no `speed`."""
    values: Params
    """The parameters or, with `observe`, what it returned; each leaf (saves, *shape)."""
    reached: Bool[Array, "*batch saves"]
    """False where the flow had ended before: there `times` and `values` repeat the end."""


class Flow(NamedTuple):
    """The end of a gradient flow and what was kept of its way; under `jax.vmap` every field has the batch in front."""

    params: Params
    """Final parameters."""
    clock: Float[Array, "*batch"]
    """Where the integration ended, in the units of `t1`."""
    time: Float[Array, "*batch"]
    """The flow's own time t there; the same as `clock` without `speed`."""
    saves: Saves | None
    """What was kept at `save_at`; None without it."""
    loss: Float[Array, "*batch"]
    """Loss of `params`."""
    gradient_norm: Float[Array, "*batch"]
    """Largest absolute entry of the masked gradient there, which is what `stationary` bounds."""
    curvature: Float[Array, "*batch"] | None
    """Smallest eigenvalue of the Hessian there, over the coordinates that the mask leaves free; None if not asked."""
    status: Int[Array, "*batch"]
    """A `Status`."""
    num_steps: Int[Array, "*batch"]
    """Steps of the solver, the rejected ones included."""
    path: diffrax.DenseInterpolation | None
    """The whole way, for `along`; None without `dense`."""


def along(flow: Flow, clock: Scalar | int) -> tuple[Float[Array, ""], Params]:
    """Look up where a flow with `dense` was; before its start and behind its end, the start and the end.

    Args:
        flow: one flow; `jax.vmap` this function over a batch.
        clock: where, in the units of `t1`.

    Returns:
        The flow's own time and the parameters there, interpolated to the fourth order by the default solver.

    Raises:
        ValueError: if the flow has not kept its way.
    """
    if flow.path is None:
        raise ValueError("the flow has kept no path; ask for it by dense=True")
    clock = jnp.clip(jnp.asarray(clock, flow.clock.dtype), 0.0, flow.clock)
    state = flow.path.evaluate(clock)
    return clock if state.time is None else state.time, state.params


def describe(flow: Flow) -> str:
    """Say in words how a flow ended; on the host.

    Returns:
        One word for one flow, for example "saddle", and for a batch how many ended how: "3 minimum, 1 blew up".
    """
    words = [Status(code).name.lower().replace("_", " ") for code in np.ravel(np.asarray(flow.status)).tolist()]
    if not np.ndim(flow.status):
        return words[0]
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def require_finished(flow: Flow) -> Flow:
    """Return a flow none of whose members blew up or failed; on the host.

    Raises:
        FloatingPointError: if one blew up; names the time of the first.
        RuntimeError: if the solver gave up on one; names its steps and what may help.
    """
    status, times, clocks, steps = (np.asarray(leaf) for leaf in (flow.status, flow.time, flow.clock, flow.num_steps))
    for index in np.argwhere(status == Status.BLEW_UP)[:1]:
        raise FloatingPointError(f"the flow blew up at time {times[tuple(index)]:.6g}{_member(index)}")
    for index in np.argwhere(status == Status.FAILED)[:1]:
        raise RuntimeError(
            f"the solver gave up at {clocks[tuple(index)]:.6g} after {steps[tuple(index)]} steps{_member(index)}: "
            "raise max_steps or the tolerances, or take diffrax.Kvaerno5() for a stiff flow"
        )
    return flow


def _member(index: np.ndarray) -> str:
    return f" (member {', '.join(map(str, index.tolist()))})" if index.size else ""
