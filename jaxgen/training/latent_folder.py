"""Stored latents as a source of examples: a folder or an uncompressed zip of .npy files, and dataset.json with labels.

The layout is that of the released code of Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models".
"""

import functools
import io
import json
import math
import os
import reprlib
import stat
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32
from numpy.lib import format as npy

from jaxgen.training.image_decoding import DamagedImageError, unreadable
from jaxgen.training.scan import Damage, Files, Share, digest, find_damage, report_damage

_SUFFIX = ".npy"
_LABELS = "dataset.json"
_FORM = '{"labels": [[file name, class], ...]}, or {"labels": null} for one class'
_DTYPES = ("<f4", "<f2")
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_MOST_HEADER = 4096  # bytes; numpy writes 128
_MOST_NUMBERS = 2**26  # in a file: 256 MB of float32
_MOST_LABELS = 2**30  # bytes, of which ImageNet needs 2^26
_MOST_CLASSES = 2**20
_MEMBER = struct.Struct("<4s22xHH")  # what precedes a member of a zip: signature, lengths of name and extra field
_IRREGULAR = "is not a regular file"
# What reading the directory of a hostile zip can raise.
_BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


class LatentFolder:
    """Examples read from stored latents one at a time, by their number; see `latent_folder`.

    Attributes:
        shape: of an image: height, width and channels, which are the means and then the standard deviations.
        classes: the name of each label, which is its number.
        damaged: what is left out, and why.
        fingerprint: sha256 of the names, labels and sizes of the files and their shape; equal for a folder and a zip.
    """

    def __init__(self, store: "_Store", labels: "_Labels", shape: tuple[int, ...], damaged: Sequence[Damage]):
        self.shape = shape
        self.classes = tuple(str(label) for label in range(labels.classes))
        self.damaged = tuple(sorted(damaged))
        bad = {name for name, _ in damaged}
        self._store = store
        self._numbers = np.flatnonzero([name not in bad for name in store.names])
        self._labels = labels.of[self._numbers]
        self._most = _MOST_HEADER + 4 * math.prod(shape)
        names = [store.names[number] for number in self._numbers.tolist()]
        sizes = store.sizes[self._numbers].tolist()
        self.fingerprint = digest(names, self._labels.tolist(), sizes, self.classes, shape)

    @property
    def labels(self) -> np.ndarray:
        """Return the label of each example, int32 [count]."""
        return self._labels.copy()

    def __len__(self) -> int:
        return self._numbers.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one example: {"image": float32 [height, width, channels], "label": int32 []}.

        Raises:
            DamagedImageError: if the file has changed since it was examined, or holds numbers that are not finite or
                standard deviations that are negative.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there are examples 0 ... {len(self) - 1}, got {index}")
        number = int(self._numbers[index])
        try:
            image = _decode(self._store.read(number, self._most), int(self._store.sizes[number]))
            if image.shape != self.shape:
                raise DamagedImageError(f"has the shape {image.shape}, but had {self.shape} before")
        except DamagedImageError as error:
            raise DamagedImageError(
                f"{self.name(index)} was not found damaged before training, but {error}; "
                "with check_values=True its numbers are read then too"
            ) from error
        return {"image": image, "label": self._labels[index]}

    def name(self, index: int) -> str:
        """Return the path of the file of an example, which begins with that of the zip."""
        return str(self._store.path / self._store.names[int(self._numbers[index])])


