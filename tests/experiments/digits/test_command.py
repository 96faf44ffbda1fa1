"""What the command does with the main job: it refuses what is wrong, and a run leaves what it promises."""

import json
import shutil

import numpy as np
import pytest
from commands import assert_refused, files, finish

from experiments.configuration import Settings
from experiments.digits import CLAIMS, Config

# The smallest run that measures everything: one number of steps, so that each sampler compiles once.
TINY = (
    *("--steps", "2", "--batch-size", "8", "--width", "8", "--hidden", "8", "--blocks", "1"),
    *("--seeds", "2", "--subsets", "2", "--pair-seeds", "2", "--curve-seeds", "1"),
    *("--sampling-steps", "2", "--scales", "1", "--step-counts", "2"),
    *("--edm2.steps", "8", "--edm2.batch-size", "8", "--edm2.width", "4", "--edm2.channels-per-head", "4"),
    *("--edm2.ramp-images", "0", "--edm2.snapshots", "8", "--edm2.sampling-steps", "2"),
    *("--edm2.seeds", "2", "--edm2.widths", "0.1"),
)
FIGURES = (
    *("edm2", "edm2_loss_by_level", "edm2_training", "edm2_width"),
    *("ddim", "ddpm", "filmstrips", "flow", "guidance", "nearest_training_images", "pcg", "quality_vs_guidance"),
    *("quality_vs_steps", "real", "same_noise", "scores", "training"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("finished") / "run", "digits", *TINY, "--mesh", "data=1")


# What is refused: exit 2, one sentence, nothing written.


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--steps 0", "--steps must lie between 1 and 1000000, got 0"),
        ("--steps 99999999999999999999", "--steps must lie between 1 and 1000000, got 99999999999999999999"),
        ("--steps 1e3", "--steps takes INT, got '1e3'"),
        ("--step 5", "digits has no option --step; the nearest is '--steps'"),
        ("--batch-size 0", "--batch-size must lie between 1 and 1000000, got 0"),
        ("--batch-size 10 --mesh data=8", "--batch-size 10 does not divide over 8 devices; choose a multiple"),
        ("--mesh data=64", "--mesh data=64 takes 64 devices and there are 8; ask for at most 8 in all"),
        ("--learning-rate 0", "must be positive and finite, got 0"),
        ("--ema-half-life -1", "must be positive and finite, got -1"),
        ("--label-dropout 1", "must lie in [0, 1), got 1"),
        ("--largest-shift -1", "must be at least 0 and finite, got -1"),
        ("--width 0", "width must be at least 1, got 0"),
        ("--hidden 0", "hidden must be at least 1, got 0"),
        ("--blocks 0", "blocks must be at least 1, got 0"),
        ("--sampler ddmi", "invalid choice 'ddmi' for argument '--sampler'"),
        ("--gamma nan", "--gamma must be finite, got nan"),
        ("--gamma inf", "--gamma must be finite, got inf"),
        ("--gamma=-inf", "--gamma must be finite, got -inf"),
        ("--scales 1 nan", "--scales must be finite, got nan"),
        ("--scales", "--scales and --step-counts take at least one value"),
        ("--step-counts 5 0", "a number of steps is at least 1"),
        ("--sampling-steps -1", "--sampling-steps must lie between 1 and 1000000, got -1"),
        ("--corrector-steps 0", "--corrector-steps must lie between 1 and 1000000, got 0"),
        ("--samples 0", "--samples must lie between 1 and 1000000, got 0"),
        ("--label 11", "--label must be a digit from 0 to 9, got 11"),
        ("--label -1", "--label must be a digit from 0 to 9, got -1"),
        ("--seeds 1", "--seeds must be at least 2, got 1"),
        ("--pair-seeds 1", "--pair-seeds must be at least 2, got 1"),
        ("--subsets 1", "--subsets must be at least 2, got 1"),
        ("--curve-seeds 0", "--curve-seeds must lie between 1 and 1000000, got 0"),
        ("--model edm3", "invalid choice 'edm3' for argument '--model'"),
        ("--sampler heun", "--sampler heun is for EDM2; add --model edm2"),
        ("--sampler flow --model edm2", "--sampler flow is for the small networks"),
        ("--ema-width 0.1", "--ema-width is for EDM2, of which a run keeps snapshots; add --model edm2"),
        ("--ema-width 0.3 --model edm2", "the width of an average must lie in (0, 1/sqrt(12) = 0.288675), got 0.3"),
        ("--edm2.widths 0.1 0.3", "the width of an average must lie in (0, 1/sqrt(12) = 0.288675), got 0.3"),
        ("--model small --edm2.width 8", "--edm2.width is for EDM2; add --model edm2, or drop it"),
        ("--model edm2 --width 8", "--width is for the small networks; see --edm2, or drop --model edm2"),
        ("--model edm2 --steps 8", "--steps is for the small networks; see --edm2, or drop --model edm2"),
        ("--label-dropout 0 --gamma 2", "--gamma 2 takes a network that has seen hidden labels"),
        ("--edm2.steps 0", "--edm2.steps must be at least 1, got 0"),
        ("--edm2.seeds 1", "--edm2.seeds must be at least 2, got 1"),
        ("--edm2.sampling-steps 0", "--edm2.sampling-steps must lie between 1 and 1000000, got 0"),
        ("--edm2.batch-size 10 --mesh data=8", "--edm2.batch-size 10 does not divide over 8 devices"),
        ("--edm2.channels-per-head 5", "channels_per_head"),
        ("--edm2.multipliers 1 2 2 2 2", "image_shape must have sides that 5 levels can halve"),
        ("--edm2.learning-rate 0", "learning_rate must be positive and finite, got 0"),
        ("--seed 4294967296", "--seed must lie between 0 and 4294967295, got 4294967296"),
        ("--preset paper", "digits has the presets ci, default; got 'paper'"),
        ("--part first", "digits has no parts; drop --part"),
        ("--from missing", "missing is no run: it holds no config.json"),
        ("--resume missing", "missing is no run: it holds no config.json"),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence_and_write_nothing(command, folder, argv, error):
    assert_refused(command("digits", *argv.split()), folder, error)


@pytest.fixture
def stored(folder):
    """What a finished run says of itself, without its networks."""
    (folder / "run").mkdir()
    settings = Settings("digits", "ci", 0, Config(width=8)).to_json()
    (folder / "run" / "config.json").write_text(json.dumps(settings))
    (folder / "run" / "environment.json").write_text('{"finished": "2026-01-01T00:00:00Z"}')
    return folder / "run"


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--width 16", "--from run takes its networks as they are, but width is 8 in the run and 16 here"),
        ("--steps 7", "steps is 8000 in the run and 7 here"),
        ("--preset ci", "width is 8 in the run and 128 here"),
    ],
)
def test_a_run_is_not_sampled_from_with_other_networks(command, folder, stored, argv, error):
    code, out, err = command("digits", "--from", "run", "--sampler", "ddim", *argv.split())
    assert (code, out) == (2, "")
    assert error in err
    assert err.count("\n") == 1
    assert files(folder) == {"run/config.json", "run/environment.json"}


