"""Checkpoints of a training run: written asynchronously and atomically by orbax, verified by our own manifest.

A checkpoint is the folder `PATH/STEP` with the arrays of the state (`state/`), the position in the data (`data/`),
what they belong to (`meta/`) and `manifest.json`, the sha256 of every file of these. The manifest is written before
the folder gets its name, so that a folder with a name has one. This is the only module that knows orbax.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

_MANIFEST = "manifest.json"
# Orbax rewrites these two when it renames the folder; they hold times, and nothing that is restored.
_BOOKKEEPING = ("_CHECKPOINT_METADATA", "commit_success.txt")
_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not fit the run that wants it."""


class CheckpointDamagedError(CheckpointError):
    """The files of a checkpoint are not what was written."""


class Restored(NamedTuple):
    """What a checkpoint holds."""

    state: PyTree
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder, as a context manager that waits for what is being written.

    Args:
        path: the folder; made if it does not exist. The first save removes what a killed process left half-written.
        config: settings (JSON) that a resumed run must share; what may differ is left out by the caller.
        keep: number of newest checkpoints to keep.

    Raises:
        ValueError: if `keep` is below 1.
        CheckpointError: if the folder cannot be made or written.
    """

    def __init__(self, path: str | Path, *, config: Mapping[str, Any] | None = None, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path = Path(path).absolute()
        self._config = json.loads(json.dumps(config or {}))
        self._writing: int | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
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

    def save(self, state: PyTree, *, data: Mapping[str, Any] | None = None, constants: str = "") -> None:
        """Begin to write the checkpoint of `state.step`; the state may be donated as soon as this returns.

        Args:
            state: a `TrainState`.
            data: position in the data (JSON).
            constants: `fingerprint` of the constants of the run.

        Raises:
            CheckpointError: if the checkpoint before it could not be written, or this one cannot.
        """
        self.wait()
        step, arrays = int(state.step), _flatten(state)
        meta = {
            "format": _FORMAT,
            "config": self._config,
            "constants": constants,
            "arrays": {path: _describe(leaf) for path, leaf in arrays.items()},
        }
        self._writing = step
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
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, like: PyTree, *, constants: str = "") -> Restored:
        """Read the newest checkpoint that is undamaged, onto the devices where `like` lies.

        A damaged one is passed over with a warning, and set aside as `STEP.damaged`.

        Args:
            like: a state of the expected structure, as arrays or as shapes with shardings.
            constants: `fingerprint` of the constants of the run.

        Raises:
            CheckpointError: if there is no undamaged checkpoint, or it belongs to another configuration, to other
                constants or to a state of another structure, shape or dtype.
        """
        step, meta, damaged = _newest_good(self.path)
        _compare_configs(self.path / str(step), meta["config"], self._config)
        if meta["constants"] != constants:
            raise CheckpointError(
                f"{self.path / str(step)} was made with other constants: their sha256 was "
                f"{meta['constants'] or 'none'}, now it is {constants or 'none'}"
            )
        state = _read_arrays(self.path / str(step), meta, like, "")
        data = _read_json(self.path / str(step) / "data")
        for bad in damaged:
            (self.path / str(bad)).rename(self.path / f"{bad}.damaged")
        if damaged:
            self._manager.reload()
        return Restored(state, data)

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and release orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _write_manifest(self) -> None:
        # Orbax calls this from its thread when all files are written and the folder has its temporary name.
        (folder,) = self.path.glob(f"{self._writing}.*-tmp*")
        digests = {name: _sha256(folder / name) for name in _files(folder)}
        (folder / _MANIFEST).write_text(json.dumps(digests, separators=(",", ":")))

    def _unwritten(self, error: Exception) -> CheckpointError:
        good = self.latest_step
        last = "there is none before it" if good is None else f"the last good one is {self.path / str(good)}"
        return CheckpointError(f"checkpoint {self._writing} could not be written: {_sentence(error)}; {last}")


def restore_params(path: str | Path, like: PyTree, *, field: str = "params", step: int | None = None) -> PyTree:
    """Read one field of a run's newest undamaged checkpoint, and nothing else of it.

    Args:
        path: the folder of the checkpoints; it is not changed.
        like: the field's expected structure, as arrays or shapes; shapes without a sharding go to the first device.
        field: which part of the state, dotted, for example "params" or "ema.average".
        step: a certain checkpoint instead of the newest.

    Raises:
        CheckpointError: if there is no such checkpoint or field, or its structure, shapes or dtypes differ.
    """
    folder, meta = _open(path, step)
    return _read_arrays(folder, meta, like, field)


def read_config(path: str | Path, *, step: int | None = None) -> dict[str, Any]:
    """Read the configuration that a run's newest undamaged checkpoint (or that of `step`) was made with."""
    return _open(path, step)[1]["config"]


