"""The figures of the paper at its own size, with exact curves over the measured ones, and those beyond it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plots
from experiments.mesa_optimization import references
from experiments.run_directory import RunDirectory

if TYPE_CHECKING:
    from experiments.mesa_optimization.depth import Layers
    from experiments.mesa_optimization.training import Trained

_COLOURS = plots.PALETTE
_PALE = "0.6"


def collapse(run: RunDirectory, times: np.ndarray, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw ab over its limit against c2 tau of every problem and start, on the closed form of the scaled equation."""
    with plots.style():
        figure = Figure(figsize=(7.0, 4.0))
        axes = figure.subplots()
        for i, (name, (products, starts)) in enumerate(curves.items()):
            for j, (product, start) in enumerate(zip(products, starts, strict=True)):
                axes.plot(times, _universal(start, times), color=_PALE, linewidth=3.0, alpha=0.35, zorder=1)
                label = name if j == 0 else None
                axes.plot(times[::4], product[::4], ".", markersize=4, color=_COLOURS[i], label=label, zorder=2)
        axes.set(xlabel=r"$c_2 \tau$", ylabel=r"$ab\,/\,u^*$", yscale="symlog", title="one equation for all settings")
        axes.set_yscale("log")
        axes.legend(ncols=2, fontsize="small")
    caption = (
        "exact flows of all parameters at every scale, length and start (points) on the two-parameter family of curves "
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
    ones = [name for name in trained["ones"].names if "0.5" in name or "0.1" in name]
    _blocks(
        run,
        "ones_blocks",
        trained["ones"],
        ones,
        f"tokens of ones, diagonal starts, without and with the mask; {about}",
    )


def _dynamics(config: Any, run: RunDirectory, of: "Trained", table: str) -> None:
    from experiments.mesa_optimization.sampled import exact_curve
    from experiments.mesa_optimization.training import start_name

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
            limit = law.limit(config.dimension, config.length, scale)
            axes.axhline(limit, color=_PALE, linewidth=0.8)
            if table == "gaussian":
                axes.axhline(line, color=_PALE, linewidth=0.8, linestyle=":")
            axes.set(title=rf"${symbol} = {scale:g}$", xlabel="epoch", ylim=(0.0, 2.2 * limit))
        figure.axes[0].set_ylabel("mean of ab over coordinates")
        figure.axes[0].legend(title="start", fontsize="small")
    drawn = "mean over seeds, with a band of one standard deviation; dashed: exact gradient descent on the population"
    limits = "grey: the limit of the theorem" + ("; dotted: 1 / (5 sigma^2)" if table == "gaussian" else ", 1 / c^2")
    run.figure(
        f"{table}_dynamics", figure, f"{'Gaussian' if table == 'gaussian' else 'sparse'} tokens: {drawn}; {limits}"
    )


def _ratios(config: Any, run: RunDirectory, of: "Trained") -> None:
    from experiments.mesa_optimization.sampled import exact_curve
    from experiments.mesa_optimization.training import start_name

    number = config.test_lengths.index(config.length) if config.length in config.test_lengths else 0
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
        "Gaussian tokens: mean ratio of prediction to target at the last position of test sequences; dashed: exact; "
        "grey: its limit at this T; dotted: 0.2, the limit as T grows"
    )
    run.figure("gaussian_ratio", figure, caption)


def _sparse_loss(config: Any, run: RunDirectory, of: "Trained") -> None:
    from experiments.mesa_optimization.sampled import exact_curve
    from experiments.mesa_optimization.training import start_name

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
        "coordinates had the same share of the sequences"
    )
    run.figure("sparse_loss", figure, caption)


def _small(config: Any, run: RunDirectory, of: "Trained") -> None:
    from experiments.mesa_optimization.sampled import exact_curve
    from experiments.mesa_optimization.training import start_name

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


