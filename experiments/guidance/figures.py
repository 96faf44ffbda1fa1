"""The figures on guidance."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import plots
from experiments.digits import data
from experiments.guidance import references
from experiments.run_directory import RunDirectory
from jaxgen.diffusion.laws import ddim_mean

if TYPE_CHECKING:
    from experiments.guidance.clouds import Statistics

COLOURS = {
    "DDIM": plots.PALETTE[0],
    "DDPM": plots.PALETTE[1],
    "powered": plots.PALETTE[2],
    "PCG matched": plots.PALETTE[3],
    "PCG at gamma": plots.PALETTE[4],
}
_FINE = np.linspace(1.0, 10.0, 91)


def gaussian_laws(run: RunDirectory, scales: Sequence[float], found: Mapping[str, "Statistics"]) -> None:
    """Draw variance and mean against the guidance scale: measured samples on the closed forms."""
    laws = {"DDIM": references.ddim_variance, "DDPM": references.ddpm_variance, "powered": references.powered_variance}
    with plots.style():
        figure = Figure(figsize=(9.0, 3.4))
        spread, centre = figure.subplots(1, 2)
        for name, law in laws.items():
            spread.semilogy(_FINE, [law(scale) for scale in _FINE], color=COLOURS[name], label=f"{name}: law")
        centre.plot(_FINE, [references.ddpm_mean(scale) for scale in _FINE], color=COLOURS["DDPM"])
        centre.plot(_FINE, 2 * _FINE / (_FINE + 1), color=COLOURS["powered"])
        with jax.enable_x64(True):
            centre.plot(_FINE, [float(ddim_mean(scale, 1.0)) for scale in _FINE], color=COLOURS["DDIM"])
        for name, of in found.items():
            style = {"color": COLOURS[name], "markersize": 4}
            spread.semilogy(scales, of.variance.mean(axis=0), "o", label=f"{name}: measured", **style)
            centre.plot(scales, of.mean.mean(axis=0), "o", **style)
        spread.set(xlabel="guidance scale", ylabel="variance", title="p(x | c) = N(1, 1), p(x) = N(0, 2)")
        centre.set(xlabel="guidance scale", ylabel="mean", title="the mean overshoots the condition")
        spread.legend()
    caption = (
        "guided sampling of a Gaussian: points are samples, lines the limits of small steps. DDIM and DDPM part "
        "exponentially, and neither is the powered law"
    )
    run.figure("gaussian_laws", figure, caption)


def cluster_densities(run: RunDirectory, found: Mapping[tuple[float, float], Mapping[str, "Statistics"]]) -> None:
    """Draw what guided DDIM and DDPM sample from two clusters, over the condition and the powered law."""
    with plots.style():
        figure = Figure(figsize=(9.0, 5.2))
        for axes, ((mu, scale), row) in zip(figure.subplots(2, 2).flat, found.items(), strict=True):
            x = np.linspace(-2.0, 7.0, 400)
            _law(axes, x, [-mu, mu], [0.0, 1.0], [0.5, 0.5], scale)
            for name, of in row.items():
                _histogram(axes, of.counts.sum(axis=(0, 1)), name)
            axes.set(title=f"clusters at ±{mu:g}, guidance scale {scale:g}", xlim=(-2, 7), xlabel="x", ylabel="density")
        figure.axes[0].legend()
    caption = (
        "two clusters under the condition on the right one (grey): guidance pushes the mean beyond the cluster, and "
        "skews what it samples"
    )
    run.figure("two_clusters", figure, caption)


def three_clusters(run: RunDirectory, scales: Sequence[float], found: Mapping[str, "Statistics"]) -> None:
    """Draw what guided DDIM and DDPM sample from three clusters."""
    with plots.style():
        figure = Figure(figsize=(9.0, 3.0))
        for at, (axes, scale) in enumerate(zip(figure.subplots(1, len(scales)), scales, strict=True)):
            _law(axes, np.linspace(-7.0, 9.0, 500), [-3, 0, 3], [0.05, 0.15, 0.80], [1 / 3] * 3, scale)
            for name, of in found.items():
                _histogram(axes, of.counts[:, at].sum(axis=0), name)
            axes.set(title=f"guidance scale {scale:g}", yscale="log", ylim=(1e-4, 1.0), xlim=(-7, 8), xlabel="x")
        figure.axes[0].set_ylabel("density")
        figure.axes[0].legend(loc="upper left")
    run.figure("three_clusters", figure, "three clusters: guidance empties the clusters that the condition disfavours")


def learned_clusters(
    run: RunDirectory,
    sizes: Sequence[int],
    scales: Sequence[float],
    found: Mapping[str, "Statistics"],
    points: np.ndarray,
) -> None:
    """Draw what the first seed's networks sample, a row for each training set, beside its points `[sizes, largest]`."""
    with plots.style():
        figure = Figure(figsize=(3.0 * len(scales), 2.4 * len(sizes)))
        panels = figure.subplots(len(sizes), len(scales), squeeze=False, sharex=True, sharey=True)
        for row, size in enumerate(sizes):
            for column, scale in enumerate(scales):
                axes = panels[row, column]
                _law(axes, np.linspace(-7.0, 9.0, 500), [-3, 0, 3], [0.05, 0.15, 0.80], [1 / 3] * 3, scale)
                for name, of in found.items():
                    _histogram(axes, of.counts[0, row, column], name)
                axes.plot(points[row, :size], np.full(size, 1.5e-3), "|k", markersize=6, label="training points")
                axes.set(yscale="log", ylim=(1e-3, 3.0), xlim=(-7, 8))
                axes.set_title(f"{size} points, guidance scale {scale:g}")
        for axes in panels[-1]:
            axes.set_xlabel("x")
        for axes in panels[:, 0]:
            axes.set_ylabel("density")
        panels[-1, -1].legend(loc="upper left")
    caption = (
        "three clusters, with a network that learned the condition from few points: guidance empties the clusters that "
        "the condition disfavours, as it does with exact scores"
    )
    run.figure("learned_clusters", figure, caption)


