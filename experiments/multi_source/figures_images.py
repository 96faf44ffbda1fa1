"""Figures of the experiment on images."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from experiments import plots
from experiments.multi_source import image_networks
from experiments.run_directory import RunDirectory

if TYPE_CHECKING:
    from experiments.multi_source.images import Scores

_PANELS = {
    "distance": "Fréchet distance, debiased",
    "loss": "held-out loss",
    "memorization": "memorisation ratio",
}
_COLOURS = {"shared": plots.PALETTE[0], "separate": plots.PALETTE[1]}


def distances(config: Any, run: RunDirectory, scores: "Scores") -> None:
    """Draw both arms in every cell, a point a seed, and lines between the two arms of a seed."""
    cells = image_networks.cells(config)
    with plots.style():
        figure = Figure(figsize=(max(8.5, 1.1 * len(cells) + 5.0), 3.4))
        for axes, (field, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
            for place, cell in enumerate(cells):
                pair = {name: getattr(scores[cell, name], field).mean(axis=1) for name in _COLOURS}
                ends = (place - 0.15, place + 0.15)
                axes.plot(ends, [pair["separate"], pair["shared"]], color="0.7", linewidth=0.8, zorder=1)
                for name, x in zip(("separate", "shared"), ends, strict=True):
                    label = f"{name} networks" if name == "separate" else "one shared network"
                    values = pair[name]
                    axes.plot(
                        [x] * len(values),
                        values,
                        "o",
                        color=_COLOURS[name],
                        markersize=4,
                        label=label if place == 0 else None,
                    )
                    axes.plot([x - 0.1, x + 0.1], [values.mean()] * 2, color=_COLOURS[name])
            if field == "memorization":
                axes.axhline(1.0, color="0.5", linewidth=0.8, linestyle=":")
            axes.set_xticks(range(len(cells)), [_short(cell) for cell in cells], fontsize="small")
            axes.set(title=title, xlim=(-0.5, len(cells) - 0.5))
            if field == "distance":
                # From 0, where the laws are equal; a debiased estimate may lie below it.
                axes.margins(y=0.1)
                axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        figure.axes[0].legend(fontsize="small", loc="best")
    alike = "with the same noise for as many steps"
    if config.images.schedule != "matched":
        alike = "each arm for the paper's own time"
    run.figure(
        "images_distances",
        figure,
        f"EDM2 of several sources against one each, on the same images, {alike}; a point a training seed, averaged "
        "over the sources, with its pair and the means. A memorisation ratio below 1 (dotted): samples lie nearer to "
        "training images than held-out images do",
    )


def samples(run: RunDirectory, shown: dict) -> None:
    """Draw samples of each source, of both arms, beside held-out images."""
    cells = list(dict.fromkeys(cell for cell, _ in shown))
    last = cells[-1]
    rows, labels = [], []
    for name in ("held out", "separate", "shared"):
        for source, images in enumerate(shown[last, name][:3]):
            rows.append(images[..., 0])
            labels.append(f"{name}, {source + 1}")
    grid = np.stack(rows)
    limits = (float(grid.min()), float(grid.max()))
    figure = plots.image_grid(grid, row_labels=labels, title=last.title, limits=limits, upscale=7)
    run.figure(
        "images_samples",
        figure,
        f"{last.title}: held-out images of three sources, samples of separate networks and of the shared one, in the "
        "digits' own order of pixels",
    )


def _short(cell: image_networks.Cell) -> str:
    likeness = cell.likeness if isinstance(cell.likeness, str) else f"sim {cell.likeness:g}"
    return f"K={cell.sources}\n{likeness}\nN={cell.per_source}"
