"""Checkpoints of a training run: written asynchronously and atomically by orbax, verified by our own manifest.

A checkpoint is the folder `PATH/STEP` with the arrays of the state (`state/`), the position in the data (`data/`),
what they belong to (`meta/`) and the sha256 of every file of these (see `manifest`). The manifest is written before
the folder gets its name, so that a folder with a name has one. Several processes write into one common folder, each
the shards that it holds; all of them call every function of this module together. This is the only module that knows
orbax.
"""

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jaxgen.training import manifest
from jaxgen.training.fitting import CheckpointDamagedError, CheckpointError, compare_arrays, compare_configs
from jaxgen.training.keeping import Keeping, best_first, read_json
from jaxgen.training.processes import on_first, told_by_first
from jaxgen.training.tree_paths import describe, flatten

_FORMAT = 2
_PARTS_AT_ONCE = 16


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: the state.
        data: position in the data.
        restored: dotted paths of the arrays that were read.
        initialised: those that the checkpoint does not hold, or holds in another shape or dtype: left as they were.
        unused: those that the checkpoint holds and the state does not ask for.
    """

    state: PyTree
    data: dict[str, Any]
    restored: tuple[str, ...]
    initialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints in one folder, as a context manager that waits for what is being written.

    Args:
        path: the folder; made if it does not exist. The first save removes what a killed process left half-written.
        config: settings (JSON) that a resumed run must share; what may differ is left out by the caller.
        keep: number of newest checkpoints to keep; None keeps all.
        best: name of a metric; the checkpoints where it was best are kept besides the newest.
        keep_best: how many of these.
        maximise: whether larger is better.

    Raises:
        ValueError: if `keep` or `keep_best` is below 1.
        CheckpointError: if the folder cannot be made or written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        keep: int | None = 3,
        best: str | None = None,
        keep_best: int = 1,
        maximise: bool = False,
    ):
        for name, value in (("keep", keep), ("keep_best", keep_best)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.path = Path(path).absolute()
        self._config = json.loads(json.dumps(config or {}))
        self._writing: int | None = None
        self._keeping = Keeping(self.path, keep, best, keep_best, maximise)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keeping,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            # The processes meet under this name: two folders may be written at once, of which steps have equal names.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=_common_name(self.path)),
        )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.path, options=options)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot hold checkpoints: {error}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint that is completely written, None if there is none."""
        return max(_steps(self.path), default=None)

    def save(
        self,
        state: PyTree,
        *,
        data: Mapping[str, Any] | None = None,
        constants: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begin to write the checkpoint of `state.step`; the state may be donated as soon as this returns.

        Args:
            state: a `TrainState`.
            data: position in the data (JSON).
            constants: `fingerprint` of the constants of the run.
            metrics: numbers of this step, by which the best checkpoints are found.

        Raises:
            CheckpointError: if the checkpoint before it could not be written, or this one cannot.
        """
        self.wait()
        step, arrays = int(state.step), flatten(state)
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        meta = {
            "format": _FORMAT,
            "config": self._config,
            "constants": constants,
            "metrics": {name: value for name, value in numbers.items() if math.isfinite(value)},
            "arrays": {path: describe(leaf) for path, leaf in arrays.items()},
        }
        self._writing, self._keeping.known[step] = step, meta["metrics"]
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    data=ocp.args.JsonSave(dict(data or {})),
                    meta=ocp.args.JsonSave(meta),
                ),
                force=True,
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete.

        Raises:
            CheckpointError: if it could not be written; the ones before it are still there.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if self._writing is not None:
                # Every process reads the seal, so that none goes on before it is written.
                on_first(lambda: manifest.seal(self.path / str(self._writing)))
        except Exception as error:
            raise self._unwritten(error) from error
        self._writing = None

    def restore(self, like: PyTree, *, constants: str = "", partial: bool = False) -> Restored:
        """Read the newest checkpoint that is undamaged, onto the devices where `like` lies.

        The mesh may be another than the one that saved. A damaged checkpoint is passed over with a warning, and set
        aside as `STEP.damaged`. Beside the state, no more than a part of one array is held in memory.

        Args:
            like: a state of the expected structure, as arrays or as shapes with shardings.
            constants: `fingerprint` of the constants of the run.
            partial: read the arrays that fit and leave the others as `like` has them; the result tells which. Another
                configuration and other constants are accepted.

        Raises:
            CheckpointError: if there is no undamaged checkpoint, or it belongs to another configuration, to other
                constants or to a state of another structure, shape or dtype; for a partial one, if nothing fits, or
                an array that does not fit is given as a shape.
        """
        step, meta, damaged = _newest_good(self.path)
        folder = self.path / str(step)
        if not partial:
            compare_configs(folder, meta["config"], self._config)
            if meta["constants"] != constants:
                raise CheckpointError(
                    f"{folder} was made with other constants: their sha256 was "
                    f"{meta['constants'] or 'none'}, now it is {constants or 'none'}"
                )
        restored = _read_fitting(folder, meta, like) if partial else _read_whole(folder, meta, like)
        self._set_aside(damaged)
        return restored

    def good_step(self) -> int | None:
        """Return the step of the newest undamaged checkpoint, None if there is none at all, and set aside the others.

        Raises:
            CheckpointError: if there are checkpoints and all of them are damaged.
        """
        if not _steps(self.path):
            return None
        step, _, damaged = _newest_good(self.path)
        self._set_aside(damaged)
        return step

    def holds(self, step: int) -> bool:
        """Return whether the checkpoint of a step is written and undamaged; set it aside, with a warning, if damaged.

        Raises:
            CheckpointError: if the checkpoint that is being written could not be.
        """
        self.wait()
        if step not in _common_steps(self.path):
            return False
        try:
            _verify(self.path / str(step))
        except CheckpointDamagedError as error:
            warnings.warn(f"{error}; it is set aside", RuntimeWarning, stacklevel=2)
            self._set_aside([step])
            return False
        return True

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and release orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _set_aside(self, damaged: Sequence[int]) -> None:
        def rename() -> None:
            for bad in damaged:
                endings = itertools.chain([""], (f"-{again}" for again in itertools.count(2)))
                names = (self.path / f"{bad}.damaged{ending}" for ending in endings)
                (self.path / str(bad)).rename(next(name for name in names if not name.exists()))

        if damaged:
            try:
                on_first(rename)
            except OSError as error:
                raise CheckpointError(f"damaged checkpoints cannot be set aside: {error}") from error
            self._manager.reload()

    def _write_manifest(self) -> None:
        # Orbax calls this from its thread when all files of all processes are written and the folder has its
        # temporary name; with several processes, from one of them.
        (folder,) = self.path.glob(f"{self._writing}.*-tmp*")
        manifest.write_manifest(folder)

    def _unwritten(self, error: Exception) -> CheckpointError:
        good = self.latest_step
        last = "there is none before it" if good is None else f"the last good one is {self.path / str(good)}"
        return CheckpointError(
            f"checkpoint {self._writing} could not be written: {manifest.one_sentence(error)}; {last}"
        )


def best_step(path: str | Path, metric: str, *, maximise: bool = False) -> int:
    """Return the step of a run's undamaged checkpoint where a metric was best; of equal ones, the latest.

    Raises:
        CheckpointError: if no undamaged checkpoint has this metric.
    """
    root = Path(path).absolute()
    found = {step: meta["metrics"] for step in _common_steps(root) if (meta := _verified_or_none(root / str(step)))}
    ranked = best_first(found, metric, maximise)
    if not ranked:
        known = sorted({name for metrics in found.values() for name in metrics})
        raise CheckpointError(f"no checkpoint in {root} has the metric {metric!r}, only {known}")
    return ranked[0]


def restore_params(path: str | Path, like: PyTree, *, field: str = "params", step: int | None = None) -> PyTree:
    """Read one field of a run's newest undamaged checkpoint, and nothing else of it.

    Args:
        path: the folder of the checkpoints; it is not changed.
        like: the field's expected structure, as arrays or shapes; shapes without a sharding go to the first device.
        field: which part of the state, dotted, for example "params" or "ema.average".
        step: a certain checkpoint instead of the newest, for example that of `best_step`.

    Raises:
        CheckpointError: if there is no such checkpoint or field, or its structure, shapes or dtypes differ.
    """
    return next(restore_each(path, like, [field], step=step))


def restore_each(path: str | Path, like: PyTree, fields: Iterable[str], *, step: int | None = None) -> Iterator[PyTree]:
    """Read fields of one structure one after the other, as `restore_params` does; the files are verified once.

    Raises:
        CheckpointError: as `restore_params`, when the first field or that which does not fit is asked for.
    """
    folder, meta = _open(path, step)
    for field in fields:
        # Held by nothing here while the next is being read.
        yield _read_field(folder, meta, like, field)


def written_steps(path: str | Path) -> tuple[int, ...]:
    """List the steps of the checkpoints in a folder that are completely written, damaged ones among them."""
    return tuple(reversed(_common_steps(Path(path).absolute())))


def read_config(path: str | Path, *, step: int | None = None) -> dict[str, Any]:
    """Read the configuration that a run's newest undamaged checkpoint (or that of `step`) was made with."""
    return _open(path, step)[1]["config"]


def _open(path: str | Path, step: int | None) -> tuple[Path, dict[str, Any]]:
    root = Path(path).absolute()
    if step is None:
        step, meta, _ = _newest_good(root)
        return root / str(step), meta
    if step not in _steps(root):
        raise CheckpointError(f"{root} has no checkpoint {step}, only {sorted(_steps(root))}")
    return root / str(step), _verify(root / str(step))


def _steps(root: Path) -> list[int]:
    return [int(entry.name) for entry in root.iterdir() if entry.name.isdecimal()] if root.is_dir() else []


def _common_name(root: Path) -> str:
    return hashlib.sha256(told_by_first(str(root)).encode()).hexdigest()[:16]


def _common_steps(root: Path) -> list[int]:
    """List the steps that the first process sees, in every process: file systems differ for a moment."""
    return json.loads(told_by_first(json.dumps(sorted(_steps(root), reverse=True))))


def _newest_good(root: Path) -> tuple[int, dict[str, Any], list[int]]:
    """Return the newest undamaged step, what it belongs to, and the damaged steps after it."""
    damaged, reason = [], "there is none"
    for step in _common_steps(root):
        try:
            meta = _verify(root / str(step))
        except CheckpointDamagedError as error:
            damaged.append(step)
            reason = str(error)
            continue
        if damaged:
            warnings.warn(f"{reason}; going back to checkpoint {step}", RuntimeWarning, stacklevel=3)
        return step, meta, damaged
    raise CheckpointError(f"{root} has no usable checkpoint: {reason}")


def _verified_or_none(folder: Path) -> dict[str, Any] | None:
    try:
        return _verify(folder)
    except CheckpointDamagedError:
        return None


def _verify(folder: Path) -> dict[str, Any]:
    """Check every file against the manifest and return the meta data."""
    if (found := manifest.damage(folder)) is not None:
        raise CheckpointDamagedError(found)
    try:
        meta = read_json(folder / "meta")
        version = meta["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamagedError(f"{folder} is damaged: {manifest.one_sentence(error)}") from error
    if version != _FORMAT:
        raise CheckpointError(f"{folder} has format {version}, this version reads {_FORMAT}")
    return meta


def _read_whole(folder: Path, meta: Mapping[str, Any], like: PyTree) -> Restored:
    wanted = flatten(like)
    compare_arrays(folder, meta["arrays"], {path: describe(leaf) for path, leaf in wanted.items()})
    arrays = _read_arrays(folder, wanted)
    state = jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in wanted])
    return Restored(state, read_json(folder / "data"), tuple(wanted))


