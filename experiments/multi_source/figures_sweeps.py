"""Figure 1 of the paper with exact curves and intervals, the ratios behind it, and the scatter of its estimator."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plots
from experiments.multi_source import references
from experiments.multi_source.judging_sweeps import ARMS, of_sweep, standard_errors
from experiments.multi_source.references import Setting
from experiments.run_directory import RunDirectory

if TYPE_CHECKING:
    from experiments.multi_source.sweeps import Sweeps

Curves = Mapping[str, tuple[list[Setting], np.ndarray]]
_COLOURS = plots.PALETTE[1], plots.PALETTE[0]  # separate, shared
_MEASURED, _PAPER, _THEORY = "o", "D", plots.PALETTE[2]
_LABELS = {"K": "number of sources K", "n": "samples n of all sources", "sim": "similarity"}
_BASE = {"K": "n = 500, similarity .5", "n": "K = 5, similarity .5", "sim": "K = 5, n = 500"}


def draw(run: RunDirectory, sweeps: "Sweeps", curves: Curves) -> None:
    """Draw all figures of the sweeps, and keep the curves."""
    for sweep, (settings, exact) in curves.items():
        run.arrays(**{f"curve_{sweep}": [setting.value for setting in settings], f"curve_{sweep}_exact": exact})
    _errors(run, sweeps, curves)
    _ratios(run, sweeps, curves)
    _estimators(run, sweeps)


def _errors(run: RunDirectory, sweeps: "Sweeps", curves: Curves) -> None:
    with plots.style():
        figure = Figure(figsize=(8.2, 5.2))
        grid = figure.subplots(2, 3, height_ratios=(1.3, 1.0))
        for (sweep, (settings, exact)), above, below in zip(curves.items(), *grid, strict=True):
            for column, colour in enumerate(_COLOURS):
                _measured(above, sweeps, sweep, column, exact, settings)
                bounds = [setting.bound(shared=column == 1) for setting in settings]
                values = [setting.value for setting in settings]
                below.plot(values, bounds, "--", color=colour, label=f"{ARMS[column]}: bound")
                below.plot(values, exact[:, column], color=colour, label=f"{ARMS[column]}: exact error")
            _axes(above, sweep)
            _axes(below, sweep)
            above.set_title(_BASE[sweep])
            above.set_ylim(bottom=0.0)
            below.set(yscale="log", xlabel=_LABELS[sweep])
            below.set_yticks([0.03, 0.06, 0.1, 0.2, 0.4, 0.7] if sweep == "n" else [0.06, 0.1, 0.2, 0.3, 0.5])
            below.yaxis.set_major_formatter("{x:g}")
            below.yaxis.set_minor_formatter("")
        grid[0, 0].set_ylabel("average total variation")
        grid[1, 0].set_ylabel("bound with constant 1, error")
        grid[0, 1].legend(fontsize="small")
        grid[1, 1].legend(fontsize="x-small", loc="lower left")
    replicates = len(next(iter(sweeps.errors.values())).exact)
    run.figure(
        "sweeps",
        figure,
        f"figure 1 of the paper. Above: mean error over {replicates:,} data sets with its standard error, which is "
        "smaller than most dots, on the exact expectation (lines), beside the authors' means over 5 seeds with two of "
        "their standard errors to either side. Below: the exact expectation beside the paper's curves, sqrt(parameters "
        "/ n) with the constant 1: the order of the bound, not its value",
    )


def _measured(
    axes: Axes, sweeps: "Sweeps", sweep: str, column: int, exact: np.ndarray, settings: list[Setting]
) -> None:
    """Draw one arm: exact line, our means, and the published ones with what 5 seeds leave open."""
    colour, arm, found = _COLOURS[column], ARMS[column], of_sweep(sweep)
    values = np.array([setting.value for setting in found], float)
    axes.plot([setting.value for setting in settings], exact[:, column], color=colour, label=f"{arm}: exact")
    errors = [sweeps.errors[setting] for setting in found]
    means = [of.exact[:, column].mean() for of in errors]
    stderrs = [standard_errors(of.exact)[column] for of in errors]
    axes.errorbar(values, means, stderrs, fmt=_MEASURED, color=colour, markersize=4, label=f"{arm}: measured")
    reported = [(row.single, row.multi)[column] for of, row in references.published().items() if of.sweep == sweep]
    spread = [of.paper[:, column].std(ddof=1) / np.sqrt(len(references.SEEDS)) for of in errors]
    # Beside our dots, so that both are seen.
    beside = values * 1.06 if sweep == "n" else values + 0.02 * np.ptp(values)
    style = {"markersize": 4, "markerfacecolor": "white", "linewidth": 0.8, "alpha": 0.9}
    axes.errorbar(
        beside, reported, 2.0 * np.array(spread), fmt=_PAPER, color=colour, **style, label=f"{arm}: the authors'"
    )


def _ratios(run: RunDirectory, sweeps: "Sweeps", curves: Curves) -> None:
    with plots.style():
        figure = Figure(figsize=(8.6, 3.0))
        for axes, (sweep, (settings, exact)) in zip(figure.subplots(1, 3, sharey=True), curves.items(), strict=True):
            values, found = [setting.value for setting in settings], of_sweep(sweep)
            at = np.array([setting.value for setting in found], float)
            axes.plot(values, [setting.ratio for setting in settings], "--", color=_THEORY, label="bounds")
            axes.plot(values, exact[:, 1] / exact[:, 0], color="black", label="exact")
            ratios, stderrs = zip(*(_ratio(sweeps.errors[setting].exact) for setting in found), strict=True)
            axes.errorbar(at, ratios, stderrs, fmt=_MEASURED, color=_COLOURS[1], markersize=4, label="measured")
            rows = [row for of, row in references.published().items() if of.sweep == sweep]
            beside = at * 1.06 if sweep == "n" else at + 0.02 * np.ptp(at)
            reported = [row.multi / row.single for row in rows]
            axes.plot(beside, reported, _PAPER, color=_COLOURS[0], markersize=4, fillstyle="none", label="the authors'")
            _axes(axes, sweep)
            axes.set(title=_BASE[sweep], xlabel=_LABELS[sweep])
        figure.axes[0].set_ylabel("error, shared / separate")
        figure.axes[0].legend(fontsize="small")
    run.figure(
        "sweep_ratios",
        figure,
        "what sharing saves: mean error of the shared model over that of separate ones, with the standard error of the "
        "ratio; the exact one; and sqrt(1 - (K - 1) / K similarity), the ratio of the bounds. These are roots of mean "
        "squared errors, and a mean error lies the further below its root the more it scatters, as that of the shared "
        "model does, at any n",
    )


def _ratio(errors: np.ndarray) -> tuple[float, float]:
    """Return the ratio of means and its standard error, by linearising it."""
    single, multi = errors.mean(axis=0)
    ratio = multi / single
    residual = (errors[:, 1] - ratio * errors[:, 0]) / single
    return float(ratio), float(residual.std(ddof=1) / np.sqrt(len(errors)))


def _estimators(run: RunDirectory, sweeps: "Sweeps") -> None:
    base = of_sweep("K")[2]
    errors = sweeps.errors[base]
    with plots.style():
        figure = Figure(figsize=(7.0, 2.8))
        for column, axes in enumerate(figure.subplots(1, 2, sharex=True, sharey=True)):
            both = {"exact": errors.exact[:, column], "the paper's estimate": errors.paper[:, column]}
            low, high = (end(part) for end, part in ((min, errors.paper.min(0)), (max, errors.paper.max(0))))
            for (name, values), colour in zip(both.items(), (plots.PALETTE[2], "black"), strict=True):
                # Filled, then an outline over it.
                look = {"histtype": "step"} if colour == "black" else {"alpha": 0.4}
                label = f"{name}, SD {values.std(ddof=1):.4f}"
                axes.hist(values, np.linspace(low, high, 41), density=True, color=colour, label=label, **look)
            axes.axvline(
                sweeps.exact[base][column], color=_COLOURS[column], linestyle=":", ymax=0.6, label="expectation"
            )
            axes.set(title=f"{ARMS[column]} model{'s' if column == 0 else ''}", xlabel="average total variation")
            axes.set_ylim(top=1.45 * axes.get_ylim()[1])
            axes.legend(fontsize="small", loc="upper center")
        figure.axes[0].set_ylabel("density over data sets")
    run.figure(
        "sweep_estimators",
        figure,
        f"total variation of single data sets at K = {base.sources}, n = {base.samples}, similarity "
        f"{base.similarity:g}: that of the fitted Gaussians, and the paper's Monte-Carlo estimate of it, which is as "
        "large on average and scatters more",
    )


def _axes(axes: Axes, sweep: str) -> None:
    if sweep == "n":
        axes.set_xscale("log")
    axes.set_xticks(references.SWEEPS[sweep])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
