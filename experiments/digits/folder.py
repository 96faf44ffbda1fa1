"""The same pipeline on a folder of images of one's own: `digits --data DIR`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import configuration, plots
from experiments.devices import check_divides, mesh_of
from experiments.digits.claims import CLAIMS
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.models import ImageConv, ImageConvConfig, abstract_params
from jaxgen.pipelines import EDMObjective, Recipe, film_images, generate_images, train_on_batches, training_flops
from jaxgen.training import (
    Asynchronous,
    Checkpoints,
    Share,
    TensorBoard,
    Timing,
    gathered,
    local_mesh,
    open_images,
    read_config,
    restore_params,
    streamed,
    utilisation,
)
from jaxgen.typing import Params

_NAME = "images"
_TRAINED = ("steps", "batch_size", "learning_rate", "ema_half_life", "label_dropout", "side", "mirror", "conv")
_LOG_EVERY = 10
_CLASSES_SHOWN, _COLUMNS, _FRAMES = 10, 10, 10
# A denoiser of colour images in [-1, 1] (Karras et al. 2022, table 1).
_OBJECTIVE = EDMObjective()


class Trained(NamedTuple):
    """A network that can be sampled, and the classes that it knows."""

    model: ImageConv
    params: Params
    classes: tuple[str, ...]


def check(config: Any, run: RunDirectory) -> None:
    """Refuse, before anything is written, a folder, sizes or a run to sample from that cannot serve.

    Raises:
        ValueError: names the option and the mend.
    """
    if config.sampler not in ("all", "ddim"):
        raise ValueError(f"--sampler {config.sampler} is of the digits; with --data images are drawn by ddim")
    if config.label is not None and config.label < 0:
        raise ValueError(f"--label must be at least 0, got {config.label}")
    for name in ("accumulate", "steps_per_transfer"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")
    if config.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {config.workers}; 0 reads in threads of this process")
    check_divides(run, batch_size=config.batch_size)
    _model(config, 1)
    _recipe(config)
    if not config.data.exists():
        raise ValueError(f"--data {config.data} does not exist; name a folder of PNG or JPEG images")
    if run.source is not None:
        _compare(config, run.source)


def run_folder(config: Any, run: RunDirectory) -> None:
    """Train on the images of `--data`, or take the network of `--from`, and draw samples of every class.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    trained = _restored(config, run.source) if run.source is not None else _train(config, run)
    _draw(config, run, trained)
    for claim in CLAIMS:
        run.not_run(claim.id, "the claims are of scikit-learn's digits, and this run is of the images of --data")


