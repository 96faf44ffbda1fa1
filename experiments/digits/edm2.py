"""EDM2 on the digits: trained here, resumed, or taken from the run that `--from` names, at any width of its average."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from experiments import configuration
from experiments.devices import check_divides, mesh_of
from experiments.digits import data
from experiments.level_metrics import LevelMetrics
from experiments.metric_lines import metric_lines
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.models import EDM2, EDM2Config, abstract_params, abstract_variables
from jaxgen.pipelines import EDM2Recipe, EDMObjective, averaged_params, train_diffusion
from jaxgen.training import (
    CheckpointError,
    Checkpoints,
    Snapshots,
    check_reach,
    gathered,
    read_config,
    reconstruct,
    restore_params,
    snapshot_times,
    width_to_exponent,
)
from jaxgen.typing import Params

NAME, SNAPSHOTS = "edm2", "edm2-snapshots"
# The noise of Karras et al. (2024, table 6) for images of 64 x 64 pixels; data of this standard deviation.
OBJECTIVE = EDMObjective(data_std=0.5, log_sigma_mean=-0.8, log_sigma_std=1.6)
LEVELS = 8
WIDTHS = (0.05, 0.10)
_LOG_EVERY = 10


class Scaling(NamedTuple):
    """What makes the training images have mean 0 and standard deviation 0.5, over all pixels."""

    mean: float
    factor: float

    def inward(self, images: Float[np.ndarray, "*lead 64"]) -> Float[np.ndarray, "*lead 8 8 1"]:
        """Turn digits in [-1, 1] into what the network sees."""
        return ((images - self.mean) * self.factor).reshape(*images.shape[:-1], data.SIDE, data.SIDE, 1)

    def outward(self, images: Float[np.ndarray, "*lead 8 8 1"]) -> Float[np.ndarray, "*lead 64"]:
        """Turn what the network draws into digits, not clipped."""
        return images.reshape(*images.shape[:-3], data.SIDE**2) / self.factor + self.mean


class TrainedEDM2(NamedTuple):
    """A network that can be sampled."""

    model: EDM2
    params: Params
    variables: Any
    scaling: Scaling
    mesh: Mesh


def check(config: Any, run: RunDirectory) -> None:
    """Refuse sizes that no network or recipe has, and a run whose network was trained otherwise.

    Raises:
        ValueError: names the option and the mend.
        CheckpointError: a checkpoint of the run to sample from is damaged, not there or of another configuration.
    """
    model(config)
    recipe(config)
    for width in config.edm2.widths:
        width_to_exponent(width)
    check_divides(run, **{"edm2.batch_size": config.edm2.batch_size})
    widths = (*(config.edm2.widths if config.sampler == "all" else ()), config.ema_width)
    source = None if run.source is None else run.source / "checkpoints" / SNAPSHOTS
    check_widths(widths, config.edm2.steps, snapshot_every(config), source)
    if run.source is not None:
        folder = run.source / "checkpoints"
        stored = configuration.read_run(run.source)["config"]
        if found := configuration.differences({"edm2": trained_with(stored)}, {"edm2": _sizes(config)}):
            raise ValueError(f"--from {run.source} takes its EDM2 as it is, but {'; '.join(found)}")
        made = read_config(folder / NAME, step=config.edm2.steps)
        if found := configuration.differences({"edm2": made.get("edm2")}, {"edm2": _sizes(config)}):
            raise CheckpointError(f"{run.source} holds an EDM2 of other settings: {'; '.join(found)}")


def check_widths(widths: Sequence[float | None], step: int, every: int, source: Path | None) -> None:
    """Refuse widths of averages that the snapshots of a training will not give, or those of another run do not.

    Args:
        widths: what is asked for; None asks for nothing.
        step: the last step of the training.
        every: steps between its snapshots.
        source: the folder of snapshots of the run to sample from, if there is one.

    Raises:
        ValueError: a width is out of range, or out of reach of the snapshots.
        CheckpointError: there are no snapshots of the whole training.
    """
    if not (wanted := [width for width in widths if width is not None]):
        return
    times = sorted({*range(every, step + 1, every), step}) if source is None else snapshot_times(source)
    if step not in times:
        raise CheckpointError(
            f"{source} has no snapshot of step {step}, only {list(times)}; it serves no other average"
        )
    for width in wanted:
        check_reach(times, WIDTHS, step, width)


def obtain(config: Any, run: RunDirectory) -> TrainedEDM2:
    """Train the network, with checkpoints and snapshots in the run, or read that of the run that `--from` names.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    digits = data.load()
    scaling = Scaling(float(digits.train.mean()), 0.5 / float(digits.train.std()))
    folder = (run.path if run.source is None else run.source) / "checkpoints"
    if run.source is None:
        params, variables = _train(config, run, digits, scaling)
    else:
        like, step = abstract_params(model(config)), config.edm2.steps
        params = restore_params(folder / NAME, like, field="ema.averages.0", step=step)
        variables = restore_params(folder / NAME, abstract_variables(model(config)), field="variables", step=step)
    if config.ema_width is not None:
        params = averaged(config, folder, config.ema_width)
    # On the host: what is used with them lies on one device here, and on a mesh there.
    return TrainedEDM2(model(config), gathered(params), gathered(variables), scaling, mesh_of(run))


