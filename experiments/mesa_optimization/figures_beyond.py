"""The figures beyond the paper's: the open case, capabilities, skewness, scatter, other processes, and depth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import plots
from experiments.mesa_optimization import references
from experiments.run_directory import RunDirectory

if TYPE_CHECKING:
    from experiments.mesa_optimization.depth import Layers

_COLOURS = plots.PALETTE
_PALE = "0.6"


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
        "tokens of ones: the exact limit W32 = a I + alpha (J - I), W12 = b I + beta (J - I) from (.1, .1), by flows, "
        "and what is left of the loss; masked: the formula of theorem 4.3"
    )
    run.figure("open_case", figure, caption)


def capability(config: Any, run: RunDirectory, sampled: Mapping[str, np.ndarray]) -> None:
    """Draw R^2 of eight laws as a table: for long sequences, at this length, sampled."""
    d, length = config.dimension, config.length
    laws = sorted(references.LAWS.items(), key=lambda item: item[1].explained(d, length))
    rows = np.arange(len(laws))
    with plots.style():
        figure = Figure(figsize=(8.0, 3.6))
        axes = figure.subplots()
        limits = [law.explained_at_infinity for _, law in laws]
        axes.barh(rows, limits, color="0.87", label=r"$\kappa_1^2 / (\kappa_2 m_2)$, T grows")
        exact = [law.explained(d, length) for _, law in laws]
        axes.plot(exact, rows, "|", color="black", markersize=14, label=f"exact, T = {length}")
        for row, (name, law) in enumerate(laws):
            values = sampled[name]
            label = "trained on samples" if row == 0 else None
            axes.plot(values, np.full(len(values), row), ".", color=_COLOURS[0], markersize=4, label=label)
            ratio = law.limit(d, length) * law.second / (d if law.alone else 1)
            numbers = (law.explained_at_infinity, law.explained(d, length), values.mean(), ratio)
            for place, number in enumerate(numbers):
                axes.text(1.08 + 0.13 * place, row, f"{number:.4f}", va="center", fontsize="small")
        for place, title in enumerate((r"$R^2_\infty$", r"$R^2$", "sampled", r"E $\hat y / x$")):
            axes.text(1.08 + 0.13 * place, len(laws) - 0.4, title, va="bottom", fontsize="small")
        axes.set_yticks(rows, [name for name, _ in laws])
        axes.set(xlabel=r"$R^2$ of the trained layer", xlim=(0.0, 1.6), xticks=np.linspace(0.0, 1.0, 6))
        axes.grid(visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    caption = (
        "what a trained layer explains, law by law; points are training sets, measured on the population. The last "
        "column is the mean ratio of prediction to target, in which a target of 0 counts as 0"
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
            label = ("trained", "best multiple of the identity") if row == 0 else (None, None)
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
        fine = range(1, 201)
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