def _read_fitting(folder: Path, meta: Mapping[str, Any], like: PyTree) -> Restored:
    wanted, stored = flatten(like), meta["arrays"]
    fitting = {path: leaf for path, leaf in wanted.items() if stored.get(path) == describe(leaf)}
    others = tuple(path for path in wanted if path not in fitting)
    if not fitting:
        compare_arrays(folder, stored, {path: describe(leaf) for path, leaf in wanted.items()})
    if shapes := [path for path in others if isinstance(wanted[path], jax.ShapeDtypeStruct)]:
        raise CheckpointError(
            f"{folder} does not hold {shapes[0]} as {describe(wanted[shapes[0]])}, and the state to restore into gives "
            f"only its shape; pass an initialised state"
        )
    arrays = wanted | _read_arrays(folder, fitting)
    state = jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in wanted])
    unused = tuple(path for path in stored if path not in fitting)
    return Restored(state, read_json(folder / "data"), tuple(fitting), others, unused)


def _read_field(folder: Path, meta: Mapping[str, Any], like: PyTree, field: str) -> PyTree:
    wanted = flatten(like, field)
    prefix = f"{field}." if field else ""
    stored = {path: kind for path, kind in meta["arrays"].items() if path == field or path.startswith(prefix)}
    compare_arrays(folder, stored, {path: describe(leaf) for path, leaf in wanted.items()})
    arrays = _read_arrays(folder, wanted)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in wanted])


def _read_arrays(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read arrays a few at a time, since orbax holds what it reads at once on the host a second time."""
    arrays = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        for group in _groups({path: _target(leaf) for path, leaf in wanted.items()}):
            restore_args = ocp.checkpoint_utils.construct_restore_args(group)
            arguments = ocp.args.PyTreeRestore(group, restore_args=restore_args, partial_restore=True)
            arrays |= reader.restore(folder / "state", args=arguments)
    return arrays


def _groups(targets: dict[str, jax.ShapeDtypeStruct]) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Split arrays into groups that hold little of the whole, or one array each."""
    sizes = {path: math.prod(leaf.shape) * leaf.dtype.itemsize for path, leaf in targets.items()}
    most = sum(sizes.values()) // _PARTS_AT_ONCE
    groups, held = [], most + 1
    for path, target in targets.items():
        if held + sizes[path] > most:
            groups.append({})
            held = 0
        groups[-1][path] = target
        held += sizes[path]
    return groups


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
