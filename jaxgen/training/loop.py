"""The training loop: it runs a pure update over batches, and knows neither loss nor optimiser nor network."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from jaxtyping import Array, Bool, PyTree

from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.data import Batches
from jaxgen.training.fitting import CheckpointError
from jaxgen.training.mesh import RULES, batch_sharding, place, replicate_all, state_shardings
from jaxgen.training.pace import Pace, Span, Timing
from jaxgen.training.processes import Agreement, told_by_first
from jaxgen.training.snapshots import Snapshots
from jaxgen.training.span import Update, run_span
from jaxgen.training.state import TrainState, owned, unshared
from jaxgen.training.tree_paths import fingerprint


class TrainingDivergedError(FloatingPointError):
    """A watched metric or a parameter is no longer finite; names the step and the last good checkpoint."""


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
    fully_sharded: bool = False,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
    snapshots: Snapshots | None = None,
    snapshot_every: int | None = None,
    log_every: int = 1,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    on_timing: Callable[[int, Timing], None] | None = None,
    stop: Callable[[], bool] | None = None,
    steps_per_call: int | None = 16,
    call_seconds: float | None = 1.0,
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
        fully_sharded: split parameters, averages and the optimiser's state over the data axis too, see
            `state_shardings`: a device holds its share of the state, and collects parameters where it uses them.
        checkpoints: where to save, after every `save_every` steps, on `stop` and at the end.
        resume: continue from the newest good checkpoint, or from the beginning if there is none.
        save_every: steps between checkpoints; None saves at the end only.
        snapshots: where to keep the averages of `power_ema` in `state.ema`, from which those of other widths are
            reconstructed later: after every `snapshot_every` steps and after the last, not on `stop`. A snapshot is
            complete before a checkpoint after it is begun, so that a run that was killed and resumed has them all.
        snapshot_every: steps between snapshots; None keeps the last step only.
        log_every: steps between calls of `on_metrics`, which is also called for the last step.
        on_metrics: called as `on_metrics(step, metrics)` with host arrays, one call of the compiled program late, so
            that the device never waits for the host. After a kill, the steps since the checkpoint are reported again.
        on_timing: called as `on_timing(step, timing)` from time to time, with the mean over the steps since the last
            call of it.
        stop: asked before every call of the compiled program; once it returns true, in any process, the state is
            saved and returned early, and the caller sees `state.step < steps`.
        steps_per_call: most steps in one call; the host's time per step falls in proportion. None runs one step in a
            call with no loop around it, which rounds otherwise: for programs that XLA compiles worse inside a loop.
        call_seconds: about how long a call may take: fewer steps where they are slow, so that `stop` is heard and
            metrics arrive in time; None makes every call as long as it can be.
        watch: the metric that must stay finite; it may have a leading axis of seeds.

    With several processes, all call `fit` with the same arguments. What one of them raises by itself (`on_metrics`, a
    file that only it cannot read) leaves the others waiting for it: end that process, and jax ends the others.

    Returns:
        The state after the last step. With `checkpoints`, it has been written when `fit` returns; so have snapshots.

    Raises:
        ValueError: for bad arguments, before anything is compiled.
        TrainingDivergedError: if the watched metric, or at a save a parameter or an average, is not finite.
        CheckpointError: if no checkpoint can be read, or a checkpoint or a snapshot cannot be written.
    """
    _check_arguments(steps, save_every, log_every, steps_per_call, call_seconds, checkpoints, resume)
    _check_snapshots(snapshots, snapshot_every, state, resume)
    state, layout, sharding = owned(state, constants), None, None
    shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), state)
    if mesh is not None:
        shardings = state_shardings(state, mesh, axes, rules, fully_sharded=fully_sharded)
        layout, sharding = tuple(jax.tree.leaves(shardings)), batch_sharding(mesh)
        constants = replicate_all(constants, mesh)
    digest = fingerprint(constants) if checkpoints is not None else ""
    saved: int | None = None
    if checkpoints is not None and resume and told_by_first(f"{checkpoints.latest_step}") != "None":
        state, position = checkpoints.restore(_released(state, shardings), constants=digest)[:2]
        batches.seek(position)
        saved = int(state.step)
    else:
        _check_common(state)
        state = unshared(state if mesh is None else place(state, shardings), constants)
    done = int(state.step)
    span = functools.partial(run_span, update, batches.select, steps_per_call, layout, sharding, watch)
    report = functools.partial(_report, steps, log_every, on_metrics, watch, checkpoints)
    save = functools.partial(_save, checkpoints, snapshots, batches, digest)
    keep = functools.partial(_keep, checkpoints, snapshots)
    if saved and _due(saved, steps, snapshot_every):
        keep(state, saved)  # a kill may have come between this checkpoint and the snapshot of its step
    agree = Agreement()
    pace = Pace(steps_per_call or 1, call_seconds, on_timing)

    pending, numbers = None, {}
    while done < steps:
        stopping, most = agree(stop is not None and stop(), pace.steps)
        if stopping:
            break
        count = min(most, *_until_cuts(done, steps, save_every, snapshot_every, batches.block))
        with pace.waiting_for_data():
            payload = batches.load(done, count)
        if mesh is not None:
            _check_placement(payload, mesh)
        state, metrics = span(state, constants, payload, np.int32(count))
        jax.tree.map(lambda leaf: leaf.copy_to_host_async(), metrics)
        # The device is busy with this span while the host reads the metrics of the one before it.
        report(pace.arrived(pending))
        pending, done = Span(done, count, metrics), done + count
        saving, keeping = bool(save_every) and done % save_every == 0, _due(done, steps, snapshot_every)
        if saving or keeping:
            numbers, pending = report(pace.arrived(pending)), None
        if saving:
            saved = done
            save(state, done, numbers)
        if keeping:
            keep(state, done)
        pace.round()
    numbers = report(pace.arrived(pending)) or numbers
    if saved != done:
        save(state, done, numbers)
    if done == steps:
        keep(state, done)
    for written in (checkpoints, snapshots):
        if written is not None:
            written.wait()
    return state


