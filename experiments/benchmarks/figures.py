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
