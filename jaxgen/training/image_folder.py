"""A folder of PNG and JPEG files as a source of examples, of which only the names are held in memory."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.training.image_decoding import (
    ByteStream,
    DamagedImageError,
    check_shape,
    decode_image,
    examine_image,
    unreadable,
)
from jaxgen.training.scan import Damage, Files, Share, digest, find_damage, report_damage

_SUFFIXES = (".png", ".jpg", ".jpeg")
_IRREGULAR = "is not a regular file"


class _Listing(NamedTuple):
    """The image files of a folder, the number of each one's class, and what is refused unread."""

    files: Files
    labels: np.ndarray
    classes: tuple[str, ...]
    refused: list[Damage]


class ImageFolder:
    """Examples read from image files one at a time, by their number; see `image_folder`.

    Attributes:
        side: of an image, in pixels.
        channels: of an image.
        classes: the name of each label.
        damaged: what is left out, and why.
        fingerprint: sha256 of the names, labels and sizes of the files, the side and the channels.
    """

    def __init__(self, path: Path, side: int, channels: int, listing: _Listing, damage: dict[int, str]):
        files = listing.files
        good = np.delete(np.arange(len(files.names)), list(damage))
        self.side, self.channels, self.classes = side, channels, listing.classes
        broken = [Damage(files.names[number], reason) for number, reason in damage.items()]
        self.damaged = tuple(sorted([*listing.refused, *broken]))
        self._path = path
        self._names = [files.names[number] for number in good.tolist()]
        self._labels = listing.labels[good]
        self.fingerprint = digest(
            self._names, self._labels.tolist(), files.sizes[good].tolist(), self.classes, [side, channels]
        )

    @property
    def labels(self) -> np.ndarray:
        """Return the label of each example, int32 [count]."""
        return self._labels.copy()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one example: {"image": uint8 [side, side, channels], "label": int32 [], "index": int32 []}.

        Raises:
            DamagedImageError: if the file has changed since it was examined.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"the folder has examples 0 ... {len(self) - 1}, got {index}")
        try:
            with _opened(self._path / self._names[index]) as stream:
                image = decode_image(stream, self.side, self.channels)
        except DamagedImageError as error:
            raise DamagedImageError(f"{self.name(index)} was good before training, but now {error}") from error
        return {"image": image, "label": self._labels[index], "index": np.int32(index)}

    def name(self, index: int) -> str:
        """Return the path of the file of an example."""
        return str(self._path / self._names[index])


def image_folder(
    path: str | Path,
    side: int,
    *,
    channels: int = 3,
    index: str | Path | None = None,
    threads: int | None = None,
    share: Share | None = None,
) -> ImageFolder:
    """Open a folder of PNG and JPEG files, after every file has been decoded once.

    The direct sub-folders are the classes, numbered in the order of their names; whatever images lie in them, however
    deep, belong to them. A folder without such sub-folders is one class. Names that begin with a dot are passed over.
    The examples are in the order of their relative names. A file that is damaged, leads out of the folder by a link or
    is no file at all is left out with a warning, so that the batches of a run depend on the good files alone; one that
    breaks later is an error.

    Args:
        path: the folder.
        side: of the square that is cut out of each image and scaled, in pixels.
        channels: 3 for RGB, 1 for grey.
        index: a JSON file that remembers which files are good, so that only new and changed ones are read again.
        threads: that read the files; as many as there are processors by default.
        share: how several processes divide the reading.

    Raises:
        ValueError: for bad arguments; if there are no images, none that can be decoded, or images both in the folder
            itself and in sub-folders.
    """
    check_shape(side, channels)
    root = Path(path).absolute()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    listing = _list(root)
    files = listing.files

    def examine(number: int) -> None:
        with _opened(root / files.names[number]) as stream:
            examine_image(stream, side, channels)

    damage = find_damage(files, examine, index=None if index is None else Path(index), threads=threads, share=share)
    folder = ImageFolder(root, side, channels, listing, damage)
    report_damage(root, folder.damaged, len(files.names) + len(listing.refused))
    return folder


def _list(root: Path) -> _Listing:
    found, refused = [], []
    for relative, entry in _walk(root):
        try:
            status = _status(entry, root)
        except DamagedImageError as error:
            refused.append(Damage(relative, str(error)))
        else:
            found.append((relative, status.st_size, status.st_mtime_ns))
    names = sorted([relative for relative, *_ in found] + [relative for relative, _ in refused])
    inside, outside = (next((name for name in names if ("/" in name) == deep), None) for deep in (True, False))
    if inside and outside:
        raise ValueError(
            f"{root} holds images both in sub-folders ({inside!r}) and beside them ({outside!r}): move either"
        )
    classes = sorted({name.split("/")[0] for name in names}) if inside else [root.name]
    number = {name: label for label, name in enumerate(classes)}
    found.sort()
    kept = [relative for relative, *_ in found]
    sizes, times = (np.array([row[column] for row in found], np.int64) for column in (1, 2))
    labels = np.array([number[name.split("/")[0]] if inside else 0 for name in kept], np.int32)
    return _Listing(Files(kept, sizes, times, np.ones(len(kept), np.int64)), labels, tuple(classes), refused)


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry]]:
    """Yield what is named like an image, with its name relative to the root, and every link to a folder."""
    prefixes = [""]
    while prefixes:
        prefix = prefixes.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    prefixes.append(f"{prefix}{entry.name}/")
                elif _links_to_folder(entry):
                    yield f"{prefix}{entry.name}/", entry
                elif entry.name.lower().endswith(_SUFFIXES):
                    yield prefix + entry.name, entry


def _links_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _status(entry: os.DirEntry, root: Path) -> os.stat_result:
    try:
        # First, since a link that leads to itself fails here by an error that says so.
        status = entry.stat()
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
            raise DamagedImageError("is a link that leads out of the folder")
        if stat.S_ISDIR(status.st_mode):
            raise DamagedImageError("is a link to a folder, which is not followed")
    except OSError as error:
        raise unreadable(error) or error from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedImageError(_IRREGULAR)
    return status


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[ByteStream]:
    try:
        # A pipe that has taken the place of the file is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(error) or error from error
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedImageError(_IRREGULAR)
        yield stream
