"""Gradient flow d params / dt = -grad loss(params), integrated adaptively (diffrax), with a verdict on its end."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgen.flows.arguments import (
    apply_mask,
    check_loss,
    check_mask,
    check_positive,
    check_times,
    checked_params,
    common_dtype,
)
from jaxgen.flows.curvature import Curvature, curvature_at
from jaxgen.flows.endings import Flow, Saves, Status
from jaxgen.typing import ArrayLike, Params, Scalar


class _Problem(NamedTuple):
    """What defines the path."""

    loss: Callable[[Params], Float[Array, ""]]
    mask: Params | None
    speed: Callable[[Params, Params], Float[Array, ""]] | None


class _Settings(NamedTuple):
    """What defines how the path is followed, and how far."""

    solver: diffrax.AbstractSolver
    rtol: Scalar
    atol: Scalar
    stationary: Scalar
    blow_up: Scalar
    max_steps: int
    dense: bool


class _State(NamedTuple):
    """What is integrated: the parameters and, with a speed, the flow's own time."""

    params: Params
    time: Float[Array, ""] | None


class _Carry(NamedTuple):
    """Between two saves."""

    state: _State
    clock: Float[Array, ""]
    num_steps: Int[Array, ""]
    ended: Bool[Array, ""]
    failed: Bool[Array, ""]


def gradient_flow(
    loss: Callable[[Params], Float[Array, ""]],
    params: Params,
    t1: Scalar | int,
    *,
    save_at: Float[ArrayLike, " saves"] | None = None,
    mask: Params | None = None,
    speed: Callable[[Params, Params], Float[Array, ""]] | None = None,
    observe: Callable[[Params], Params] | None = None,
    dense: bool = False,
    solver: diffrax.AbstractSolver | None = None,
    rtol: Scalar | None = None,
    atol: Scalar | None = None,
    stationary: Scalar | None = None,
    blow_up: Scalar = 1e6,
    curvature: bool = True,
    max_steps: int = 4096,
) -> Flow:
    """Follow d params / ds = -speed * grad loss(params) from s = 0 to s = t1, or until nothing moves any more.

    Pure: call it inside `jax.jit`, and under `jax.vmap` over starts and over whatever `loss` closes over. A batch
    takes as many steps as its slowest member, so give problems a common time scale first, by `speed` for example.

    Args:
        loss: real function of the parameters.
        params: where to start, a pytree of real arrays, all float32 or all float64; the flow computes in that type.
        t1: where to end, positive; in units of time, or of s with `speed`. May be traced.
        save_at: increasing values of s in [0, t1] at which to keep something. The solver steps onto each of them, so
            that what is kept has the accuracy of a step, which an interpolation has not.
        mask: zeros and ones of the structure and shapes of `params`; the gradient is multiplied by it, so that the
            parameters at the zeros stay as they are.
        speed: `speed(params, masked gradient) > 0`, by which the time t runs along the clock s: dt / ds = speed. Time
            then is integrated with the parameters. A constant changes the unit of time, 1 / (norm of the gradient)
            makes s the arc length.
        observe: function of the parameters whose values are kept at `save_at` in their place.
        dense: keep the whole way for `along`, in memory that grows as `max_steps` times the parameters times seven;
            the values at `save_at` then come from that interpolation.
        solver: of diffrax, adaptive; None is `Tsit5()`, and `Kvaerno5()` suits stiff flows of few parameters.
        rtol: relative tolerance of a step; None is 1e-5 in float32 and 1e-9 in float64.
        atol: absolute tolerance of a step; None is `rtol` / 100.
        stationary: the flow ends where no entry of the masked gradient is larger; None is 1e-4 in float32 and 1e-7 in
            float64. It cannot be reached below about `rtol` times the largest curvature times the parameters.
        blow_up: the flow ends where a parameter is larger.
        curvature: compute the curvature at the end from the whole Hessian, for n parameters at the cost of n gradients
            and of n x n numbers.
        max_steps: most steps between two saves.

    Returns:
        The `Flow`, whose `status` says how it ended; `require_finished` turns bad ends into errors on the host.

    Raises:
        ValueError: for arguments out of their ranges, as far as they are known before tracing.

    Example:
        >>> follow = jax.jit(lambda start: gradient_flow(lambda x: 0.5 * (x**2).sum(), start, 1.0))
        >>> flow = follow(jnp.array([1.0, 2.0]))
        >>> [round(float(value), 3) for value in flow.params]
        [0.368, 0.736]
        >>> Status(int(flow.status)).name
        'RUNNING'
    """
    params = checked_params(params)
    dtype = common_dtype(params)
    check_loss(loss, params)
    check_mask(mask, params)
    check_times(t1, save_at)
    fine = dtype == jnp.float64
    rtol = (1e-9 if fine else 1e-5) if rtol is None else rtol
    atol = 0.01 * rtol if atol is None else atol
    stationary = (1e-7 if fine else 1e-4) if stationary is None else stationary
    check_positive(rtol=rtol, atol=atol, stationary=stationary, blow_up=blow_up)
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")

    problem = _Problem(loss, mask, speed)
    settings = _Settings(
        diffrax.Tsit5() if solver is None else solver, rtol, atol, stationary, blow_up, max_steps, dense
    )
    start = _State(params, None if speed is None else jnp.zeros((), dtype))
    carry, saves, path = _travel(
        functools.partial(_advance, problem, settings),
        start,
        jnp.asarray(t1, dtype),
        None if save_at is None else jnp.asarray(save_at, dtype),
        (lambda params: params) if observe is None else observe,
        dense,
    )
    bent = curvature_at(loss, carry.state.params, mask) if curvature else None
    return Flow(
        params=carry.state.params,
        clock=carry.clock,
        time=_time(carry.state, carry.clock),
        saves=saves,
        loss=loss(carry.state.params),
        gradient_norm=_largest(_gradient(problem, carry.state.params)),
        curvature=None if bent is None else bent.smallest,
        status=_status(problem, settings, start, carry, bent),
        num_steps=carry.num_steps,
        path=path,
    )


