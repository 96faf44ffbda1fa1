"""The images of each source: chosen without replacement, alike in all cells of a seed but for the order of pixels."""

import dataclasses
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from experiments.multi_source import Images, image_sources

SETTINGS = Images(per_source=(40, 90), similarities=(0.25, 0.5, 1.0))


def flat(images):
    return images.reshape(len(images), -1)


@given(
    similarity=st.integers(0, 64).map(lambda own: own / 64),
    moved=st.integers(0, 64).map(lambda count: count / 64),
    seed=st.integers(0, 99),
)
def test_orders_share_what_is_said(similarity, moved, seed):
    if 1 - similarity > moved:
        with pytest.raises(ValueError, match="moved must be at least 1 - similarity"):
            image_sources.pixel_orders(np.random.default_rng(seed), 4, similarity, moved=moved)
        return
    orders = image_sources.pixel_orders(np.random.default_rng(seed), 4, similarity, moved=moved)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(64), (4, 1)))
    assert (orders == orders[0]).all(axis=0).sum() >= 64 * similarity
    assert (orders == np.arange(64)).all(axis=0).sum() >= 64 * (1 - moved)
    if similarity == 1.0:
        assert (orders == orders[0]).all()


def test_as_many_pixels_move_at_every_similarity():
    # The larger similarity permutes the pixels that the smaller one does, all sources alike: a source by itself is as
    # hard.
    def moving(similarity):
        orders = image_sources.pixel_orders(np.random.default_rng(1), 3, similarity, moved=0.5)
        return {*np.flatnonzero((orders != np.arange(64)).any(axis=0))}

    assert moving(1.0) <= moving(0.5)
    assert 26 <= len(moving(1.0)) <= len(moving(0.5)) <= 32


@pytest.mark.parametrize(("similarity", "moved"), [(-0.1, 1.0), (1.1, 1.0), (0.5, 1.5), (0.5, float("nan"))])
def test_shares_are_shares(similarity, moved):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        image_sources.pixel_orders(np.random.default_rng(0), 2, similarity, moved=moved)


def test_images_are_drawn_without_replacement_and_held_out_from_training():
    sources = image_sources.digits(SETTINGS, 3, 0.5, 90, seed=(0, 0))
    assert sources.train.shape == (90, 3, 8, 8, 1)
    assert sources.train.std() == pytest.approx(0.5, rel=1e-4)
    assert sources.train.mean() == pytest.approx(0.0, abs=1e-5)
    for source in range(3):
        seen, held_out = flat(sources.seen[source]), flat(sources.held_out[source])
        assert len(np.unique(seen, axis=0)) == 90
        assert len(np.unique(np.concatenate([seen, held_out]), axis=0)) == 90 + len(held_out)
        label = int(sources.names[source].removeprefix("digit "))
        pixels, labels = load_digits(return_X_y=True)
        ours = np.unique(np.round(seen - seen.min(), 4) / (seen.max() - seen.min()), axis=0)
        theirs = pixels[labels == label] / 16
        assert all(np.abs(theirs - row).max(axis=1).min() < 1e-3 for row in ours)


def test_cells_of_a_seed_differ_in_what_they_say_alone():
    low, high = (image_sources.digits(SETTINGS, 3, similarity, 90, seed=(0, 4)) for similarity in (0.25, 1.0))
    fewer, more = (
        image_sources.digits(SETTINGS, 3, 1.0, 40, seed=(0, 4)),
        image_sources.digits(SETTINGS, 10, 1.0, 90, seed=(0, 4)),
    )
    assert low.names == high.names == fewer.names == more.names[:3]
    np.testing.assert_array_equal(low.seen, high.seen)
    assert not np.array_equal(low.train, high.train)
    for other, rows in ((low, 90), (fewer, 40), (more, 90)):
        # Up to the scale, which is that of the training images of a cell.
        for source in range(3):
            for kind in ("seen", "held_out"):
                ours, theirs = getattr(high, kind)[source], getattr(other, kind)[source]
                count = rows if kind == "seen" else len(ours)
                assert np.corrcoef(flat(ours)[:count].ravel(), flat(theirs)[:count].ravel())[0, 1] > 1 - 1e-6
    for seed in ((0, 5), (1, 4)):
        assert image_sources.digits(SETTINGS, 3, 1.0, 90, seed=seed).names != high.names


def test_orders_of_pixels_are_undone():
    sources = image_sources.digits(SETTINGS, 3, 0.25, 90, seed=(0, 2))
    for source in range(3):
        np.testing.assert_array_equal(sources.inward(source, sources.seen[source]), sources.train[:, source])
        np.testing.assert_allclose(sources.shown(source, sources.train[:, source]), sources.seen[source], atol=1e-6)
        # What a network overshoots is clipped to the range of ink.
        assert sources.shown(source, 9.0 + sources.train[:, source]).max() == pytest.approx(sources.seen[0].max())


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(stream, "png")
    return stream.getvalue()


def test_classes_of_a_folder(tmp_path):
    for label in range(3):
        (tmp_path / f"n{label}").mkdir()
        for number in range(12):
            (tmp_path / f"n{label}" / f"{number}.png").write_bytes(png(80 * label + number))
    settings = dataclasses.replace(SETTINGS, data=tmp_path, side=8, per_source=(5,), features=3, held_out=6)
    sources = image_sources.folder(settings, 2, "first", 5, seed=(0, 0))
    assert sources.train.dtype == np.uint8
    assert sources.train.shape == (5, 2, 8, 8, 3)
    assert list(sources.names) == ["n0", "n1"]
    for source in range(2):
        values = {*sources.train[:, source].reshape(5, -1)[:, 0].tolist()}
        held = {*np.round(127.5 * (sources.held_out[source].reshape(6, -1)[:, 0] + 1)).astype(int).tolist()}
        assert len(values) == 5
        assert len(held) == 6
        assert not values & held
        assert values | held <= {*range(80 * source, 80 * source + 12)}
    with pytest.raises(ValueError, match=r"dogs needs class 182 for 2 sources, and .* has 3 classes from 0"):
        image_sources.folder(settings, 2, "dogs", 5, seed=(0, 0))
    with pytest.raises(ValueError, match=r"class 0 of .* has 12 images, but --images.per-source 9 and at least 6"):
        image_sources.folder(dataclasses.replace(settings, per_source=(9,)), 2, "first", 9, seed=(0, 0))


def test_stored_latents_are_found_by_their_labels(tmp_path):
    random, labels = np.random.default_rng(0), []
    for number in range(24):
        posterior = np.concatenate([random.normal(size=(4, 4, 4)), np.full((4, 4, 4), 0.1)]).astype(np.float32)
        np.save(tmp_path / f"{number:03d}.npy", posterior)
        labels.append([f"{number:03d}.npy", number % 2])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    settings = dataclasses.replace(SETTINGS, data=tmp_path, per_source=(5,), features=3, held_out=6)
    sources = image_sources.folder(settings, 2, "first", 5, seed=(0, 1))
    assert sources.latents is not None
    assert sources.train.shape == (5, 2, 4, 4, 8)
    assert [part.shape for part in sources.seen] == [(5, 4, 4, 4)] * 2
    np.testing.assert_allclose(sources.train[..., 4:], 0.1)
    # As the network sees them: (mean + noise - raw mean) * .5 / raw std.
    expected = (sources.train[:, 0, ..., :4] - [5.81, 3.25, 0.12, -2.15]) * 0.5 / [4.17, 4.62, 3.71, 3.28]
    assert np.abs(sources.seen[0] - expected).max() < 0.1
