"""The training loop: it runs a pure update over batches, and knows neither loss nor optimiser nor network."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int, PyTree

from jaxgen.training.checkpoints import Checkpoints, fingerprint
from jaxgen.training.data import Batches
from jaxgen.training.mesh import RULES, batch_sharding, check_batch, replicate, state_shardings
from jaxgen.training.state import TrainState, owned

Metrics: TypeAlias = Mapping[str, Any]
Update: TypeAlias = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


class TrainingDivergedError(FloatingPointError):
    """A watched metric or a parameter is no longer finite; names the step and the last good checkpoint."""


class _Span(NamedTuple):
    """The metrics of steps first + 1 ... first + count, on their way to the host."""

    first: int
    count: int
    metrics: PyTree


def fit(
    update: Update,
    state: TrainState,
    constants: PyTree,
    batches: Batches,
    *,
    steps: int,
    mesh: Mesh | None = None,
    axes: PyTree | None = None,
    rules: Mapping[str, str] = RULES,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
    log_every: int = 1,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    steps_per_call: int = 16,
    watch: str = "loss",
) -> TrainState:
    """Train until `steps` updates are done.

    "Step n" is the n-th update; after it `state.step` is n, which is also the name of its checkpoint. Many steps run
    in one call of one compiled program, whose number of steps is an argument: however a run is cut by calls, saves
    or a restart, each step executes the same instructions, and the result is the same to the bit.

    Args:
        update: pure `update(state, constants, batch) -> (state, metrics)`. `fit` itself advances `state.step`. The
            randomness of a step comes from `fold_in(state.key, state.step)`. Passing the same function object again
            does not compile again.
        state: where to begin; consumed, since its buffers are donated.
        constants: what the update needs but never changes (frozen weights, a reference policy, settings that a
            schedule leaves alone): an argument of the compiled program, neither donated nor saved. A checkpoint names
            it by its sha256, and resuming with other constants is refused.
        batches: where batches come from.
        steps: total number of updates, those of earlier runs included.
        mesh: devices to train on; None trains on one.
        axes: logical axis names of the parameters, see `state_shardings`.
        rules: from logical axis name to mesh axis.
        checkpoints: where to save, after every `save_every` steps, on `stop` and at the end.
        resume: continue from the newest good checkpoint, or from the beginning if there is none.
        save_every: steps between checkpoints; None saves at the end only.
        log_every: steps between calls of `on_metrics`, which is also called for the last step.
        on_metrics: called as `on_metrics(step, metrics)` with host arrays, one call of the compiled program late, so
            that the device never waits for the host. After a kill, the steps since the checkpoint are reported again.
        stop: asked before every call of the compiled program; once it returns true, the state is saved and returned
            early, and the caller sees `state.step < steps`.
        steps_per_call: most steps in one call; the host's time per step falls in proportion.
        watch: the metric that must stay finite; it may have a leading axis of seeds.

    Returns:
        The state after the last step. With `checkpoints`, it has been written when `fit` returns.

    Raises:
        ValueError: for bad arguments, before anything is compiled.
        TrainingDivergedError: if the watched metric, or at a save a parameter or an average, is not finite.
        CheckpointError: if no checkpoint can be read or one cannot be written.
    """
    _check_arguments(steps, save_every, log_every, steps_per_call, checkpoints, resume)
    state, layout, sharding = owned(state, constants), None, None
    if mesh is not None:
        shardings = state_shardings(state, mesh, axes, rules)
        layout, sharding = tuple(jax.tree.leaves(shardings)), batch_sharding(mesh)
        state, constants = jax.device_put(state, shardings), _on_mesh(constants, mesh)
    digest = fingerprint(constants) if checkpoints is not None else ""
    saved: int | None = None
    if checkpoints is not None and resume and checkpoints.latest_step is not None:
        state, position = checkpoints.restore(state, constants=digest)
        batches.seek(position)
        saved = int(state.step)
    done = int(state.step)
    span = functools.partial(run_span, update, batches.select, steps_per_call, layout, sharding, watch)
    report = functools.partial(_report, steps, log_every, on_metrics, watch, checkpoints)

    pending = None
    while done < steps and not (stop is not None and stop()):
        count = min(steps_per_call, steps - done, (save_every - done % save_every) if save_every else steps)
        payload = batches.load(done, count)
        if mesh is not None:
            _check_placement(payload, mesh)
        state, metrics = span(state, constants, payload, np.int32(count))
        jax.tree.map(lambda leaf: leaf.copy_to_host_async(), metrics)
        # The device is busy with this span while the host reads the metrics of the one before it.
        report(pending)
        pending, done = _Span(done, count, metrics), done + count
        if checkpoints is not None and save_every and done % save_every == 0:
            report(pending)
            pending, saved = None, done
            _save(checkpoints, state, batches, digest, done)
    report(pending)
    if checkpoints is not None:
        if saved != done:
            _save(checkpoints, state, batches, digest, done)
        checkpoints.wait()
    return state


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5), donate_argnums=6)
def run_span(
    update: Update,
    select: Callable[[PyTree, Int[Array, ""]], PyTree],
    length: int,
    layout: tuple[NamedSharding, ...] | None,
    sharding: NamedSharding | None,
    watch: str,
    state: TrainState,
    constants: PyTree,
    payload: PyTree,
    count: Int[Array, ""],
) -> tuple[TrainState, PyTree]:
    """Run `count` of at most `length` steps; returns the state and the metrics, of which the first `count` are set."""

    @jax.jit
    def step(state, offset):
        batch = select(payload, offset)
        if sharding is not None:
            for leaf in jax.tree.leaves(batch):
                check_batch(leaf.shape[0], sharding.mesh)
            batch = jax.lax.with_sharding_constraint(batch, sharding)
        after, metrics = update(state, constants, batch)
        if watch not in metrics:
            raise ValueError(f"the update must return the watched metric {watch!r}, got {sorted(metrics)}")
        after = after._replace(step=state.step + 1)
        if layout is not None:
            placed = jax.tree.unflatten(jax.tree.structure(after), layout)
            after = jax.lax.with_sharding_constraint(after, placed)
        return after, metrics

    def body(offset, carry):
        state, history = carry
        state, metrics = step(state, offset)
        return state, jax.tree.map(lambda rows, row: rows.at[offset].set(row), history, metrics)

    zero = jnp.zeros((), jnp.int32)
    # `step` is jitted so that asking for the shapes of its metrics and running it share one trace.
    shapes = jax.eval_shape(step, state, zero)[1]
    history = jax.tree.map(lambda metric: jnp.zeros((length, *metric.shape), metric.dtype), shapes)
    # A loop with a traced bound, not a scan: one program serves every number of steps.
    return jax.lax.fori_loop(zero, count, body, (state, history))


@jax.jit
def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])) if leaves else jnp.asarray(True)


def _report(steps, log_every, on_metrics, watch, checkpoints, span: _Span | None) -> None:
    if span is None:
        return
    metrics = {name: np.asarray(value) for name, value in span.metrics.items()}
    for index in range(span.count):
        step = span.first + index + 1
        if not np.isfinite(metrics[watch][index]).all():
            _diverged(f"{watch} is {_first_bad(metrics[watch][index, ...])} at step {step}", checkpoints)
        if on_metrics is not None and (step % log_every == 0 or step == steps):
            on_metrics(step, {name: value[index, ...] for name, value in metrics.items()})


def _first_bad(values: np.ndarray) -> str:
    where = np.argwhere(~np.isfinite(values))[0]
    return f"{values[tuple(where)]}" + (f" (seed {','.join(map(str, where))})" if where.size else "")


def _save(checkpoints: Checkpoints, state: TrainState, batches: Batches, digest: str, step: int) -> None:
    # The metrics of this step have arrived finite, but a gradient that is not finite shows in them one step later.
    if not _all_finite((state.params, state.variables, state.ema)):
        _diverged(f"a parameter or its average is not finite after step {step}", checkpoints)
    checkpoints.save(state, data=batches.position(step), constants=digest)


def _diverged(what: str, checkpoints: Checkpoints | None) -> None:
    where = "no checkpoint was written"
    if checkpoints is not None:
        checkpoints.wait()
        if checkpoints.latest_step is not None:
            where = f"the last good checkpoint is {checkpoints.path / str(checkpoints.latest_step)}"
    raise TrainingDivergedError(f"{what}; {where}")


def _on_mesh(constants: PyTree, mesh: Mesh) -> PyTree:
    """Leave alone what is already placed on this mesh, and copy the rest to all of its devices."""

    def place(leaf):
        sharding = getattr(leaf, "sharding", None)
        return leaf if isinstance(sharding, NamedSharding) and sharding.mesh == mesh else replicate(leaf, mesh)

    return jax.tree.map(place, constants)


def _check_placement(payload: PyTree, mesh: Mesh) -> None:
    # The compiled program would accept arrays of one device, and copy them to the others in every call.
    for leaf in jax.tree.leaves(payload):
        have = len(leaf.sharding.device_set) if isinstance(leaf, jax.Array) else mesh.size
        if have != mesh.size:
            raise ValueError(f"the batches lie on {have} devices, the mesh has {mesh.size}: make them with this mesh")


def _check_arguments(steps, save_every, log_every, steps_per_call, checkpoints, resume) -> None:
    for name, value in (
        ("steps", steps),
        ("save_every", save_every),
        ("log_every", log_every),
        ("steps_per_call", steps_per_call),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if checkpoints is None and (resume or save_every):
        raise ValueError("resume and save_every need checkpoints")
    if checkpoints is not None and not resume and checkpoints.latest_step is not None:
        raise ValueError(f"{checkpoints.path} holds checkpoints already; resume, or name an empty folder")