def open_case(
    run: RunDirectory,
    dimensions: Sequence[int],
    lengths: Sequence[int],
    scalars: Float[np.ndarray, "dims lengths 4"],
    dense: Float[np.ndarray, "dims lengths"],
    masked: Float[np.ndarray, "dims lengths"],
) -> None:
    """Draw the dense limit on tokens of ones, and what it gains over the masked one."""
    with plots.style():
        figure = Figure(figsize=(9.0, 3.2))
        shape, gain = figure.subplots(1, 2)
        for colour, d, (a, alpha, b, beta) in zip(_COLOURS, dimensions, scalars.transpose(0, 2, 1), strict=False):
            shape.semilogx(lengths, alpha / a, "o-", color=colour, markersize=3, label=rf"d = {d}: $\alpha / a$")
            shape.semilogx(lengths, beta / b, "s--", color=colour, markersize=3, label=rf"d = {d}: $\beta / b$")
        for colour, d, with_all, with_mask in zip(_COLOURS, dimensions, dense, masked, strict=False):
            gain.loglog(lengths, 1.0 - with_all, "o-", color=colour, markersize=3, label=f"d = {d}: dense")
            gain.loglog(lengths, 1.0 - with_mask, "s--", color=colour, markersize=3, label=f"d = {d}: masked")
        shape.set(xlabel="T", ylabel="off-diagonal over diagonal", title="what the paper leaves open")
        gain.set(xlabel="T", ylabel=r"$L^* / L(0)$", title="what it gains")
        for axes in (shape, gain):
            axes.legend(fontsize="x-small", ncols=2)
    caption = (
        "tokens of ones: the exact limit W32 = a I + alpha (J - I), W12 = b I + beta (J - I) from (.1, .1). Its "
        "negative entries whiten across coordinates, most in short sequences, and leave less of the loss than a "
        "diagonal layer does"
    )
    run.figure("open_case", figure, caption)


def capability(
    run: RunDirectory, at_length: Mapping[str, float], limits: Mapping[str, float], sampled: Mapping[str, np.ndarray]
) -> None:
    """Draw R^2 of eight laws: sampled, exact, and for long sequences."""
    names = sorted(limits, key=lambda name: limits[name])
    rows = np.arange(len(names))
    with plots.style():
        figure = Figure(figsize=(6.5, 3.4))
        axes = figure.subplots()
        axes.barh(rows, [limits[name] for name in names], color="0.85", label=r"$\kappa_1^2 / (\kappa_2 m_2)$, T grows")
        axes.plot([at_length[name] for name in names], rows, "|", color="black", markersize=14, label="exact, T = 100")
        for row, name in enumerate(names):
            values = sampled[name]
            axes.plot(
                values,
                np.full(len(values), row),
                ".",
                color=_COLOURS[0],
                markersize=4,
                label="sampled" if row == 0 else None,
            )
        axes.set_yticks(rows, names)
        axes.set(xlabel=r"$R^2$ of the trained layer", xlim=(0.0, 1.05))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    caption = (
        "what a trained layer explains, law by law: only tokens whose coordinates are 0 or of one size are recovered, "
        "and among these only one-hot ones at finite T; points are training sets, measured on the population"
    )
    run.figure("capability", figure, caption)


def skewness(
    run: RunDirectory, skews: Sequence[float], lengths: Sequence[int], shares: Float[np.ndarray, "skews lengths 2"]
) -> None:
    """Draw how dense the limit is for skewed tokens."""
    with plots.style():
        figure = Figure(figsize=(8.0, 3.2))
        for axes, name, k in zip(figure.subplots(1, 2, sharey=True), ("W32", "W12"), (0, 1), strict=True):
            for colour, length, column in zip(_COLOURS, lengths, shares[:, :, k].T, strict=False):
                axes.plot(skews, column, "o-", color=colour, markersize=3, label=f"T = {length}")
            axes.set(xlabel=r"third moment $\mu_3$, variance 1", title=name)
        figure.axes[0].set_ylabel("|off-diagonal| / diagonal")
        figure.axes[0].legend(fontsize="small")
    caption = (
        "the theorem's scope: exact limits of two-atom tokens of mean 0 and variance 1, d = 5. Any skewness makes W32 "
        "and W12 dense, most in short sequences"
    )
    run.figure("skewness", figure, caption)


