"""The networks of a cell of the experiment on images: trained here in both arms, resumed, or taken from another run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from experiments import configuration
from experiments.devices import check_divides, mesh_of
from experiments.keys import key_of
from experiments.metric_lines import metric_lines
from experiments.multi_source import image_sources, paper_settings
from experiments.multi_source.image_sources import Sources
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.models import EDM2, EDM2Config
from jaxgen.pipelines import Arm, EDM2Recipe, EDMObjective, arm_weights, initial_arm, train_arm, training_flops
from jaxgen.training import (
    Checkpoints,
    LatentFolder,
    TrainState,
    check_batch,
    gathered,
    inverse_root_rate,
    peak_flops,
    restore_params,
    stepped_inverse_root_rate,
)
from jaxgen.typing import Params

ARMS = {"shared": True, "separate": False}
_PIXELS = EDMObjective(data_std=image_sources.DATA_STD, log_sigma_mean=-0.8, log_sigma_std=1.6)
_LATENTS = EDMObjective(data_std=image_sources.DATA_STD, log_sigma_mean=-0.4, log_sigma_std=1.0)
_CPU_FLOPS = 2e11  # a generous guess for a machine whose peak is not known
_LONGEST_DAYS = 30.0
_LOG_EVERY = 20


class Cell(NamedTuple):
    """One setting of the experiment: how many sources, how alike, and how many images of each."""

    sources: int
    likeness: float | str
    per_source: int

    @property
    def name(self) -> str:
        """Return what its files and rows are called."""
        likeness = self.likeness if isinstance(self.likeness, str) else f"{self.likeness:g}"
        return f"K{self.sources}-{likeness}-N{self.per_source}"

    @property
    def title(self) -> str:
        """Return what a person reads."""
        likeness = self.likeness if isinstance(self.likeness, str) else f"similarity {self.likeness:g}"
        return f"K = {self.sources}, {likeness}, N = {self.per_source}"


def cells(config: Any) -> list[Cell]:
    """List the cells of the grid."""
    images = config.images
    levels: Sequence[float | str] = images.similarities if images.data is None else images.class_lists
    return [
        Cell(sources, level, count) for sources in images.sources for level in levels for count in images.per_source
    ]


def sources_of(config: Any, run: RunDirectory, cell: Cell, seed: int) -> Sources:
    """Return the images of a cell for a training seed, those that the networks of `--from` were trained on if given.

    The seed of this run then decides what is drawn, and not which images were held out from the training.
    """
    images = config.images
    drawn_by = run.seed if run.source is None else configuration.read_run(run.source)["seed"]
    make: Any = image_sources.digits if images.data is None else image_sources.folder
    return make(images, cell.sources, cell.likeness, cell.per_source, (drawn_by, seed))


def objective(config: Any) -> EDMObjective:
    """Return what the networks predict, with the noise of the paper for latents, that of EDM2 for pixels."""
    return _LATENTS if _stores_latents(config) else _PIXELS


def arm_of(config: Any, sources: int, shared: bool) -> Arm:
    """Build an arm for the images that there are."""
    images = config.images
    names = ("width", "multipliers", "blocks", "attention_sides", "channels_per_head", "dtype")
    sizes = {name: getattr(images, name) for name in names}
    return Arm(EDM2(EDM2Config(_image_shape(config), sources, **sizes)), shared)


def recipe_of(config: Any, cell: Cell, shared: bool) -> EDM2Recipe:
    """Return how an arm is trained, told for one source: alike in both arms, or as the paper trained each."""
    images = config.images
    if images.schedule == "matched":
        return EDM2Recipe(
            steps=images.steps,
            batch_size=images.batch_size,
            learning_rate=images.learning_rate,
            reference_batches=images.reference_batches,
            ramp_images=images.ramp_batches * images.batch_size,
            law=inverse_root_rate,
            accumulate=images.accumulate,
        )
    sources = cell.sources if shared else 1
    of = paper_settings.duration(sources, cell.per_source, slower=images.schedule == "paper-nlr")
    multiple = paper_settings.MULTIPLE
    batch = multiple * math.ceil(paper_settings.BATCH_SIZE / sources / multiple)
    return EDM2Recipe(
        steps=math.ceil(of.images / (sources * batch)),
        batch_size=batch,
        learning_rate=of.learning_rate,
        reference_batches=float(of.reference_batches),
        ramp_images=paper_settings.RAMP_IMAGES / sources,
        law=stepped_inverse_root_rate,
        accumulate=images.accumulate,
    )


def check(config: Any, run: RunDirectory) -> None:
    """Refuse sizes that no network has, what this machine will not finish, and a run that trained otherwise.

    Raises:
        ValueError: names the option and the mend.
    """
    images = config.images
    if images.data is not None and not images.data.exists():
        raise ValueError(f"--images.data {images.data} is not there; name a folder, or a zip of latents")
    if images.schedule == "matched":
        check_divides(run, **{"images.batch_size": images.batch_size})
    for cell in cells(config):
        for shared in ARMS.values():
            arm_of(config, cell.sources, shared)
            check_batch(recipe_of(config, cell, shared).batch_size, mesh_of(run))
        if images.data is not None:
            stored = image_sources.open_folder(images.data, images.side)
            classes = image_sources.classes_of(stored.classes, str(cell.likeness), cell.sources, images.data)
            image_sources.check_counts(images, stored, classes)
    if run.source is None:
        _check_cost(config, run)
        return
    ours, theirs = (
        {name: value for name, value in made.items() if name not in ("samples", "sampling_steps", "features")}
        for made in (
            configuration.to_json(config)["images"],
            configuration.read_run(run.source)["config"].get("images", {}),
        )
    )
    if found := configuration.differences({"images": theirs}, {"images": ours}):
        raise ValueError(f"--from {run.source} takes its networks as they are, but {'; '.join(found)}")


def cost(config: Any) -> tuple[float, float]:
    """Estimate the floating-point operations of all training, and the bytes of the largest state, from shapes."""
    total, largest = 0.0, 0.0
    for cell in cells(config):
        for shared in ARMS.values():
            arm, recipe = arm_of(config, cell.sources, shared), recipe_of(config, cell, shared)
            networks = 1 if shared else cell.sources
            flops = training_flops(arm.network, objective(config), arm.recipe(recipe))
            total += config.images.seeds * networks * recipe.steps * flops
            shapes = jax.eval_shape(lambda arm=arm, recipe=recipe: initial_arm(arm, recipe, jax.random.key(0)))
            arrays = jax.tree.leaves((shapes.params, shapes.params, shapes.opt_state, shapes.ema))
            largest = max(largest, float(sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)))
    return total, largest


def _check_cost(config: Any, run: RunDirectory) -> None:
    """Say before anything starts what a machine is asked for, where it is more than a laptop's."""
    if config.images.width < 64:
        return
    flops, state = cost(config)
    devices = mesh_of(run).devices.ravel()
    peak = peak_flops(devices[0]) or _CPU_FLOPS
    # Two fifths of the peak is what a good training of convolutions reaches.
    days = flops / (0.4 * peak * len(devices)) / 86_400
    told = f"{flops:.1e} operations, about {days:.3g} days on these {len(devices)} devices, and {state / 2**30:.1f} GiB"
    stats = devices[0].memory_stats() or {}
    room = stats.get("bytes_limit", math.inf) * (len(devices) if run.fully_sharded else 1)
    mend = "lower --images.width, --images.steps, --images.sources or --images.seeds, or take more devices"
    if days > _LONGEST_DAYS or state > room:
        raise ValueError(f"the experiment on images asks for {told} of state: {mend}, or leave it out with --part")


