import io
import json
import os
import pickle
import re
import shutil
import struct
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from jaxgen.training.image_decoding import DamagedImageError
from jaxgen.training.latent_folder import latent_folder
from jaxgen.training.scan import Damage, Share
from jaxgen.training.stream import Examples, streamed

SHAPE = (8, 2, 3)
SIZE = 7


def latent(number, shape=SHAPE):
    """Means below zero, standard deviations above, every number of its own."""
    values = number + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 64
    values[: shape[0] // 2] *= -1
    return values


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def by_hand(header, content, version=b"\x01\x00"):
    """A .npy file after its specification: magic, version, length of the header, header, numbers."""
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + content


def named(number):
    return f"{number // 4:05d}/img-mean-std-{number:08d}.npy"


GOOD = {named(number): npy(latent(number)) for number in range(SIZE)}
LABELS = {"labels": [[named(number), number % 3] for number in reversed(range(SIZE))]}


def write_folder(root, files, labels=LABELS):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "dataset.json").write_text(json.dumps(labels))
    return root


def write_zip(path, files, labels=LABELS, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("dataset.json", json.dumps(labels))
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "latents"
    root.mkdir()
    return write_folder(root, GOOD)


@pytest.fixture
def archive(tmp_path):
    return write_zip(tmp_path / "latents.zip", GOOD)


@pytest.fixture(params=["folder", "zip"])
def either(request, tmp_path):
    """Writes a data set in one of its two forms."""

    def write(files, labels=LABELS):
        if request.param == "zip":
            return write_zip(tmp_path / "latents.zip", files, labels)
        shutil.rmtree(tmp_path / "latents", ignore_errors=True)
        (tmp_path / "latents").mkdir()
        return write_folder(tmp_path / "latents", files, labels)

    return write


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_examples_come_in_the_order_of_their_names_with_their_channels_last(either):
    files = dict(reversed(GOOD.items())) | {"readme.txt": b"no latent", ".hidden/x.npy": b"", "00000/._img.npy": b""}
    latents = latent_folder(either(files))
    assert isinstance(latents, Examples)
    assert len(latents) == SIZE
    assert latents.shape == (2, 3, 8)
    assert latents.classes == ("0", "1", "2")
    assert latents.damaged == ()
    for number, example in enumerate(latents):
        assert {name: (value.dtype, value.shape) for name, value in example.items()} == {
            "image": (np.float32, (2, 3, 8)),
            "label": (np.int32, ()),
        }
        assert example["label"] == number % 3
        assert example["image"].flags["C_CONTIGUOUS"]
        for channel in range(8):
            np.testing.assert_array_equal(example["image"][..., channel], latent(number)[channel])
    assert latents.name(5).endswith("/00001/img-mean-std-00000005.npy")
    for outside in (-1, SIZE):
        with pytest.raises(IndexError, match=rf"0 \.\.\. 6, got {outside}"):
            latents[outside]


def test_every_way_to_write_the_numbers_reads_alike(either):
    values = latent(1)
    written = [
        by_hand(b"{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2, 3), }\n", values.tobytes()),
        by_hand(b"{'shape': (8,2,3),'fortran_order':False,'descr':'<f4'}", values.tobytes()),
        by_hand(b"{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2, 3)}", values.tobytes(), b"\x02\x00"),
        npy(np.asfortranarray(values)),
        npy(values.astype(np.float16)),  # exact: multiples of 1 / 64 below 2
    ]
    files = {named(number): content for number, content in enumerate(written)}
    latents = latent_folder(either(files, {"labels": None}))
    assert latents.classes == ("0",)
    assert len(latents) == len(written)
    for example in latents:
        assert example["label"] == 0
        assert example["image"].dtype == np.float32
        np.testing.assert_array_equal(example["image"], np.moveaxis(values, 0, -1))


def test_a_folder_and_a_zip_of_it_are_the_same_examples(folder, archive):
    one, other = latent_folder(folder), latent_folder(archive)
    assert one.fingerprint == other.fingerprint
    assert one.classes == other.classes
    for example, same in zip(one, other, strict=True):
        assert_same(example, same)
    assert other.name(0) == f"{archive}/{named(0)}"


def test_the_fingerprint_is_that_of_the_good_files(either):
    first = latent_folder(either(GOOD)).fingerprint
    assert latent_folder(either(GOOD, {"labels": sorted(LABELS["labels"])}), threads=1).fingerprint == first
    others = {
        latent_folder(either(GOOD, {"labels": None})).fingerprint,
        latent_folder(either(GOOD, {"labels": [[named(n), (n + 1) % 3] for n in range(SIZE)]})).fingerprint,
        latent_folder(either({name: npy(latent(1, (8, 3, 2))) for name in GOOD})).fingerprint,
        latent_folder(either({name: npy(latent(1).astype(np.float16)) for name in GOOD})).fingerprint,
        latent_folder(
            either(GOOD | {"a.npy": GOOD[named(0)]}, {"labels": [["a.npy", 0], *LABELS["labels"]]})
        ).fingerprint,
    }
    assert len(others | {first}) == 6
    with pytest.warns(RuntimeWarning, match="1 of 8 images"):
        bad = latent_folder(either(GOOD | {"a.npy": b""}, {"labels": [["a.npy", 0], *LABELS["labels"]]}))
    assert bad.fingerprint == first


class Canary:
    def __reduce__(self):
        return os.mkdir, ("canary",)


def pickled():
    objects = np.empty(SHAPE, object)
    objects[:] = Canary()
    return npy(objects)


def header(shape="(8, 2, 3)", descr="'<f4'", more=""):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{more}}}".encode()


