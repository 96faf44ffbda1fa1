"""The same pipeline on a folder of images of one's own: `digits --data DIR`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import plots
from experiments.devices import check_divides, mesh_of
from experiments.digits import edm2_figures
from experiments.digits import folder_network as network
from experiments.digits.claims import CLAIMS
from experiments.digits.edm2 import check_widths
from experiments.level_metrics import LevelMetrics
from experiments.metric_lines import metric_lines
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.models import EDM2, ImageConv, abstract_params, abstract_variables
from jaxgen.pipelines import (
    TrainingRecipe,
    averaged_params,
    film_images,
    generate_images,
    guided_ddim,
    guided_heun,
    train_on_batches,
    training_flops,
)
from jaxgen.training import (
    Checkpoints,
    Share,
    Timing,
    gathered,
    local_mesh,
    open_images,
    read_config,
    reconstruct,
    restore_params,
    streamed,
    utilisation,
)
from jaxgen.training.image_records import record_files
from jaxgen.typing import Params

_NAME = "images"
_SNAPSHOTS = "images-snapshots"
_LOG_EVERY = 10
_SUFFIXES = (".png", ".jpg", ".jpeg")
_CLASSES_SHOWN, _COLUMNS, _FRAMES = 10, 10, 10


class Trained(NamedTuple):
    """A network that can be sampled, and the classes that it knows."""

    model: ImageConv | EDM2
    params: Params
    variables: Any
    classes: tuple[str, ...]


def check(config: Any, run: RunDirectory) -> None:
    """Refuse, before anything is written, a folder, sizes or a run to sample from that cannot serve.

    Raises:
        ValueError: names the option and the mend.
        CheckpointError: the checkpoint of the run to sample from is damaged or not there.
    """
    if config.sampler not in ("all", "ddim") and not (config.sampler == "heun" and network.kind(config) == "edm2"):
        raise ValueError(
            f"--sampler {config.sampler} is of the digits; with --data images are drawn by ddim, of EDM2 by heun"
        )
    for name in ("accumulate", "steps_per_transfer"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if config.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {config.workers}; 0 reads in threads of this process")
    check_divides(run, processes=True, batch_size=config.batch_size)
    network.model(config, 1)
    network.recipe(config)
    _check_mesh(config, run)
    snapshots = None if run.source is None else run.source / "checkpoints" / _SNAPSHOTS
    check_widths([config.ema_width], config.steps, network.snapshot_every(config) or config.steps, snapshots)
    if run.source is None:
        _check_label(config, _most_classes(config.data))
    else:
        network.compare(config, run.source)
        _check_label(config, len(_classes(config, run.source)))


def _check_mesh(config: Any, run: RunDirectory) -> None:
    mesh, processes = mesh_of(run, processes=True), jax.process_count()
    if idle := processes - len({device.process_index for device in mesh.devices.flat}):
        raise ValueError(
            f"--mesh {run.mesh} leaves {idle} of {processes} processes without a device; there are "
            f"{jax.device_count()} to share"
        )
    devices, size = mesh.shape.get("data", 1), config.batch_size // config.accumulate
    if size % devices:
        raise ValueError(
            f"--accumulate {config.accumulate} makes parts of {size} images, which do not divide over {devices} "
            f"devices; choose a smaller number, or a larger --batch-size"
        )


def _check_label(config: Any, classes: int) -> None:
    if config.label is not None and not 0 <= config.label < classes:
        raise ValueError(f"--label must lie between 0 and {classes - 1}, one less than the classes; got {config.label}")


def _most_classes(path: Path) -> int:
    """Look at the names of files alone, and return how many classes their images are of, at most.

    Raises:
        ValueError: there are no images, or nothing says which classes they are of.
    """
    if records := record_files(path):
        names = records[0].parent / "label.labels.txt"
        if not names.is_file():
            raise ValueError(f"{names} is missing; it names the classes of the records, one a line")
        return len(names.read_text("utf-8").splitlines())
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise ValueError(f"--data {path} {what}; name a folder of PNG or JPEG images, or ArrayRecord files")
    if not any(file.suffix.lower() in _SUFFIXES for file in path.rglob("*")):
        raise ValueError(f"--data {path} holds no PNG or JPEG images")
    return max(sum(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()), 1)


def run_folder(config: Any, run: RunDirectory) -> None:
    """Train on the images of `--data`, or take the network of `--from`, and draw samples of every class.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    trained = _restored(config, run.source) if run.source is not None else _train(config, run)
    _draw(config, run, trained)
    if network.kind(config) == "edm2":
        edm2_figures.training(run, prefix="")
    for claim in CLAIMS:
        run.not_run(claim.id, "the claims are of scikit-learn's digits, and this run is of the images of --data")


