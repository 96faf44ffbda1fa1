import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stream_run
from PIL import Image

from jaxgen.training import Batches, create, fit, make_mesh
from jaxgen.training.epoch_order import EpochOrder
from jaxgen.training.image_decoding import DamagedImageError
from jaxgen.training.image_folder import image_folder
from jaxgen.training.stream import Streamed, streamed

SIZE = 13


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number in range(SIZE):
        (root / f"{number % 3}").mkdir(exist_ok=True)
        Image.new("RGB", (12, 10), (10 * number, 0, 0)).save(root / f"{number % 3}" / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def images(path):
    return image_folder(path, 8)


def steps_of(batches, steps, first=0):
    """The batches of steps, each asked for by itself and picked in a compiled function."""
    select = jax.jit(batches.select)
    return [jax.device_get(select(batches.load(step, 1), np.int32(0))) for step in range(first, first + steps)]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def reading():
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_batches_are_those_of_the_order_and_every_epoch_holds_each_example_once(images):
    with streamed(images, 4, 7, block=3) as batches:
        assert isinstance(batches, Batches)
        got = steps_of(batches, 3 * SIZE)
    order = EpochOrder(SIZE, 4, 7, True)
    for step, batch in enumerate(got):
        np.testing.assert_array_equal(batch["index"], order.batch(step, np.arange(4)))
        for row, index in enumerate(batch["index"].tolist()):
            assert_same({name: batch[name][row] for name in ("image", "label")}, _without_index(images[index]))
    seen = np.concatenate([batch["index"] for batch in got]).reshape(12, SIZE)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(SIZE), (12, 1)))
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 12
    assert not reading()


def _without_index(example):
    return {name: value for name, value in example.items() if name != "index"}


def test_without_shuffling_the_order_is_that_of_the_examples(images):
    with streamed(images, 5, 0, shuffle=False) as batches:
        indices = [batch["index"].tolist() for batch in steps_of(batches, 3)]
    assert indices == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 0, 1]]


@pytest.mark.parametrize("options", [{"block": 1}, {"block": 8, "threads": 4, "ahead": 1}, {"block": 5, "ahead": 4}])
def test_how_batches_are_read_changes_no_byte(images, options):
    # A batch larger than the data holds examples of several epochs.
    with streamed(images, 30, 1, threads=1) as batches, streamed(images, 30, 1, **options) as others:
        assert_same(steps_of(batches, 12), steps_of(others, 12))


def test_a_block_travels_once_and_one_program_picks_from_all(images):
    traces = []

    def pick(payload, offset):
        traces.append(None)
        return batches.select(payload, offset)

    program = jax.jit(pick)
    with streamed(images, 4, 7, block=6) as batches:
        expected = steps_of(batches, 18)
    with streamed(images, 4, 7, block=6) as batches:
        got = []
        # As a loop cuts its spans: never across a multiple of the block.
        for first, count in ((0, 4), (4, 2), (6, 6), (12, 1), (13, 5)):
            payload = batches.load(first, count)
            assert payload.arrays["image"].shape == (6, 4, 8, 8, 3)
            assert payload.arrays["image"].dtype == np.uint8
            assert payload.start.dtype == np.int32
            got += [program(payload, jnp.int32(offset)) for offset in range(count)]
        assert batches.load(13, 1).arrays is batches.load(12, 6).arrays
    assert_same(jax.device_get(got), expected)
    assert len(traces) == 1
    assert hash(batches.select) == hash(streamed(images, 4, 7).select)


def test_a_restart_in_the_middle_of_a_block_continues_the_stream(images):
    with streamed(images, 4, 7, block=6) as batches:
        expected = steps_of(batches, 20)
        position = json.loads(json.dumps(batches.position(9)))
    with streamed(images, 4, 7, block=6) as batches:
        batches.seek(position)
        assert_same(steps_of(batches, 11, first=9), expected[9:])
        # Back, and over what has been read ahead.
        assert_same(steps_of(batches, 2, first=2), expected[2:4])
        assert_same(steps_of(batches, 1, first=19), expected[19:])
        late = 10**15
        np.testing.assert_array_equal(
            steps_of(batches, 1, first=late)[0]["index"], EpochOrder(SIZE, 4, 7, True).batch(late, np.arange(4))
        )


