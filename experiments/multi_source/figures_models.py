"""Figures of the autoregressive and energy-based models: errors on their predictions, networks, and one density."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments import plots
from experiments.multi_source.convex import ConvexErrors
from experiments.multi_source.families import families
from experiments.multi_source.judging_models import ARMS, Trained
from experiments.multi_source.networks import Curves
from experiments.run_directory import RunDirectory

_COLOURS = plots.PALETTE[1], plots.PALETTE[0]
_LAW, _COUNTED = "black", plots.PALETTE[2]


def convex(run: RunDirectory, found: Mapping[str, ConvexErrors]) -> None:
    """Draw the errors of convex models and their ratio against K, on the delta method and on counting parameters."""
    with plots.style():
        figure = Figure(figsize=(7.6, 5.4))
        for (above, below), family in zip(figure.subplots(2, 2, sharex=True).T, families(), strict=True):
            errors = found[family.name]
            for column, (arm, colour) in enumerate(zip(ARMS, _COLOURS, strict=True)):
                means = errors.measured[column].mean(axis=-1)
                above.plot(
                    errors.sources, errors.predicted[column].mean(axis=-1), color=colour, label=f"{arm}: delta method"
                )
                _points(above, errors.sources, means, colour, f"{arm}: found")
            ratios = np.stack([errors.ratio(number) for number in range(len(errors.sources))])
            law = errors.predicted[1] / errors.predicted[0]
            counted = [family.rank_ratio(count) for count in errors.sources]
            below.plot(errors.sources, law.mean(axis=-1), color=_LAW, label="delta method")
            below.plot(errors.sources, counted, "--", color=_COUNTED, label="counting parameters")
            _points(below, errors.sources, ratios, _COLOURS[1], "found")
            above.set(title=f"{family.name}, n = {family.samples}", ylim=(0.0, None))
            below.set(xlabel="number of sources K", xscale="log", ylim=(0.0, 1.0))
            below.set_xticks(errors.sources, [str(count) for count in errors.sources])
            below.minorticks_off()
        figure.axes[0].set_ylabel("average total variation")
        figure.axes[2].set_ylabel("error, shared / separate")
        figure.axes[0].legend(fontsize="small")
        figure.axes[2].legend(fontsize="small", loc="lower left")
    truths, replicates = next(iter(found.values())).measured.shape[2:]
    run.figure(
        "convex_models",
        figure,
        f"convex models, {truths} laws with {replicates} data sets each: mean error with its standard error over the "
        "laws, on the expectation by the delta method for the same laws (lines); below, the ratio of the two arms, "
        "beside the square root of the ratio of the numbers of parameters",
    )


def _points(axes: Axes, sources: tuple[int, ...], values: np.ndarray, colour: str, label: str) -> None:
    """Draw the mean over truths with its standard error."""
    stderr = values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])
    axes.errorbar(sources, values.mean(axis=-1), stderr, fmt="o", markersize=4, color=colour, label=label)


def networks(run: RunDirectory, trained: Mapping[str, Trained]) -> None:
    """Draw the errors of the networks along the training, a row a kind and a column a number of sources."""
    with plots.style():
        shared = next(iter(trained.values())).shared
        similarities, counts = sorted({of for of, _ in shared}), sorted({count for _, count in shared})
        figure = Figure(figsize=(2.4 * len(counts) + 1.0, 4.8))
        grid = figure.subplots(len(trained), len(counts), sharex=True, sharey="row", squeeze=False)
        shades = np.linspace(0.35, 1.0, len(similarities)) if len(similarities) > 1 else [1.0]
        for row, (name, of) in zip(grid, trained.items(), strict=True):
            for axes, count in zip(row, counts, strict=True):
                for similarity, shade in zip(similarities, shades, strict=True):
                    for arm, colour, curves in zip(ARMS, _COLOURS, (of.separate, of.shared), strict=True):
                        _curve(axes, curves[similarity, count], colour, shade, f"{arm}, similarity {similarity:g}")
                axes.set(xscale="log", yscale="log")
                # Between powers of ten a curve of errors has few marks of its own.
                axes.yaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
            row[0].set_ylabel(f"{name}\naverage total variation")
        for axes, count in zip(grid[0], counts, strict=True):
            axes.set_title(f"K = {count}")
        for axes in grid[-1]:
            axes.set_xlabel("training step")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(similarities), fontsize="small")
    seeds = next(iter(shared.values())).tv.shape[0]
    run.figure(
        "network_errors",
        figure,
        f"exact error of networks along the training, mean over {seeds} seeds with its standard error; the paler the "
        "less alike the sources. Both arms see the same samples and start from the same laws; the claims compare the "
        "last points",
    )


def _curve(axes: Axes, curves: Curves, colour: str, shade: float, label: str) -> None:
    mean, stderr = curves.tv.mean(axis=0), curves.tv.std(axis=0, ddof=1) / np.sqrt(len(curves.tv))
    axes.errorbar(
        curves.steps, mean, stderr, fmt="o-", markersize=2.5, linewidth=1.2, color=colour, alpha=shade, label=label
    )


def energies(run: RunDirectory, trained: Trained) -> None:
    """Draw the densities of a few sources: the truth, separate models, the shared model."""
    similarity, count = max(trained.shared)
    shown, side = min(count, 4), round(trained.law[similarity].shape[-1] ** 0.5)
    laws = (
        trained.law[similarity][0, :shown],
        *(curves[similarity, count].log_prob[0, :shown] for curves in (trained.separate, trained.shared)),
    )
    densities = np.exp(np.stack(laws)).reshape(3, shown, side, side) * side**2
    run.arrays(energy_densities=densities.astype(np.float32))
    with plots.style():
        figure = Figure(figsize=(1.7 * shown + 1.2, 5.4))
        grid = figure.subplots(3, shown, squeeze=False)
        image = None
        for row, of, name in zip(grid, densities, ("truth", *ARMS), strict=True):
            for source, (axes, density) in enumerate(zip(row, of, strict=True)):
                # The first coordinate runs to the right, the second up.
                image = axes.imshow(
                    density.T, origin="lower", extent=(0, 1, 0, 1), vmin=0.0, vmax=densities[0].max(), cmap="viridis"
                )
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                axes.set_title(f"source {source}" if name == "truth" else _error(density, densities[0, source]))
            row[0].set_ylabel(name)
        if image is not None:
            figure.colorbar(image, ax=grid, shrink=0.6, label="density")
    run.figure(
        "energy_densities",
        figure,
        f"energy networks of {count} sources that differ in the condition embedding alone (similarity {similarity:g}), "
        "one seed: true densities of the first sources, and what both arms learned from the same samples, with the "
        "total variation of each",
    )


def _error(density: np.ndarray, truth: np.ndarray) -> str:
    return f"TV {np.abs(density - truth).mean() / 2:.3f}"
