"""The experiment on images: EDM2 of several sources against one each, on the same images and the same noise."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from experiments.claims import Cell as LedgerCell
from experiments.devices import mesh_of
from experiments.keys import key_of
from experiments.multi_source import figures_images, image_networks
from experiments.multi_source.image_networks import ARMS, Cell
from experiments.multi_source.image_sources import Sources
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.diffusion import sigma_grid
from jaxgen.models import abstract_params
from jaxgen.pipelines import sample_source, source_losses
from jaxgen.statistics import (
    FeatureFunction,
    Features,
    ParameterCounts,
    SourceParams,
    count_source_parameters,
    extract_features,
    fd,
    fd_debiased,
    memorization_ratio,
    pca_features,
    rate_ratio,
    split_by_path,
)

_LEVELS = 8
_FEWEST = 3
_ANALOGY = "No theorem leads from the bounds to diffusion models or a Fréchet distance: this measures an analogy."
_NOT_COMPARED = {
    "A12-sources": "needs two numbers of sources; 3 seeds of 10 digits at both similarities take 25 minutes more on 2 "
    "CPU cores, and are part of the preset gpu"
}


class Score(NamedTuple):
    """What is measured of the two arms in a cell, for each seed and source.

    Attributes:
        distance: debiased Fréchet distance to held-out images.
        plain: the same with its bias, which is alike in both arms.
        memorization: distance of samples to the nearest training image over that of held-out images.
        loss: weighted denoising loss of held-out images, as many of each source as the smallest set has, mean over
            the noise of training.
        training_loss: that of as many training images.
    """

    distance: Float[np.ndarray, "*seeds sources"]
    plain: Float[np.ndarray, "*seeds sources"]
    memorization: Float[np.ndarray, "*seeds sources"]
    loss: Float[np.ndarray, "*seeds sources"]
    training_loss: Float[np.ndarray, "*seeds sources"]


Scores = dict[tuple[Cell, str], Score]


def measure(config: Any, run: RunDirectory) -> None:
    """Train both arms in every cell for every seed, and record A11, A11-loss and A12.

    Raises:
        Interrupted: a signal came; the networks so far are saved.
    """
    began, scores, shown, ids = time.perf_counter(), {}, {}, {}
    for cell in image_networks.cells(config):
        rows: dict[str, list[Score]] = {name: [] for name in ARMS}
        for seed in range(config.images.seeds):
            sources = image_networks.sources_of(config, run, cell, seed)
            features = _features(config, sources)
            ids.setdefault(cell, []).append(features.id)
            for arm_name in ARMS:
                weights = image_networks.obtain(config, run, cell, seed, sources, arm_name)
                samples = _draw(config, run, cell, arm_name, weights, sources, seed)
                rows[arm_name].append(_score(config, run, cell, arm_name, weights, sources, samples, features, seed))
                if seed == 0:
                    shown[cell, arm_name] = [part[:8] for part in samples]
                if run.stop():
                    raise Interrupted
            if seed == 0:
                shown[cell, "held out"] = [part[:8] for part in sources.held_out]
        scores |= {(cell, name): _stacked(of) for name, of in rows.items()}
    _record(config, run, scores, time.perf_counter() - began)
    _keep(config, run, scores, ids)
    figures_images.distances(config, run, scores)
    if config.images.data is None:
        figures_images.samples(run, shown)


def _features(config: Any, sources: Sources) -> FeatureFunction:
    # Of what no network has seen, and after the orders of the pixels are undone: the same for both arms, and for
    # every similarity of one seed.
    return pca_features(np.concatenate(list(sources.held_out)), config.images.features)


def _draw(
    config: Any, run: RunDirectory, cell: Cell, arm_name: str, weights: list, sources: Sources, seed: int
) -> list[Float[np.ndarray, "count height width channels"]]:
    """Draw the images of each source; both arms start from the same noise."""
    arm = image_networks.arm_of(config, cell.sources, ARMS[arm_name])
    count, samples = config.images.samples, []
    with run.progress(cell.sources * count, f"drawing {cell.title}, {arm_name}") as progress:
        for source, own in enumerate(weights):
            drawn = sample_source(
                arm,
                image_networks.objective(config),
                own,
                source,
                count,
                key_of(run, "draw images", seed, source),
                steps=config.images.sampling_steps,
                block_size=min(count, 200),
                mesh=mesh_of(run),
            )
            samples.append(sources.shown(source, drawn))
            progress.update((source + 1) * count)
    return samples


def _score(
    config: Any,
    run: RunDirectory,
    cell: Cell,
    arm_name: str,
    weights: list,
    sources: Sources,
    samples: list,
    features: FeatureFunction,
    seed: int,
) -> Score:
    """Compare the samples of each source with its held-out images, and measure the losses of its network."""
    objective = image_networks.objective(config)
    arm = image_networks.arm_of(config, cell.sources, ARMS[arm_name])
    # The middles of equally likely parts of the law of the noise: the mean over them is the loss of training.
    sigmas = np.exp(objective.level_edges(2 * _LEVELS)[::2])
    levels = jax.tree.map(lambda leaf: leaf[:-1], sigma_grid(np.append(sigmas[::-1], 0.0)))
    # As many of each source and set, so that one program measures all.
    count = min(len(images) for part in (sources.held_out, sources.seen) for images in part)
    rows = []
    for source, (own, drawn) in enumerate(zip(weights, samples, strict=True)):
        held_out, seen = sources.held_out[source], sources.seen[source]
        ours, theirs = (_of(features, images) for images in (drawn, held_out))
        flat = [images.reshape(len(images), -1) for images in (drawn, held_out, seen)]
        losses = [
            source_losses(
                arm,
                objective,
                own,
                source,
                sources.inward(source, images[:count]),
                key_of(run, "losses of images", seed, source),
                levels,
            ).network.mean()
            for images in (held_out, seen)
        ]
        rows.append(
            (
                fd_debiased(ours, theirs).estimate,
                fd(ours, theirs).value,
                float(memorization_ratio(*flat)),
                *map(float, losses),
            )
        )
    return Score(*(np.array(column) for column in zip(*rows, strict=True)))


def _of(features: FeatureFunction, images: np.ndarray) -> Features:
    return extract_features(features, [images.astype(np.float32)])


def _stacked(rows: list[Score]) -> Score:
    return Score(*(np.stack(column) for column in zip(*rows, strict=True)))


def _record(config: Any, run: RunDirectory, scores: Scores, seconds: float) -> None:
    images, cells = config.images, image_networks.cells(config)
    if images.seeds < _FEWEST:
        for claim in ("A11", "A11-loss", "A12", "A12-sources"):
            run.not_run(claim, f"{images.seeds} training seeds decide nothing; --images.seeds {_FEWEST} does")
        return
    scale = "full" if images.data is not None and images.schedule != "matched" and images.width >= 128 else "reduced"
    reason = _ANALOGY
    if images.schedule != "matched":
        reason += " As in the paper, the arms were trained for different times."
    for claim, field in (("A11", "distance"), ("A11-loss", "loss")):
        rows = [
            LedgerCell(
                cell.title,
                values=getattr(scores[cell, "separate"], field).mean(axis=1),
                control=getattr(scores[cell, "shared"], field).mean(axis=1),
            )
            for cell in cells
        ]
        run.record(claim, rows, seconds=seconds, scale=scale, reason=reason)
    gains = {cell: gain(scores, cell) for cell in cells}
    for claim, along in (("A12", "likeness"), ("A12-sources", "sources")):
        rows = [
            LedgerCell(f"{upper.title} against {lower.title}", values=gains[upper], control=gains[lower])
            for lower, upper in pairs(cells, along)
        ]
        if rows:
            run.record(claim, rows, seconds=seconds, scale=scale, reason=reason)
        else:
            given = "similarity" if along == "likeness" else "number of sources"
            run.not_run(claim, _NOT_COMPARED.get(claim, f"needs two settings of the {given}, and one was given"))


def pairs(cells: list[Cell], along: str) -> list[tuple[Cell, Cell]]:
    """List the pairs of cells that differ in one step of `likeness`, or of `sources`, and in nothing else."""
    found = []
    for lower in cells:
        line = [cell for cell in cells if cell._replace(**{along: 0}) == lower._replace(**{along: 0})]
        place = line.index(lower)
        found += [(lower, upper) for upper in line[place + 1 : place + 2]]
    return found


def gain(scores: Scores, cell: Cell) -> Float[np.ndarray, " seeds"]:
    """Return 1 - shared / separate of the Fréchet distances, averaged over the sources, by seed.

    NaN, which decides nothing, where the debiased distance of separate networks is not above 0.
    """
    shared, separate = (scores[cell, name].distance.mean(axis=1) for name in ("shared", "separate"))
    return np.where(separate > 0, 1.0 - shared / np.where(separate > 0, separate, 1.0), np.nan)


def _keep(config: Any, run: RunDirectory, scores: Scores, ids: dict[Cell, list[str]]) -> None:
    """Write every number, and tell them with what decides how to read them: images seen and memorisation."""
    for (cell, name), score in scores.items():
        stem = f"images_{cell.name}_{name}".replace("-", "_").replace(".", "_")
        run.arrays(**{f"{stem}_{field}": values for field, values in score._asdict().items()})
    for cell in image_networks.cells(config):
        told = []
        for name, shared in ARMS.items():
            score, recipe = scores[cell, name], image_networks.recipe_of(config, cell, shared)
            seen = recipe.steps * recipe.batch_size
            by_source = ", ".join(f"{value:.3f}" for value in score.distance.mean(axis=0))
            told.append(
                f"{name}: distance {_told(score.distance)} (by source {by_source}; with its bias "
                f"{score.plain.mean():.3f}), loss {_told(score.loss)} held out and {_told(score.training_loss)} on "
                f"training images, memorisation ratio {_told(score.memorization)}, {seen:,} images seen of each source"
            )
        counts, ratio = _counts(config, cell)
        names = ", ".join(f"fd[{name}]" for name in ids[cell])
        run.note(
            f"{cell.title} (debiased {names}, fitted for each seed to the held-out images of its sources; mean and "
            f"standard deviation over {config.images.seeds} seeds of averages over sources): {'; '.join(told)}; "
            f"relative gain of sharing {_told(gain(scores, cell))}. "
            f"A source has {counts.specific:,} of {counts.shared + counts.specific:,} parameters for itself, those of "
            f"its label: counted as A3 does for maximum likelihood, errors would have the ratio {ratio:.3f}."
        )


def _counts(config: Any, cell: Cell) -> tuple[ParameterCounts, float]:
    """Count what EDM2 shares between sources, and the ratio of errors that such counts give in A3."""
    model = image_networks.arm_of(config, cell.sources, True).network
    shared, label = split_by_path(abstract_params(model), lambda path: path.startswith("label/"))
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((cell.sources, *leaf.shape[1:]), leaf.dtype), label)
    counts = count_source_parameters(SourceParams(shared, own))
    return counts, rate_ratio(cell.sources, counts.similarity)


def _told(values: np.ndarray) -> str:
    means = values.mean(axis=1) if values.ndim == 2 else values
    return f"{means.mean():.3f}" + (f" ± {means.std(ddof=1):.3f}" if len(means) > 1 else "")