def _law(
    axes: Any, x: np.ndarray, means: Sequence, conditional: Sequence, unconditional: Sequence, scale: float
) -> None:
    """Draw the conditional density and the powered law, by quadrature on the given points."""
    log_densities = []
    with np.errstate(divide="ignore"):
        for weights in (conditional, unconditional):
            parts = np.log(weights) - 0.5 * (x[:, None] - np.asarray(means, float)) ** 2
            log_densities.append(np.logaddexp.reduce(parts, axis=1) - 0.5 * np.log(2 * np.pi))
    powered = np.exp(scale * log_densities[0] + (1 - scale) * log_densities[1])
    axes.fill_between(x, np.exp(log_densities[0]), color="0.85", label="condition")
    axes.plot(x, powered / (powered.sum() * (x[1] - x[0])), color=COLOURS["powered"], label="powered law")


def _histogram(axes: Any, counts: np.ndarray, name: str) -> None:
    from experiments.guidance.clouds import density_of

    middles, density = density_of(counts)
    axes.plot(middles, np.where(density > 0, density, np.nan), color=COLOURS[name], label=name)


def equivalence(
    run: RunDirectory,
    config: Any,
    weak: Mapping[str, np.ndarray],
    strong: Mapping[float, np.ndarray],
    limit: float,
) -> None:
    """Draw how PCG and the guided SDE come together as the steps shrink."""
    with plots.style():
        figure = Figure(figsize=(9.0, 3.6))
        law, paths = figure.subplots(1, 2)
        for (name, variances), colour in zip(weak.items(), plots.PALETTE, strict=False):
            errors = np.abs(variances - limit)
            law.errorbar(
                config.orders, errors.mean(0), errors.std(0, ddof=1), fmt="o-", color=colour, label=name, markersize=4
            )
        steps = np.array(config.orders, float)
        law.plot(steps, np.abs(weak["PCG at 3"] - limit).mean(0)[0] * steps[0] / steps, "k:", label="order 1")
        law.set(xscale="log", yscale="log", xlabel="steps", ylabel="|variance - 7/12|", title="weak: one limit")
        names = {5.0: "PCG at 5 = 2 · 3 - 1", 3.0: "PCG at 3"}
        for (scale, name), colour in zip(names.items(), (COLOURS["PCG matched"], COLOURS["PCG at gamma"]), strict=True):
            paths.plot(config.strong_orders, strong[scale].mean(0), "o-", color=colour, label=name, markersize=4)
        steps = np.array(config.strong_orders, float)
        paths.plot(steps, strong[5.0].mean(0)[0] * steps[0] / steps, "k:", label="order 1")
        paths.set(
            xscale="log",
            yscale="log",
            xlabel="steps",
            ylabel="rms distance to the guided SDE at 3",
            title="strong: under the same noise",
        )
        for axes, ticks in ((law, config.orders), (paths, config.strong_orders)):
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.legend()
    caption = (
        "PCG at 2 gamma - 1 and the SDE guided at gamma are one sampler as the steps shrink: their laws meet at first "
        "order, and under one noise their very samples do. PCG at gamma stays away"
    )
    run.figure("equivalence", figure, caption)