NUMBERS = latent(0).tobytes()
SHAPES = "must be [channels, height, width] with an even number of channels"
HOSTILE = {
    "empty": (b"", "is empty"),
    "text": (b"a text", "is no .npy file"),
    "magic alone": (b"\x93NUMPY", "is no .npy file"),
    "other version": (b"\x93NUMPY\x09\x00" + GOOD[named(0)][8:], "is no .npy file"),
    "pickled": (pickled(), "holds numbers of type '|O', of ('<f4', '<f2') allowed"),
    "bare pickle": (pickle.dumps(Canary()), "is no .npy file"),
    "header cut": (GOOD[named(0)][:60], "is no .npy file"),
    "numbers cut": (GOOD[named(0)][:-1], "has 319 bytes, but its header promises 320"),
    "numbers added": (GOOD[named(0)] + b"\0", "has 321 bytes, but its header promises 320"),
    "header of 4 GB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + header(), "is no .npy file"),
    "long header": (by_hand(header() + b" " * 5000, NUMBERS), "is no .npy file"),
    "code": (by_hand(b"__import__('os').mkdir('canary')", NUMBERS), "is no .npy file"),
    "deep": (by_hand(b"(" * 3000, NUMBERS), "is no .npy file"),
    "no dictionary": (by_hand(b"[1, 2]", NUMBERS), "is no .npy file"),
    "further keys": (by_hand(header(more=", 'x': 1"), NUMBERS), "is no .npy file"),
    "absurd shape": (by_hand(header(f"(8, {2**40}, {2**40})"), NUMBERS), "has the shape (8, 1099511627776, 10995"),
    "more than may be": (by_hand(header("(8, 4096, 2049)"), NUMBERS), SHAPES),
    "product that wraps": (by_hand(header(f"({2**62}, 4, 1)"), NUMBERS), SHAPES),
    "negative shape": (by_hand(header("(-8, -2, 3)"), NUMBERS), SHAPES),
    "no numbers": (by_hand(header("(8, 0, 3)"), b""), SHAPES),
    "two axes": (by_hand(header("(8, 6)"), NUMBERS), SHAPES),
    "no axes": (by_hand(header("()"), NUMBERS[:4]), SHAPES),
    "odd channels": (npy(latent(0, (7, 2, 3))), SHAPES),
    "big-endian": (npy(latent(0).astype(">f4")), "type '>f4'"),
    "double": (npy(latent(0).astype(np.float64)), "type '<f8'"),
    "integers": (npy(latent(0).astype(np.int32)), "type '<i4'"),
    "fields": (npy(np.zeros(SHAPE, [("a", "<f4")])), "type '|V4'"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_file_is_named_and_left_out_by_its_header_alone(either, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, told = HOSTILE[kind]
    with pytest.warns(RuntimeWarning, match=rf"1 of 7 images of .* '{named(0)}'") as warned:
        latents = latent_folder(either(GOOD | {named(0): content}))
    assert len(warned) == 1
    assert [damage.name for damage in latents.damaged] == [named(0)]
    assert told in latents.damaged[0].reason
    assert len(latents.damaged[0].reason) < 300
    assert [example["label"] for example in latents] == [number % 3 for number in range(1, SIZE)]
    np.testing.assert_array_equal(latents[0]["image"], np.moveaxis(latent(1), 0, -1))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, np.nan, "holds numbers that are not finite"),
        (7, np.inf, "holds numbers that are not finite"),
        (4, -1e-3, "holds negative standard deviations"),
    ],
)
def test_bad_numbers_are_found_at_the_scan_when_asked_and_when_they_are_read_otherwise(either, place, value, told):
    values = latent(2)
    values[place, 1, 2] = value
    path = either(GOOD | {named(2): npy(values)})
    latents = latent_folder(path)
    assert len(latents) == SIZE
    with pytest.raises(DamagedImageError, match=rf"{named(2)} was not found .*, but {told}; with check_values=True"):
        latents[2]
    with pytest.warns(RuntimeWarning, match="1 of 7 images"):
        latents = latent_folder(path, check_values=True)
    assert latents.damaged == (Damage(named(2), told),)
    assert len(list(latents)) == SIZE - 1


