"""The figures of the tutorial, drawn from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from experiments import plots
from experiments.run_directory import RunDirectory
from experiments.step_by_step import data, references
from experiments.step_by_step.networks import Networks

_TRUTH, _OTHER, _THIRD = plots.PALETTE[0], plots.PALETTE[1], plots.PALETTE[2]
_PALE = "0.65"
_SAMPLER_COLOURS = {"DDIM": plots.PALETTE[0], "DDPM": plots.PALETTE[1]}
_FRAME = 2.7  # half a side of the pictures of the plane, in standard deviations of the spiral
_SHOWN_SAMPLES = 500
_SHOWN_WAYS = {"DDIM": 40, "DDPM": 4}  # those of DDPM wander


def reverse_kernels(run: RunDirectory, shown: Mapping[float, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Draw reverse kernels over the Gaussians of their means."""
    with plots.style():
        figure = Figure(figsize=(8.0, 2.7))
        for axes, (std, (x, kernel, gaussian)) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            axes.fill_between(x, kernel, color=_TRUTH, alpha=0.25, linewidth=0)
            axes.plot(x, kernel, color=_TRUTH, label="reverse kernel")
            axes.plot(x, gaussian, "--", color=_OTHER, label="Gaussian")
            axes.axvline(references.KERNEL_POINT, color=_PALE, linewidth=0.8)
            axes.set(title=rf"$\sigma$ = {std:g}", xlabel=r"$x_{t-\Delta t}$", ylim=(0, None))
        figure.axes[0].set_ylabel("density")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        "the law of the previous point given z = 0.4 (grey line) for steps of three sizes, and the Gaussian of its mean"
    )
    run.figure("reverse_kernels", figure, f"{caption} and of variance sigma² (figure 2 of the tutorial)")


def divergences(
    run: RunDirectory,
    stds: Float[np.ndarray, " stds"],
    kl: Float[np.ndarray, " stds"],
    errors: Float[np.ndarray, " stds"],
    steps: np.ndarray,
    path: Float[np.ndarray, " counts"],
    samples: Float[np.ndarray, " counts"],
) -> None:
    """Draw what one step loses against its size, and what all of them lose against their number."""
    with plots.style():
        figure = Figure(figsize=(8.0, 3.0))
        one, many = figure.subplots(1, 2)
        for values, name, colour in ((kl, "KL to a Gaussian", _TRUTH), (errors, "mean, earlier score", _OTHER)):
            small = slice(3, 5)
            slope = np.polyfit(np.log(stds[small]), np.log(values[small]), 1)[0]
            one.loglog(stds, values, "o", color=colour, markersize=4)
            one.loglog(stds, values[4] * (stds / stds[4]) ** slope, color=colour, label=f"{name}: slope {slope:.3f}")
        one.set(xlabel=r"noise $\sigma$ of one step", ylabel="KL (nats), error of the mean", title="One reverse step")
        one.set_xticks(stds[::2], [f"{std:.3g}" for std in stds[::2]])
        one.minorticks_off()
        for values, name, colour in ((path, "paths", _TRUTH), (samples, "samples", _OTHER)):
            slope = np.polyfit(np.log(steps[-2:]), np.log(values[-2:]), 1)[0]
            many.loglog(steps, values, "o", color=colour, markersize=4)
            many.loglog(
                steps, values[-1] * (steps / steps[-1]) ** slope, color=colour, label=f"{name}: slope {slope:.3f}"
            )
        many.set(xlabel="steps N", ylabel="KL to the truth (nats)", title="DDPM on N(0, 1)")
        for axes in (one, many):
            axes.legend()
    caption = "what a Gaussian step loses, with exponents as in the claims: order sigma⁴ a step, 1/N for the path"
    run.figure("divergences", figure, f"{caption}, 1/N² for the samples alone")