def test_a_position_of_other_data_is_refused_by_name(images, path):
    position = streamed(images, 4, 7).position(5)
    assert position == {
        "step": 5,
        "examples": images.fingerprint,
        "size": SIZE,
        "batch_size": 4,
        "seed": 7,
        "shuffle": True,
    }
    streamed(images, 4, 7, block=2, workers=1, threads=3, ahead=5).seek(position)
    for other, told in {
        streamed(image_folder(path, 9), 4, 7): "the data has examples .* was made with",
        streamed(images, 5, 7): "the data has batch_size 5, but the checkpoint was made with 4",
        streamed(images, 4, 8): "the data has seed 8, but the checkpoint was made with 7",
        streamed(images, 4, 7, shuffle=False): "the data has shuffle False, but the checkpoint was made with True",
    }.items():
        with pytest.raises(ValueError, match=told):
            other.seek(position)


def test_each_device_of_a_mesh_holds_its_rows(images):
    with streamed(images, 16, 7, block=2) as batches:
        expected = steps_of(batches, 4)
    for sizes, rows in (("data=8", 2), ("data=2,model=4", 8), ("model=8", 16)):
        mesh = make_mesh(sizes)
        with streamed(images, 16, 7, block=2, mesh=mesh) as batches:
            arrays = batches.load(0, 1).arrays
            assert_same(steps_of(batches, 4), expected)
        assert {shard.data.shape for shard in arrays["image"].addressable_shards} == {(2, rows, 8, 8, 3)}
        assert len(arrays["label"].sharding.device_set) == 8
    with pytest.raises(ValueError, match="a batch of 12 cannot be split evenly over data=8 devices"):
        streamed(images, 12, 7, mesh=make_mesh("data=8"))


def test_training_is_the_same_however_the_blocks_are_cut(images):
    def update(state, constants, batch):
        weights = state.params["w"] - 0.1 * (batch["image"].mean() / 255 + batch["label"].mean() - state.params["w"])
        return state._replace(params={"w": weights}), {"loss": weights}

    def final(block, steps_per_call, mesh=None):
        state = create(jax.random.key(0), {"w": jnp.float32(1)})
        with streamed(images, 8, 0, block=block, mesh=mesh) as batches:
            state = fit(update, state, (), batches, steps=11, steps_per_call=steps_per_call, mesh=mesh)
        return float(state.params["w"])

    assert final(4, 16) == final(3, 2)
    np.testing.assert_allclose(final(4, 16, make_mesh("data=8")), final(4, 16), rtol=1e-6)  # other sums of means


def test_a_file_that_vanishes_is_an_error_that_names_it(path, tmp_path):
    copy = shutil.copytree(path, tmp_path / "copy")
    images = image_folder(copy, 8)
    lost = 5
    Path(images.name(lost)).unlink()
    with streamed(images, 4, 0, shuffle=False, block=1, ahead=1) as batches:
        assert len(steps_of(batches, 1)) == 1
        for _ in range(2):
            with pytest.raises(DamagedImageError, match=rf"{images.name(lost)} was good before training, but now"):
                batches.load(1, 1)
        assert len(steps_of(batches, 1, first=2)) == 1
    assert not reading()


def test_closing_ends_the_reading_whatever_has_happened(images):
    batches = streamed(images, 4, 0)
    batches.close()
    batches.close()
    with pytest.raises(RuntimeError, match="the batches have been closed"):
        batches.load(0, 1)
    batches = streamed(images, 4, 0)
    with pytest.raises(KeyError), batches:
        batches.load(0, 1).arrays["no such array"]
    with pytest.raises(RuntimeError, match="the batches have been closed"):
        batches.load(0, 1)
    assert not reading()
    forgotten = streamed(images, 4, 0)
    forgotten.load(0, 1)
    assert reading()
    del forgotten
    assert not reading()