def _train(config: Any, run: RunDirectory) -> Trained:
    mesh = mesh_of(run)
    images = open_images(config.data, config.side, index=run.path / "images.json", share=_share())
    if images.damaged:
        named = "; ".join(f"{broken.name} ({broken.reason})" for broken in images.damaged[:5])
        run.note(f"{len(images.damaged)} damaged images were left out: {named}.")
    model, recipe = _model(config, len(images.classes)), _recipe(config)
    run.note(
        f"{len(images)} images of {len(images.classes)} classes, cut to {config.side} x {config.side} pixels; a "
        f"network of {_size(model):,} parameters."
    )
    with (
        streamed(
            images, config.batch_size, run.seed, mesh=mesh, block=config.steps_per_transfer, workers=config.workers
        ) as batches,
        Checkpoints(
            run.checkpoints / _NAME, config=_settings(config, run, images.classes), keep=2, best="loss"
        ) as checkpoints,
        _telling(config, run, recipe, model, mesh, checkpoints.latest_step) as (report, told),
    ):
        state = train_on_batches(
            model,
            _OBJECTIVE,
            batches,
            jax.random.fold_in(jax.random.key(run.seed), 0),
            recipe,
            mesh=mesh,
            fully_sharded=run.fully_sharded,
            checkpoints=checkpoints,
            resume=run.resumed,
            save_every=max(recipe.steps // 4, 1),
            on_metrics=report,
            on_timing=told,
            stop=run.stop,
        )
    if int(state.step) < recipe.steps:
        raise Interrupted
    return Trained(model, gathered(state.ema.average), images.classes)


def _share() -> Share | None:
    """Return this process's part in looking at the files."""
    if jax.process_count() == 1:
        return None
    return Share(jax.process_index(), jax.process_count(), multihost_utils.process_allgather)


@contextlib.contextmanager
def _telling(
    config: Any, run: RunDirectory, recipe: Recipe, model: ImageConv, mesh: Any, saved: int | None
) -> Iterator[tuple[Callable[[int, dict], None], Callable[[int, Timing], None]]]:
    """Yield what is called with metrics and with timings, which write without holding up the training."""
    flops, devices = training_flops(model, _OBJECTIVE, recipe), list(mesh.devices.flat)
    if run.resumed:
        run.resume_metrics(saved or 0)
    last: dict[str, float] = {}

    def lines(step: int, metrics: Any) -> None:
        run.metrics(step, **{name: float(value) for name, value in metrics.items()})

    with contextlib.ExitStack() as stack:
        writers: list[Any] = [lines]
        if run.tensorboard and run.writes:
            writers.append(TensorBoard(run.path / "tensorboard", purge_step=saved + 1 if saved else None))
        write = stack.enter_context(Asynchronous(*writers))
        progress = stack.enter_context(run.progress(recipe.steps, "training"))

        def timed(step: int, timing: Timing) -> None:
            del step
            last["images_per_second"] = recipe.batch_size / float(timing.step)
            last["host_milliseconds"] = 1e3 * float(timing.host)
            last["data_milliseconds"] = 1e3 * float(timing.data)
            if (share := utilisation(flops, float(timing.step), devices)) is not None:
                last["utilisation"] = share

        def report(step: int, metrics: dict) -> None:
            progress.update(step, loss=float(metrics["loss"]), **{n: last[n] for n in last if "seconds" not in n[-12:]})
            if step % _LOG_EVERY == 0 or step == recipe.steps:
                write(step, {**metrics, **last})

        yield report, timed


def _restored(config: Any, source: Path) -> Trained:
    folder = source / "checkpoints" / _NAME
    classes = tuple(read_config(folder, step=config.steps)["classes"])
    model = _model(config, len(classes))
    return Trained(
        model, restore_params(folder, abstract_params(model), field="ema.average", step=config.steps), classes
    )


def _compare(config: Any, source: Path) -> None:
    asked = configuration.to_json(config)
    stored = configuration.read_run(source)["config"]
    names = [name for name in _TRAINED if name in asked]
    if found := configuration.differences({n: stored.get(n) for n in names}, {n: asked[n] for n in names}):
        raise ValueError(f"--from {source} takes its network as it is, but {'; '.join(found)}")


def _draw(config: Any, run: RunDirectory, trained: Trained) -> None:
    """Draw what a person judges by eye: samples of every class, and how one of each emerges."""
    if config.label is not None and config.label >= len(trained.classes):
        raise ValueError(f"--label must lie in [0, {len(trained.classes) - 1}], got {config.label}")
    shown = np.arange(min(len(trained.classes), _CLASSES_SHOWN)) if config.label is None else np.array([config.label])
    labels = np.resize(np.repeat(shown, _COLUMNS), max(config.samples, _COLUMNS * len(shown)))
    network = (trained.model, _OBJECTIVE, trained.params)
    key = jax.random.fold_in(jax.random.key(run.seed), 1)
    options = {"scale": config.gamma, "steps": config.sampling_steps, "mesh": local_mesh()}
    with run.progress(len(labels), "drawing") as progress:
        images = generate_images(*network, labels, key, **options, on_block=progress.update)
    run.arrays(samples=_bytes(images), labels=labels, classes=list(trained.classes))
    title = f"DDIM, guidance scale {config.gamma:g}, {config.sampling_steps} steps"
    rows = images[: _COLUMNS * len(shown)].reshape(len(shown), _COLUMNS, *images.shape[1:])
    _rows(run, "samples", rows, trained, shown, title, f"{title}: a class a row")
    film = film_images(*network, shown, key, **options)
    frames = np.unique(np.linspace(0, config.sampling_steps - 1, _FRAMES).round().astype(int))
    caption = "the clean image predicted from one noise, at equal intervals: a class a row"
    _rows(run, "filmstrips", film.x0[:, frames], trained, shown, "Denoising", caption)


def _rows(run: RunDirectory, name: str, rows: Any, trained: Trained, shown: Any, title: str, caption: str) -> None:
    names = [trained.classes[label][:20] for label in shown]
    run.figure(name, plots.image_grid(rows, row_labels=names, title=title, upscale=2), caption)


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def _settings(config: Any, run: RunDirectory, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what a resumed run must share; where the files lie and how they are read may change."""
    asked = configuration.to_json(config)
    return {**{name: asked[name] for name in _TRAINED}, "classes": list(classes), "seed": run.seed}


def _model(config: Any, num_classes: int) -> ImageConv:
    conv = config.conv
    return ImageConv(
        ImageConvConfig(
            (config.side, config.side, 3),
            num_classes,
            width=conv.width,
            multipliers=tuple(conv.multipliers),
            blocks=conv.blocks,
            dtype=None if conv.dtype == "float32" else conv.dtype,
            remat=conv.remat,
        )
    )


def _recipe(config: Any) -> Recipe:
    return Recipe(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        ema_half_life=config.ema_half_life,
        label_dropout=config.label_dropout,
        largest_shift=0.0,
        mirror=config.mirror,
        accumulate=config.accumulate,
    )


def _size(model: ImageConv) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
