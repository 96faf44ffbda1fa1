"""The figures of the paper at its own size, with exact curves over the measured ones, and those beyond it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plots
from experiments.mesa_optimization import references
from experiments.mesa_optimization.tables import exact_curve, start_name, step_of
from experiments.run_directory import RunDirectory
from jaxgen.flows import flow_product

if TYPE_CHECKING:
    from experiments.mesa_optimization.training import Trained

_COLOURS = plots.PALETTE
_PALE = "0.6"


def collapse(run: RunDirectory, times: np.ndarray, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw ab over its limit against c2 tau of every problem and start, on the closed form of the scaled equation."""
    with plots.style():
        figure = Figure(figsize=(7.0, 4.0))
        axes, fine = figure.subplots(), np.linspace(times[0], times[-1], 801)
        for i, (name, (products, starts)) in enumerate(curves.items()):
            for j, (product, start) in enumerate(zip(products, starts, strict=True)):
                axes.plot(fine, _universal(start, fine), color=_PALE, linewidth=3.0, alpha=0.35, zorder=1)
                label = name if j == 0 else None
                colour, marker = _COLOURS[i % len(_COLOURS)], "." if i < len(_COLOURS) else "x"
                points = axes.plot(times[::2], product[::2], marker, color=colour, markersize=4, label=label)
                points[0].set_zorder(2)
        axes.set(xlabel=r"$c_2 \tau$", ylabel=r"$ab\,/\,u^*$", yscale="log", title="one equation for all settings")
        axes.legend(ncols=2, fontsize="small")
    caption = (
        "exact flows of W32 and W12, first coordinate, at every scale, size and start (points) on the family of curves "
        "of da/ds = b (1 - ab), db/ds = a (1 - ab), in closed form (grey), where s = c2 tau"
    )
    run.figure("collapse", figure, caption)


def _universal(start: Float[np.ndarray, "2"], s: np.ndarray) -> np.ndarray:
    """Return ab of the scaled equation from (a0, b0), with a0 + b0 > 0 and ab > 0."""
    product, delta = float(start.prod()), float(start[0] ** 2 - start[1] ** 2)
    sizes = np.sqrt(delta**2 + 4.0), np.sqrt(delta**2 + 4.0 * product**2)
    v = 2.0 * (1.0 - product) / (delta**2 + sizes[0] * sizes[1] + 4.0 * product) * np.exp(-sizes[0] * s)
    rest = 1.0 - (delta * v) ** 2
    return (rest - delta**2 * v) / (rest + 4.0 * v)


def sampled(config: Any, run: RunDirectory, trained: Mapping[str, "Trained"]) -> None:
    """Draw everything that was trained on samples."""
    _dynamics(config, run, trained["gaussian"], "gaussian")
    _dynamics(config, run, trained["sparse"], "sparse")
    _ratios(config, run, trained["gaussian"])
    _sparse_loss(config, run, trained["sparse"])
    _small(config, run, trained["small"])
    stds = [f"std {std:g}" for std in references.INITIAL_STDS]
    about = "one training set, of its first seed: W^KQ above, W^PV below, in the order of tokens (x_i, x_{i-1})"
    _blocks(run, "gaussian_blocks", trained["gaussian"], stds, f"Gaussian tokens, Gaussian initial values; {about}")
    _blocks(run, "sparse_blocks", trained["sparse"], stds, f"sparse tokens, Gaussian initial values; {about}")
    _blocks(
        run,
        "ones_blocks",
        trained["ones"],
        trained["ones"].names,
        f"tokens of ones, diagonal starts, without and with the mask; {about}",
    )


def _dynamics(config: Any, run: RunDirectory, of: "Trained", table: str) -> None:
    law = references.LAWS["Gaussian" if table == "gaussian" else "one-hot"]
    symbol = r"\sigma" if table == "gaussian" else "c"
    lines = references.REPORTED_PRODUCTS if table == "gaussian" else [1 / scale**2 for scale in references.SCALES]
    with plots.style():
        figure = Figure(figsize=(9.0, 3.2))
        for axes, scale, line in zip(figure.subplots(1, 3), references.SCALES, lines, strict=True):
            for colour, start in zip(_COLOURS, references.STARTS, strict=False):
                products = of.products(f"scale {scale:g}, {start_name(start)}").mean(axis=-1)
                _band(axes, products, colour, start_name(start))
                axes.plot(exact_curve(config, table, start, scale), "--", color="black", linewidth=0.8)
                time = step_of(config, table, scale) * np.arange(config.epochs + 1)
                flow = flow_product(*start, *law.rates(config.dimension, config.length, scale), time)
                axes.plot(np.asarray(flow), ":", color="black", linewidth=0.8)
            limit = law.limit(config.dimension, config.length, scale)
            axes.axhline(limit, color=_PALE, linewidth=0.8)
            if table == "gaussian":
                axes.axhline(line, color=_PALE, linewidth=0.8, linestyle=":")
            axes.set(title=rf"${symbol} = {scale:g}$", xlabel="epoch", ylim=(0.0, 2.2 * limit))
        figure.axes[0].set_ylabel("mean of ab over coordinates")
        figure.axes[0].legend(title="start", fontsize="small")
    drawn = (
        "mean over seeds, with a band of one standard deviation; dashed: exact gradient descent on the population; "
        "dotted: the flow in closed form"
    )
    limits = "grey: the limit of the theorem" + (
        ", and 1 / (5 sigma^2), dotted" if table == "gaussian" else ", 1 / c^2"
    )
    run.figure(
        f"{table}_dynamics", figure, f"{'Gaussian' if table == 'gaussian' else 'sparse'} tokens: {drawn}; {limits}"
    )


