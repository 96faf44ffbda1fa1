"""The main job on a folder of images: what a run leaves, resumes to, draws from, and what it refuses."""

import contextlib
import json
import os
import signal
import socket

import chex
import numpy as np
import pytest
from commands import assert_refused, files, finish, hastily_compiled
from PIL import Image

from experiments import cli
from experiments.digits import CLAIMS
from experiments.progress import Meter
from jaxgen.models import ImageConv, ImageConvConfig, abstract_params
from jaxgen.training import restore_params

pytestmark = pytest.mark.filterwarnings("ignore:1 of 13 images:RuntimeWarning")

TINY = (
    *("--steps", "12", "--batch-size", "8", "--conv.width", "4", "--conv.multipliers", "1", "2"),
    *("--sampling-steps", "3", "--samples", "5"),
)
MODEL = ImageConv(ImageConvConfig((32, 32, 3), 2, width=4, multipliers=(1, 2), blocks=1))
FIGURES = {f"figures/{name}.{ending}" for name in ("filmstrips", "samples") for ending in ("png", "svg")}
WRITTEN = {"config.json", "environment.json", "claims.json", "notes.json", "arrays.npz", "report.html", *FIGURES}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images of each of two classes, and one that is cut off."""
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data") / "pets"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (36, 40, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "dog" / "cut.png").write_bytes((root / "dog" / "0.png").read_bytes()[:100])
    return root


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run on one device."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return finish(path, "digits", "--data", str(images), *TINY, "--mesh", "data=1")


def parameters(run, step=12):
    like = abstract_params(MODEL)
    fields = ("params", "ema.average")
    return [restore_params(run / "checkpoints" / "images", like, field=field, step=step) for field in fields]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def learned(run):
    """What a run's metrics say of the network, and not of the machine."""
    return [[line[name] for name in ("step", "loss", "gradient_norm", "learning_rate")] for line in lines(run)]


# What is refused: exit 2, one sentence, nothing written.


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--data missing", "--data missing does not exist; name a folder of PNG or JPEG images, or ArrayRecord files"),
        ("--data {empty}", " holds no PNG or JPEG images"),
        ("--data {images}/dog/0.png", "0.png is no folder; name a folder of PNG or JPEG images"),
        ("--data {records}", "label.labels.txt is missing; it names the classes of the records, one a line"),
        ("--data {images} --sampler pcg", "--sampler pcg is of the digits; with --data images are drawn by ddim"),
        ("--data {images} --sampler heun", "--sampler heun is for EDM2; add --model edm2"),
        ("--data {images} --model edm2 --sampler ddpm", "images are drawn by ddim, of EDM2 by heun"),
        ("--data {images} --model edm2 --edm2.attention-sides 16 --edm2.channels-per-head 5", "channels_per_head"),
        ("--data {images} --edm2.width 8", "--edm2.width is for EDM2; add --model edm2, or drop it"),
        ("--data {images} --model edm2 --conv.width 8", "--conv.width is for the small networks; see --edm2"),
        ("--data {images} --label -1", "--label must lie between 0 and 1, one less than the classes; got -1"),
        ("--data {images} --label 2", "--label must lie between 0 and 1, one less than the classes; got 2"),
        ("--data {images} --workers -1", "--workers must be at least 0, got -1; 0 reads in threads of this process"),
        ("--data {images} --steps-per-transfer 0", "--steps-per-transfer must be at least 1, got 0"),
        ("--data {images} --accumulate 0", "--accumulate must be at least 1, got 0"),
        ("--data {images} --accumulate 3 --batch-size 8 --mesh data=1", "accumulate must divide the batch of 8, got 3"),
        (
            "--data {images} --accumulate 2 --batch-size 8 --mesh data=8",
            "--accumulate 2 makes parts of 4 images, which do not divide over 8 devices",
        ),
        (
            "--data {images} --batch-size 10 --mesh data=8",
            "--batch-size 10 does not divide over 8 devices; choose a multiple",
        ),
        ("--data {images} --conv.width 0", "width must be at least 1, got 0"),
        ("--data {images} --conv.multipliers 1 2 3 4 5 6 7", "multiples of 64, got (32, 32, 3)"),
        ("--data {images} --side 48", "invalid choice '48' for argument '--side'"),
        ("--data {images} --learning-rate 0", "must be positive and finite, got 0"),
        ("--data {images} --width 64", "--width is for the digits; drop it, the options --conv are for --data"),
        ("--data {images} --largest-shift 2", "--largest-shift is for the digits"),
        ("--mirror", "--mirror is for images of your own; name their folder with --data, or drop it"),
        ("--conv.width 8", "--conv.width is for images of your own"),
        ("--workers 2", "--workers is for images of your own"),
    ],
)
def test_what_cannot_serve_exits_2_with_one_sentence_and_writes_nothing(
    command, folder, images, tmp_path_factory, argv, error
):
    places = {name: tmp_path_factory.mktemp(name) for name in ("empty", "records")}
    (places["records"] / "pets-train.array_record").touch()
    assert_refused(command("digits", *argv.format(images=images, **places).split()), folder, error)


# A whole run.