def latent_folder(
    path: str | Path,
    *,
    check_values: bool = False,
    index: str | Path | None = None,
    threads: int | None = None,
    share: Share | None = None,
) -> LatentFolder:
    """Open a folder or an uncompressed zip of stored latents, after the header of every file has been read once.

    Whatever .npy files lie in it, however deep, are examples in the order of their relative names; those that begin
    with a dot are passed over. Each holds float32 or float16 [channels, height, width], little-endian: the means of the
    posterior of a variational autoencoder, then as many standard deviations. `dataset.json` beside them is
    {"labels": [[relative name, class], ...]}, or {"labels": null} for one class. A file that is damaged or leads out of
    the folder is left out with a warning, as for `image_folder`.

    Args:
        path: the folder or the zip.
        check_values: whether to read the numbers of every file too, so that files whose numbers are not finite or whose
            standard deviations are negative are left out; otherwise they stop the training where it meets them.
        index: a JSON file that remembers which files are good, so that only new and changed ones are read again, and
            those of a zip if the zip has changed.
        threads: that read the files; as many as there are processors by default.
        share: how several processes divide the reading.

    Raises:
        ValueError: for bad arguments; if there are no files, none that is good, files of different shapes, compressed
            files in a zip, or if `dataset.json` is malformed or does not name the same files.
    """
    root = Path(path).absolute()
    store, labels, refused = _open_store(root)
    first, shape = _first_shape(store)

    def examine(number: int) -> None:
        size = int(store.sizes[number])
        header = _header(store.read(number, _MOST_HEADER), size)
        if header.image_shape != shape:
            raise ValueError(
                f"{root / store.names[number]} has the shape {header.image_shape}, but {first} has {shape}: "
                "keep files of one shape only"
            )
        if check_values:
            _decode(store.read(number, size), size)

    # An index must not vouch for files of another shape, nor for numbers that nobody has read.
    asked = f"{'numbers' if check_values else 'headers'} of {shape}"
    files = store.files._replace(names=[f"{asked}: {name}" for name in store.files.names])
    found = find_damage(files, examine, index=None if index is None else Path(index), threads=threads, share=share)
    damaged = [*refused, *(Damage(store.names[number], reason) for number, reason in found.items())]
    report_damage(root, damaged, len(store.names) + len(refused))
    return LatentFolder(store, labels, shape, damaged)


class _Labels(NamedTuple):
    """The class of each latent, and how many classes there are, of which some may have none."""

    of: np.ndarray
    classes: int


class _Entry(NamedTuple):
    """What is named like a file of the data set: where it is, and why it is refused unread if it is."""

    name: str
    size: int = 0
    fault: str = ""
    changed: int = 0
    start: int = 0
    checksum: int = 0


class _Folder:
    """Files of a folder by their number."""

    def __init__(self, path: Path, entries: Sequence[_Entry]):
        self.path, self.names = path, [entry.name for entry in entries]
        self.sizes, times = (_column(entries, name) for name in ("size", "changed"))
        self.files = Files(self.names, self.sizes, times, np.ones(len(entries), np.int64))

    def read(self, number: int, most: int) -> bytes:
        """Return the first bytes of a file, or all of them if it has no more."""
        with open(_open(self.path / self.names[number]), "rb") as stream:
            size, expected = os.fstat(stream.fileno()).st_size, int(self.sizes[number])
            if size != expected:
                raise DamagedImageError(f"has {size} bytes, but had {expected} when the folder was opened")
            return stream.read(min(size, most))


class _Archive:
    """Members of an uncompressed zip by their number, read in place; each process opens the zip for itself."""

    def __init__(self, path: Path, entries: Sequence[_Entry]):
        self.path, self.names = path, [entry.name for entry in entries]
        self.sizes, self._starts, self._checksums = (_column(entries, name) for name in ("size", "start", "checksum"))
        status = path.stat()
        numbers = (status.st_size, status.st_mtime_ns, len(entries))
        self.files = Files([path.name], *(np.array([number], np.int64) for number in numbers))
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_descriptor", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def read(self, number: int, most: int) -> bytes:
        """Return the first bytes of a member, or all of them, whose checksum is compared, if it has no more."""
        start, size = int(self._starts[number]), int(self.sizes[number])
        signature, name, extra = _MEMBER.unpack(self._read_at(start, _MEMBER.size))
        if signature != b"PK\x03\x04":
            raise DamagedImageError("does not begin where the zip says")
        content = self._read_at(start + _MEMBER.size + name + extra, min(size, most))
        if len(content) == size and zlib.crc32(content) != self._checksums[number]:
            raise DamagedImageError("has another checksum than the zip says")
        return content

    def _read_at(self, start: int, count: int) -> bytes:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = _open(self.path)
                weakref.finalize(self, os.close, self._descriptor)
        try:
            # Not from where the descriptor stands, because other threads read too.
            content = os.pread(self._descriptor, count, start)
        except OSError as error:
            raise unreadable(error) or error from error
        if len(content) < count:
            raise DamagedImageError("lies beyond the end of the zip")
        return content