def fingerprint(tree: PyTree) -> str:
    """Return the sha256 of the paths, shapes, dtypes and values of all arrays of a tree; "" if it has none."""
    arrays = _flatten(tree)
    digest = hashlib.sha256()
    for path, leaf in sorted(arrays.items()):
        digest.update(f"{path}:{_describe(leaf)};".encode())
        values = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest() if arrays else ""


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


def _newest_good(root: Path) -> tuple[int, dict[str, Any], list[int]]:
    """Return the newest undamaged step, what it belongs to, and the damaged steps after it."""
    damaged, reason = [], "there is none"
    for step in sorted(_steps(root), reverse=True):
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


def _verify(folder: Path) -> dict[str, Any]:
    """Check every file against the manifest and return the meta data."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        wrong = [name for name, digest in manifest.items() if _sha256(folder / name) != digest]
        if not manifest or wrong:
            raise CheckpointDamagedError(f"{folder} is damaged: {(wrong or [_MANIFEST])[0]} is not what was written")
        meta = _read_json(folder / "meta")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointDamagedError(f"{folder} is damaged: {_sentence(error)}") from error
    if meta["format"] != _FORMAT:
        raise CheckpointError(f"{folder} has format {meta['format']}, this version reads {_FORMAT}")
    return meta


def _read_arrays(folder: Path, meta: dict[str, Any], like: PyTree, field: str) -> PyTree:
    wanted = _flatten(like, field)
    prefix = f"{field}." if field else ""
    stored = {path: kind for path, kind in meta["arrays"].items() if path == field or path.startswith(prefix)}
    _compare_arrays(folder, stored, {path: _describe(leaf) for path, leaf in wanted.items()})
    targets = {path: _target(leaf) for path, leaf in wanted.items()}
    restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arguments = ocp.args.PyTreeRestore(targets, restore_args=restore_args, partial_restore=True)
        arrays = reader.restore(folder / "state", args=arguments)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in wanted])


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compare_configs(folder: Path, stored: Any, wanted: Any) -> None:
    old, new = _flatten_json(stored), _flatten_json(wanted)
    differing = [
        f"{name} was {old.get(name, 'absent')}, now {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    ]
    if differing:
        raise CheckpointError(f"{folder} was made with another configuration: {'; '.join(differing)}")


def _compare_arrays(folder: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    differing = [
        f"{path} is {stored.get(path, 'absent')}, expected {wanted.get(path, 'none')}"
        for path in sorted(stored.keys() | wanted.keys())
        if stored.get(path) != wanted.get(path)
    ]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise CheckpointError(f"{folder} holds another state: {'; '.join(differing[:5])}{more}")


def _flatten(tree: PyTree, prefix: str = "") -> dict[str, Any]:
    """Name every array of a tree by its dotted path, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[".".join(filter(None, (prefix, name)))] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if len(named) != len(leaves):
        raise ValueError("two arrays of the state have the same dotted path; rename a key that contains a dot")
    return named


def _flatten_json(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flatten_json(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _read_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata").read_bytes())


def _files(folder: Path) -> list[str]:
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return [name for name in names if name not in _BOOKKEEPING and name != _MANIFEST]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
