"""Images in ArrayRecord files of `tf.train.Example` records, as TensorFlow Datasets writes them, without TensorFlow."""

import errno
import functools
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from jaxgen.training.image_decoding import (
    DamagedImageError,
    UnreadableImageError,
    check_shape,
    decode_image,
    examine_image,
)
from jaxgen.training.scan import Damage, Files, Share, digest, find_damage, report_damage

_FILE = re.compile(r"(?P<set>.+\.array_?record)(?:-(?P<shard>\d+)-of-(?P<shards>\d+))?")
_CLASSES = "label.labels.txt"


class ImageRecords:
    """Examples read from records one at a time, by their number; see `image_records`.

    Attributes:
        side: of an image, in pixels.
        channels: of an image.
        classes: the name of each label, from `label.labels.txt` beside the records; empty without that file.
        damaged: what is left out, and why.
        fingerprint: sha256 of the names and sizes of the files, the numbers of the records, the side and the channels.
    """

    def __init__(self, reader: "_Reader", side: int, channels: int, unread: Sequence[Damage], damage: dict[int, str]):
        self.side, self.channels, self.classes = side, channels, reader.classes
        broken = [Damage(reader.name(number), reason) for number, reason in damage.items()]
        self.damaged = (*unread, *broken)
        self._reader = reader
        self._numbers = np.delete(np.arange(int(reader.files.counts.sum())), list(damage))
        names, sizes, _, counts = reader.files
        kinds = sizes.tolist(), counts.tolist(), list(damage), self.classes, [side, channels]
        self.fingerprint = digest([Path(name).name for name in names], *kinds)

    def __len__(self) -> int:
        return self._numbers.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one example: {"image": uint8 [side, side, channels], "label": int32 [], "index": int32 []}.

        Raises:
            DamagedImageError: if the file has changed since the record was examined.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"the records have examples 0 ... {len(self) - 1}, got {index}")
        try:
            image, label = self._reader.read(int(self._numbers[index]))
            pixels = decode_image(image, self.side, self.channels)
        except DamagedImageError as error:
            raise DamagedImageError(f"{self.name(index)} was good before training, but now {error}") from error
        return {"image": pixels, "label": np.int32(label), "index": np.int32(index)}

    def name(self, index: int) -> str:
        """Return FILE:NUMBER of the record of an example."""
        return str(self._reader.folder / self._reader.name(int(self._numbers[index])))


def image_records(
    path: str | Path,
    side: int,
    *,
    channels: int = 3,
    index: str | Path | None = None,
    threads: int | None = None,
    share: Share | None = None,
) -> ImageRecords:
    """Open ArrayRecord files of images, after every record has been decoded once.

    A record is a `tf.train.Example` with the features `image` (one PNG or JPEG file) and `label` (one integer; 0 where
    there is none). Damaged records, and files that are no ArrayRecord, are left out with a warning.

    Args:
        path: a folder with files NAME.array_record (all of them are read) or NAME.array_record-00000-of-00002 ... (of
            one NAME, such as "cifar10-train"); one file; or the NAME.array_record that several files share.
        side: of the square that is cut out of each image and scaled, in pixels.
        channels: 3 for RGB, 1 for grey.
        index: a JSON file that remembers which records are good, so that only new and changed files are read again.
        threads: that read the records; as many as there are processors by default.
        share: how several processes divide the reading.

    Raises:
        ValueError: for bad arguments; if there are no records, none that can be decoded, some of the files of a name
            are missing, or the folder holds the files of several names.
    """
    check_shape(side, channels)
    paths = record_files(path)
    if not paths:
        raise ValueError(f"{Path(path).absolute()} holds no ArrayRecord files")
    reader, unread = _open(paths)

    def examine(number: int) -> None:
        examine_image(reader.read(number)[0], side, channels)

    damage = find_damage(
        reader.files, examine, index=None if index is None else Path(index), threads=threads, share=share
    )
    records = ImageRecords(reader, side, channels, unread, damage)
    report_damage(reader.folder, records.damaged, int(reader.files.counts.sum()) + len(unread))
    return records