def _time(state: _State, clock: Float[Array, ""]) -> Float[Array, ""]:
    return clock if state.time is None else state.time


def _gradient(problem: _Problem, params: Params) -> Params:
    return apply_mask(problem.mask, jax.grad(problem.loss)(params))


def _velocity(problem: _Problem, state: _State) -> _State:
    """Return the derivatives of a state by the clock."""
    slope = _gradient(problem, state.params)
    if problem.speed is None:
        return _State(jax.tree.map(jnp.negative, slope), None)
    rate = jnp.asarray(problem.speed(state.params, slope), jax.tree.leaves(slope)[0].dtype)
    return _State(jax.tree.map(lambda leaf: -rate * leaf, slope), rate)


def _advance(
    problem: _Problem, settings: _Settings, state: _State, clock: Float[Array, ""], target: Float[Array, ""]
) -> diffrax.Solution:
    def ended(clock, state, args, **_):
        norm = _largest(_gradient(problem, state.params))
        # Written so that what is not a number ends the flow too.
        return (norm <= settings.stationary) | ~(norm < jnp.inf) | ~(_largest(state.params) <= settings.blow_up)

    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda clock, state, args: _velocity(problem, state)),
        settings.solver,
        clock,
        target,
        None,
        state,
        saveat=diffrax.SaveAt(t1=True, dense=settings.dense),
        stepsize_controller=diffrax.PIDController(rtol=settings.rtol, atol=settings.atol, norm=_error_norm),
        event=diffrax.Event(ended),
        max_steps=settings.max_steps,
        throw=False,
    )