def test_a_run_whose_networks_are_gone_exits_1_with_one_sentence(command, folder, stored):
    code, out, err = command("digits", "--from", "run", "--sampler", "ddim")
    assert (code, out) == (1, "")
    assert "checkpoints/denoiser has no " in err
    assert err.count("\n") == 1
    assert files(folder) == {"run/config.json", "run/environment.json"}


# A whole run.


@pytest.mark.slow
def test_a_run_leaves_every_file_and_a_row_of_every_claim(finished):
    kept = {"denoiser": (1, 2), "flow": (1, 2), "edm2": (6, 8), "edm2-snapshots": range(1, 9)}
    checkpoints = {f"checkpoints/{name}/{step}/manifest.json" for name, steps in kept.items() for step in steps}
    assert {name for name in files(finished) if not name.startswith("checkpoints/")} == {
        *("config.json", "environment.json", "metrics.jsonl", "claims.json", "notes.json", "arrays.npz", "report.html"),
        *(f"figures/{name}.{ending}" for name in FIGURES for ending in ("png", "svg")),
    }
    assert checkpoints <= files(finished)
    rows = json.loads((finished / "claims.json").read_text())
    assert [row["id"] for row in rows] == [claim.id for claim in CLAIMS]
    assert "not run" not in {row["verdict"] for row in rows}
    page = (finished / "report.html").read_text()
    assert page.count("<img ") == len(FIGURES)
    assert 'src="http' not in page
    assert str(finished) not in page