def test_bad_arguments_are_refused_before_anything_is_read(images, monkeypatch):
    for name, value, least in (
        ("batch_size", 0, 1),
        ("seed", -1, 0),
        ("block", 0, 1),
        ("workers", -1, 0),
        ("threads", 0, 1),
        ("ahead", 0, 1),
    ):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {value}"):
            streamed(images, **({"batch_size": 4, "seed": 0} | {name: value}))
    with pytest.raises(ValueError, match="at least 1 example"):
        streamed(Empty(), 4, 0)
    with streamed(images, 4, 0, block=4) as batches:
        for first, count in ((3, 2), (0, 5), (0, 0)):
            with pytest.raises(ValueError, match=rf"steps {first} \.\.\. .* multiples of the block of 4"):
                batches.load(first, count)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(ValueError, match="workers=2 need 0 MB of shared memory, but /dev/shm has 0 MB free"):
        streamed(images, 4, 0, workers=2)
    assert not reading()


class Empty:
    fingerprint = ""

    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


def test_processes_read_the_same_bytes_and_hand_on_errors(path, tmp_path):
    copy = shutil.copytree(path, tmp_path / "copy")
    images = image_folder(copy, 8)
    with streamed(images, 5, 3, block=2) as batches:
        expected = steps_of(batches, 9)
    with streamed(images, 5, 3, block=2, workers=2) as batches:
        assert_same(steps_of(batches, 6), expected[:6])
        assert_same(steps_of(batches, 2, first=7), expected[7:9])
        Path(images.name(0)).unlink()
        with pytest.raises(DamagedImageError, match=f"{images.name(0)} was good before training, but now cannot be"):
            steps_of(batches, 100)
    with pytest.raises(DamagedImageError), streamed(images, 5, 3, block=2, workers=1) as batches:
        steps_of(batches, 9)
    assert not reading()


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(stream_run.__file__).parent)}
    command = [sys.executable, stream_run.__file__, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def assert_gone(pids):
    for _ in range(500):
        if not any(map(alive, pids)):
            return
        time.sleep(0.01)
    raise AssertionError(f"of {pids}, {[pid for pid in pids if alive(pid)]} are still there after 5 s")


def test_no_process_outlives_the_one_that_started_it(path):
    killed, left = run("read", path), run("leave", path)
    pids = json.loads(killed.stdout.readline())
    assert len(pids) == 2
    assert all(map(alive, pids))
    # Ctrl-C reaches the processes that read as well, and they go on.
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    assert all(map(alive, pids))
    assert killed.poll() is None
    killed.kill()
    killed.communicate(timeout=20)
    assert_gone(pids)
    pids = json.loads(left.stdout.readline())
    _, told = left.communicate(timeout=20)
    assert (left.returncode, told) == (0, "")
    assert_gone(pids)


def test_signals_do_not_end_processes_that_are_starting(path):
    running = run("start", path)
    pids = [json.loads(running.stdout.readline())[0] for _ in range(2)]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert sorted(json.loads(running.stdout.readline())) == sorted(pids)
    running.kill()
    running.communicate(timeout=20)
    assert_gone(pids)


def test_two_hosts_read_the_rows_that_they_hold(path, images):
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    hosts = [run("host", path, port, process) for process in range(2)]
    told = [host.communicate(timeout=60) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], told
    printed = [json.loads(out.splitlines()[-1]) for out, _ in told]
    assert [host["fingerprint"] for host in printed] == [images.fingerprint] * 2
    held = [{int(row): index for row, index in host["held"].items()} for host in printed]
    assert [len(rows) for rows in held] == [8, 8]
    expected = EpochOrder(SIZE, 16, 0, True).batch(6, np.arange(16)).tolist()
    assert held[0] | held[1] == dict(enumerate(expected))


def test_a_stream_is_made_without_touching_its_examples(images):
    assert isinstance(streamed(images, 4, 0), Streamed)
    assert not reading()