_Store: TypeAlias = _Folder | _Archive


def _column(entries: Sequence[_Entry], name: str) -> np.ndarray:
    return np.array([getattr(entry, name) for entry in entries], np.int64)


def _open_store(root: Path) -> tuple[_Store, _Labels, list[Damage]]:
    """Return the latents that may be read, the class of each, and what is refused unread."""
    if not root.exists():
        raise ValueError(f"{root} does not exist")
    kind, found = (_Folder, _in_folder(root)) if root.is_dir() else (_Archive, _in_archive(root))
    entries = sorted(found)
    latents = [entry for entry in entries if entry.name != _LABELS]
    if not latents:
        raise ValueError(f"{root} holds no {_SUFFIX} files")
    about = next((entry for entry in entries if entry.name == _LABELS), _Entry(_LABELS, fault="is missing"))
    try:
        if about.fault or about.size > _MOST_LABELS:
            raise DamagedImageError(about.fault or f"has {about.size} bytes, of {_MOST_LABELS} allowed")
        content = kind(root, [about]).read(0, about.size)
    except DamagedImageError as error:
        raise ValueError(f"{root / _LABELS} {error}; it must hold {_FORM}") from error
    good = [entry for entry in latents if not entry.fault]
    refused = [Damage(entry.name, entry.fault) for entry in latents if entry.fault]
    try:
        labels = _labels(content, [entry.name for entry in good], {name for name, _ in refused})
    except ValueError as error:
        raise ValueError(f"{root / _LABELS} {error}") from error
    return kind(root, good), labels, refused


def _is_wanted(name: str) -> bool:
    hidden = any(part.startswith(".") and part.strip(".") for part in name.split("/"))
    return name == _LABELS or (name.lower().endswith(_SUFFIX) and not hidden)


def _in_folder(root: Path) -> Iterator[_Entry]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else f"{relative}/"
        for name in names:
            if _is_wanted(prefix + name):
                yield _file_entry(root, prefix + name)


def _file_entry(root: Path, name: str) -> _Entry:
    path = root / name
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            # Before `resolve`, which raises a RuntimeError for a loop of links.
            status = path.stat()
            if not path.resolve().is_relative_to(root.resolve()):
                return _Entry(name, fault="is a link that leads out of the folder")
    except OSError as error:
        shortage = unreadable(error)
        if not isinstance(shortage, DamagedImageError):
            raise
        return _Entry(name, fault=str(shortage))
    fault = "" if stat.S_ISREG(status.st_mode) else _IRREGULAR
    return _Entry(name, status.st_size, fault, changed=status.st_mtime_ns)


def _in_archive(path: Path) -> Iterator[_Entry]:
    if not path.is_file():
        raise ValueError(f"{path} is neither a folder nor a zip")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if _is_wanted(member.filename)]
    except _BAD_ZIP as error:
        raise ValueError(f"{path} is no zip that can be read: {error}") from error
    size, seen = path.stat().st_size, set()
    for member in members:
        name = member.filename
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path} holds {name!r} compressed: store them without compression (zip -0)")
        if name in seen:
            raise ValueError(f"{path} holds {name!r} twice: keep one of them")
        seen.add(name)
        if fault := _member_fault(member, size):
            yield _Entry(name, fault=fault)
        else:
            yield _Entry(name, member.file_size, start=member.header_offset, checksum=member.CRC)


def _member_fault(member: zipfile.ZipInfo, size: int) -> str:
    if {"", ".", ".."} & set(member.filename.replace("\\", "/").split("/")):
        return "leads out of the zip"
    if member.flag_bits & 1:
        return "is encrypted"
    room = size - member.header_offset - _MEMBER.size
    if member.file_size != member.compress_size or member.file_size > room:
        return f"claims {member.file_size} bytes, which the zip does not hold"
    return ""


def _open(path: Path) -> int:
    try:
        # A pipe that has taken the place of the file is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(error) or error from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedImageError(_IRREGULAR)
    return descriptor