def corrections(
    run: RunDirectory, found: Mapping[str, Mapping[int, "Statistics"]], laws: Mapping[str, Mapping[float, tuple]]
) -> None:
    """Draw mean and variance against the number of corrections, on the limits of small steps."""
    with plots.style():
        figure = Figure(figsize=(10.0, 5.0))
        axes = figure.subplots(2, len(found))
        for column, (name, rows) in enumerate(found.items()):
            counts = sorted(rows)
            for row, quantity in enumerate(("mean", "variance")):
                at = axes[row, column]
                law = laws[name]
                finite = sorted(count for count in law if np.isfinite(count))
                at.plot(finite, [law[count][row] for count in finite], "-", color="0.5", label="limit of small steps")
                at.axhline(law[np.inf][row], color=COLOURS["powered"], linestyle="--", label="powered law")
                values = [getattr(rows[count], quantity)[:, 0] for count in counts]
                spread = [of.std(ddof=1) for of in values]
                middle = [of.mean() for of in values]
                at.errorbar(counts, middle, spread, fmt="o", color=COLOURS["PCG matched"], label="PCG", markersize=4)
                at.set(xscale="log", xlabel="corrections at each level", ylabel=quantity)
                at.set_xticks(counts, [str(count) for count in counts])
                at.minorticks_off()
            axes[0, column].set_title(name)
        axes[1, 0].legend()
    caption = (
        "more corrections bring PCG to the powered law (dashed). On the Gaussian that sharpens; on two clusters it "
        "widens, since one correction had pushed the mean beyond the cluster"
    )
    run.figure("corrections", figure, caption)


def yardstick(run: RunDirectory, rows: Mapping[tuple[float, float], Mapping[str, np.ndarray]]) -> None:
    """Draw the mean and variance of weighted particles beside those of guided samplers."""
    with plots.style():
        figure = Figure(figsize=(8.0, 3.4))
        for axes, (index, quantity) in zip(figure.subplots(1, 2), enumerate(("mean", "variance")), strict=True):
            places = np.arange(len(rows))
            for offset, (name, column) in enumerate((("DDIM", 0), ("DDPM", 1), ("powered", 2))):
                values = [references.TWO_CLUSTERS[pair][column][index] for pair in rows]
                axes.bar(places + 0.22 * (offset - 1), values, 0.2, color=COLOURS[name], label=f"{name}: law")
            middle = [row[quantity].mean() for row in rows.values()]
            spread = [row[quantity].std(ddof=1) for row in rows.values()]
            axes.errorbar(places + 0.22, middle, spread, fmt="ko", markersize=4, label="weighted particles")
            axes.set_xticks(places, [f"±{mu:g}, scale {scale:g}" for mu, scale in rows])
            axes.set(ylabel=quantity)
        figure.axes[0].legend()
    run.figure(
        "yardstick",
        figure,
        "sequential Monte Carlo samples the powered law of two clusters; neither guided DDIM nor guided DDPM does",
    )