@pytest.mark.slow
def test_a_finished_run_is_sampled_from_without_training(command, folder, finished):
    before = {name: (finished / name).read_bytes() for name in files(finished)}
    asked = ("--sampler", "pcg", "--gamma", "2", "--samples", "6", "--label", "3", "--out", "drawn")
    code, out, err = command("digits", "--from", finished, *asked)
    assert (code, err) == (0, "")
    assert out.startswith("drawing with PCG: ")
    assert "training the" not in out
    assert files(folder / "drawn") == {
        *("config.json", "environment.json", "claims.json", "notes.json", "arrays.npz", "report.html"),
        *("figures/samples.png", "figures/samples.svg"),
    }
    with np.load(folder / "drawn" / "arrays.npz", allow_pickle=False) as arrays:
        samples, labels = arrays["samples"], arrays["labels"]
    assert samples.shape == (6, 8, 8)
    assert np.abs(samples).max() <= 1.0
    assert len(np.unique(samples.reshape(6, 64), axis=0)) == 6
    assert labels.tolist() == [3] * 6
    rows = json.loads((folder / "drawn" / "claims.json").read_text())
    assert {row["id"]: row["verdict"] for row in rows} == {claim.id: "not run" for claim in CLAIMS}
    assert {name: (finished / name).read_bytes() for name in files(finished)} == before


@pytest.mark.slow
def test_edm2_is_sampled_from_at_any_width_of_its_average(command, folder, finished):
    drawn = []
    for width in ("0.05", "0.1", "0.15"):
        asked = ("--model", "edm2", "--sampler", "heun", "--samples", "3", "--ema-width", width, "--out", width)
        code, out, err = command("digits", "--from", finished, *asked)
        assert (code, err) == (0, "")
        assert "training EDM2" not in out
        with np.load(folder / width / "arrays.npz", allow_pickle=False) as arrays:
            drawn.append(arrays["samples"])
        notes = (folder / width / "notes.json").read_text()
        assert "of the 3 images" in notes
    plain = ("digits", "--from", finished, "--model", "edm2", "--sampler", "heun", "--samples", "3")
    code, _, _ = command(*plain, "--out", "tracked")
    assert code == 0
    with np.load(folder / "tracked" / "arrays.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(drawn[0], arrays["samples"], atol=1e-5)  # the tracked average is that of width .05
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-4
    rows = json.loads((folder / "0.1" / "claims.json").read_text())
    assert {row["verdict"] for row in rows} == {"not run"}
    assert command(*plain, "--edm2.sampling-steps", "3", "--out", "finer")[0] == 0
    code, _, err = command(*plain, "--edm2.width", "8", "--out", "wider")
    assert code == 2
    assert "takes its EDM2 as it is, but edm2.width is 4 in the run and 8 here" in err
    code, _, err = command(*plain, "--ema-width", "0.28", "--out", "far")
    assert code == 2
    assert "out of reach of 8 snapshots" in err


@pytest.mark.slow
def test_the_loss_of_edm2_is_logged_by_level_of_noise(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "edm2_loss" in line][-1]
    assert last["step"] == 8
    levels = {name: value for name, value in last.items() if name.startswith("edm2_loss_sigma_")}
    # 64 images in 8 intervals; the untrained network's output is 0, whose loss is 1 at every level.
    assert 6 <= len(levels) <= 8
    assert all(0.2 < value < 3.0 for value in levels.values())
    assert last["edm2_nonfinite_gradients"] == 0
    assert last["edm2_learning_rate"] == pytest.approx(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("denoiser", "12"),
        ("flow", "12"),
        ("flow", "2"),
    ],
)
def test_a_run_with_truncated_checkpoints_exits_1_and_writes_nothing(command, folder, finished, name, steps):
    shutil.copytree(finished, folder / "run")
    for step in steps:
        arrays = max((folder / "run" / "checkpoints" / name / step).rglob("d/*"), key=lambda path: path.stat().st_size)
        arrays.write_bytes(arrays.read_bytes()[:-1])
    code, out, err = command("digits", "--from", "run", "--sampler", "ddim", "--out", "drawn")
    assert (code, out) == (1, "")
    assert f"checkpoints/{name}" in err
    assert "is not what was written" in err
    assert "going back" not in err
    assert err.count("\n") == 1
    assert not (folder / "drawn").exists()


@pytest.mark.slow
def test_a_run_that_holds_the_networks_of_another_exits_1_and_writes_nothing(command, folder, finished):
    shutil.copytree(finished, folder / "run")
    settings = json.loads((folder / "run" / "config.json").read_text())
    settings["config"]["width"] = 16
    (folder / "run" / "config.json").write_text(json.dumps(settings))
    code, out, err = command("digits", "--from", "run", "--sampler", "ddim", "--out", "drawn")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert not (folder / "drawn").exists()