def _travel(
    advance: Callable[[_State, Array, Array], diffrax.Solution],
    start: _State,
    t1: Array,
    save_at: Array | None,
    observe: Callable[[Params], Params],
    dense: bool,
) -> tuple[_Carry, Saves | None, diffrax.DenseInterpolation | None]:
    """Advance from save to save and on to `t1`, or at once where the whole way is kept."""
    zero = jnp.zeros((), t1.dtype)
    carry = _Carry(start, zero, jnp.zeros((), jnp.int32), jnp.asarray(False), jnp.asarray(False))

    def keep(state: _State, clock: Array) -> tuple[Array, Params]:
        return _time(state, clock), observe(state.params)

    if dense:
        carry, path = _step(advance, carry, t1)
        assert path is not None
        if save_at is None:
            return carry, None, path
        clocks = jnp.minimum(save_at, carry.clock)
        times, values = jax.vmap(lambda clock: keep(path.evaluate(clock), clock))(clocks)
        return carry, Saves(times, values, save_at <= carry.clock), path

    def body(carry: _Carry, target: Array):
        carry, _ = _step(advance, carry, target)
        return carry, (*keep(carry.state, carry.clock), carry.clock >= target)

    if save_at is None:
        return _step(advance, carry, t1)[0], None, None
    # Not `SaveAt(ts=...)`: it checks its times by a host callback, which no program for several platforms may hold,
    # fills what lies behind an event with infinities, and interpolates. The last stretch is part of the same loop, so
    # that the solver is compiled once.
    carry, rows = jax.lax.scan(body, carry, jnp.append(save_at, t1))
    return carry, Saves(*jax.tree.map(lambda leaf: leaf[:-1], rows)), None


def _step(advance, carry: _Carry, target: Array) -> tuple[_Carry, diffrax.DenseInterpolation | None]:
    """Advance to `target`, or by nothing if the flow has ended."""
    # Times that were traced may not increase; diffrax would go back.
    target = jnp.where(carry.ended | carry.failed, carry.clock, jnp.maximum(target, carry.clock))
    solution = advance(carry.state, carry.clock, target)
    assert solution.ys is not None
    assert solution.ts is not None
    halted = solution.result == diffrax.RESULTS.event_occurred
    clock = solution.ts[-1]
    # A target that is not a number counts as reached to diffrax.
    failed = ~halted & ~((solution.result == diffrax.RESULTS.successful) & (clock >= target))
    state = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    num_steps = carry.num_steps + jnp.asarray(solution.stats["num_steps"], jnp.int32)
    carry = _Carry(state, clock, num_steps, carry.ended | halted, carry.failed | failed)
    return carry, solution.interpolation


def _status(
    problem: _Problem, settings: _Settings, start: _State, carry: _Carry, bent: Curvature | None
) -> Int[Array, ""]:
    """Name the end by what is there, whatever made the solver stop."""
    params = carry.state.params
    norm, size = _largest(_gradient(problem, params)), _largest(params)
    eps = jnp.finfo(norm.dtype).eps
    # A solution that is infinite at a finite time may become so between two neighbouring numbers of the clock: the
    # solver then gives up where the parameters, grown, change by their own size within its rounding.
    pace = _largest(_velocity(problem, carry.state).params)
    outran = carry.failed & (size > 10 * _largest(start.params)) & ~(100 * eps * carry.clock * pace <= size)
    blew_up = ~(size <= settings.blow_up) | ~jnp.isfinite(norm) | ~jnp.isfinite(carry.clock) | outran
    if bent is None:
        rest = jnp.int32(Status.STATIONARY)
    else:
        # Near the end of a flow an eigenvalue that is zero in the limit is off by as much as the parameters are.
        falls = bent.smallest < -jnp.cbrt(eps) * bent.scale
        rest = jnp.where(falls, jnp.int32(Status.SADDLE), jnp.int32(Status.MINIMUM))
    going = jnp.where(carry.failed, jnp.int32(Status.FAILED), jnp.int32(Status.RUNNING))
    return jnp.where(blew_up, jnp.int32(Status.BLEW_UP), jnp.where(norm <= settings.stationary, rest, going))


def _largest(tree: Params) -> Float[Array, ""]:
    """Return the largest absolute entry, not a number if one is not."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(tree)]))


def _error_norm(tree: Params) -> Float[Array, ""]:
    """Measure the error of a step by its worst entry, which masked entries without any error cannot dilute."""
    # diffrax divides an infinite error by an infinite scale after a step that overflows; not a number then becomes the
    # length of every further step. An infinite error shortens the step instead.
    worst = _largest(tree)
    return jnp.where(jnp.isnan(worst), jnp.inf, worst)