def memory(run: RunDirectory, shown: Mapping[str, tuple[np.ndarray, np.ndarray]], found: Mapping[str, float]) -> None:
    """Draw ends against starts for both samplers."""
    with plots.style():
        figure = Figure(figsize=(6.0, 3.0))
        for axes, (name, (starts, ends)) in zip(figure.subplots(1, 2, sharey=True), shown.items(), strict=True):
            axes.plot(starts, ends, ".", color=_SAMPLER_COLOURS[name], markersize=2, alpha=0.5)
            axes.set(title=f"{name}: correlation {found[name]:.3f}", xlabel=r"start $x_1$")
        figure.axes[0].set_ylabel(r"sample $x_0$")
    run.figure("memory", figure, "DDIM keeps what it started from, DDPM forgets it; data N(0, 1), 1/√26 = 0.196")


def points(
    run: RunDirectory,
    times: Float[np.ndarray, " levels"],
    curves: Mapping[tuple[str, str], Float[np.ndarray, "starts levels"]],
    targets: Mapping[str, Float[np.ndarray, " points"]],
) -> None:
    """Draw the ways to one point and to two."""
    with plots.style():
        figure = Figure(figsize=(8.0, 4.6))
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        for axes, ((sampler, name), ways) in zip(panels.flat, curves.items(), strict=True):
            axes.plot(times, ways.T, color=_SAMPLER_COLOURS[sampler], linewidth=0.8, alpha=0.7)
            axes.plot(np.zeros(len(targets[name])), targets[name], "k*", markersize=9, clip_on=False, zorder=3)
            axes.set(title=f"{sampler} to {name}", xlim=(1.0, 0.0))
        for axes in panels[-1]:
            axes.set_xlabel("time t, from noise to data")
        for axes in panels[:, 0]:
            axes.set_ylabel("x")
    run.figure("points", figure, "ways of both samplers with the exact denoiser and 100 steps; the data are the stars")


def preserving_flows(
    run: RunDirectory, preserving: Float[np.ndarray, "starts levels"], linear: Float[np.ndarray, "starts levels"]
) -> None:
    """Draw variance-preserving DDIM over the straight flow of its coupling."""
    with plots.style():
        figure = Figure(figsize=(8.0, 3.0))
        panels = figure.subplots(1, 2, sharey=True)
        titles = ("variance-preserving DDIM", "linear flow, same coupling")
        for axes, curves, title, colour in zip(panels, (preserving, linear), titles, (_TRUTH, _OTHER), strict=True):
            times = np.linspace(1.0, 0.0, curves.shape[1])
            axes.plot(times, curves[::3].T, color=colour, linewidth=0.8, alpha=0.8)
            axes.set(title=title, xlabel="time t", xlim=(1.0, 0.0))
        panels[0].set_ylabel("x")
    caption = "both flows lead the same starts to the same ends, but no slice of one looks like a slice of the other"
    run.figure("preserving_flows", figure, caption)


def orders(run: RunDirectory, steps: np.ndarray, errors: Mapping[str, np.ndarray]) -> None:
    """Draw the error of each sampler against its number of steps."""
    with plots.style():
        figure = Figure(figsize=(6.2, 3.6))
        axes = figure.subplots()
        for (name, values), marker in zip(errors.items(), "osD^v", strict=True):
            slope = np.polyfit(np.log(steps[-3:]), np.log(values[-3:]), 1)[0]
            axes.loglog(steps, values, marker + "-", markersize=4, label=f"{name}: {slope:.2f}")
        axes.set(xlabel="steps N", ylabel="error at t = 0")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", title="exponent of N")
    caption = (
        "error from x = 3 on a mixture on a line with its exact denoiser; of DDPM, the error of the variance of N(0, 1)"
    )
    run.figure("orders", figure, caption)