def scatter(run: RunDirectory, products: np.ndarray) -> None:
    """Draw the mean products of many training sets over the predicted law."""
    mean, std = references.SCATTER_MEAN, references.SCATTER_STD
    x = np.linspace(mean - 4 * std, mean + 4 * std, 200)
    with plots.style():
        figure = Figure(figsize=(5.0, 3.0))
        axes = figure.subplots()
        axes.hist(products, bins=24, density=True, color=_COLOURS[0], alpha=0.4, label="training sets")
        axes.plot(
            x, np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi)), color=_COLOURS[1], label="predicted"
        )
        axes.axvline(references.LAWS["Gaussian"].limit(3, 12), color=_PALE, linewidth=0.8)
        axes.set(xlabel="mean of ab", ylabel="density", title="d = 3, T = 12, 2,000 sequences each")
        axes.legend()
    run.figure("scatter", figure, "scatter over training sets; the grey line is the limit of infinitely many sequences")


def processes(run: RunDirectory, found: Mapping[str, Float[np.ndarray, "seeds 4"]]) -> None:
    """Draw products and R^2 of processes that the theory does not cover."""
    rows = np.arange(len(found))
    with plots.style():
        figure = Figure(figsize=(9.0, 3.2))
        product, explained = figure.subplots(1, 2, sharey=True)
        for row, of in zip(rows, found.values(), strict=True):
            label = ("trained", "formula with the moments of the process") if row == 0 else (None, None)
            product.errorbar(
                of[:, 0].mean(), row, xerr=of[:, 0].std(), fmt="o", color=_COLOURS[0], markersize=4, label=label[0]
            )
            product.plot(of[:, 1].mean(), row, "|", color="black", markersize=14, label=label[1])
            explained.errorbar(of[:, 3].mean(), row, xerr=of[:, 3].std(), fmt="o", color=_COLOURS[2], markersize=4)
            share = f"off the diagonal: {of[:, 2].mean():.1%}"
            explained.annotate(
                share,
                (of[:, 3].mean(), row),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize="x-small",
            )
        product.set_yticks(rows, list(found))
        product.set(xlabel="mean diagonal product ab", ylim=(-0.6, len(found) - 0.2))
        explained.set(xlabel=r"$R^2$ on fresh sequences")
        figure.legend(*product.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        "Gaussian first tokens, W32 and W12 trained: the product stays that of the formula; bars are standard "
        "deviations over training sets, shares are of the norm of W32"
    )
    run.figure("processes", figure, caption)


def depth(
    run: RunDirectory,
    steps: Sequence[int],
    explained: Float[np.ndarray, " steps"],
    layers: Mapping[int, "Layers"],
    solvers: Mapping[str, float],
) -> None:
    """Draw what more steps and more layers explain of Gaussian sequences."""
    with plots.style():
        figure = Figure(figsize=(9.0, 3.4))
        exact, trained = figure.subplots(1, 2)
        fine = np.arange(1, 201)
        exact.semilogx(fine, [references.steps_explain(k) for k in fine], color=_COLOURS[0], label=r"$R^2$: law")
        exact.plot(steps, explained, "o", color=_COLOURS[0], markersize=4, label=r"$R^2$: measured")
        exact.semilogx(
            fine, [references.steps_ratio(k) for k in fine], color=_COLOURS[1], label="prediction / target: law"
        )
        exact.axhline(0.9, color=_PALE, linewidth=0.8)
        for (name, value), style in zip(solvers.items(), (":", "-."), strict=True):
            exact.axhline(value, color="black", linewidth=0.8, linestyle=style, label=f"$R^2$: {name}")
        exact.set(xlabel="gradient steps K, each of its best size", ylim=(0.0, 1.05), title="long sequences")
        exact.legend(fontsize="x-small", loc="lower right")
        for number, of in layers.items():
            trained.plot(np.full(len(of.typical), number), of.typical, "o", color=_COLOURS[2], markersize=4)
        trained.plot(
            list(layers),
            [np.mean(of.typical) for of in layers.values()],
            color=_COLOURS[2],
            label="stacks, a point a seed",
        )
        trained.set(xlabel="layers", ylabel="share explained, median sequence", title="trained stacks, d = 2, T = 10")
        trained.set_xticks(list(layers))
        trained.legend(fontsize="small")
    caption = (
        "depth against the failure on Gaussian tokens. Left: the best that K gradient steps in the context can do, and "
        "exact least squares at d = 5, T = 100. Right: stacked layers, trained as a whole"
    )
    run.figure("depth", figure, caption)