def _labels(content: bytes, names: Sequence[str], refused: Set[str]) -> _Labels:
    """Return the class of each name that dataset.json gives."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error}); it must hold {_FORM}") from error
    if not isinstance(told, dict) or not isinstance(told.get("labels", 0), list | None):
        raise ValueError(f"must hold {_FORM}, got {reprlib.repr(told)}")
    if told["labels"] is None:
        return _Labels(np.zeros(len(names), np.int32), 1)
    classes: dict[str, int] = {}
    for number, entry in enumerate(told["labels"]):
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool) and name not in classes:
                classes[name] = label
            case [str(name), int()] if name in classes:
                raise ValueError(f"names {name!r} twice: keep one class")
            case _:
                raise ValueError(f"has {reprlib.repr(entry)} as entry {number}, which must be [file name, class]")
        if not 0 <= label < _MOST_CLASSES:
            raise ValueError(f"has the class {reprlib.repr(label)} for {name!r}, of 0 ... {_MOST_CLASSES - 1} allowed")
    if strangers := classes.keys() - refused - set(names):
        raise ValueError(f"names {min(strangers)!r}, but there is no such file")
    if missing := next((name for name in names if name not in classes), None):
        raise ValueError(f"has no class for {missing!r}: give it one, or remove the file")
    return _Labels(np.array([classes[name] for name in names], np.int32), max(classes.values(), default=0) + 1)


class _Header(NamedTuple):
    """What the header of a .npy file says, and where the numbers begin."""

    shape: tuple[int, ...]
    column_major: bool
    dtype: np.dtype
    start: int

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return height, width and channels."""
        return (*self.shape[1:], self.shape[0])


@functools.lru_cache(maxsize=16)  # parsing takes longer than reading, and the files of a data set have one header
def _parse_header(head: bytes) -> _Header:
    stream = io.BytesIO(head)
    return _Header(*_HEADERS[npy.read_magic(stream)](stream), stream.tell())


def _header(content: bytes, size: int) -> _Header:
    """Read the header at the beginning of a file of so many bytes; nothing that it claims is allocated."""
    preamble, length = (10, content[8:10]) if content[6:7] == b"\x01" else (12, content[8:12])
    try:
        header = _parse_header(content[: min(preamble + int.from_bytes(length, "little"), _MOST_HEADER)])
    except Exception as error:
        # Hostile bytes can raise nearly any.
        raise DamagedImageError("is no .npy file" if size else "is empty") from error
    shape, dtype = header.shape, header.dtype.str
    if dtype not in _DTYPES:
        raise DamagedImageError(f"holds numbers of type {dtype[:20]!r}, of {_DTYPES} allowed")
    if len(shape) != 3 or min(shape) < 1 or shape[0] % 2 or math.prod(shape) > _MOST_NUMBERS:
        raise DamagedImageError(
            f"has the shape {reprlib.repr(shape)}, but must be [channels, height, width] with an even number of "
            f"channels and at most {_MOST_NUMBERS} numbers"
        )
    expected = header.start + header.dtype.itemsize * math.prod(shape)
    if size != expected:
        raise DamagedImageError(f"has {size} bytes, but its header promises {expected}")
    return header


def _decode(content: bytes, size: int) -> Float32[np.ndarray, "height width channels"]:
    """Return the numbers of a file of so many bytes, after all checks."""
    header = _header(content, size)
    if len(content) != size:
        raise DamagedImageError(f"has {size} bytes, of which only {len(content)} were read")
    order = "F" if header.column_major else "C"
    stored = np.frombuffer(content, header.dtype, offset=header.start).reshape(header.shape, order=order)
    if not np.isfinite(stored).all():
        raise DamagedImageError("holds numbers that are not finite")
    if stored[header.shape[0] // 2 :].min() < 0:
        raise DamagedImageError("holds negative standard deviations")
    return np.ascontiguousarray(np.moveaxis(stored, 0, -1), np.float32)


def _first_shape(store: _Store) -> tuple[str, tuple[int, ...]]:
    """Return the name of the first file whose header is good, and its shape."""
    for number, name in enumerate(store.names):
        try:
            return name, _header(store.read(number, _MOST_HEADER), int(store.sizes[number])).image_shape
        except DamagedImageError:
            continue
    return "", ()