def test_a_run_leaves_every_file_and_says_why_no_claim_was_measured(finished):
    assert {name for name in files(finished) if not name.startswith("checkpoints/")} == {
        *WRITTEN,
        *("metrics.jsonl", "images.json"),
    }
    assert "checkpoints/images/12/manifest.json" in files(finished)
    rows = json.loads((finished / "claims.json").read_text())
    assert [row["id"] for row in rows] == [claim.id for claim in CLAIMS]
    assert {(row["verdict"], row["reason"]) for row in rows} == {
        ("not run", "the claims are of scikit-learn's digits, and this run is of the images of --data")
    }
    assert json.loads((finished / "notes.json").read_text())["notes"] == [
        "1 of 13 images are damaged and were left out: dog/cut.png (Truncated File Read).",
        "12 images of 2 classes, cut to 32 x 32 pixels; a network of 99,451 parameters.",
    ]


def test_metrics_hold_the_loss_and_where_the_time_went(finished):
    assert [line["step"] for line in lines(finished)] == [10, 12]
    for line in lines(finished):
        # A processor has no known peak, of which a share could be told.
        assert set(line) == {
            *("step", "loss", "gradient_norm", "learning_rate"),
            *("images_per_second", "host_milliseconds", "data_milliseconds"),
        }
        assert 0.5 < line["loss"] < 2.0  # an untrained network of unit loss weights (Karras et al. 2022) starts at 1
        assert line["images_per_second"] > 0
        assert line["host_milliseconds"] >= 0
        assert line["data_milliseconds"] >= 0
    assert lines(finished)[0]["learning_rate"] > lines(finished)[1]["learning_rate"] > 0


def test_samples_are_as_many_as_were_asked_for_of_the_classes_in_turn(finished):
    with np.load(finished / "arrays.npz", allow_pickle=False) as arrays:
        samples, labels, classes = (arrays[name] for name in ("samples", "labels", "classes"))
    assert (samples.shape, samples.dtype) == ((5, 32, 32, 3), np.uint8)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert classes.tolist() == ["cat", "dog"]
    assert len(np.unique(samples.reshape(5, -1), axis=0)) == 5


def test_a_run_that_is_told_to_stop_saves_and_resumes_to_the_same_bits(images, finished, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("JAXGEN_COMPILATION_CACHE", "off")
    update = Meter.update

    def signalled(self, step, **metrics):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, step, **metrics)

    with monkeypatch.context() as patch, hastily_compiled():
        patch.setattr(Meter, "update", signalled)
        argv = ("digits", "--data", str(images), *TINY, "--mesh", "data=1")
        assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    assert "saved; go on with --resume" in capfd.readouterr().out
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints" / "images").iterdir())
    assert 5 <= saved < 12
    assert not (tmp_path / "run" / "arrays.npz").exists()
    with hastily_compiled():
        assert cli.main(["digits", "--resume", str(tmp_path / "run"), "--mesh", "data=1"]) == 0
    chex.assert_trees_all_equal(parameters(tmp_path / "run"), parameters(finished))
    assert learned(tmp_path / "run") == learned(finished)
    with np.load(tmp_path / "run" / "arrays.npz") as resumed, np.load(finished / "arrays.npz") as whole:
        np.testing.assert_array_equal(resumed["samples"], whole["samples"])


# A network that is there already.


def test_a_finished_run_is_drawn_from_without_training_and_without_its_images(command, folder, finished):
    settings = json.loads((finished / "config.json").read_text())
    with moved(finished, settings, data=str(folder / "gone")), hastily_compiled():
        asked = ("--label", "1", "--samples", "3", "--mesh", "data=1", "--out", "drawn")
        code, out, err = command("digits", "--from", finished, *asked)
    assert (code, err) == (0, "")
    assert out.startswith("drawing: ")
    assert "training: " not in out
    assert files(folder / "drawn") == WRITTEN
    with np.load(folder / "drawn" / "arrays.npz", allow_pickle=False) as drawn, np.load(finished / "arrays.npz") as of:
        assert drawn["labels"].tolist() == [1] * 3
        # Image i depends on the seed, i and its class: the second is of the class 1 in both.
        np.testing.assert_array_equal(drawn["samples"][1], of["samples"][1])


@contextlib.contextmanager
def moved(run, settings, **config):
    """Let a run say that its settings were others."""
    changed = {**settings, "config": {**settings["config"], **config}}
    (run / "config.json").write_text(json.dumps(changed))
    yield
    (run / "config.json").write_text(json.dumps(settings, indent=1))


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--label 2", "--label must lie between 0 and 1, one less than the classes; got 2"),
        ("--steps 7", "takes its network as it is, but steps is 12 in the run and 7 here"),
        ("--conv.width 8", "takes its network as it is, but conv.width is 4 in the run and 8 here"),
    ],
)
def test_a_run_is_not_drawn_from_with_another_network(command, folder, finished, argv, error):
    assert_refused(command("digits", "--from", finished, *argv.split()), folder, error)


