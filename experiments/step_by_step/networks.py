"""The trained networks of a run, all of one kind at once: trained here, resumed, or taken from another run."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from experiments import configuration, stacked
from experiments.devices import check_divides, mesh_of
from experiments.run_directory import RunDirectory
from experiments.step_by_step import data
from jaxgen.diffusion import flow_matching, x0_loss
from jaxgen.models import MLP, MLPConfig, abstract_params
from jaxgen.training import (
    CheckpointError,
    read_config,
    restore_params,
)
from jaxgen.typing import Params, PRNGKey, Sample, Scalar

Regression: TypeAlias = Callable[[Sample, Scalar], Sample]
NAMES = ("denoisers", "flows")
_TRAINED_BY = ("steps", "flow_steps", "batch_size", "flow_batch_size", "learning_rate", "sigma_q")
_TRAINED_AS = ("width", "layers", "sizes", "seeds")


class Networks(NamedTuple):
    """What was trained.

    Attributes:
        model: the network of all.
        denoisers: parameters `[seeds * sizes, ...]` of x_0 predictors, the sizes of a seed side by side.
        flows: parameters `[seeds, ...]` of the velocities from annulus to spiral.
        points: training points of the denoisers `[seeds, sizes, largest, 2]`, padded.
        counts: how many of them there are `[seeds, sizes]`.
        mesh: the devices to sample on.
    """

    model: MLP
    denoisers: Params
    flows: Params
    points: np.ndarray
    counts: np.ndarray
    mesh: Mesh


class Points(NamedTuple):
    """The training set of one network: points `[largest, 2]`, of which the first `count` are meant."""

    points: Float[Array, "largest 2"]
    count: Int[Array, ""]
    sigma_q: Float[Array, ""]


def regression(model: MLP, params: Params) -> Regression:
    """Return a network as a function of a point and its time."""
    return lambda x, t: cast(Sample, model.apply({"params": params}, x, t))


def denoiser_loss(model: MLP, params: Params, key: PRNGKey, given: Points) -> Scalar:
    """Compute the x_0 loss of one draw from a training set (pseudocode 6)."""
    choice_key, loss_key = jax.random.split(key)
    x0 = given.points[jax.random.randint(choice_key, (), 0, given.count)]
    return x0_loss(regression(model, params), loss_key, x0, given.sigma_q)


def flow_loss(model: MLP, params: Params, key: PRNGKey, given: data.Ends) -> Scalar:
    """Compute the loss of the velocity at one time of one pair, annulus and spiral coupled at random (pseudocode 4)."""
    base_key, target_key, time_key = jax.random.split(key, 3)
    x1 = given.base[jax.random.randint(base_key, (), 0, len(given.base))]
    x0 = given.target[jax.random.randint(target_key, (), 0, len(given.target))]
    t = jax.random.uniform(time_key)
    return flow_matching.flow_matching_loss(regression(model, params), flow_matching.linear_flow, x1, x0, t)


def check(config: Any, run: RunDirectory) -> None:
    """Refuse sizes that no network has, and a run whose networks were trained otherwise.

    Raises:
        ValueError: names the field and the mend.
        CheckpointError: a checkpoint of the run to sample from is damaged, not there or of another configuration.
    """
    _model(config)
    shared = ("batch_size", "flow_batch_size", "block_size")
    check_divides(run, **{name: getattr(config, name) for name in shared})
    if run.source is not None:
        stored = configuration.read_run(run.source)
        asked = configuration.to_json(config)
        fields = _TRAINED_AS + _TRAINED_BY
        trained, wanted = ({name: of.get(name) for name in fields} for of in (stored["config"], asked))
        if found := configuration.differences(trained, wanted):
            raise ValueError(f"--from {run.source} takes its networks as they are, but {'; '.join(found)}")
        for name in NAMES:
            made = read_config(run.source / "checkpoints" / name, step=_steps(config, name))
            if found := configuration.differences({field: made.get(field) for field in wanted}, wanted):
                raise CheckpointError(f"{run.source} holds the {name} of another run: {'; '.join(found)}")


def obtain(config: Any, run: RunDirectory) -> Networks:
    """Train the networks, with checkpoints in the run, or read those of the run that `--from` names.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    model = _model(config)
    points, counts = data.training_sets(config.sizes, config.seeds, run.seed)
    sigma_q = np.full(counts.size, config.sigma_q, np.float32)
    sets = Points(points.reshape(-1, *points.shape[2:]), counts.reshape(-1), sigma_q)  # pyright: ignore[reportArgumentType]
    denoisers = _obtain_one(config, run, "denoisers", denoiser_loss, sets)
    flows = _obtain_one(config, run, "flows", flow_loss, data.flow_ends(config.seeds, config.flow_points, run.seed))
    return Networks(model, denoisers, flows, points, counts, mesh_of(run))


def _obtain_one(config: Any, run: RunDirectory, name: str, loss: Callable, given: PyTree) -> Params:
    model, steps = _model(config), _steps(config, name)
    count = len(jax.tree.leaves(given)[0])
    if run.source is not None:
        shapes = abstract_params(model)
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), shapes)
        return restore_params(run.source / "checkpoints" / name, like, step=steps)
    return stacked.train(
        run,
        name,
        stacked.StackedUpdate(model, loss),
        given,
        jax.random.fold_in(jax.random.key(run.seed), NAMES.index(name)),
        steps=steps,
        draws=config.batch_size if name == "denoisers" else config.flow_batch_size,
        learning_rate=config.learning_rate,
        settings={field: getattr(config, field) for field in _TRAINED_AS + _TRAINED_BY} | {"seed": run.seed},
    )


def _steps(config: Any, name: str) -> int:
    return config.steps if name == "denoisers" else config.flow_steps


def _model(config: Any) -> MLP:
    return MLP(MLPConfig(dimension=2, width=config.width, layers=config.layers))