def obtain(
    config: Any, run: RunDirectory, cell: Cell, seed: int, sources: Sources, arm_name: str
) -> list[tuple[Params, Any]]:
    """Train an arm, with checkpoints in the run, or read it from the run that `--from` names.

    Returns:
        For each source the averaged parameters and other collections of the network that serves it, on the host.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    arm = arm_of(config, cell.sources, ARMS[arm_name])
    recipe = recipe_of(config, cell, arm.shared)
    name = f"{cell.name}-seed{seed}-{arm_name}"
    if run.source is None:
        state = _train(config, run, name, arm, recipe, sources, seed)
    else:
        like = jax.eval_shape(lambda: initial_arm(arm, recipe, jax.random.key(0)))
        folder = run.source / "checkpoints" / name
        state = like._replace(
            ema=restore_params(folder, like.ema, field="ema", step=recipe.steps),
            variables=restore_params(folder, like.variables, field="variables", step=recipe.steps),
        )
    return [gathered(arm_weights(arm, state, source)) for source in range(arm.num_sources)]


def _train(
    config: Any, run: RunDirectory, name: str, arm: Arm, recipe: EDM2Recipe, sources: Sources, seed: int
) -> TrainState:
    settings = {"images": configuration.to_json(config)["images"], "seed": run.seed, "network": name}
    with (
        Checkpoints(run.checkpoints / name, config=settings, keep=1) as checkpoints,
        metric_lines(run, saved=(saved := checkpoints.good_step()), name=name) as write,
        run.progress(recipe.steps, f"training {name}") as progress,
    ):
        if run.resumed:
            run.resume_metrics(saved or 0, metric=f"{name}_loss")

        def report(step: int, metrics: dict) -> None:
            loss = float(metrics["loss"].mean())
            progress.update(step, loss=loss)
            if step % _LOG_EVERY == 0 or step == recipe.steps:
                write(step, {f"{name}_loss": loss})

        state = train_arm(
            arm,
            objective(config),
            sources.train,
            key_of(run, "train images", seed),
            recipe,
            latents=sources.latents,
            mesh=mesh_of(run),
            fully_sharded=run.fully_sharded,
            checkpoints=checkpoints,
            resume=run.resumed,
            save_every=max(recipe.steps // 4, 1) if recipe.steps > 1000 else None,
            on_metrics=report,
            stop=run.stop,
        )
    if state.step < recipe.steps:
        raise Interrupted
    return state


def _image_shape(config: Any) -> tuple[int, int, int]:
    images = config.images
    if images.data is None:
        return image_sources.SIDE, image_sources.SIDE, 1
    stored = image_sources.open_folder(images.data, images.side)
    if isinstance(stored, LatentFolder):
        height, width, channels = stored.shape
        return height, width, channels // 2
    return stored.side, stored.side, stored.channels


def _stores_latents(config: Any) -> bool:
    images = config.images
    return images.data is not None and isinstance(image_sources.open_folder(images.data, images.side), LatentFolder)
