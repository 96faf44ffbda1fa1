"""Measure EDM2 on the digits: its loss at each noise level, its samples, and how wide its average should be."""

import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.claims import Cell
from experiments.digits import data, edm2, edm2_figures, judging
from experiments.digits.edm2 import TrainedEDM2
from experiments.digits.sampling import METHODS, sampling_key, seed_labels
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.diffusion import sigma_grid
from jaxgen.pipelines import collections, generate_images, loss_by_level
from jaxgen.typing import Params

_BLOCK = 200
_GROUPS = 8


def draw(
    trained: TrainedEDM2,
    labels: Int[np.ndarray, "*batch"],
    key: Any,
    *,
    sampler: str = "heun",
    scale: float = 1.0,
    steps: int,
    corrector_steps: int = 1,
    params: Params | None = None,
    on_block: Any = None,
) -> Float[np.ndarray, "*batch 64"]:
    """Draw an image of 64 pixels for each label, not clipped."""
    images = generate_images(
        trained.model,
        edm2.OBJECTIVE,
        trained.params if params is None else params,
        labels.reshape(-1),
        key,
        method=METHODS[sampler](corrector_steps),
        scale=scale,
        steps=steps,
        block_size=min(_BLOCK, labels.size),
        mesh=trained.mesh,
        variables=trained.variables,
        on_block=on_block,
    )
    return trained.scaling.outward(images).reshape(*labels.shape, data.SIDE**2)


def measure(config: Any, run: RunDirectory, trained: TrainedEDM2, judge: judging.Judge) -> None:
    """Record the claims of EDM2 and draw its figures.

    Raises:
        Interrupted: a signal came; the network is saved and the measurements start anew on resume.
    """
    _losses(run, trained, judge.digits)
    began = time.perf_counter()
    labels = seed_labels(judge.digits, config.edm2.seeds, run.seed)
    with run.progress(labels.size, "drawing with EDM2") as progress:
        samples = draw(
            trained, labels, sampling_key(run.seed), steps=config.edm2.sampling_steps, on_block=progress.update
        )
    _distances(config, run, judge, samples, time.perf_counter() - began)
    scores = judging.score_all(judge, samples, labels)
    told = [f"{title} {judging.told(scores[name])}" for name, title in judging.NAMES.items()]
    right = round(float(scores["accuracy"].mean()) * labels.size)
    asked = Cell("Heun", successes=right, trials=labels.size)
    run.record("M16", [asked], seconds=time.perf_counter() - began, scale=_scale(run))
    width = edm2.WIDTHS[0] if config.ema_width is None else config.ema_width
    run.note(
        f"EDM2, average of width {width:g}, Heun with {config.edm2.sampling_steps} steps (mean and standard "
        f"deviation): {', '.join(told)}."
    )
    run.arrays(**{f"edm2_{name}": values for name, values in scores.items()})
    if run.stop():
        raise Interrupted
    _widths(config, run, trained, judge, float(scores["frechet"][0]))
    # As many as a block holds, which is compiled already.
    labels = np.arange(_BLOCK) % 10
    shown = draw(trained, labels, sampling_key(run.seed), steps=config.edm2.sampling_steps)
    edm2_figures.samples(run, shown.reshape(-1, 10, data.SIDE**2).swapaxes(0, 1), config.edm2.sampling_steps)
    edm2_figures.training(run)


def _distances(config: Any, run: RunDirectory, judge: judging.Judge, samples: np.ndarray, seconds: float) -> None:
    """Compare plain Fréchet distances: every set is of the same size, so that all have about the same bias."""
    digits, found = judge.digits, {"real digits": [], "class Gaussians": [], "class Gaussians, not clipped": []}
    for index in range(config.subsets):
        chosen = data.subset(digits, index)
        gaussian = data.gaussian_samples(digits, digits.train_labels[chosen], index)
        found["real digits"].append(judging.plain_frechet(judge, digits.train[chosen]))
        found["class Gaussians"].append(judging.plain_frechet(judge, gaussian))
        found["class Gaussians, not clipped"].append(judging.plain_frechet(judge, gaussian, clip=False))
    found["EDM2"] = [judging.plain_frechet(judge, of) for of in samples]
    cell = Cell("Heun", values=found["class Gaussians"], control=found["EDM2"], paired=False)
    run.record("M15", [cell], seconds=seconds, scale=_scale(run))
    told = [f"{name} {judging.told(np.asarray(values))}" for name, values in found.items()]
    run.note(
        f"Plain Fréchet distance on the classifier's features, {len(judge.digits.held_out)} images each (mean and "
        f"standard deviation): {', '.join(told)}. Mind the last row but one: what is no digit may come as close as "
        "digits do."
    )
    run.arrays(**{f"plain_frechet_{name.split(',')[-1].strip().replace(' ', '_')}": of for name, of in found.items()})


