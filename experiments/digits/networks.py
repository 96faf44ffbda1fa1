"""The two networks of a run: trained here, resumed, or taken from the run that `--from` names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from experiments import configuration
from experiments.devices import check_divides, mesh_of
from experiments.digits import data
from experiments.metric_lines import metric_lines
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params
from jaxgen.pipelines import SHIFT_FEATURES, EDMObjective, FlowObjective, Objective, Recipe, train_diffusion
from jaxgen.training import CheckpointError, Checkpoints, read_config, restore_params
from jaxgen.typing import Params

# scikit-learn's digits have a standard deviation of 0.752 after scaling to [-1, 1].
OBJECTIVES: dict[str, Objective] = {
    "denoiser": EDMObjective(data_std=0.75, log_sigma_mean=-0.5, log_sigma_std=1.4, sigma_min=0.002, sigma_max=20.0),
    "flow": FlowObjective(),
}
_NETWORK = ("width", "hidden", "blocks")
_RECIPE = ("steps", "batch_size", "learning_rate", "ema_half_life", "label_dropout", "largest_shift")
_LOG_EVERY = 10


class Trained(NamedTuple):
    """A network that can be sampled."""

    model: ImageMLP
    objective: Objective
    params: Params


class Networks(NamedTuple):
    """Both networks, and the mesh that they run on."""

    denoiser: Trained
    flow: Trained
    mesh: Mesh


def check(config: Any, run: RunDirectory, names: Iterable[str] = tuple(OBJECTIVES)) -> None:
    """Refuse sizes that no network or recipe has, and a run whose networks of these names were trained otherwise.

    Raises:
        ValueError: names the field and the mend.
        CheckpointError: a checkpoint of the run to sample from is damaged, not there or of another configuration.
    """
    _model(config)
    _recipe(config)
    check_divides(run, batch_size=config.batch_size)
    if run.source is not None:
        stored = configuration.read_run(run.source)["config"]
        trained, asked = ({name: of.get(name) for name in _NETWORK + _RECIPE} for of in (stored, vars(config)))
        if found := configuration.differences(trained, asked):
            raise ValueError(f"--from {run.source} takes its networks as they are, but {'; '.join(found)}")
        for name in names:
            made = read_config(run.source / "checkpoints" / name, step=config.steps)
            if found := configuration.differences({field: made.get(field) for field in asked}, asked):
                raise CheckpointError(f"{run.source} holds the {name} of another run: {'; '.join(found)}")


def obtain(config: Any, run: RunDirectory) -> Networks:
    """Train both networks, with checkpoints in the run, or read those of the run that `--from` names.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    return Networks(obtain_one(config, run, "denoiser"), obtain_one(config, run, "flow"), mesh_of(run))


def obtain_one(config: Any, run: RunDirectory, name: str) -> Trained:
    """Train the network of that name, `denoiser` or `flow`, or read that of the run that `--from` names.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    if run.source is not None:
        return _restored(config, run.source / "checkpoints", name)
    digits = data.load()
    images = digits.train.reshape(-1, data.SIDE, data.SIDE)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), 0))
    key = keys[list(OBJECTIVES).index(name)]
    return _train(config, run, mesh_of(run), name, images, digits.train_labels, key)


def _train(config: Any, run: RunDirectory, mesh: Mesh, name: str, images, labels, key) -> Trained:
    model, recipe, objective = _model(config), _recipe(config), OBJECTIVES[name]
    settings = {**{field: getattr(config, field) for field in _NETWORK + _RECIPE}, "seed": run.seed}
    with (
        Checkpoints(run.checkpoints / name, config=settings, keep=2) as checkpoints,
        metric_lines(run, saved=(saved := checkpoints.good_step()), name=name) as write,
        run.progress(recipe.steps, f"training the {name}") as progress,
    ):
        if run.resumed:
            run.resume_metrics(saved or 0, metric=f"{name}_loss")

        def report(step: int, metrics: dict) -> None:
            progress.update(step, loss=float(metrics["loss"]))
            if step % _LOG_EVERY == 0 or step == recipe.steps:
                write(step, {f"{name}_{kind}": value for kind, value in metrics.items()})

        state = train_diffusion(
            model,
            objective,
            images,
            labels,
            key,
            recipe,
            mesh=mesh,
            fully_sharded=run.fully_sharded,
            checkpoints=checkpoints,
            resume=run.resumed,
            save_every=max(recipe.steps // 4, 1),
            on_metrics=report,
            stop=run.stop,
        )
    if state.step < recipe.steps:
        raise Interrupted
    return Trained(model, objective, state.ema.average)


def _restored(config: Any, folder: Path, name: str) -> Trained:
    model = _model(config)
    params = restore_params(folder / name, abstract_params(model), field="ema.average", step=config.steps)
    return Trained(model, OBJECTIVES[name], params)


def _model(config: Any) -> ImageMLP:
    sizes = {name: getattr(config, name) for name in _NETWORK}
    shape = (data.SIDE, data.SIDE)
    return ImageMLP(ImageMLPConfig(shape, **sizes, augmentation=SHIFT_FEATURES if config.largest_shift else 0))


def _recipe(config: Any) -> Recipe:
    return Recipe(**{name: getattr(config, name) for name in _RECIPE})
