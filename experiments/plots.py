"""The figures' house style: matplotlib settings, palette, grids of small images, files free of the date."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from experiments.files import write_whole

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008): colours that stay apart for colour-blind readers."""

_DPI = 150
_STYLE: Any = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "errorbar.capsize": 2.0,
    "figure.constrained_layout.use": True,
    "figure.dpi": _DPI,
    "font.size": 9.0,
    "grid.alpha": 0.25,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "savefig.dpi": _DPI,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxgen",
}
_LABEL_INCHES = 1.3
_TITLE_INCHES = 0.35


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the house style within the block; figures are made by `matplotlib.figure.Figure`, without pyplot."""
    with matplotlib.rc_context(rc=_STYLE):
        yield


def image_grid(
    images: np.ndarray | Sequence[np.ndarray],
    *,
    row_labels: Sequence[str] = (),
    title: str = "",
    limits: tuple[float, float] = (-1.0, 1.0),
    upscale: int = 8,
) -> Figure:
    """Lay small images out as a table, each pixel a square of `upscale` dots.

    Args:
        images: [rows, columns, height, width] grey, or [rows, columns, height, width, 3] colour.
        row_labels: one for each row, written left of it.
        title: written above.
        limits: values shown as black and white; what lies outside is clipped.
        upscale: dots per pixel at 150 dots per inch, by nearest neighbour.

    Raises:
        ValueError: `images` has another rank, or the labels do not match the rows.
    """
    pixels = np.asarray(images, dtype=np.float64)
    if pixels.ndim not in (4, 5) or (pixels.ndim == 5 and pixels.shape[-1] != 3):
        raise ValueError(f"images must have shape [rows, columns, height, width] or one more of 3, got {pixels.shape}")
    if row_labels and len(row_labels) != len(pixels):
        raise ValueError(f"{len(pixels)} rows of images take as many labels, got {len(row_labels)}")
    montage = _montage(np.clip((pixels - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0), upscale)
    height, width = montage.shape[0] / _DPI, montage.shape[1] / _DPI
    left, top = _LABEL_INCHES if row_labels else 0.0, _TITLE_INCHES if title else 0.0
    with style():
        figure = Figure(figsize=(left + width, top + height))
        figure.set_layout_engine("none")
        axes = figure.add_axes((left / (left + width), 0.0, width / (left + width), height / (top + height)))
        axes.imshow(montage, vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_axis_off()
        for row, label in enumerate(row_labels):
            middle = (row + 0.5) * montage.shape[0] / len(row_labels)
            axes.text(-0.05 * _DPI, middle, label, ha="right", va="center")
        if title:
            figure.text(0.5, 1.0 - 0.5 * top / (top + height), title, ha="center", va="center")
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png (150 dots per inch) and `stem`.svg, the same bytes whenever the same figure is saved."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        data = io.BytesIO()
        with style():
            figure.savefig(data, format=suffix[1:], dpi=_DPI, metadata=metadata)
        write_whole(stem.parent / (stem.name + suffix), data.getvalue())


def _montage(pixels: np.ndarray, upscale: int) -> np.ndarray:
    """Join [rows, columns, height, width, ...] images with a white line, one pixel wide, after each."""
    rest = [(0, 0)] * (pixels.ndim - 4)
    framed = np.pad(pixels, [(0, 0), (0, 0), (0, 1), (0, 1), *rest], constant_values=1.0)
    rows, columns, height, width = framed.shape[:4]
    joined = framed.swapaxes(1, 2).reshape(rows * height, columns * width, *framed.shape[4:])
    return joined.repeat(upscale, axis=0).repeat(upscale, axis=1)