def record_files(path: str | Path) -> list[Path]:
    """Return the ArrayRecord files that a path means, in the order of their names; none if it means none.

    Raises:
        ValueError: if some files of a name are missing, or a folder holds the files of several names.
    """
    path = Path(path).absolute()
    if path.is_file():
        return [path.resolve()] if _FILE.fullmatch(path.name) else []
    folder = path if path.is_dir() else path.parent
    names = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
    matches = [match for name in names if (match := _FILE.fullmatch(name)) and (folder / name).is_file()]
    if folder != path:
        matches = [match for match in matches if match["set"] == path.name]
    sets = sorted({match["set"] for match in matches})
    if len(sets) > 1 and any(match["shards"] for match in matches):
        raise ValueError(f"{path} holds {' and '.join(sets)}: name one of them, such as {path / sets[0]}")
    names = {match[0] for match in matches}
    shards = {(match["set"], match["shards"]) for match in matches if match["shards"]}
    for name, count in shards:
        wanted = (f"{name}-{shard:0{len(count)}d}-of-{count}" for shard in range(int(count)))
        if missing := next((one for one in wanted if one not in names), None):
            raise ValueError(f"{folder / missing} is missing")
    if len(shards) > 1:
        raise ValueError(f"{folder} holds {sets[0]} in files of different numbers: {sorted(names)[:2]}")
    return [folder / name for name in sorted(names)]


class _Reader(NamedTuple):
    """Records of several files, numbered through all of them."""

    folder: Path
    files: Files
    records: Sequence[bytes]
    classes: tuple[str, ...]

    def name(self, number: int) -> str:
        """Return FILE:NUMBER of a record."""
        ends = np.cumsum(self.files.counts)
        file = int(np.searchsorted(ends, number, side="right"))
        return f"{self.files.names[file]}:{number - int(ends[file] - self.files.counts[file])}"

    def read(self, number: int) -> tuple[io.BytesIO, int]:
        """Return the bytes of the image of a record, and its label."""
        try:
            record = self.records[number]
        except RuntimeError as error:
            raise _reader_error(error) from error
        example = _example_class()()
        try:
            example.ParseFromString(record)
        except DecodeError as error:
            raise DamagedImageError("is no tf.train.Example") from error
        features = example.features.feature
        images = features["image"].bytes_list.value if "image" in features else []
        labels = features["label"].int64_list.value if "label" in features else [0]
        if len(images) != 1 or len(labels) != 1:
            raise DamagedImageError(f"has {len(images)} images and {len(labels)} labels, one of each expected")
        most = len(self.classes) - 1 if self.classes else 2**31 - 1
        # TensorFlow Datasets writes -1 where a test set keeps its labels to itself.
        if not -1 <= labels[0] <= most:
            raise DamagedImageError(f"has the label {labels[0]}, of -1 ... {most} allowed")
        return io.BytesIO(images[0]), labels[0]


def _open(paths: list[Path]) -> tuple[_Reader, list[Damage]]:
    folder = paths[0].parent
    counts, unread = {}, []
    for path in paths:
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DamagedImageError("is a link that leads out of the folder")
            counts[path] = len(_records([path]))
        except RuntimeError as error:
            found = _reader_error(error)
            if not isinstance(found, DamagedImageError):
                raise
            unread.append(Damage(path.name, str(found)))
    if not counts:
        report_damage(folder, unread, len(unread))
    status = [path.stat() for path in counts]
    files = Files(
        [path.name for path in counts],
        np.array([one.st_size for one in status], np.int64),
        np.array([one.st_mtime_ns for one in status], np.int64),
        np.array(list(counts.values()), np.int64),
    )
    return _Reader(folder, files, _records(list(counts)), _classes(folder / _CLASSES)), unread


def _classes(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text("utf-8").splitlines()) if file.is_file() else ()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error


def _records(paths: list[Path]) -> Any:
    return grain.sources.ArrayRecordDataSource([str(path) for path in paths])


def _reader_error(error: RuntimeError) -> Exception:
    """Say what an error of the reader means: it is of one type for damage and for what the file system refuses."""
    if isinstance(error, DamagedImageError) or os.strerror(errno.EMFILE) in str(error):
        return error
    return UnreadableImageError(" ".join(str(error).split())[:200] or "cannot be read as ArrayRecord")


@functools.cache
def _example_class() -> type[Any]:
    """Describe `tf.train.Example` to protobuf, which does the parsing.

    https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def message(name: str, **fields: tuple[int, int, Any]) -> descriptor_pb2.DescriptorProto:
        described = file.message_type.add(name=name)
        for name, (number, label, kind) in fields.items():
            one = described.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                one.type, one.type_name = field.TYPE_MESSAGE, f".tensorflow.{kind}"
            else:
                one.type = kind
        return described

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", value=(1, many, field.TYPE_BYTES))
    message("FloatList", value=(1, many, field.TYPE_FLOAT))
    message("Int64List", value=(1, many, field.TYPE_INT64))
    lists = {
        "bytes_list": (1, one, "BytesList"),
        "float_list": (2, one, "FloatList"),
        "int64_list": (3, one, "Int64List"),
    }
    feature = message("Feature", **lists)
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = message("Features", feature=(1, many, "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=field.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    message("Example", features=(1, one, "Features"))
    # A pool of its own, so that TensorFlow may be imported beside it.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