def averaged(config: Any, checkpoints: Path, width: float) -> Params:
    """Return the average of that width, from the snapshots of a run."""
    return reconstruct(checkpoints / SNAPSHOTS, abstract_params(model(config)), width, step=config.edm2.steps)


def _train(config: Any, run: RunDirectory, digits: data.Digits, scaling: Scaling) -> tuple[Params, Any]:
    how = recipe(config)
    settings = {"edm2": _sizes(config), "seed": run.seed}
    levels, edges = LevelMetrics(OBJECTIVE.level_edges(LEVELS)), OBJECTIVE.level_edges(LEVELS)
    with (
        Checkpoints(run.checkpoints / NAME, config=settings, keep=2) as checkpoints,
        Snapshots(run.checkpoints / SNAPSHOTS, widths=WIDTHS) as snapshots,
        metric_lines(run, saved=(saved := checkpoints.good_step()), name=NAME) as write,
        run.progress(how.steps, "training EDM2") as progress,
    ):
        if run.resumed:
            run.resume_metrics(saved or 0, metric=f"{NAME}_loss")

        def report(step: int, metrics: dict) -> None:
            plain = levels.add(metrics)
            progress.update(step, loss=float(plain["loss"]))
            if step % _LOG_EVERY == 0 or step == how.steps:
                write(step, {f"{NAME}_{kind}": value for kind, value in {**plain, **levels.take()}.items()})

        state = train_diffusion(
            model(config),
            OBJECTIVE,
            scaling.inward(digits.train),
            digits.train_labels,
            jax.random.fold_in(jax.random.key(run.seed), 2),
            how,
            level_edges=edges,
            mesh=mesh_of(run),
            fully_sharded=run.fully_sharded,
            checkpoints=checkpoints,
            resume=run.resumed,
            save_every=max(how.steps // 4, 1),
            snapshots=snapshots,
            snapshot_every=snapshot_every(config),
            on_metrics=report,
            stop=run.stop,
        )
    if state.step < how.steps:
        raise Interrupted
    return averaged_params(state.ema), state.variables


def snapshot_every(config: Any) -> int:
    """Return the updates between two snapshots of the averages."""
    return max(config.edm2.steps // config.edm2.snapshots, 1)


def model(config: Any) -> EDM2:
    """Build the network for grey images of 8 x 8 pixels and ten classes."""
    return network(config, (data.SIDE, data.SIDE, 1), 10)


def network(config: Any, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> EDM2:
    """Build the network of the sizes that were asked for."""
    names = ("width", "multipliers", "blocks", "attention_sides", "channels_per_head", "dropout")
    sizes = {name: getattr(config.edm2, name) for name in names}
    return EDM2(EDM2Config(image_shape, num_classes, **sizes, **options))


def recipe(config: Any, **options: Any) -> EDM2Recipe:
    """Build the recipe for the digits, or with other options for the images of --data."""
    sizes = config.edm2
    options = {"steps": sizes.steps, "batch_size": sizes.batch_size, **options}
    return EDM2Recipe(
        **options,
        learning_rate=sizes.learning_rate,
        reference_batches=sizes.reference_batches,
        ramp_images=sizes.ramp_images,
        ema_widths=WIDTHS,
        label_dropout=config.label_dropout,
    )


def _sizes(config: Any) -> dict[str, Any]:
    return trained_with(configuration.to_json(config))


def trained_with(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the network depends on, out of a configuration as JSON."""
    sizes = stored.get("edm2", {})
    kept = {name: value for name, value in sizes.items() if name not in ("sampling_steps", "seeds", "widths")}
    return {**kept, "label_dropout": stored.get("label_dropout")}
