"""The figures of the benchmarks."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import plots
from experiments.run_directory import RunDirectory

_PROGRAMS = {
    "trajectory": "hackable_diffusion",
    "no trajectory": "the same without its trajectory",
    "jaxgen": "jaxgen",
}


def ratios(run: RunDirectory, rows: Mapping[str, np.ndarray]) -> None:
    """Draw the mean ratio of each comparison as a bar, and every repetition as a dot."""
    with plots.style():
        figure = Figure(figsize=(6.5, 0.5 * len(rows) + 1.0))
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        means = np.array([values.mean() for values in rows.values()])
        colours = [plots.PALETTE[0] if mean >= 1 else plots.PALETTE[1] for mean in means]
        axes.barh(places, means - 1, left=1, height=0.6, color=colours, alpha=0.6)
        for place, values in zip(places, rows.values(), strict=True):
            axes.plot(values, np.full(len(values), place), ".", color="black", markersize=3)
            axes.annotate(
                f"{values.mean():.3g}", (max(values.max(), 1.0), place), (6, 0), textcoords="offset points", va="center"
            )
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xscale="log", yticks=places, xlabel="time of the peer / time of jaxgen")
        axes.set_yticklabels(list(rows))
        axes.set_xlim(right=2.0 * max(1.0, *(values.max() for values in rows.values())))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(visible=False, axis="y")
    run.figure(
        "sampler_ratios",
        figure,
        "Time of the peer over that of jaxgen, mean and every repetition; above 1 jaxgen wins.",
    )


def memory(run: RunDirectory, steps: Sequence[int], found: Mapping[str, Sequence[int]], batch_size: int) -> None:
    """Draw the memory of the compiled programs against the number of steps."""
    with plots.style():
        figure = Figure(figsize=(5.0, 3.2))
        axes = figure.subplots()
        for (name, label), colour in zip(_PROGRAMS.items(), (1, 4, 0), strict=True):
            axes.loglog(steps, np.asarray(found[name]) / 2**20, "o-", label=label, color=plots.PALETTE[colour])
        axes.set(xlabel="steps", ylabel="memory of the program, MiB")
        axes.legend(loc="upper left")
    run.figure(
        "sampler_memory",
        figure,
        f"Arguments, results and temporary buffers of DDIM on {batch_size} samples of 64 numbers, as XLA plans them. "
        "hackable_diffusion returns its trajectory by default.",
    )


def sweeps(run: RunDirectory, ratios: Mapping[int, np.ndarray], targets: Mapping[int, float], sequences: int) -> None:
    """Draw the ratio of each number of starts, mean and every repetition, over what the claims ask for."""
    with plots.style():
        figure = Figure(figsize=(4.5, 3.2))
        axes = figure.subplots()
        for place, (count, values) in enumerate(ratios.items()):
            spread = place + np.linspace(-0.1, 0.1, len(values))
            axes.plot(spread, values, ".", color="black", markersize=3, label="repetition")
            axes.plot(place, values.mean(), "o", color=plots.PALETTE[0], markersize=7, label="mean")
            axes.annotate(f"{values.mean():.4g}", (place, values.mean()), (16, -3), textcoords="offset points")
            ends = [place - 0.35, place + 0.35]
            axes.plot(ends, [targets[count]] * 2, color=plots.PALETTE[1], label="target, at least")
            axes.annotate(f"{targets[count]:g}", (place, targets[count]), (0, -11), textcoords="offset points")
        axes.set(yscale="log", xticks=range(len(ratios)), xlim=(-0.6, len(ratios) - 0.4))
        axes.set_xticklabels([f"{count} starts" for count in ratios])
        axes.set_ylabel("time of the peer / time of jaxgen")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(*(entries[:3] for entries in axes.get_legend_handles_labels()), loc="upper left")
        axes.set_ylim(0.5 * min(targets.values()), 3 * max(values.max() for values in ratios.values()))
    run.figure(
        "flow_ratios",
        figure,
        f"Training a linear attention layer on {sequences:,} sequences from several starts: time of the official "
        "code's loop, restated, over that of jaxgen.",
    )
