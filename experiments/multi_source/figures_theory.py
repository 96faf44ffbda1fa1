"""Figures of the bound beside the error, of where sharing helps, and of shrinkage."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import plots
from experiments.multi_source.misspecified import SHARED, SPECIFIC, WAYS
from experiments.run_directory import RunDirectory
from jaxgen.statistics.sharing import crossover_spread, squared_error

if TYPE_CHECKING:
    from experiments.multi_source.sharing import Case

_COLOURS = {"shared": plots.PALETTE[0], "separate": plots.PALETTE[1], "James-Stein": plots.PALETTE[2]}
_LEVELS = np.linspace(-0.6, 0.6, 13)  # relative gains that the colours of the phase diagram tell apart


def bound(run: RunDirectory, curves: Mapping[str, np.ndarray], vacuous: Mapping[str, int]) -> None:
    """Draw bounds, their order and the exact error against the number of samples."""
    styles = {"rigorous": ("-", 1.5), "sharp": ("-.", 1.2), "order": (":", 1.2)}
    names = {"rigorous": "3 sqrt(L / n)", "sharp": "before its constants are rounded up", "order": "order, constant 1"}
    with plots.style():
        figure = Figure(figsize=(9.0, 3.6))
        for axes, (arm, first) in zip(figure.subplots(1, 2, sharey=True), vacuous.items(), strict=True):
            axes.axvspan(curves["n"][0], first, color="0.9", linewidth=0)
            axes.axhline(1.0, color="0.4", linewidth=0.8)
            for kind, (line, width) in styles.items():
                axes.plot(
                    curves["n"], curves[f"{arm}_{kind}"], line, linewidth=width, color=_COLOURS[arm], label=names[kind]
                )
            exact = curves["exact_n"], curves[f"{arm}_exact"]
            axes.plot(*exact, "o-", color="black", markersize=3, label="exact error")
            axes.set(xscale="log", yscale="log", xlabel="samples n of all sources", title=f"{arm} model")
            axes.set_xlim(curves["n"][0], curves["n"][-1])
            axes.text(
                first * 0.93, 0.0016, f"says nothing\nbelow n = {first:,}", ha="right", va="bottom", fontsize="small"
            )
        figure.axes[0].set_ylabel("average total variation")
        figure.axes[1].legend(fontsize="small", loc="upper right")
    caption = (
        "the rigorous bound at delta = .05, the same with its own constants, the order that is drawn in the paper's "
        "figure 1, and the exact expected error, for Gaussians with K = 5, d = 10 and similarity .5; in the grey "
        "region the bound exceeds 1 and says nothing"
    )
    run.figure("bound", figure, caption)


def phase_diagram(run: RunDirectory, cases: Sequence["Case"], factors: np.ndarray) -> None:
    """Draw the relative gain of sharing over the spread and the number of samples, with simulations on top."""
    numbers = sorted({case.sources for case in cases})
    with plots.style():
        figure = Figure(figsize=(8.6, 5.6))
        above, below = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=(1.1, 1.0))))
        maps = above.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
        for axes, sources in zip(maps, numbers, strict=True):
            shown = _map(axes, sources, [case for case in cases if case.sources == sources], factors)
        maps[0].set_ylabel("spread v of the shared means")
        above.colorbar(shown, ax=maps, label="relative gain")
        for part, axes in zip(("squared", "tv"), below.subplots(1, 2), strict=True):
            for colour, case in zip(plots.PALETTE, cases, strict=False):
                mean = getattr(case.errors, part).mean(axis=0)
                axes.plot(factors, 1 - mean[:, 0] / mean[:, 1], "o-", markersize=3, color=colour, label=case.name)
            axes.axhline(0.0, color="0.4", linewidth=0.8)
            axes.axvline(1.0, color="0.4", linewidth=0.8, linestyle="--")
            title = "squared error" if part == "squared" else "total variation"
            axes.set(xlabel="v / v*", ylabel="1 - shared / separate", title=f"gain in {title}, simulated")
        below.axes[1].legend(fontsize="small", loc="upper right")
    caption = (
        "above: relative gain of sharing in the expected squared error of 5 + 5 coordinates, by the formula, where the "
        "sources' means differ by the variance v in the shared ones; on the dashed line, v* = (K - 1) / n, it is 0; "
        "discs: simulations. Below: simulated gains against v / v*, in the squared error and in total variation, "
        "whose crossing of 0 is that of one drawn pattern of means"
    )
    run.figure("sharing_phases", figure, caption)


def _map(axes: Axes, sources: int, cases: Sequence["Case"], factors: np.ndarray) -> ContourSet:
    spreads, samples = np.geomspace(3e-4, 0.5, 61), np.unique(np.round(np.geomspace(30, 3000, 61)).astype(int))
    gain = np.array([[_relative_gain(int(n), sources, float(spread)) for n in samples] for spread in spreads])
    shown = axes.contourf(samples, spreads, gain, levels=_LEVELS, cmap="RdBu", extend="min")
    shown.set_rasterized(True)
    axes.plot(samples, [crossover_spread(int(n), sources) for n in samples], "--", color="black", linewidth=1.0)
    for case in cases:
        mean = case.errors.squared.mean(axis=0)[1:]  # a spread of 0 is not on a logarithmic axis
        at, found = factors[1:] * case.star, 1 - mean[:, 0] / mean[:, 1]
        colours = {"c": found, "cmap": shown.cmap, "norm": shown.norm}
        axes.scatter(np.full(len(at), case.n), at, s=26, edgecolors="black", linewidths=0.6, zorder=3, **colours)
    axes.set(xscale="log", yscale="log", xlabel="samples n of all sources", title=f"K = {sources}")
    axes.set(xlim=(samples[0], samples[-1]), ylim=(spreads[0], spreads[-1]))
    axes.grid(visible=False)
    return shown


def _relative_gain(n: int, sources: int, spread: float) -> float:
    both = [squared_error(n, sources, SPECIFIC, SHARED, spread, shared=shared) for shared in (True, False)]
    return 1 - both[0] / both[1]


def shrinkage(run: RunDirectory, cases: Sequence["Case"], factors: Float[np.ndarray, " spreads"]) -> None:
    """Draw the squared error of shared and shrunk means over that of separate ones."""
    with plots.style():
        figure = Figure(figsize=(10.0, 3.1))
        for axes, case in zip(figure.subplots(1, len(cases), sharey=True), cases, strict=True):
            squared = case.errors.squared
            separate = squared.mean(axis=0)[:, 1]
            for column, way in enumerate(WAYS):
                axes.plot(factors, squared.mean(axis=0)[:, column] / separate, color=_COLOURS[way])
                if column != 1:
                    error = (squared[..., column] - squared[..., 1]).std(axis=0, ddof=1) / len(squared) ** 0.5
                    axes.errorbar(
                        factors,
                        squared.mean(axis=0)[:, column] / separate,
                        2 * error / separate,
                        fmt="o",
                        markersize=3,
                        color=_COLOURS[way],
                    )
            axes.axvline(1.0, color="0.4", linewidth=0.8, linestyle="--")
            axes.set(xlabel="v / v*", title=case.name, ylim=(0.4, 1.8))
        figure.axes[0].set_ylabel("squared error / that of separate means")
        lines = [Line2D([], [], color=colour, label=way) for way, colour in _COLOURS.items()]
        figure.axes[0].legend(handles=lines, fontsize="small", loc="lower right")
    caption = (
        "squared error of shared means and of means shrunk by James and Stein's factor, over that of separate means, "
        "against the spread of the sources; bars: two standard errors of the difference. With 3 sources nothing shrinks"
    )
    run.figure("shrinkage", figure, caption)
