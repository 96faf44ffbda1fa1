import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import plots


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_small_pixel_becomes_a_square_of_its_grey(tmp_path):
    images = np.random.default_rng(0).uniform(-1.4, 1.4, size=(2, 3, 8, 8))
    plots.save(plots.image_grid(images, upscale=5), tmp_path / "grid")
    found = read(tmp_path / "grid.png")
    assert found.shape == (2 * 9 * 5, 3 * 9 * 5, 3)
    grey = np.clip((images + 1) / 2, 0, 1) * 255
    for row, column, y, x in [(0, 0, 0, 0), (1, 2, 7, 3), (0, 1, 4, 7), (1, 0, 2, 2)]:
        top, left = (row * 9 + y) * 5, (column * 9 + x) * 5
        square = found[top : top + 5, left : left + 5]
        assert np.abs(square - grey[row, column, y, x]).max() <= 1  # a grey level of rounding
    assert (found[:, 8 * 5 : 9 * 5] == 255).all()  # the line between two images


def test_labels_and_title_leave_the_pixels_square(tmp_path):
    images = np.where(np.arange(64).reshape(8, 8) % 2, 1.0, -1.0)[None, None].repeat(3, axis=0)
    plots.save(plots.image_grid(images, row_labels=["a", "b", "c"], title="t", upscale=6), tmp_path / "grid")
    found = read(tmp_path / "grid.png")[-27 * 6 :, -9 * 6 :, 0]
    stripes = np.where(np.arange(8) % 2, 255, 0).repeat(6)
    # One dot of resampling at an edge of a stripe is the most that a fraction of a dot of the margins can cost.
    assert np.mean(np.abs(found[6:42, :48] - stripes) > 1) < 0.2


def test_colour_images_keep_their_colour(tmp_path):
    images = np.zeros((1, 1, 4, 4, 3)) + np.array([1.0, 0.0, -1.0])
    plots.save(plots.image_grid(images), tmp_path / "grid")
    assert np.abs(read(tmp_path / "grid.png")[3, 3] - [255, 127.5, 0]).max() <= 1


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (2, 3, 8, 8, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="images must have shape"):
        plots.image_grid(np.zeros(shape))


def test_labels_match_the_rows():
    with pytest.raises(ValueError, match="2 rows of images take as many labels, got 1"):
        plots.image_grid(np.zeros((2, 3, 8, 8)), row_labels=["a"])


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        with plots.style():
            figure = Figure()
            figure.subplots().plot([1, 3, 2], label="x")
        plots.save(figure, tmp_path / f"{name}.v2")
    for suffix in (".png", ".svg"):
        a, b = ((tmp_path / f"{name}.v2{suffix}").read_bytes() for name in "ab")
        assert a == b
    assert b"<dc:date>" not in (tmp_path / "a.v2.svg").read_bytes()


def test_the_style_ends_with_its_block():
    before = dict(matplotlib.rcParams)
    with plots.style():
        assert Figure().subplots().plot([1, 2])[0].get_color() == plots.PALETTE[0]
    assert dict(matplotlib.rcParams) == before