def test_a_run_of_the_digits_holds_no_network_of_images(command, folder, finished, images):
    settings = json.loads((finished / "config.json").read_text())
    with moved(finished, settings, data=None):
        result = command("digits", "--from", finished, "--data", images, "--mesh", "data=1")
    assert_refused(result, folder, "has networks of the digits, not of images of --data; drop one of the two")


# The options that change how, not what.


@pytest.mark.slow
def test_a_fully_sharded_run_on_eight_devices_has_the_losses_of_one_device(images, finished, tmp_path):
    run = finish(
        *(tmp_path / "run", "digits", "--data", str(images), *TINY),
        *("--mesh", "data=8", "--fully-sharded", "--steps-per-transfer", "5"),
    )
    np.testing.assert_allclose(learned(run), learned(finished), rtol=1e-4)  # 12 steps of float32 rounding


@pytest.mark.slow
def test_half_the_bits_in_parts_mirrored_and_computed_twice_train_as_well(images, finished, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    options = ("--conv.dtype", "bfloat16", "--conv.remat", "--accumulate", "2", "--mirror", "--workers", "1")
    run = finish(
        *(tmp_path / "run", "digits", "--data", str(images), *TINY, *options),
        *("--mesh", "data=1", "--sampling-steps", "2", "--samples", "1", "--tensorboard"),
    )
    # The first steps of a network whose output begins at zero: mirrored images have the same second moment.
    np.testing.assert_allclose([of[1] for of in learned(run)], [of[1] for of in learned(finished)], rtol=0.1)
    (events,) = (run / "tensorboard").iterdir()
    told = {
        (event.step, value.tag): value.tensor.float_val[0]
        for event in EventFileLoader(str(events)).Load()
        for value in event.summary.value
    }
    assert {(line["step"], "loss"): np.float32(line["loss"]) for line in lines(run)}.items() <= told.items()
    assert (12, "images_per_second") in told


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def both(spawn, *argv):
    """Run the command in two processes of one device each; returns exit code, output and errors of each."""
    joined = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2, "--initialization-timeout", 120)
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    running = [spawn("digits", *argv, *joined, "--process-id", process, **environment) for process in range(2)]
    told = [process.communicate(timeout=240) for process in running]
    return [(process.returncode, *texts) for process, texts in zip(running, told, strict=True)]


@pytest.mark.slow
def test_two_processes_train_as_one_and_write_one_folder(spawn, folder, images, finished):
    told = both(spawn, "--data", images, *TINY)
    assert [code for code, *_ in told] == [0, 0], told
    (run,) = (folder / "runs" / "digits").iterdir()
    assert {name for name in files(folder) if "checkpoints/" not in name} == {
        f"{run.relative_to(folder)}/{name}" for name in (*WRITTEN, "metrics.jsonl", "images.json")
    }
    np.testing.assert_allclose(learned(run), learned(finished), rtol=1e-5)
    with np.load(run / "arrays.npz") as two, np.load(finished / "arrays.npz") as one:
        # Bytes of values that differ by rounding.
        np.testing.assert_allclose(two["samples"].astype(int), one["samples"].astype(int), atol=1)


def test_a_mesh_that_leaves_a_process_idle_is_refused_by_both(spawn, folder, images):
    told = both(spawn, "--data", images, *TINY, "--mesh", "data=1")
    assert [code for code, *_ in told] == [2, 2], told
    for _, _, err in told:
        assert "--mesh data=1 leaves 1 of 2 processes without a device; there are 2 to share" in err
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_edm2_learns_a_folder_and_is_drawn_from_at_any_width(images, tmp_path, monkeypatch, capfd):
    sizes = (
        *("--edm2.width", "4", "--edm2.channels-per-head", "4", "--edm2.snapshots", "6", "--edm2.ramp-images", "0"),
        *("--edm2.sampling-steps", "2", "--samples", "4"),
    )
    asked = ("digits", "--data", str(images), "--model", "edm2", *TINY[:4], *sizes)
    run = finish(tmp_path / "run", *asked, "--mesh", "data=1")
    assert (run / "figures" / "edm2_training.png").is_file()
    said = lines(run)
    assert [line["step"] for line in said] == [10, 12]
    assert all(any(name.startswith("loss_sigma_") for name in line) for line in said)
    snapshots = {path.name for path in (run / "checkpoints" / "images-snapshots").iterdir()}
    assert snapshots == {str(step) for step in range(2, 13, 2)}
    monkeypatch.chdir(tmp_path)
    for width in ("0.05", "0.15"):
        assert cli.main(["digits", "--from", str(run), "--ema-width", width, "--out", width]) == 0
    with (
        np.load(run / "arrays.npz") as tracked,
        np.load("0.05/arrays.npz") as same,
        np.load("0.15/arrays.npz") as other,
    ):
        # Bytes of one rounding: the reconstruction at a tracked width is that average.
        assert np.abs(tracked["samples"].astype(int) - same["samples"]).max() <= 1
        assert (tracked["samples"] != other["samples"]).any()
    capfd.readouterr()
    assert cli.main(["digits", "--from", str(run), "--model", "small", "--out", "small"]) == 2
    assert "has the network of --model edm2, got small" in capfd.readouterr().err