def class_shifts(run: RunDirectory, config: Any, columns: Mapping[tuple[str, float], tuple]) -> None:
    """Draw how far each sampler shifts the mean of a digit's Gaussian."""
    scales = sorted({scale for _, scale in columns})
    names = list(dict.fromkeys(name for name, _ in columns))
    with plots.style():
        figure = Figure(figsize=(6.0, 3.2))
        axes = figure.subplots()
        for offset, name in enumerate(names):
            places = np.arange(len(scales)) + 0.2 * (offset - 1.5)
            values = [columns[name, scale][0] for scale in scales]
            spread = [of.std(ddof=1) for of in values]
            axes.bar(places, [of.mean() for of in values], 0.18, yerr=spread, color=COLOURS[name], label=name)
        axes.set_xticks(np.arange(len(scales)), [f"guidance scale {scale:g}" for scale in scales])
        axes.set(ylabel="shift of the mean", title=f"digit {config.class_label}, one Gaussian per digit, 64 dimensions")
        axes.legend()
    caption = "PCG at 2 gamma - 1 (matched) shifts the mean as guided DDPM does; PCG at gamma and DDIM do not"
    run.figure("class_gaussians", figure, caption)


def discrepancies(run: RunDirectory, mmd2: Mapping[tuple[str, float], np.ndarray], p_values: Mapping) -> None:
    """Draw MMD^2 from guided DDPM, and the p-values of the permutation tests, seed by seed."""
    names = list(dict.fromkeys(name for name, _ in mmd2))
    scales = sorted({scale for _, scale in mmd2})
    with plots.style():
        figure = Figure(figsize=(9.0, 3.4))
        for axes, found in zip(figure.subplots(1, 2), (mmd2, p_values), strict=True):
            for offset, name in enumerate(names):
                for place, scale in enumerate(scales):
                    values = found[name, scale]
                    x = place + 0.25 * (offset - 1) + np.linspace(-0.06, 0.06, len(values))
                    label = name if place == 0 else None
                    axes.plot(x, values, "o", color=COLOURS[name], markersize=3, label=label)
            axes.set_xticks(np.arange(len(scales)), [f"guidance scale {scale:g}" for scale in scales])
        figure.axes[0].axhline(0.0, color="0.5", linewidth=1.0)
        figure.axes[0].set(ylabel="MMD² from guided DDPM", yscale="symlog")
        figure.axes[0].set_yscale("symlog", linthresh=1e-3)
        figure.axes[1].axhline(0.05, color="0.5", linewidth=1.0)
        figure.axes[1].set(ylabel="p-value of the permutation test", yscale="log")
        figure.axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names))
    caption = "real digits: each dot compares the images of one seed with those of guided DDPM"
    run.figure("digits_against_ddpm", figure, caption)


def scale_against_corrections(run: RunDirectory, config: Any, sheets: Mapping[tuple[float, int], np.ndarray]) -> None:
    """Draw digits over a grid of guidance scales and numbers of corrections, all from one noise."""
    rows, labels = [], []
    for corrections in config.grid_corrections:
        for scale in config.grid_scales:
            rows.append(sheets[scale, corrections].reshape(10, data.SIDE, data.SIDE))
            labels.append(f"scale {scale:g}, K = {corrections}")
    figure = plots.image_grid(np.stack(rows), row_labels=labels, title="PCG: guidance scale and corrections", upscale=6)
    run.figure("scale_and_corrections", figure, "PCG on real digits, scales and numbers of corrections, from one noise")


def translation(run: RunDirectory, scales: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    """Draw the scales at which other samplers have the variance of guided DDIM."""
    with plots.style():
        figure = Figure(figsize=(5.0, 3.4))
        axes = figure.subplots()
        for (name, values), colour in zip(curves.items(), plots.PALETTE[1:], strict=False):
            axes.plot(scales, values, color=colour, label=name)
        axes.plot(scales, scales, ":", color="0.5", label="the same scale")
        axes.set(xlabel="guidance scale of DDIM", ylabel="scale with the same variance", yscale="log")
        axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axes.minorticks_off()
        axes.legend()
    run.figure("translation", figure, "the translator: scales that sharpen a Gaussian as much as guided DDIM does")