def spirals(
    run: RunDirectory,
    networks: Networks,
    samples: Mapping[str, Float[np.ndarray, "count networks 2"]],
    ways: Mapping[str, Float[np.ndarray, "count sizes levels 2"]],
) -> None:
    """Draw what both samplers make of every training set, by the networks of the first seed."""
    sizes, curve = networks.counts[0], data.spiral(np.linspace(0.0, 1.0, 600))
    with plots.style():
        figure = Figure(figsize=(2.6 * len(sizes), 5.4))
        panels = figure.subplots(len(samples), len(sizes), sharex=True, sharey=True, squeeze=False)
        for row, (name, drawn) in zip(panels, samples.items(), strict=True):
            for index, axes in enumerate(row):
                _plane(axes)
                axes.plot(*curve.T, color=_PALE, linewidth=1.0, label="spiral", zorder=1)
                axes.add_collection(
                    LineCollection(
                        list(ways[name][:, index]), colors=_SAMPLER_COLOURS[name], linewidths=0.4, alpha=0.35
                    )
                )
                axes.plot(*drawn[:_SHOWN_SAMPLES, index].T, ".", color=_THIRD, markersize=2, label="samples", zorder=2)
                known = networks.points[0, index, : sizes[index]]
                axes.plot(*known.T, "k*", markersize=5, label="training points", zorder=3)
                axes.set_title(f"{name}, N = {sizes[index]}")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=1.5)
    caption = "a network of three layers that sees N points of a spiral: samples, and ways from noise (thin lines)"
    run.figure("spirals", figure, f"{caption} (figure 6 of the tutorial); first seed, DDIM with equal steps in √t")


def memorised(
    run: RunDirectory,
    sizes: Sequence[int],
    found: Mapping[str, Float[np.ndarray, "seeds sizes"]],
    chance: Float[np.ndarray, " sizes"],
) -> None:
    """Draw the memorised fraction against the number of training points, each seed and their mean."""
    with plots.style():
        figure = Figure(figsize=(6.4, 3.2))
        axes = figure.subplots()
        for (name, values), colour in zip(found.items(), plots.PALETTE, strict=False):
            axes.plot(sizes, values.T, "-", color=colour, linewidth=0.5, alpha=0.4)
            axes.plot(sizes, values.mean(axis=0), "o-", color=colour, markersize=4, label=name)
        axes.plot(sizes, chance, "k--", label="points anywhere\non the spiral")
        axes.set(xlabel="training points N", ylabel="memorised fraction", ylim=(0.0, 1.02))
        axes.set_xticks(sizes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    run.figure("memorised", figure, "samples close to a training point; thin lines are seeds, thick ones their means")


def annulus(
    run: RunDirectory,
    times: Sequence[float],
    clouds: Float[np.ndarray, "count times 2"],
    ways: Float[np.ndarray, "pairs levels 2"],
    partners: Float[np.ndarray, "pairs 2"],
) -> None:
    """Draw the flow's cloud at some times, then straight lines between partners beside the flow's own ways."""
    with plots.style():
        figure = Figure(figsize=(1.55 * len(times), 2.1))
        panels = figure.subplots(1, len(times), sharey=True)
        for axes, at, cloud in zip(panels, times, clouds.swapaxes(0, 1), strict=True):
            _plane(axes)
            axes.plot(*cloud.T, ".", color=_TRUTH, markersize=1.0, alpha=0.5)
            axes.set_title(f"t = {at:g}")
    run.figure("annulus_times", figure, "samples of the learned flow on their way from the annulus to the spiral")
    with plots.style():
        figure = Figure(figsize=(6.4, 3.4))
        straight = np.stack([ways[:, 0], partners], axis=1)
        titles = ("straight lines between partners", "the learned marginal flow")
        for axes, lines, title in zip(figure.subplots(1, 2, sharey=True), (straight, ways), titles, strict=True):
            _plane(axes)
            axes.add_collection(LineCollection(list(lines), colors=_PALE, linewidths=0.6, alpha=0.8))
            axes.plot(*lines[:, 0].T, ".", color=_OTHER, markersize=4, label="annulus, t = 1")
            axes.plot(*lines[:, -1].T, ".", color=_TRUTH, markersize=4, label="t = 0")
            axes.set_title(title)
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
    run.figure(
        "annulus_flow", figure, "pointwise flows of random partners, and the flow that learned their mean velocity"
    )


def _plane(axes: Any) -> None:
    axes.set(xlim=(-_FRAME, _FRAME), ylim=(-_FRAME, _FRAME), aspect="equal")
    axes.grid(visible=False)
    axes.set_xticks((-2, 0, 2))
    axes.set_yticks((-2, 0, 2))
