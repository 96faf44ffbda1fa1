"""The figures of EDM2 on the digits."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments import plots
from experiments.digits import data
from experiments.digits.edm2 import NAME
from experiments.run_directory import RunDirectory
from jaxgen.pipelines import LevelLosses


def samples(run: RunDirectory, images: np.ndarray, steps: int) -> None:
    """Draw samples of each digit, `[10, count, 64]`."""
    square = np.clip(images, -1.0, 1.0).reshape(10, -1, data.SIDE, data.SIDE)
    caption = f"EDM2, Heun's method with {steps} steps: {square.shape[1]} samples of each digit"
    run.figure("edm2", plots.image_grid(square, title="EDM2"), caption)


def losses(run: RunDirectory, sigmas: np.ndarray, found: Mapping[str, LevelLosses], uncertainty: np.ndarray) -> None:
    """Draw the loss against the noise level, with its learned expectation."""
    with plots.style():
        figure = Figure(figsize=(5.0, 3.2))
        axes = figure.subplots()
        for name, of in found.items():
            mean, error = of.network.mean(axis=1), of.network.std(axis=1, ddof=1) / np.sqrt(of.network.shape[1])
            axes.errorbar(sigmas, mean, _bars(mean, error), fmt="o-", markersize=3, label=f"{name} digits")
        axes.plot(sigmas, np.exp(uncertainty), "--", label="expected, $e^u$")
        axes.plot(sigmas, found["held-out"].zero.mean(axis=1), ":", color="0.5", label="output 0")
        axes.set(xscale="log", yscale="log", xlabel="noise level sigma, data have 0.5", ylabel="weighted loss")
        axes.legend()
    caption = (
        "EDM2's loss at each noise level, one draw of the noise for each image, and what the network expects it to be"
    )
    run.figure("edm2_loss_by_level", figure, caption)


def _bars(mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return bars of two standard errors that stay above 0 on a logarithmic axis."""
    return np.stack([np.minimum(2 * error, 0.9 * mean), 2 * error])


def widths(run: RunDirectory, of: Sequence[float], distances: Sequence[float]) -> None:
    """Draw the Fréchet distance against the width of the average."""
    with plots.style():
        figure = Figure(figsize=(4.2, 3.0))
        axes = figure.subplots()
        axes.plot(of, distances, "o-", markersize=3)
        axes.set(xlabel="width of the average, share of the training", ylabel="Fréchet distance, debiased")
    caption = (
        "how long EDM2's parameters are averaged, reconstructed after the training from snapshots of two averages; "
        "one sampling seed, the same noise at every width"
    )
    run.figure("edm2_width", figure, caption)


def training(run: RunDirectory, prefix: str = f"{NAME}_") -> None:
    """Draw the training loss of each interval of noise; nothing where the network is another run's.

    Args:
        run: whose `metrics.jsonl` is read, and whose figure it becomes.
        prefix: what the names of the metrics begin with.
    """
    path = run.path / "metrics.jsonl"
    if not run.writes or not path.exists():
        return
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if f"{prefix}loss" in line]
    names = sorted({name for line in lines for name in line if name.startswith(f"{prefix}loss_sigma_")}, key=_lowest)
    if not names:
        return
    with plots.style():
        figure = Figure(figsize=(6.2, 3.2))
        axes = figure.subplots()
        for index, name in enumerate(names):
            points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None])
            window = max(len(points) // 40, 1)
            smooth = np.convolve(points[:, 1], np.ones(window) / window, "valid")
            colour = colormaps["viridis"](0.9 * index / max(len(names) - 1, 1))
            label = name.split("_sigma_")[1].replace("_", " ")
            axes.plot(points[window - 1 :, 0], smooth, color=colour, label=label, linewidth=1.0)
        axes.set(xlabel="training step", ylabel="weighted loss, moving average", yscale="log")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", title="sigma")
    run.figure("edm2_training", figure, "EDM2's training loss, by intervals of noise that are equally likely")


def _lowest(name: str) -> float:
    return float(name.split("_sigma_")[1].split("_to_")[0])
