import io
import os
import pickle
import re

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from jaxgen.training.image_decoding import DamagedImageError
from jaxgen.training.image_records import image_records, record_files
from jaxgen.training.images import open_images
from jaxgen.training.scan import Share


def varint(value):
    """Encode an integer by hand: https://protobuf.dev/programming-guides/encoding."""
    value %= 2**64
    written = []
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features):
    """Encode a `tf.train.Example`: bytes as a BytesList, integers as a packed Int64List, floats as a FloatList."""
    entries = b""
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, one) for one in values))
        elif isinstance(values[0], float):
            feature = field(2, field(1, np.array(values, "<f4").tobytes()))
        else:
            feature = field(3, field(1, b"".join(map(varint, values))))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def png(grey, size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(stream, "PNG")
    return stream.getvalue()


def write(path, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


@pytest.fixture
def shards(tmp_path):
    """Two files as TensorFlow Datasets names them, of three and two images, with the names of three classes."""
    write(tmp_path / "toy-train.array_record-00000-of-00002", [example(image=png(n), label=n) for n in range(3)])
    second = [example(image=png(3), label=[2], id="é".encode(), weight=0.5), example(image=png(4), label=-1)]
    write(tmp_path / "toy-train.array_record-00001-of-00002", second)
    (tmp_path / "label.labels.txt").write_text("cat\ndog\nbird\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    return tmp_path


def test_records_come_in_the_order_of_the_files(shards):
    records = open_images(shards, 4)
    assert records.classes == ("cat", "dog", "bird")
    examples = list(records)
    assert [example["image"][0, 0, 0] for example in examples] == [0, 1, 2, 3, 4]
    assert [example["label"] for example in examples] == [0, 1, 2, 2, -1]
    assert [example["index"] for example in examples] == [0, 1, 2, 3, 4]
    assert {name: (value.dtype, value.shape) for name, value in examples[0].items()} == {
        "image": (np.uint8, (4, 4, 3)),
        "label": (np.int32, ()),
        "index": (np.int32, ()),
    }
    assert records.name(4) == f"{shards}/toy-train.array_record-00001-of-00002:1"
    assert open_images(shards / "toy-train.array_record", 4).fingerprint == records.fingerprint
    assert len(open_images(shards / "toy-train.array_record-00001-of-00002", 4, channels=1)) == 2
    with pytest.raises(IndexError, match=r"0 \.\.\. 4, got -1"):
        records[-1]
    copied = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal(copied[3]["image"], examples[3]["image"])


def test_unlabelled_records_and_plain_names_are_read(tmp_path):
    write(tmp_path / "b.arrayrecord", [example(image=png(2))])
    write(tmp_path / "a.array_record", [example(image=png(1)), example(image=png(1), label=7)], "group_size:2")
    records = image_records(tmp_path, 4)
    assert records.classes == ()
    assert [example["label"] for example in records] == [0, 7, 0]
    assert [example["image"][0, 0, 0] for example in records] == [1, 1, 2]


def test_damaged_records_are_named_counted_and_left_out(shards):
    bad = [
        example(image=png(9)[:40], label=0),
        b"\xff\xff\xff",
        b"",
        example(label=1),
        example(image=[png(1), png(2)], label=1),
        example(image=png(1), label=[1, 2]),
        example(image=png(1), label=3),
        example(image=png(1), label=-2),
        example(image=5, label=0),
        example(image=png(1), label=1.5),
        example(image=png(8), label=0),
    ]
    for name in ("toy-train.array_record-00000-of-00002", "toy-train.array_record-00001-of-00002"):
        (shards / name).unlink()
    write(shards / "a.array_record", bad)
    (shards / "b.array_record").write_bytes(b"no records")
    write(shards.parent / "outside.array_record", bad)
    (shards / "c.array_record").symlink_to(shards.parent / "outside.array_record")
    with pytest.warns(RuntimeWarning, match="12 of 13 images"):
        records = image_records(shards, 4)
    assert [example["image"][0, 0, 0] for example in records] == [8]
    reasons = {damage.name: damage.reason for damage in records.damaged}
    assert reasons == {
        "b.array_record": "ArrayRecord file should be at least 64KB big",
        "c.array_record": "is a link that leads out of the folder",
        "a.array_record:0": reasons["a.array_record:0"],
        "a.array_record:1": "is no tf.train.Example",
        "a.array_record:2": "has 0 images and 1 labels, one of each expected",
        "a.array_record:3": "has 0 images and 1 labels, one of each expected",
        "a.array_record:4": "has 2 images and 1 labels, one of each expected",
        "a.array_record:5": "has 1 images and 2 labels, one of each expected",
        "a.array_record:6": "has the label 3, of -1 ... 2 allowed",
        "a.array_record:7": "has the label -2, of -1 ... 2 allowed",
        "a.array_record:8": "has 0 images and 1 labels, one of each expected",
        "a.array_record:9": "has 1 images and 0 labels, one of each expected",
    }


def test_a_flipped_bit_costs_one_record(tmp_path):
    path = tmp_path / "a.array_record"
    write(path, [example(image=png(n, (64, 64)) + os.urandom(2000), label=0) for n in range(10)])
    data = bytearray(path.read_bytes())
    data[12_000] ^= 1
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"1 of 10 images of .* 'a.array_record:\d' Corrupted"):
        records = image_records(tmp_path, 4, index=tmp_path / "index.json")
    assert len(records) == 9
    # What the file system may have done is looked at again.
    with pytest.warns(RuntimeWarning, match="1 of 10 images"):
        image_records(tmp_path, 4, index=tmp_path / "index.json")
    path.write_bytes(data[:30_000])
    with pytest.raises(ValueError, match=r"all 1 images of .* 'a.array_record' "):
        image_records(tmp_path, 4)


def test_an_index_saves_reading_records_that_have_not_changed(shards):
    second = shards / "toy-train.array_record-00001-of-00002"
    write(second, [example(image=b"bad"), example(image=png(4))])
    index = shards / "index.json"
    with pytest.warns(RuntimeWarning, match=r"1 of 5 images .*00001-of-00002:0' is neither a PNG"):
        first = image_records(shards, 4, index=index)
    times = second.stat().st_mtime_ns
    write(second, [example(image=png(4)), example(image=b"bad")])
    os.utime(second, ns=(times, times))
    with pytest.warns(RuntimeWarning, match=r"1 of 5 images .*00001-of-00002:0' is neither a PNG"):
        again = image_records(shards, 4, index=index)
    assert again.fingerprint == first.fingerprint
    with pytest.raises(DamagedImageError, match=r"00001-of-00002:1 was good before training, but now is neither"):
        again[3]
    os.utime(second)
    with pytest.warns(RuntimeWarning, match=r"1 of 5 images .*00001-of-00002:1' is neither a PNG"):
        assert image_records(shards, 4, index=index).fingerprint != first.fingerprint


def test_each_process_reads_its_share_of_a_file(shards):
    seen = []
    image_records(shards, 4, share=Share(0, 2, lambda array: seen.append(array) or array))
    assert [array.size for array in seen] == [32, 5]


def test_a_path_that_means_no_images_is_explained(tmp_path, shards):
    for path, sentence in {
        tmp_path / "nowhere": "does not exist",
        shards / "label.labels.txt": "neither a folder of images nor an ArrayRecord file",
        shards / "toy-test.array_record": "does not exist",
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"{path} ") + ".*" + sentence):
            open_images(path, 4)
    with pytest.raises(ValueError, match="holds no ArrayRecord files"):
        image_records(tmp_path / "nowhere", 4)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        open_images(empty, 4)
    write(empty / "a.array_record", [])
    with pytest.raises(ValueError, match="holds no images"):
        open_images(empty, 4)
    Image.new("L", (4, 4), 5).save(empty / "a.png")
    (empty / "a.array_record").unlink()
    assert len(open_images(empty, 4)) == 1


def test_files_that_do_not_belong_together_are_refused(shards):
    (shards / "toy-train.array_record-00001-of-00002").rename(shards / "toy-test.array_record-00000-of-00001")
    with pytest.raises(ValueError, match=r"toy-train.array_record-00001-of-00002 is missing"):
        record_files(shards / "toy-train.array_record")
    with pytest.raises(ValueError, match=r"holds toy-test.array_record and toy-train.array_record: name one of them"):
        record_files(shards)
    assert len(record_files(shards / "toy-test.array_record")) == 1
    (shards / "toy-train.array_record-00000-of-00002").rename(shards / "toy-test.array_record-00000-of-00002")
    write(shards / "toy-test.array_record-00001-of-00002", [])
    with pytest.raises(ValueError, match="in files of different numbers"):
        record_files(shards)
