import json
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from jaxgen.training.image_decoding import DamagedImageError
from jaxgen.training.image_folder import image_folder
from jaxgen.training.scan import Damage, Share


def save(path, grey=0, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def greys(folder):
    return [int(example["image"][0, 0, 0]) for example in folder]


@pytest.fixture
def classes(tmp_path):
    root = tmp_path / "images"
    save(root / "dog" / "b.png", 40)
    save(root / "dog" / "a.JPG", 30)
    save(root / "cat" / "deep" / "c.jpeg", 20)
    save(root / "cat" / "B.PNG", 10)
    (root / "dog" / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    save(root / ".hidden" / "x.png")
    save(root / "dog" / "._b.png")
    return root


def test_examples_come_in_the_order_of_their_names_with_the_class_of_their_folder(classes):
    folder = image_folder(classes, 4)
    assert folder.classes == ("cat", "dog")
    assert len(folder) == 4
    examples = list(folder)
    assert [example["label"].item() for example in examples] == [0, 0, 1, 1]
    assert [example["index"].item() for example in examples] == [0, 1, 2, 3]
    np.testing.assert_allclose(greys(folder), [10, 20, 30, 40], atol=1)  # JPEG
    assert {name: (value.dtype, value.shape) for name, value in examples[0].items()} == {
        "image": (np.uint8, (4, 4, 3)),
        "label": (np.int32, ()),
        "index": (np.int32, ()),
    }
    assert folder.name(1) == str(classes / "cat" / "deep" / "c.jpeg")
    assert image_folder(classes, 4, channels=1)[3]["image"].shape == (4, 4, 1)
    with pytest.raises(IndexError, match=r"0 \.\.\. 3, got 4"):
        folder[4]


def test_files_beside_no_folder_are_one_class(tmp_path):
    save(tmp_path / "b.png", 2)
    save(tmp_path / "a.png", 1)
    folder = image_folder(tmp_path, 4)
    assert folder.classes == (tmp_path.name,)
    assert [(e["label"], e["image"][0, 0, 0]) for e in folder] == [(0, 1), (0, 2)]
    save(tmp_path / "sub" / "c.png")
    with pytest.raises(ValueError, match=r"both in sub-folders \('sub/c.png'\) and beside them \('a.png'\)"):
        image_folder(tmp_path, 4)


def test_damaged_files_are_named_counted_and_left_out(classes):
    good = (classes / "dog" / "b.png").read_bytes()
    (classes / "cat" / "cut.png").write_bytes(good[:45])
    (classes / "cat" / "none.jpg").write_bytes(b"")
    (classes / "bird").mkdir()
    (classes / "bird" / "text.png").write_text("a text")
    save(classes.parent / "outside.png")
    (classes / "dog" / "link.png").symlink_to(classes.parent / "outside.png")
    (classes / "dog" / "inside.png").symlink_to("b.png")
    (classes / "dog" / "lost.png").symlink_to("nowhere.png")
    (classes / "wolf").symlink_to("dog")
    os.mkfifo(classes / "dog" / "pipe.png")
    told = r"7 of 12 images of .* 'bird/text.png' is neither .*; and 2 more"
    with pytest.warns(RuntimeWarning, match=told) as warned:
        folder = image_folder(classes, 4)
    assert len(warned) == 1
    assert folder.damaged == (
        Damage("bird/text.png", "is neither a PNG nor a JPEG image"),
        Damage("cat/cut.png", "Truncated File Read"),
        Damage("cat/none.jpg", "is empty"),
        Damage("dog/link.png", "is a link that leads out of the folder"),
        Damage("dog/lost.png", "cannot be read: No such file or directory"),
        Damage("dog/pipe.png", "is not a regular file"),
        Damage("wolf/", "is a link to a folder, which is not followed"),
    )
    # A class keeps its number when all of its files are damaged.
    assert folder.classes == ("bird", "cat", "dog", "wolf")
    assert [example["label"] for example in folder] == [1, 1, 2, 2, 2]
    np.testing.assert_allclose(greys(folder), [10, 20, 30, 40, 40], atol=1)


def test_a_link_that_leads_to_itself_is_damaged_and_no_crash(tmp_path):
    save(tmp_path / "a.png")
    for name in ("self.png", "self"):
        (tmp_path / name).symlink_to(name)
    with pytest.warns(RuntimeWarning, match="1 of 2 images"):
        folder = image_folder(tmp_path, 4)
    assert folder.damaged == (Damage("self.png", "cannot be read: Too many levels of symbolic links"),)


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        image_folder(tmp_path, 4)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(ValueError, match=r"all 2 images of .* 'a.png' is empty; 'b.png' is neither a PNG nor a JPEG"):
        image_folder(tmp_path, 4)
    with pytest.raises(ValueError, match="is not a folder"):
        image_folder(tmp_path / "a.png", 4)
    with pytest.raises(ValueError, match="side must be at least 1 pixel, got 0"):
        image_folder(tmp_path, 0)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        image_folder(tmp_path, 4, threads=0)
    with pytest.raises(ValueError, match="must lie in a folder that exists"):
        image_folder(tmp_path, 4, index=tmp_path / "no" / "index.json")


@pytest.mark.parametrize("change", ["vanished", "cut", "pipe"])
def test_a_file_that_breaks_after_the_scan_is_an_error(classes, change):
    folder = image_folder(classes, 4)
    path = classes / "dog" / "b.png"
    content = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(content[:20])
    if change == "pipe":
        os.mkfifo(path)
    with pytest.raises(DamagedImageError, match=r"images/dog/b.png was good before training, but now"):
        folder[3]


def test_the_fingerprint_is_that_of_the_good_files(classes):
    first = image_folder(classes, 4).fingerprint
    assert image_folder(classes, 4, threads=1).fingerprint == first
    assert pickle.loads(pickle.dumps(image_folder(classes, 4))).fingerprint == first
    others = {image_folder(classes, 5).fingerprint, image_folder(classes, 4, channels=1).fingerprint}
    (classes / "dog" / "z.png").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="1 of 5 images"):
        assert image_folder(classes, 4).fingerprint == first
    save(classes / "dog" / "z.png")
    others.add(image_folder(classes, 4).fingerprint)
    (classes / "dog" / "z.png").rename(classes / "cat" / "z.png")
    others.add(image_folder(classes, 4).fingerprint)
    save(classes / "cat" / "z.png", size=(200, 300))
    others.add(image_folder(classes, 4).fingerprint)
    assert len(others | {first}) == 6


def break_unseen(path):
    """Spoil the content of a file, but neither its size nor its time of change."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_index_saves_reading_what_has_not_changed(classes, tmp_path):
    index = tmp_path / "index.json"
    (classes / "cat" / "bad.png").write_bytes(b"bad")
    with pytest.warns(RuntimeWarning, match="1 of 5 images"):
        first = image_folder(classes, 4, index=index)
    break_unseen(classes / "dog" / "b.png")
    (classes / "cat" / "bad.png").chmod(0o644)
    with pytest.warns(RuntimeWarning, match="1 of 5 images of .* 'cat/bad.png' is neither"):
        again = image_folder(classes, 4, index=index)
    assert again.fingerprint == first.fingerprint
    assert again.damaged == first.damaged
    # Another side asks nothing new of the files.
    with pytest.warns(RuntimeWarning, match="1 of 5 images"):
        assert len(image_folder(classes, 8, index=index)) == 4
    # A changed file and a new one are read, and the one that was spoilt unseen is not.
    save(classes / "cat" / "bad.png", 5, size=(30, 30))
    save(classes / "dog" / "new.png", 50)
    assert len(image_folder(classes, 4, index=index)) == 6
    os.utime(classes / "dog" / "b.png")
    with pytest.warns(RuntimeWarning, match="1 of 6 images of .* 'dog/b.png'"):
        image_folder(classes, 4, index=index)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "index.json"]


def with_verdict(stored, *verdict):
    return {name: [*entry[:3], *verdict] for name, entry in stored["files"].items()}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: b"",
        lambda stored: b"\xff\xfe",
        lambda stored: b"[" * 100_000,
        lambda stored: b"[1, 2]",
        lambda stored: json.dumps(stored | {"pillow": "0.1"}).encode(),
        lambda stored: json.dumps(stored | {"format": 99}).encode(),
        lambda stored: json.dumps(stored | {"files": [1]}).encode(),
        lambda stored: json.dumps(stored | {"files": {"dog/b.png": 7}}).encode(),
        lambda stored: json.dumps(stored | {"files": with_verdict(stored, {"x": "is bad"})}).encode(),
        lambda stored: json.dumps(stored | {"files": with_verdict(stored, {"0": 1})}).encode(),
        lambda stored: json.dumps(stored | {"files": with_verdict(stored, {"5": ""})}).encode(),
        lambda stored: json.dumps(stored | {"files": with_verdict(stored)}).encode(),
    ],
)
def test_a_malformed_index_is_made_anew(classes, tmp_path, spoil):
    index = tmp_path / "index.json"
    image_folder(classes, 4, index=index)
    stored = index.read_bytes()
    index.write_bytes(spoil(json.loads(stored)))
    break_unseen(classes / "dog" / "b.png")
    with pytest.warns(RuntimeWarning, match="1 of 4 images of .* 'dog/b.png'"):
        image_folder(classes, 4, index=index)
    assert index.read_bytes() != stored
    assert json.loads(index.read_bytes())["files"]["dog/b.png"][3] == {"0": "is neither a PNG nor a JPEG image"}


def test_an_index_that_cannot_be_written_does_not_stop_the_run(classes, tmp_path):
    (tmp_path / "index.json").mkdir()
    with pytest.warns(RuntimeWarning, match=r"index.json could not be written"):
        assert len(image_folder(classes, 4, index=tmp_path / "index.json")) == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "index.json"]


def shared(paths, indices=None):
    """Open folders in threads, each as a process of its own that reads its share."""
    processes = len(paths)
    barrier, given, opened = threading.Barrier(processes), [None] * processes, [None] * processes

    def run(process):
        def gather(array):
            given[process] = array
            barrier.wait(timeout=30)
            stacked = np.stack(given)
            barrier.wait(timeout=30)
            return stacked

        try:
            opened[process] = image_folder(
                paths[process],
                4,
                threads=1,
                share=Share(process, processes, gather),
                index=indices[process] if indices else None,
            )
        except ValueError as error:
            opened[process] = error

    threads = [threading.Thread(target=run, args=(process,)) for process in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return opened


def test_processes_share_the_scan_and_agree(classes, tmp_path):
    (classes / "cat" / "bad.png").write_bytes(b"bad")
    (classes / "dog" / "bad.png").write_bytes(b"")
    alone = tmp_path / "alone.json"
    with pytest.warns(RuntimeWarning, match="2 of 6 images"):
        expected = image_folder(classes, 4, index=alone)
    # What one process already knows from its index, the others need not.
    (tmp_path / "index1.json").write_bytes(alone.read_bytes())
    with pytest.warns(RuntimeWarning, match="2 of 6 images"):
        opened = shared([classes] * 3, [tmp_path / f"index{process}.json" for process in range(3)])
    assert {folder.fingerprint for folder in opened} == {expected.fingerprint}
    names = [damage.name for damage in expected.damaged]
    assert all([damage.name for damage in folder.damaged] == names for folder in opened)
    reasons = {damage.reason for folder in opened for damage in folder.damaged}
    assert reasons == {"is neither a PNG nor a JPEG image", "is empty", "is damaged, as another process found"}
    with pytest.warns(RuntimeWarning, match="2 of 6 images"):
        one = image_folder(classes, 4, share=Share(0, 1, multihost_utils.process_allgather))
    assert one.fingerprint == expected.fingerprint


def test_each_process_reads_its_share_only(classes):
    spoilt = classes / "dog" / "b.png"
    spoilt.write_bytes(b"bad")
    # Example 3 belongs to process 1 of 2; process 0, told by nobody, does not see that it is damaged.
    folder = image_folder(classes, 4, share=Share(0, 2, lambda array: array))
    assert len(folder) == 4
    with pytest.warns(RuntimeWarning, match="1 of 4 images"):
        image_folder(classes, 4, share=Share(1, 2, lambda array: array))
    with pytest.raises(ValueError, match=r"process must be in 0 \.\.\. 1, got 2"):
        image_folder(classes, 4, share=Share(2, 2, lambda array: array))


def test_processes_that_see_different_files_are_told(classes, tmp_path):
    save(tmp_path / "other" / "dog" / "b.png")
    opened = shared([classes, tmp_path / "other"])
    assert all("the processes see different files" in str(error) for error in opened)


def test_opening_a_folder_holds_names_and_no_pixels(tmp_path):
    """2,000 images of 256 x 256 are 393 MB of pixels."""
    save(tmp_path / "images" / "a" / "00000.png", size=(256, 256))
    for number in range(1, 2000):
        os.link(tmp_path / "images" / "a" / "00000.png", tmp_path / "images" / "a" / f"{number:05d}.png")
    program = (
        "import resource, sys; from jaxgen.training.image_folder import image_folder;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "folder = image_folder(sys.argv[1], 256, threads=2);"
        "print(len(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    printed = subprocess.check_output([sys.executable, "-c", program, str(tmp_path / "images")], text=True)
    count, kilobytes = map(int, printed.split())
    assert count == 2000
    assert kilobytes < 40_000  # Pillow's decoders, and what a few images need


def test_a_shortage_ends_the_scan_at_once(classes, monkeypatch):
    for number in range(500):
        save(classes / "dog" / f"{number}.png")
    calls = []

    def scarce(*_):
        calls.append(time.monotonic())
        raise MemoryError

    monkeypatch.setattr(sys.modules["jaxgen.training.image_folder"], "examine_image", scarce)
    with pytest.raises(MemoryError):
        image_folder(classes, 4, threads=2)
    assert len(calls) <= 504 // 32 + 1
