"""Files of features and of their moments: `.npz` or `.safetensors`, written whole and read with suspicion.

Moments are the arrays `mu` [dim], `sigma` [dim, dim] and `num_images`; features are `features` [num_images, dim]. The
`feature_id` is a text array in `.npz` and metadata in `.safetensors`. A file may come from anywhere: nothing in it is
executed, sizes are checked against the bytes that are there before memory is taken, and what is read must pass the
checks of `feature_moments`.
"""

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxgen.statistics.feature_moments import FeatureMoments, Features, check_feature_moments, check_features

Names: TypeAlias = tuple[str, ...]
Stored: TypeAlias = tuple[dict[str, np.ndarray], str]

LARGEST = 2**34
"""Bytes of arrays that a file may hold, 16 GiB; a million images of 2048 features in float64 are that."""

_DEFLATE = 1032  # no stream of deflate expands further
_LONGEST_HEADER = 1 << 16  # bytes that describe the arrays; ours take some hundred


def save_feature_moments(path: str | os.PathLike[str], moments: FeatureMoments) -> None:
    """Write moments to `path`, which holds them whole or is left as it was.

    Args:
        path: ends in `.npz` or `.safetensors`.
        moments: as of `feature_moments`; stored in float64.

    Raises:
        ValueError: another ending, or unsound moments.
        OSError: the disk is full or the folder not writable.
    """
    check_feature_moments(moments)
    arrays = {"mu": moments.mean, "sigma": moments.covariance}
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    _write(Path(path), arrays | {"num_images": np.array(moments.num_images, np.int64)}, moments.feature_id)


def load_feature_moments(path: str | os.PathLike[str]) -> FeatureMoments:
    """Read what `save_feature_moments` wrote, or another program in the same form.

    Raises:
        ValueError: the file is cut, has other or oversized arrays, objects, no `feature_id`, or unsound moments.
        OSError: there is no such file, or it cannot be read.
    """

    def build(arrays: Mapping[str, np.ndarray], feature_id: str) -> FeatureMoments:
        count = arrays["num_images"]
        if count.size != 1 or count.dtype.kind not in "iu":
            raise ValueError(f"num_images must be one integer, got {count.dtype} {list(count.shape)}")
        mean, covariance = (_floating(name, arrays[name]).astype(np.float64) for name in ("mu", "sigma"))
        return check_feature_moments(FeatureMoments(mean, covariance, int(count.reshape(())), feature_id))

    return _load(Path(path), ("mu", "sigma", "num_images"), build)


def save_features(path: str | os.PathLike[str], features: Features) -> None:
    """Write features to `path`, which holds them whole or is left as it was.

    Args:
        path: ends in `.npz` or `.safetensors`.
        features: as of `extract_features`; stored in float64 if they are, else in float32.

    Raises:
        ValueError: another ending, or unsound features.
        OSError: the disk is full or the folder not writable.
    """
    values = np.asarray(check_features(features).values)
    values = values if values.dtype == np.float64 else values.astype(np.float32)
    _write(Path(path), {"features": values}, features.feature_id)


def load_features(path: str | os.PathLike[str]) -> Features:
    """Read what `save_features` wrote, or another program in the same form.

    Raises:
        ValueError: the file is cut, has other or oversized arrays, objects, no `feature_id`, or unsound features.
        OSError: there is no such file, or it cannot be read.
    """

    def build(arrays: Mapping[str, np.ndarray], feature_id: str) -> Features:
        return check_features(Features(_floating("features", arrays["features"]), feature_id))

    return _load(Path(path), ("features",), build)


def _write(path: Path, arrays: dict[str, np.ndarray], feature_id: str) -> None:
    _check_ending(path)
    # Not mkstemp, whose files are private whatever the umask.
    part = path.parent / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            if path.suffix == ".npz":
                np.savez(file, allow_pickle=False, **arrays, feature_id=np.array(feature_id))
            else:
                from safetensors.numpy import save

                contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
                file.write(save(contiguous, {"feature_id": feature_id}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _load(path: Path, names: Names, build: Callable[[Mapping[str, np.ndarray], str], Any]) -> Any:
    """Read the named arrays and build the result, with the path before every complaint."""
    _check_ending(path)
    with path.open("rb"):
        pass  # that it can be read at all; what fails later lies in its content
    try:
        arrays, feature_id = (_read_npz if path.suffix == ".npz" else _read_safetensors)(path, names)
        return build(arrays, feature_id)
    except ImportError:
        raise
    except Exception as error:  # a hostile zip or header can raise nearly anything in the libraries
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a file of {', '.join(names)}: {reason}") from None


def _read_npz(path: Path, names: Names) -> Stored:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_names([member.filename.removesuffix(".npy") for member in members], (*names, "feature_id"))
        _check_total(sum(member.file_size for member in members))
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is compressed in a way that numpy does not write")
            if member.file_size > _DEFLATE * member.compress_size or member.compress_size > path.stat().st_size:
                raise ValueError(f"{member.filename} claims {member.file_size} bytes, which the file cannot hold")
            arrays[member.filename.removesuffix(".npy")] = _read_array(archive, member)
    text = arrays.pop("feature_id")
    if text.dtype.kind != "U" or text.size != 1:
        raise ValueError(f"feature_id must be one text, got {text.dtype} {list(text.shape)}")
    return arrays, str(text.reshape(()))


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read one array after its header has been held against the bytes of the member."""
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{member.filename} is not of version 1.0 of numpy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        _check_bytes(member.filename, shape, dtype, member.file_size - stream.tell())
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _read_safetensors(path: Path, names: Names) -> Stored:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"its header claims {length} bytes of {size}")
        header = json.loads(file.read(length))
    _check_total(size)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "feature_id" not in metadata:
        raise ValueError("its metadata have no feature_id")
    _check_names(list(header), names)
    from safetensors import safe_open

    # The library holds shapes, dtypes and offsets against one another and the size of the file.
    with safe_open(path, framework="np") as tensors:
        return {name: tensors.get_tensor(name) for name in names}, metadata["feature_id"]


def _check_ending(path: Path) -> None:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"a file of features ends in .npz or .safetensors, got {path.name!r}")


def _check_names(found: list[str], expected: Names) -> None:
    if sorted(found) != sorted(expected):
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise ValueError(f"it must hold {', '.join(sorted(expected))}, got {shown or 'nothing'}")


def _check_total(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"it claims {size} bytes of arrays, more than {LARGEST}")


def _check_bytes(name: str, shape: tuple[int, ...], dtype: np.dtype, available: int) -> None:
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not read")
    needed = dtype.itemsize
    for length in shape:
        needed *= length
    if needed != available or min(shape, default=0) < 0:
        raise ValueError(f"{name} claims {needed} bytes of numbers and has {available}")


def _floating(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{name} must be float16, float32 or float64, got {array.dtype}")
    return array