def test_negative_means_and_certain_latents_are_no_damage(either):
    values = np.concatenate([np.full((4, 2, 3), -1e30, np.float32), np.zeros((4, 2, 3), np.float32)])
    latents = latent_folder(either({"a.npy": npy(values)}, {"labels": None}), check_values=True)
    np.testing.assert_array_equal(latents[0]["image"], np.moveaxis(values, 0, -1))


def test_files_of_different_shapes_are_refused_by_name(either):
    uneven = npy(latent(3, (8, 3, 2)))
    told = rf"{named(3)} has the shape \(3, 2, 8\), but {named(0)} has \(2, 3, 8\): keep files of one shape"
    with pytest.raises(ValueError, match=told):
        latent_folder(either(GOOD | {named(3): uneven}))
    # The first good file tells the shape, not one that only claims another.
    with pytest.warns(RuntimeWarning, match="1 of 7 images"):
        assert latent_folder(either(GOOD | {named(0): uneven[:-4]})).shape == (2, 3, 8)


LOST = [[named(number), 0] for number in range(SIZE - 1)]
MALFORMED = {
    "no JSON": ("{labels", "is no JSON"),
    "no text": (b"\xff\xfe\xff", "is no JSON"),
    "deep": ("[" * 100_000, "is no JSON"),
    "a list": ([[named(0), 1]], "must hold {"),
    "no labels": ({"label": []}, "must hold {"),
    "labels by name": ({"labels": dict(LOST)}, "must hold {"),
    "no pair": ({"labels": [*LABELS["labels"], ["x"]]}, "has ['x'] as entry 7, which must be [file name, class]"),
    "no name": ({"labels": [[0, 0]]}, "has [0, 0] as entry 0, which must be"),
    "fraction": ({"labels": [[named(0), 1.0]]}, "as entry 0, which must be [file name, class]"),
    "bool": ({"labels": [[named(0), True]]}, "as entry 0, which must be [file name, class]"),
    "none": ({"labels": [[named(0), None]]}, "as entry 0, which must be [file name, class]"),
    "vector": ({"labels": [[named(0), [0, 1]]]}, "as entry 0, which must be [file name, class]"),
    "no number": (f'{{"labels": [["{named(0)}", NaN]]}}', "as entry 0, which must be [file name, class]"),
    "negative": ({"labels": [[named(0), -1]]}, f"has the class -1 for '{named(0)}', of 0 ... 1048575 allowed"),
    "absurd": ({"labels": [[named(0), 10**400]]}, "of 0 ... 1048575 allowed"),
    "twice": ({"labels": [*LABELS["labels"], [named(0), 1]]}, f"names '{named(0)}' twice"),
    "unlabelled": ({"labels": LOST}, f"has no class for '{named(6)}': give it one, or remove the file"),
    "no entries": ({"labels": []}, f"has no class for '{named(0)}'"),
    "stranger": ({"labels": [*LABELS["labels"], ["b.npy", 0]]}, "names 'b.npy', but there is no such file"),
    "leaves": ({"labels": [*LABELS["labels"], ["../b.npy", 0]]}, "names '../b.npy', but there is no such file"),
    "absolute": ({"labels": [*LABELS["labels"], ["/etc/passwd", 0]]}, "names '/etc/passwd', but there is no such"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_labels_are_refused_with_what_is_wrong(folder, kind):
    content, told = MALFORMED[kind]
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / "dataset.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        latent_folder(folder)
    assert str(refused.value).startswith(str(folder / "dataset.json"))
    assert len(str(refused.value)) < 400 + len(str(folder))


def test_labels_that_are_missing_or_no_file_are_refused(folder, archive, tmp_path):
    outside = folder / "dataset.json"
    outside.rename(tmp_path / "outside.json")
    with pytest.raises(ValueError, match=r'dataset.json is missing; it must hold .* or {"labels": null} for one class'):
        latent_folder(folder)
    (folder / "dataset.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ValueError, match=r"dataset.json is a link that leads out of the folder"):
        latent_folder(folder)
    (folder / "dataset.json").unlink()
    os.mkfifo(folder / "dataset.json")
    with pytest.raises(ValueError, match=r"dataset.json is not a regular file"):
        latent_folder(folder)
    (folder / "dataset.json").unlink()
    with open(folder / "dataset.json", "wb") as huge:
        huge.truncate(2**40)
    with pytest.raises(ValueError, match=r"dataset.json has 1099511627776 bytes, of 1073741824 allowed"):
        latent_folder(folder)
    with zipfile.ZipFile(archive, "w") as bare:
        bare.writestr("a.npy", GOOD[named(0)])
    with pytest.raises(ValueError, match=r"latents.zip/dataset.json is missing"):
        latent_folder(archive)


def test_nothing_to_train_on_is_an_error(tmp_path, either):
    with pytest.raises(ValueError, match="does not exist"):
        latent_folder(tmp_path / "no")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(ValueError, match=r"pipe.zip is neither a folder nor a zip"):
        latent_folder(tmp_path / "pipe.zip")
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(ValueError, match=r"text.zip is no zip that can be read: File is not a zip file"):
        latent_folder(tmp_path / "text.zip")
    with pytest.raises(ValueError, match=r"holds no .npy files"):
        latent_folder(either({}))
    with pytest.raises(ValueError, match=r"all 2 images of .* are damaged: 'a.npy' is empty; 'b.npy' is no .npy file"):
        latent_folder(either({"b.npy": b"text", "a.npy": b""}, {"labels": None}))
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        latent_folder(either(GOOD), threads=0)


def test_links_pipes_and_unreadable_files_are_left_out(folder, tmp_path):
    (tmp_path / "outside.npy").write_bytes(GOOD[named(0)])
    extra = folder / "extra"
    extra.mkdir()
    (extra / "a-link.npy").symlink_to(tmp_path / "outside.npy")
    (extra / "b-lost.npy").symlink_to("nowhere.npy")
    (extra / "c-inside.npy").symlink_to(f"../{named(4)}")
    (extra / "d-passwd.npy").symlink_to("/etc/passwd")
    os.mkfifo(extra / "e-pipe.npy")
    (extra / "f-loop.npy").symlink_to("f-loop.npy")
    (extra / "g-folder.npy").mkdir()
    (folder / "linked").symlink_to(tmp_path)
    names = [f"extra/{name}.npy" for name in ("a-link", "b-lost", "c-inside", "d-passwd", "e-pipe", "f-loop")]
    labels = {"labels": LABELS["labels"] + [[name, 4 if "inside" in name else 9] for name in names]}
    (folder / "dataset.json").write_text(json.dumps(labels))
    with pytest.warns(RuntimeWarning, match="5 of 13 images"):
        latents = latent_folder(folder)
    reasons = {damage.name[6:]: damage.reason for damage in latents.damaged}
    assert reasons == {
        "a-link.npy": "is a link that leads out of the folder",
        "b-lost.npy": "cannot be read: No such file or directory",
        "d-passwd.npy": "is a link that leads out of the folder",
        "e-pipe.npy": "is not a regular file",
        "f-loop.npy": "cannot be read: Too many levels of symbolic links",
    }
    assert len(latents) == SIZE + 1
    # A class keeps its number when all of its files are left out.
    assert len(latents.classes) == 10
    np.testing.assert_array_equal(latents[SIZE]["image"], latents[4]["image"])


@pytest.mark.parametrize("name", ["../b.npy", "/b.npy", "a/../../b.npy", "a//b.npy", "a\\..\\b.npy", "./b.npy"])
def test_members_that_lead_out_of_the_zip_are_left_out(tmp_path, name):
    path = write_zip(tmp_path / "latents.zip", GOOD | {name: GOOD[named(0)]})
    with pytest.warns(RuntimeWarning, match="1 of 8 images"):
        latents = latent_folder(path)
    assert latents.damaged == (Damage(name, "leads out of the zip"),)
    assert len(list(latents)) == SIZE


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused_with_the_mend(tmp_path, method):
    path = write_zip(tmp_path / "latents.zip", GOOD, compression=method)
    with pytest.raises(ValueError, match=rf"{named(0)}' compressed: store them without compression"):
        latent_folder(path)
    # 10 MB of spaces in 10 kB: nothing is unpacked to find that out.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dataset.json", b" " * 10**7, compress_type=method)
        archive.writestr("a.npy", GOOD[named(0)])
    with pytest.raises(ValueError, match=r"dataset.json' compressed: store them without compression"):
        latent_folder(path)


def claim(path, name, **fields):
    """Change what the directory of a zip says of a member."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    places = {
        "flags": (8, "<H"),
        "checksum": (16, "<I"),
        "packed": (20, "<I"),
        "size": (24, "<I"),
        "offset": (42, "<I"),
    }
    for field, value in fields.items():
        start, form = places[field]
        struct.pack_into(form, content, at + start, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size": 2**32 - 2}, "claims 4294967294 bytes, which the zip does not hold"),
        ({"size": 2**32 - 2, "packed": 2**32 - 2}, "claims 4294967294 bytes, which the zip does not hold"),
        ({"size": 2**12 + 1, "packed": 2**12 + 1}, "claims 4097 bytes, which the zip does not hold"),
        ({"offset": 2**31}, "claims 320 bytes, which the zip does not hold"),
        ({"offset": 7}, "does not begin where the zip says"),
        ({"checksum": 7}, "has another checksum than the zip says"),
        ({"flags": 1}, "is encrypted"),
    ],
)
def test_a_zip_that_lies_about_a_member_is_not_believed(archive, fields, told):
    claim(archive, named(4), **fields)
    with pytest.warns(RuntimeWarning, match="1 of 7 images"):
        latents = latent_folder(archive)
    assert latents.damaged == (Damage(named(4), told),)
    assert len(list(latents)) == SIZE - 1


def test_a_flipped_bit_in_a_zip_is_seen_when_it_is_read(tmp_path):
    files = {f"{number}.npy": npy(latent(number, (8, 16, 16))) for number in range(3)}
    path = write_zip(tmp_path / "latents.zip", files, {"labels": None})
    content = bytearray(path.read_bytes())
    content[content.index(b"1.npy") + 7000] ^= 1
    path.write_bytes(content)
    latents = latent_folder(path)
    assert_same(latents[0]["image"], np.moveaxis(latent(0, (8, 16, 16)), 0, -1))
    with pytest.raises(DamagedImageError, match=r"1.npy was not found .* has another checksum than the zip says"):
        latents[1]
    with pytest.warns(RuntimeWarning, match=r"'1.npy' has another checksum"):
        latent_folder(path, check_values=True)


def test_members_with_an_extra_field_and_a_zip_behind_other_bytes_are_read(tmp_path):
    path = tmp_path / "latents.zip"
    with zipfile.ZipFile(path, "w") as archive:
        # The sizes of large files stand in a further field of each member.
        with archive.open("a.npy", "w", force_zip64=True) as member:
            member.write(GOOD[named(1)])
        archive.writestr("dataset.json", '{"labels": null}')
        archive.writestr("b.npy", GOOD[named(2)])
    for before in (b"", b"#!/bin/sh"):
        path.write_bytes(before + path.read_bytes())
        latents = latent_folder(path, check_values=True)
        for example, number in zip(latents, (1, 2), strict=True):
            np.testing.assert_array_equal(example["image"], np.moveaxis(latent(number), 0, -1))


def test_two_members_of_a_name_are_refused(tmp_path):
    path = write_zip(tmp_path / "latents.zip", GOOD)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(named(2), GOOD[named(0)])
    with pytest.raises(ValueError, match=rf"{named(2)}' twice: keep one"):
        latent_folder(path)


def test_a_zip_that_is_cut_or_spoilt_anywhere_is_refused_or_read_right(archive):
    """Whatever byte is wrong: a ValueError or DamagedImageError, or the numbers that were written."""
    whole = archive.read_bytes()
    rng = np.random.default_rng(0)
    directory = whole.index(b"PK\x01\x02")
    places = [*range(directory, len(whole), 5), *rng.integers(0, directory, 40).tolist()]
    spoilt = [whole[:place] for place in rng.integers(0, len(whole), 30).tolist()]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        spoilt.append(bytes(changed))
    expected = {name: np.moveaxis(latent(number), 0, -1) for number, name in enumerate(GOOD)}
    outcomes = set()
    for content in spoilt:
        archive.write_bytes(content)
        try:
            latents = _opened_whatever_it_warns(archive)
            for number in range(len(latents)):
                name = latents.name(number).removeprefix(f"{archive}/")
                np.testing.assert_array_equal(latents[number]["image"], expected[name])
            outcomes.add("good")
        except (ValueError, DamagedImageError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"good", "ValueError"}


def _opened_whatever_it_warns(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return latent_folder(path, check_values=True, threads=1)


@pytest.mark.parametrize("change", ["vanished", "cut", "pipe", "other shape"])
def test_a_file_that_breaks_after_the_scan_is_an_error(folder, change):
    latents = latent_folder(folder)
    path = folder / named(3)
    path.unlink()
    if change == "cut":
        path.write_bytes(GOOD[named(3)][:150])
    if change == "pipe":
        os.mkfifo(path)
    if change == "other shape":
        path.write_bytes(npy(latent(3, (8, 3, 2))))
    with pytest.raises(DamagedImageError, match=rf"latents/{named(3)} was not found damaged before training, but"):
        latents[3]


def test_a_zip_that_is_replaced_or_cut_after_the_scan_is_an_error(archive):
    latents = latent_folder(archive)
    copies = [pickle.loads(pickle.dumps(latents)) for _ in range(4)]
    assert_same(copies[0][2], latents[2])
    # Who has opened the zip keeps reading it, whatever takes its name.
    archive.rename(archive.with_suffix(".old"))
    write_zip(archive, dict(reversed(GOOD.items())))
    assert_same(copies[0][2], latents[2])
    with pytest.raises(DamagedImageError, match="has another checksum than the zip says"):
        copies[1][2]
    archive.write_bytes(b"")
    with pytest.raises(DamagedImageError, match="lies beyond the end of the zip"):
        copies[2][3]
    archive.unlink()
    with pytest.raises(DamagedImageError, match="cannot be read: No such file"):
        copies[3][3]


def break_unseen(path):
    """Spoil the content of a file, but neither its size nor its time of change."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_index_saves_reading_what_has_not_changed(folder, tmp_path):
    index = tmp_path / "latents.json"
    (folder / named(2)).write_bytes(b"bad")
    with pytest.warns(RuntimeWarning, match="1 of 7 images"):
        first = latent_folder(folder, index=index)
    break_unseen(folder / named(5))
    with pytest.warns(RuntimeWarning, match=rf"1 of 7 images of .* '{named(2)}' is no .npy file"):
        again = latent_folder(folder, index=index)
    assert again.fingerprint == first.fingerprint
    assert again.damaged == first.damaged
    with pytest.raises(DamagedImageError, match=r"is no .npy file"):
        again[4]
    # Numbers are another question than headers.
    with pytest.warns(RuntimeWarning, match="2 of 7 images"):
        latent_folder(folder, index=index, check_values=True)
    # Nor does the index speak for files of another shape.
    for name in GOOD:
        if name != named(3):
            (folder / name).write_bytes(npy(latent(1, (8, 3, 2))))
    with pytest.raises(ValueError, match=rf"{named(3)} has the shape \(2, 3, 8\), but {named(0)} has \(3, 2, 8\)"):
        latent_folder(folder, index=index)


def test_an_index_of_a_zip_holds_until_it_changes(archive, tmp_path):
    index = tmp_path / "latents.json"
    content = archive.read_bytes().replace(GOOD[named(6)], bytes(len(GOOD[named(6)])))
    archive.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="1 of 7 images"):
        first = latent_folder(archive, index=index)
    status = archive.stat()
    archive.write_bytes(content.replace(GOOD[named(5)], bytes(len(GOOD[named(5)]))))
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.warns(RuntimeWarning, match="1 of 7 images"):
        assert latent_folder(archive, index=index).fingerprint == first.fingerprint
    os.utime(archive)
    with pytest.warns(RuntimeWarning, match="2 of 7 images"):
        latent_folder(archive, index=index)


def test_processes_share_the_scan(either):
    path = either(GOOD | {named(3): b"", named(4): b"x"})
    given, opened = [None] * 2, [None] * 2
    barrier = threading.Barrier(2)

    def run(process):
        def gather(array):
            given[process] = array
            barrier.wait(timeout=30)
            stacked = np.stack(given)
            barrier.wait(timeout=30)
            return stacked

        opened[process] = latent_folder(path, threads=1, share=Share(process, 2, gather))

    with ThreadPoolExecutor(2) as pool, pytest.warns(RuntimeWarning, match="2 of 7 images"):
        list(pool.map(run, range(2)))
    assert opened[0].fingerprint == opened[1].fingerprint
    assert {damage.name for damage in opened[0].damaged} == {named(3), named(4)}


def steps_of(batches, steps, first=0):
    select = jax.jit(batches.select)
    return [jax.device_get(select(batches.load(step, 1), np.int32(0))) for step in range(first, first + steps)]


def test_streamed_batches_of_a_folder_and_its_zip_are_equal_however_they_are_read(folder, archive):
    with streamed(latent_folder(folder), 4, 3, block=2, threads=1) as batches:
        expected = steps_of(batches, 8)
    seen = np.concatenate([batch["image"][:, 0, 0, 4] for batch in expected])[: 4 * SIZE].reshape(4, SIZE)
    # Every epoch holds each example once: the first standard deviation tells its number.
    np.testing.assert_allclose(np.sort(seen - 24 / 64, axis=1), np.tile(np.arange(SIZE), (4, 1)))
    with streamed(latent_folder(archive), 4, 3, block=2, threads=4) as batches:
        assert_same(steps_of(batches, 8), expected)
    with streamed(latent_folder(archive), 4, 3, block=2, workers=1) as batches:
        assert_same(steps_of(batches, 4), expected[:4])


def test_a_restart_continues_the_batches_in_the_other_form_too(folder, archive):
    with streamed(latent_folder(folder), 4, 3, block=4) as batches:
        expected = steps_of(batches, 10)
        position = json.loads(json.dumps(batches.position(5)))
    with streamed(latent_folder(archive), 4, 3, block=4) as batches:
        batches.seek(position)
        assert_same(steps_of(batches, 5, first=5), expected[5:])
        assert_same(steps_of(batches, 1, first=2), expected[2:3])
    (folder / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(ValueError, match=r"the data has examples .* was made with"):
        streamed(latent_folder(folder), 4, 3).seek(position)


def test_threads_that_read_a_zip_do_not_disturb_one_another(tmp_path):
    files = {f"{number:03d}.npy": npy(latent(number, (8, 16, 16))) for number in range(50)}
    latents = latent_folder(write_zip(tmp_path / "latents.zip", files, {"labels": None}))
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda number: latents[number % 50]["image"][0, 0, 4], range(2000)))
    np.testing.assert_array_equal(read, [number % 50 + 1024 / 64 for number in range(2000)])
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors
        del latents
        assert len(os.listdir("/proc/self/fd")) == descriptors - 1