def _check_common(state: TrainState) -> None:
    mine = fingerprint((state.step, state.key))
    if told_by_first(mine) != mine:
        raise ValueError("every process has to begin with the same state, but the steps or the keys differ")


def _until_cuts(done: int, steps: int, *every: int | None) -> list[int]:
    return [steps - done, *(length - done % length for length in every if length)]


def _due(step: int, steps: int, snapshot_every: int | None) -> bool:
    """Return whether a snapshot is to be taken before the last step, whose own does not depend on this."""
    return snapshot_every is not None and step < steps and step % snapshot_every == 0


def _released(state: TrainState, shardings: PyTree) -> PyTree:
    """Give the memory of a state back and return its shapes: what is restored takes its place."""

    def release(leaf, sharding):
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        leaf.delete()
        return shape

    return jax.tree.map(release, state, shardings)


@jax.jit
def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])) if leaves else jnp.asarray(True)


def _report(steps, log_every, on_metrics, watch, checkpoints, span: Span | None) -> dict[str, float]:
    """Pass the metrics of a span on, and return those of its last step."""
    if span is None:
        return {}
    metrics = span.metrics
    for index in range(span.count):
        step = span.first + index + 1
        if not np.isfinite(metrics[watch][index]).all():
            _diverged(f"{watch} is {_first_bad(metrics[watch][index, ...])} at step {step}", checkpoints)
        if on_metrics is not None and (step % log_every == 0 or step == steps):
            on_metrics(step, {name: value[index, ...] for name, value in metrics.items()})
    # Over the seeds of a stacked state, their mean.
    return {name: float(np.mean(value[span.count - 1])) for name, value in metrics.items()}


def _first_bad(values: np.ndarray) -> str:
    where = np.argwhere(~np.isfinite(values))[0]
    return f"{values[tuple(where)]}" + (f" (seed {','.join(map(str, where))})" if where.size else "")


def _save(
    checkpoints: Checkpoints | None,
    snapshots: Snapshots | None,
    batches: Batches,
    digest: str,
    state: TrainState,
    step: int,
    metrics: Mapping[str, float],
) -> None:
    if checkpoints is None:
        return
    # The metrics of this step have arrived finite, but a gradient that is not finite shows in them one step later.
    if not _all_finite((state.params, state.variables, state.ema)):
        _diverged(f"a parameter or its average is not finite after step {step}", checkpoints)
    if snapshots is not None:
        snapshots.wait()  # the steps before a checkpoint are not run again
    checkpoints.save(state, data=batches.position(step), constants=digest, metrics=metrics)


def _keep(checkpoints: Checkpoints | None, snapshots: Snapshots | None, state: TrainState, step: int) -> None:
    if snapshots is None:
        return
    if not _all_finite(state.ema):
        _diverged(f"an average is not finite after step {step}", checkpoints)
    snapshots.save(step, state.ema)


def _diverged(what: str, checkpoints: Checkpoints | None) -> None:
    where = "no checkpoint was written"
    if checkpoints is not None:
        try:
            checkpoints.wait()
        except CheckpointError as error:
            what = f"{what}; {error}"
        if checkpoints.latest_step is not None:
            where = f"the last good checkpoint is {checkpoints.path / str(checkpoints.latest_step)}"
    raise TrainingDivergedError(f"{what}; {where}")


def _check_placement(payload: PyTree, mesh: Mesh) -> None:
    # The compiled program would accept arrays of one device, and copy them to the others in every call.
    for leaf in jax.tree.leaves(payload):
        have = len(leaf.sharding.device_set) if isinstance(leaf, jax.Array) else mesh.size
        if have != mesh.size:
            raise ValueError(f"the batches lie on {have} devices, the mesh has {mesh.size}: make them with this mesh")


def _check_snapshots(snapshots: Snapshots | None, snapshot_every: int | None, state: TrainState, resume: bool) -> None:
    if snapshot_every is not None and (snapshots is None or snapshot_every < 1):
        raise ValueError(f"snapshot_every needs snapshots and must be at least 1, got {snapshot_every}")
    if snapshots is None:
        return
    snapshots.check(state.ema)
    if not resume and snapshots.steps:
        raise ValueError(f"{snapshots.path} holds snapshots already; resume, or name an empty folder")


def _check_arguments(steps, save_every, log_every, steps_per_call, call_seconds, checkpoints, resume) -> None:
    for name, value in (
        ("steps", steps),
        ("save_every", save_every),
        ("log_every", log_every),
        ("steps_per_call", steps_per_call),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if call_seconds is not None and not call_seconds > 0:
        raise ValueError(f"call_seconds must be above 0, or None, got {call_seconds}")
    if checkpoints is None and (resume or save_every):
        raise ValueError("resume and save_every need checkpoints")
    if checkpoints is not None and not resume and checkpoints.latest_step is not None:
        raise ValueError(f"{checkpoints.path} holds checkpoints already; resume, or name an empty folder")
