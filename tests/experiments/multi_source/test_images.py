"""The experiment on images: its grid, its pairs, its recipes and costs; and a run of it from training to the ledger."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_refused, finish

from experiments.multi_source import PRESETS, Config, Images, image_networks, image_sources, images, paper_settings
from experiments.multi_source.image_networks import Cell

FULL = Config(images=Images(sources=(3, 10), per_source=(40, 100)))
TINY = (
    *("--part", "images", "--images.steps", "2", "--images.samples", "40", "--images.sampling-steps", "2"),
    *("--images.width", "4", "--images.multipliers", "1", "--images.attention-sides", "16"),
    *("--images.channels-per-head", "4", "--images.sources", "2", "--images.features", "4", "--mesh", "data=1"),
    *("--images.per-source", "90"),
)


def test_the_grid_is_full():
    cells = image_networks.cells(FULL)
    assert len(cells) == 8 == len({cell.name for cell in cells})
    assert Cell(10, 0.5, 100) in cells


def test_pairs_differ_in_one_step_of_similarity_or_of_sources():
    cells = image_networks.cells(FULL)

    def named(along):
        return {(lower.name, upper.name) for lower, upper in images.pairs(cells, along)}

    assert named("likeness") == {(f"K{k}-0.5-N{n}", f"K{k}-1-N{n}") for k in (3, 10) for n in (40, 100)}
    assert named("sources") == {(f"K3-{level}-N{n}", f"K10-{level}-N{n}") for level in ("0.5", "1") for n in (40, 100)}
    three = [Cell(3, level, 40) for level in ("mixed", "mammals", "dogs")]
    assert images.pairs(three, "likeness") == [(three[0], three[1]), (three[1], three[2])]
    assert images.pairs(three, "sources") == []


def test_gain_is_of_averages_over_sources():
    def score(values):
        return images.Score(*[np.array(values)] * 5)

    cell = Cell(2, 1.0, 10)
    scores = {(cell, "shared"): score([[1.0, 2.0], [3.0, 1.0]]), (cell, "separate"): score([[2.0, 4.0], [2.0, 2.0]])}
    np.testing.assert_allclose(images.gain(scores, cell), [0.5, 0.0])
    # A debiased distance may be negative: such a seed decides nothing.
    scores[cell, "separate"] = score([[2.0, 4.0], [-0.1, 0.05]])
    np.testing.assert_allclose(images.gain(scores, cell), [0.5, np.nan])


class Run:
    """Keeps what is recorded."""

    def __init__(self, preset="default"):
        self.preset, self.rows = preset, {}

    def record(self, claim, cells, *, seconds, scale, reason):
        self.rows[claim] = (scale, reason, cells)

    def not_run(self, claim, reason):
        self.rows[claim] = reason


@pytest.mark.parametrize(("seeds", "decides"), [(1, False), (2, False), (3, True)])
def test_few_seeds_give_no_verdict(seeds, decides):
    config = Config(images=Images(seeds=seeds))
    score = images.Score(*[np.ones((seeds, 3))] * 5)
    scores = {(cell, name): score for cell in image_networks.cells(config) for name in image_networks.ARMS}
    images._record(config, run := Run(), scores, 1.0)
    assert set(run.rows) == {"A11", "A11-loss", "A12", "A12-sources"}
    if decides:
        assert run.rows["A11"][0] == "reduced"
        assert [cell.name for cell in run.rows["A12"][2]] == [
            f"K = 3, similarity 1, N = {count} against K = 3, similarity 0.5, N = {count}" for count in (40, 90)
        ]
        assert run.rows["A12-sources"].startswith("needs two numbers of sources")
    else:
        assert all(f"{seeds} training seeds decide nothing" in reason for reason in run.rows.values())


def test_only_the_papers_own_training_is_of_full_scale():
    for changes, scale in (({}, "full"), ({"schedule": "matched"}, "reduced"), ({"width": 64}, "reduced")):
        settings = dataclasses.replace(PRESETS["paper"].images, data=Path("latents"), **changes)
        config = Config(images=settings)
        score = images.Score(*[np.ones((3, 3))] * 5)
        scores = {(cell, name): score for cell in image_networks.cells(config) for name in image_networks.ARMS}
        images._record(config, run := Run("paper"), scores, 1.0)
        assert run.rows["A11"][0] == scale
        assert ("different times" in run.rows["A11"][1]) == (settings.schedule == "paper")


def test_matched_arms_are_trained_alike():
    cell = image_networks.cells(FULL)[0]
    assert image_networks.recipe_of(FULL, cell, True) == image_networks.recipe_of(FULL, cell, False)


def test_the_paper_trains_its_arms_for_its_own_durations():
    config = Config(images=Images(sources=(10,), per_source=(1000,), schedule="paper"))
    cell = Cell(10, "dogs", 1000)
    shared, separate = (image_networks.recipe_of(config, cell, arm) for arm in (True, False))
    whole = image_networks.arm_of(config, 10, True).recipe(shared)
    assert whole.steps * whole.batch_size == pytest.approx(402_653_184, rel=1e-4)
    assert separate.steps * separate.batch_size == pytest.approx(184_549_376, rel=1e-4)
    slower = dataclasses.replace(config.images, schedule="paper-nlr")
    longer = image_networks.arm_of(config, 10, True).recipe(image_networks.recipe_of(Config(images=slower), cell, True))
    assert longer.steps == pytest.approx(4 * whole.steps, abs=4)
    for recipe in (shared, separate):
        # Whatever the devices and parts, they share a batch evenly.
        assert recipe.batch_size % (8 * 16) == 0
    assert (whole.learning_rate, whole.reference_batches, whole.ramp_images) == (0.006, 3000, pytest.approx(10e6))
    assert (separate.learning_rate, separate.reference_batches, separate.ramp_images) == (0.005, 2500, 10e6)
    # After 3,000 batches the rate falls at once to a half.
    law = whole.law(whole.learning_rate, reference_images=3000 * whole.batch_size, ramp_images=0.0)
    assert float(law(3000 * whole.batch_size + 1)) == pytest.approx(0.003, rel=1e-3)
    with pytest.raises(ValueError, match=r"--images.schedule paper knows networks of K = 1 with 100"):
        paper_settings.duration(4, 100)


def test_the_cost_of_the_papers_grid_is_what_its_layers_say():
    # XS at 32 x 32 x 4: 11.75 billion products an image with those of the padding, a tenth less without; a backward
    # pass takes twice as many.
    # That of separate networks.
    config = dataclasses.replace(PRESETS["paper"].images, sources=(3,), per_source=(1000,), seeds=1)
    config = Config(images=dataclasses.replace(config, class_lists=("dogs",), data=Path("latents")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_networks, "_image_shape", lambda config: (32, 32, 4))
        patch.setattr(image_networks, "_stores_latents", lambda config: True)
        patch.setattr(image_networks, "ARMS", {"separate": False})
        flops, state = image_networks.cost(config)
    images_seen = 3 * 184_549_376
    assert 0.88 * 6 * 11.75e9 * images_seen < flops < 6 * 11.75e9 * images_seen
    # Three networks of 118.7 million parameters, with a gradient, two moments and two averages of each.
    assert state == pytest.approx(3 * 6 * 4 * 118.7e6, rel=0.01)


def rows(path):
    return {row["id"]: row for row in json.loads((path / "claims.json").read_text())}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("images") / "run", "multi-source", *TINY, "--images.seeds", "3")


def test_a_run_measures_both_arms(measured):
    found = rows(measured)
    for claim in ("A11", "A11-loss"):
        assert [cell["name"] for cell in found[claim]["cells"]] == [
            "K = 2, similarity 0.5, N = 90",
            "K = 2, similarity 1, N = 90",
        ]
        for cell in found[claim]["cells"]:
            assert len(cell["values"]) == len(cell["control"]) == 3
            assert cell["values"] != cell["control"]
    assert found["A11"]["scale"] == "reduced"
    with np.load(measured / "arrays.npz") as arrays:
        distance = arrays["images_K2_1_N90_separate_distance"]
        assert distance.shape == (3, 2)
        np.testing.assert_allclose(distance.mean(axis=1), found["A11"]["cells"][1]["values"], rtol=1e-6)
    assert {path.name for path in (measured / "figures").glob("*.png")} == {
        "images_distances.png",
        "images_samples.png",
    }


def test_another_run_measures_its_networks_again(measured, tmp_path):
    again = finish(tmp_path / "again", "multi-source", *TINY, "--images.seeds", "3", "--from", str(measured))
    assert rows(again)["A11"]["cells"] == rows(measured)["A11"]["cells"]


def test_networks_of_another_run_are_compared_with_images_that_they_have_not_seen(measured):
    settings = Images(sources=(2,), per_source=(90,))
    for source, seed in ((measured, 0), (None, 5)):
        run = SimpleNamespace(seed=5, source=source)
        found = image_networks.sources_of(Config(images=settings), run, Cell(2, 0.5, 90), 1)
        expected = image_sources.digits(settings, 2, 0.5, 90, (seed, 1))
        np.testing.assert_array_equal(found.train, expected.train)
        np.testing.assert_array_equal(found.held_out[1], expected.held_out[1])


def test_networks_of_another_training_are_refused(command, folder, measured):
    result = command("multi-source", *TINY, "--images.seeds", "2", "--from", measured, "--out", folder / "run")
    assert_refused(result, folder, "takes its networks as they are, but images.seeds")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--images.class-lists", "dogs"), "--images.class-lists is for --images.data, which is not given"),
        (("--images.class-lists", "dogs", "mixed"), "from different classes to similar ones; got dogs mixed"),
        (("--images.accumulate", "3"), "--images.accumulate must divide --images.batch-size 16, got 3"),
        (("--images.batch-size", "12"), "--images.batch-size 12 does not divide over 8 devices"),
        (("--images.sources", "11"), "--images.sources must lie between 2 and 10, got 11"),
        (
            ("--images.per-source", "170"),
            "leave 4 images of a source to compare with",
        ),
        (("--preset", "paper"), "--images.schedule paper trains on ImageNet"),
        (("--images.samples", "16"), "--images.samples must be at least 19 for 16 features, got 16"),
        (
            ("--images.similarities", "1.0", "0.5"),
            "--images.similarities must rise from number to number",
        ),
        (("--images.similarities", "1.5"), "--images.similarities must lie between 0 and 1, got 1.5"),
        (("--replicates", "3"), "--replicates must lie between 40 and 10000000, got 3"),
        (("--images.data", "nowhere"), "--images.data nowhere is not there"),
        (("--images.width", "7", "--images.channels-per-head", "4"), "channels_per_head must divide"),
    ],
)
def test_what_measures_nothing_is_refused(command, folder, options, error):
    assert_refused(command("multi-source", "--part", "images", *options), folder, error)