def _ratios(config: Any, run: RunDirectory, of: "Trained") -> None:
    number = config.test_lengths.index(config.length)
    limit = references.LAWS["Gaussian"].limit(config.dimension, config.length)
    with plots.style():
        figure = Figure(figsize=(9.0, 3.2))
        for axes, scale in zip(figure.subplots(1, 3), references.SCALES, strict=True):
            for colour, start in zip(_COLOURS, references.STARTS, strict=False):
                row = of.row(f"scale {scale:g}, {start_name(start)}")
                _band(axes, of.ratios[:, number, row], colour, start_name(start))
                axes.plot(scale**2 * exact_curve(config, "gaussian", start, scale), "--", color="black", linewidth=0.8)
            axes.axhline(limit, color=_PALE, linewidth=0.8)
            axes.axhline(references.REPORTED_RATIO, color=_PALE, linewidth=0.8, linestyle=":")
            axes.set(title=rf"$\sigma = {scale:g}$", xlabel="epoch", ylim=(0.0, 0.4))
        figure.axes[0].set_ylabel("prediction / target")
        figure.axes[0].legend(title="start", fontsize="small")
    caption = (
        f"Gaussian tokens: mean ratio of prediction to target at the end of test sequences of {config.length} tokens, "
        "in which targets below a tenth of sigma count as 0; dashed: exact gradient descent; "
        "grey: its limit at this T; dotted: 0.2, the limit as T grows"
    )
    run.figure("gaussian_ratio", figure, caption)


def _sparse_loss(config: Any, run: RunDirectory, of: "Trained") -> None:
    zero = 0.5 * (config.length - 2)
    with plots.style():
        figure = Figure(figsize=(9.0, 3.2))
        for axes, scale in zip(figure.subplots(1, 3), references.SCALES, strict=True):
            for colour, start in zip(_COLOURS, references.STARTS, strict=False):
                name = f"scale {scale:g}, {start_name(start)}"
                losses = of.test_losses[:, of.row(name)]
                axes.semilogy(np.maximum(losses, 1e-16).T, color=colour, linewidth=0.5, alpha=0.6)
                exact = zero * scale**2 * (1.0 - scale**2 * exact_curve(config, "sparse", start, scale)) ** 2
                axes.semilogy(np.maximum(exact, 1e-16), "--", color="black", linewidth=0.8)
                axes.plot([], color=colour, label=start_name(start))
            axes.set(title=rf"$c = {scale:g}$", xlabel="epoch", ylim=(1e-9, 1e4))
        figure.axes[0].set_ylabel("test loss, all positions")
        figure.axes[0].legend(title="start", fontsize="small")
    caption = (
        "sparse tokens: loss over all positions of test sequences, a line a seed; dashed: the exact loss if all "
        "coordinates had the same share of the sequences. Where a line levels off, small entries of other blocks, "
        "which chance has moved, are left and relax slowly"
    )
    run.figure("sparse_loss", figure, caption)


def _small(config: Any, run: RunDirectory, of: "Trained") -> None:
    with plots.style():
        figure = Figure(figsize=(5.0, 3.2))
        axes = figure.subplots()
        for colour, start in zip(_COLOURS, references.STARTS, strict=False):
            _band(axes, of.products(start_name(start)).mean(axis=-1), colour, start_name(start))
            axes.plot(exact_curve(config, "small", start, 1.0), "--", color="black", linewidth=0.8)
        limit = references.LAWS["Gaussian"].limit(config.dimension, config.small_length)
        axes.axhline(limit, color=_PALE, linewidth=0.8)
        axes.set(
            xlabel="epoch",
            ylabel="mean of ab",
            ylim=(0.0, 2.2 * limit),
            title=f"d = {config.dimension}, T = {config.small_length}",
        )
        axes.legend(title="start")
    caption = (
        "a small context, Gaussian tokens: bands of one standard deviation, dashed exact curves, the limit in grey"
    )
    run.figure("small_context", figure, caption)


def _band(axes: Axes, curves: Float[np.ndarray, "seeds epochs"], colour: str, label: str) -> None:
    mean, std = curves.mean(axis=0), curves.std(axis=0)
    axes.fill_between(np.arange(len(mean)), mean - std, mean + std, color=colour, alpha=0.25, linewidth=0)
    axes.plot(mean, color=colour, label=label)


def _blocks(run: RunDirectory, figure_name: str, of: "Trained", names: Sequence[str], caption: str) -> None:
    """Draw W^KQ and W^PV after training, every entry, with the same colours for all."""
    with plots.style():
        figure = Figure(figsize=(2.3 * len(names) + 0.8, 3.9))
        grid = figure.subplots(2, len(names), height_ratios=(2, 1))
        largest = max(np.abs(part[0, of.row(name), -1]).max() for name in names for part in (of.kq, of.pv))
        shown = None
        for column, name in enumerate(names):
            for axes, part in zip(grid[:, column], (of.kq, of.pv), strict=True):
                matrix = part[0, of.row(name), -1]
                shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="equal")
                d = matrix.shape[1] // 2
                axes.axvline(d - 0.5, color="0.5", linewidth=0.6)
                if len(matrix) > d:
                    axes.axhline(d - 0.5, color="0.5", linewidth=0.6)
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
            grid[0, column].set_title(name, fontsize="small")
        if shown is not None:
            figure.colorbar(shown, ax=grid, shrink=0.7)
    run.figure(figure_name, figure, caption)