def _scale(run: RunDirectory) -> str:
    return "reduced" if run.preset == "ci" else "full"


def _losses(run: RunDirectory, trained: TrainedEDM2, digits: data.Digits) -> None:
    """Measure the loss at levels that cut the training law into equal parts, on training and on held-out digits."""
    began = time.perf_counter()
    objective, count = edm2.OBJECTIVE, 2 * edm2.LEVELS
    # The middles of equally likely parts: the mean over them is the loss of training.
    sigmas = np.exp(objective.level_edges(2 * count)[::2])
    levels = jax.tree.map(lambda leaf: leaf[:-1], sigma_grid(np.append(sigmas[::-1], 0.0)))
    found, same = {}, len(digits.held_out)
    for name, images, labels in (
        ("training", digits.train[:same], digits.train_labels[:same]),
        ("held-out", digits.held_out, digits.held_out_labels),
    ):
        key = jax.random.fold_in(jax.random.key(run.seed), 3)
        arguments = (trained.scaling.inward(images), labels, key, levels)
        found[name] = loss_by_level(trained.model, objective, trained.params, *arguments, variables=trained.variables)
    held_out = found["held-out"]
    groups = [np.array_split(of.mean(axis=0), _GROUPS) for of in (held_out.zero, held_out.network)]
    zero, network = ([group.mean() for group in of] for of in groups)
    cell = Cell(f"{_GROUPS} groups of held-out digits", values=zero, control=network)
    run.record("M14", [cell], seconds=time.perf_counter() - began, scale=_scale(run))
    weights = collections(trained.params, trained.variables)
    conditions = np.asarray(objective.condition(levels), np.float32)
    uncertainty = np.asarray(trained.model.apply(weights, conditions, method=trained.model.log_variance))
    run.arrays(
        edm2_loss_sigmas=levels.sigma,
        edm2_loss_training=found["training"].network.mean(axis=1),
        edm2_loss_held_out=held_out.network.mean(axis=1),
        edm2_loss_zero=held_out.zero.mean(axis=1),
        edm2_uncertainty=uncertainty,
    )
    edm2_figures.losses(run, levels.sigma, found, uncertainty)
    means = {name: of.network.mean() for name, of in found.items()}
    run.note(
        f"EDM2's weighted loss, mean over the noise of training: {means['training']:.3f} on the training digits and "
        f"{means['held-out']:.3f} on held-out ones, where an output of 0 has {held_out.zero.mean():.3f}."
    )


def _widths(config: Any, run: RunDirectory, trained: TrainedEDM2, judge: judging.Judge, measured: float) -> None:
    """Draw the Fréchet distance against the width of the average, each reconstructed from the snapshots."""
    labels = seed_labels(judge.digits, 1, run.seed)[0]
    folder = (run.path if run.source is None else run.source) / "checkpoints"
    distances = {edm2.WIDTHS[0] if config.ema_width is None else config.ema_width: measured}
    with run.progress(len(config.edm2.widths), "widths of the average") as progress:
        for number, width in enumerate(config.edm2.widths, start=1):
            params = edm2.averaged(config, folder, width)
            key, steps = sampling_key(run.seed), config.edm2.sampling_steps
            distances[width] = judging.frechet(judge, draw(trained, labels, key, steps=steps, params=params))
            progress.update(number)
            if run.stop():
                raise Interrupted
    widths = sorted(distances)
    run.arrays(edm2_widths=widths, edm2_width_frechet=[distances[width] for width in widths])
    if len(widths) > 1:
        edm2_figures.widths(run, widths, [distances[width] for width in widths])