def _train(config: Any, run: RunDirectory) -> Trained:
    mesh = mesh_of(run, processes=True)
    images = open_images(config.data, config.side, index=run.path / "images.json", share=_share())
    _check_label(config, len(images.classes))
    if images.damaged:
        named = "; ".join(f"{broken.name} ({broken.reason})" for broken in images.damaged[:5])
        count = len(images.damaged)
        run.note(f"{count} of {len(images) + count} images are damaged and were left out: {named}.")
    model, recipe = network.model(config, len(images.classes)), network.recipe(config)
    run.note(
        f"{len(images)} images of {len(images.classes)} classes, cut to {config.side} x {config.side} pixels; a "
        f"network of {_size(model):,} parameters."
    )
    with (
        streamed(
            images, config.batch_size, run.seed, mesh=mesh, block=config.steps_per_transfer, workers=config.workers
        ) as batches,
        Checkpoints(
            run.checkpoints / _NAME, config=network.settings(config, run, images.classes), keep=2
        ) as checkpoints,
        network.snapshots(config, run.checkpoints / _SNAPSHOTS) as snapshots,
        _telling(config, run, recipe, model, mesh, checkpoints.good_step()) as (report, told),
    ):
        state = train_on_batches(
            model,
            network.OBJECTIVES[network.kind(config)],
            batches,
            jax.random.fold_in(jax.random.key(run.seed), 0),
            recipe,
            level_edges=network.level_edges(config),
            mesh=mesh,
            fully_sharded=run.fully_sharded,
            checkpoints=checkpoints,
            resume=run.resumed,
            save_every=max(recipe.steps // 4, 1),
            snapshots=snapshots,
            snapshot_every=network.snapshot_every(config),
            on_metrics=report,
            on_timing=told,
            stop=run.stop,
        )
    if int(state.step) < recipe.steps:
        raise Interrupted
    params, variables = gathered(averaged_params(state.ema)), gathered(state.variables)
    if config.ema_width is not None:
        params = gathered(_averaged(config, run.checkpoints, model))
    return Trained(model, params, variables, images.classes)


def _averaged(config: Any, checkpoints: Path, model: EDM2 | ImageConv) -> Params:
    return reconstruct(checkpoints / _SNAPSHOTS, abstract_params(model), config.ema_width, step=config.steps)


def _share() -> Share | None:
    """Return this process's part in looking at the files."""
    if jax.process_count() == 1:
        return None
    return Share(jax.process_index(), jax.process_count(), multihost_utils.process_allgather)


@contextlib.contextmanager
def _telling(
    config: Any, run: RunDirectory, recipe: TrainingRecipe, model: ImageConv | EDM2, mesh: Any, saved: int | None
) -> Iterator[tuple[Callable[[int, dict], None], Callable[[int, Timing], None]]]:
    """Yield what is called with metrics and with timings, which write without holding up the training."""
    flops, devices = (
        training_flops(model, network.OBJECTIVES[network.kind(config)], recipe),
        list(mesh.devices.flat),
    )
    levels = LevelMetrics(network.level_edges(config)) if network.level_edges(config) else None
    if run.resumed:
        run.resume_metrics(saved or 0)
    speed: dict[str, float] = {}
    spent: dict[str, float] = {}
    with metric_lines(run, saved=saved) as write, run.progress(recipe.steps, "training") as progress:

        def timed(step: int, timing: Timing) -> None:
            del step
            speed["images_per_second"] = recipe.batch_size / float(timing.step)
            if (share := utilisation(flops, float(timing.step), devices)) is not None:
                speed["utilisation"] = share
            spent["host_milliseconds"] = 1e3 * float(timing.host)
            spent["data_milliseconds"] = 1e3 * float(timing.data)

        def report(step: int, metrics: dict) -> None:
            plain = metrics if levels is None else levels.add(metrics)
            progress.update(step, loss=float(plain["loss"]), **speed)
            if step % _LOG_EVERY == 0 or step == recipe.steps:
                write(step, {**plain, **(levels.take() if levels else {}), **speed, **spent})

        yield report, timed


def _restored(config: Any, source: Path) -> Trained:
    classes = _classes(config, source)
    model = network.model(config, len(classes))
    folder, average = (
        source / "checkpoints" / _NAME,
        {"small": "ema.average", "edm2": "ema.averages.0"}[network.kind(config)],
    )
    variables = restore_params(folder, abstract_variables(model), field="variables", step=config.steps)
    if config.ema_width is not None:
        params = _averaged(config, source / "checkpoints", model)
    else:
        params = restore_params(folder, abstract_params(model), field=average, step=config.steps)
    return Trained(model, params, variables, classes)


def _classes(config: Any, source: Path) -> tuple[str, ...]:
    return tuple(read_config(source / "checkpoints" / _NAME, step=config.steps)["classes"])


def _draw(config: Any, run: RunDirectory, trained: Trained) -> None:
    """Draw what a person judges by eye: samples of the classes in turn, and how one of each emerges."""
    classes, count = len(trained.classes), config.samples
    labels = np.arange(count) % classes if config.label is None else np.full(count, config.label)
    weights = (trained.model, network.OBJECTIVES[network.kind(config)], trained.params)
    key = jax.random.fold_in(jax.random.key(run.seed), 1)
    heun = network.kind(config) == "edm2" and config.sampler != "ddim"
    steps = config.edm2.sampling_steps if heun else config.sampling_steps
    options = {
        "method": guided_heun if heun else guided_ddim,
        "scale": config.gamma,
        "steps": steps,
        "mesh": local_mesh(),
        "variables": trained.variables,
    }
    with run.progress(count, "drawing") as progress:
        images = generate_images(*weights, labels, key, **options, on_block=progress.update)
    run.arrays(samples=_bytes(images), labels=labels, classes=list(trained.classes))
    title = f"{'Heun' if heun else 'DDIM'}, guidance scale {config.gamma:g}, {steps} steps"
    shown, counts = np.unique(labels, return_counts=True)
    shown, columns = shown[:_CLASSES_SHOWN], min(counts.min(), _COLUMNS)
    rows = np.stack([images[labels == label][:columns] for label in shown])
    _rows(run, "samples", rows, trained, shown, title, f"{title}: a class a row")
    film = film_images(*weights, shown, key, **options)
    frames = np.unique(np.linspace(0, steps - 1, _FRAMES).round().astype(int))
    caption = "the clean image predicted from one noise, at equal intervals: a class a row"
    _rows(run, "filmstrips", film.x0[:, frames], trained, shown, "Denoising", caption)


def _rows(run: RunDirectory, name: str, rows: Any, trained: Trained, shown: Any, title: str, caption: str) -> None:
    names = [trained.classes[label][:20] for label in shown]
    run.figure(name, plots.image_grid(rows, row_labels=names, title=title, upscale=2), caption)


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def _size(model: ImageConv | EDM2) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
