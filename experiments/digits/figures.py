"""The figures of the main job."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from experiments import plots
from experiments.digits import data, judging
from experiments.digits.sampling import TITLES, draw, film, sampling_key
from experiments.run_directory import RunDirectory

if TYPE_CHECKING:
    from experiments.digits.measuring import Session

_FILM_FRAMES = 12
_PANELS = {
    "nearest_neighbor": "1-NN accuracy (0.5 is best)",
    "mmd2": "MMD² of features (0 is best)",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "share of the digit asked for",
    "training_distance": "distance to training images",
}
_NO_RULER = (("training_distance", "real digits"),)  # these are training images
_COLOURS = {name: plots.PALETTE[index] for index, name in enumerate(TITLES)}


def pictures(session: "Session") -> None:
    """Draw what a person judges by eye: grids, filmstrips, the nearest training images and the loss."""
    run, digits, config = session.run, session.judge.digits, session.config

    def images(sampler: str, labels: np.ndarray, scale: float) -> np.ndarray:
        # Image i depends on (key, i) and its label alone: the figures share their noise.
        key = sampling_key(run.seed)
        settings = {"scale": scale, "steps": config.sampling_steps, "corrector_steps": config.corrector_steps}
        return draw(session.networks, sampler, labels, key, **settings)

    real = np.stack([digits.train[digits.train_labels == label][:10] for label in range(10)])
    _grid(run, "real", real, "Training images", "real handwritten digits, ten of each, from scikit-learn")
    ten = np.arange(10)
    drawn = {sampler: images(sampler, np.tile(ten, 10), 1.0).reshape(10, 10, -1) for sampler in TITLES}
    for sampler, title in TITLES.items():
        caption = f"{title}, {config.sampling_steps} steps, guidance scale 1: ten samples of each digit"
        _grid(run, sampler, drawn[sampler].swapaxes(0, 1), f"{title}, guidance scale 1", caption)
    same = "each column starts from one noise"
    rows = [images(sampler, ten, 1.5) for sampler in TITLES]
    _rows(run, "same_noise", rows, list(TITLES.values()), "One noise, four samplers", same)
    rows = [images("ddim", ten, scale) for scale in config.scales]
    _rows(run, "guidance", rows, [f"scale {scale:g}" for scale in config.scales], "DDIM under guidance", same)
    _filmstrips(session)
    _neighbours(run, digits, drawn["ddim"][0])
    _loss(run)


def _grid(run: RunDirectory, name: str, images: np.ndarray, title: str, caption: str) -> None:
    run.figure(name, plots.image_grid(_square(images), title=title), caption)


def _rows(run: RunDirectory, name: str, rows: Sequence, labels: Sequence[str], title: str, caption: str) -> None:
    run.figure(name, plots.image_grid(_square(np.stack(rows)), row_labels=labels, title=title), f"{title}: {caption}")


def _square(images: np.ndarray) -> np.ndarray:
    return np.clip(images, -1.0, 1.0).reshape(*images.shape[:-1], data.SIDE, data.SIDE)


def _filmstrips(session: "Session") -> None:
    run, steps = session.run, session.config.sampling_steps
    frames = np.unique(np.linspace(0, steps - 1, _FILM_FRAMES).round().astype(int))
    strips, labels = [], []
    for sampler, title in TITLES.items():
        settings = {"scale": 1.5, "steps": steps, "corrector_steps": session.config.corrector_steps}
        shown = film(session.networks, sampler, np.array([3]), sampling_key(run.seed), **settings)
        noisy = shown.x[0, frames + 1]
        strips += [noisy / np.abs(noisy).max((1, 2), keepdims=True), np.clip(shown.x0[0, frames], -1.0, 1.0)]
        labels += [f"{title}: x", "clean image"]
    caption = (
        "a 3 emerges from one noise: the sample, scaled, and the clean image predicted from it, at equal intervals"
    )
    run.figure("filmstrips", plots.image_grid(np.stack(strips), row_labels=labels, title="Denoising"), caption)


def _neighbours(run: RunDirectory, digits: data.Digits, samples: np.ndarray) -> None:
    """Show each sample over the training images nearest to it."""
    clipped = np.clip(samples, -1.0, 1.0)
    nearest = np.argsort(((clipped[:, None] - digits.train[None]) ** 2).sum(-1), axis=1)[:, :3]
    rows = [clipped, *(digits.train[nearest[:, rank]] for rank in range(3))]
    labels = ["DDIM", "nearest", "2nd", "3rd"]
    _rows(run, "nearest_training_images", rows, labels, "Samples and training images", "the model does not copy")


def _loss(run: RunDirectory) -> None:
    path = run.path / "metrics.jsonl"
    if not run.writes or not path.exists():  # the first process draws; the networks may be another run's
        return
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {
        title: np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None])
        for name, title in (("denoiser_loss", "denoiser"), ("flow_loss", "flow (velocity)"))
    }
    if not any(map(len, found.values())):
        return
    with plots.style():
        figure = Figure(figsize=(5.0, 3.0))
        axes = figure.subplots()
        for title, points in found.items():
            if not len(points):
                continue
            window = max(len(points) // 50, 1)
            smooth = np.convolve(points[:, 1], np.ones(window) / window, "valid")
            axes.plot(points[window - 1 :, 0], smooth, label=title)
        axes.set(xlabel="training step", ylabel="loss, moving average", yscale="log")
        axes.legend()
    run.figure("training", figure, "training loss of both networks; their units differ")


def quality(
    run: RunDirectory,
    curve: str,
    abscissas: Sequence[float],
    means: Mapping[str, Mapping[str, np.ndarray]],
    rulers: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Draw every statistic against the guidance scale or the number of steps, beside real digits and Gaussians."""
    against = {"guidance": "guidance scale", "steps": "sampling steps"}[curve]
    with plots.style():
        figure = Figure(figsize=(9.0, 5.0))
        for axes, (name, title) in zip(figure.subplots(2, 3).flat, _PANELS.items(), strict=True):
            for sampler, of in means.items():
                shown = np.where(np.isfinite(of[name]), of[name], np.nan)
                axes.plot(abscissas, shown, "o-", color=_COLOURS[sampler], label=TITLES[sampler], markersize=3)
            for style, (ruler, of) in zip(("-", "--"), rulers.items(), strict=True):
                if (name, ruler) not in _NO_RULER:
                    axes.axhline(of[name].mean(), color="0.5", linestyle=style, linewidth=1.0, label=ruler)
            # PCG diverges on coarse grids, which would flatten all else.
            stable = [of[name] for sampler, of in means.items() if sampler != "pcg" or curve == "guidance"]
            stable += [[of[name].mean()] for ruler, of in rulers.items() if (name, ruler) not in _NO_RULER]
            low, high = np.nanmin(np.concatenate(stable)), np.nanmax(np.concatenate(stable))
            margin = 0.08 * (high - low) or 0.05
            axes.set(title=title, xlabel=against, ylim=(low - margin, high + margin))
            if curve == "steps":
                axes.set_xscale("log")
                axes.set_xticks(abscissas, [f"{steps:g}" for steps in abscissas], minor=False)
                axes.minorticks_off()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = f"quality of samples against the {against}, with held-out digits as the reference"
    if curve == "steps":
        caption += "; PCG leaves the frame on coarse grids, where its Langevin steps are too long for the noise level"
    run.figure(f"quality_vs_{curve}", figure, caption)


def table(run: RunDirectory, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draw the scores of every sampler as a table."""
    cells = [[judging.told(found[name]) for name in judging.NAMES] for found in rows.values()]
    with plots.style():
        figure = Figure(figsize=(11.0, 0.25 * len(rows) + 0.6))
        axes = figure.subplots()
        axes.set_axis_off()
        drawn = axes.table(cells, rowLabels=list(rows), colLabels=list(judging.NAMES.values()), loc="center")
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7)
    run.figure("scores", figure, "every score, mean and standard deviation over sampling seeds or subsets")
