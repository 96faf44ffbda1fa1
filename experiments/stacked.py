"""Many small networks of one shape, trained side by side in one program: one for each seed and training set."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from experiments.devices import mesh_of
from experiments.metric_lines import metric_lines
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.models import Model, init_params, logical_axes
from jaxgen.training import SEED_AXES, Checkpoints, TrainState, create, fit, in_memory
from jaxgen.typing import Params, PRNGKey, Scalar

_LOG_EVERY = 50


class Rate(NamedTuple):
    """The learning rate: it falls from its peak to 0 along a cosine over so many steps."""

    peak: Scalar
    steps: Scalar


@dataclasses.dataclass(frozen=True)
class StackedUpdate:
    """One step of Adam for many networks of one shape, as `fit` wants it.

    A batch holds the numbers of its draws: draw i of step n is the same however the batch is spread over devices. The
    constants are the learning rate's, and what each network is trained on along a leading axis.
    """

    model: Model
    loss: Callable[[Any, Params, PRNGKey, PyTree], Scalar]

    def __call__(self, state: TrainState, constants: tuple, batch: Int[Array, " batch"]) -> tuple[TrainState, dict]:
        """Update every network on the mean loss of its own draws."""
        (peak, steps), given = constants
        rate = peak * 0.5 * (1.0 + jnp.cos(jnp.pi * state.step / steps))

        def one(state: TrainState, given: PyTree) -> tuple[TrainState, dict]:
            key = jax.random.fold_in(state.key, state.step)

            def mean_loss(params: Params) -> Scalar:
                draw = lambda index: self.loss(self.model, params, jax.random.fold_in(key, index), given)  # noqa: E731
                return jnp.mean(jax.vmap(draw)(batch))

            loss, gradient = jax.value_and_grad(mean_loss)(state.params)
            change, opt_state = optax.adam(rate).update(gradient, state.opt_state, state.params)
            return state._replace(params=optax.apply_updates(state.params, change), opt_state=opt_state), {"loss": loss}

        return jax.vmap(one, in_axes=(SEED_AXES, 0), out_axes=(SEED_AXES, 0))(state, given)


def initial_state(model: Model, key: PRNGKey, count: int) -> TrainState:
    """Draw the parameters of `count` networks, and put their state together at step 0; the key is consumed."""
    init_keys, run_keys = (jax.random.split(part, count) for part in jax.random.split(key))
    # One program for all: every network is drawn from a key of its own.
    params = jax.jit(jax.vmap(lambda key: init_params(model, key)))(init_keys)
    return create(run_keys, params, jax.vmap(optax.adam(0.0).init)(params))


def train(
    run: RunDirectory,
    name: str,
    update: StackedUpdate,
    given: PyTree,
    key: PRNGKey,
    *,
    steps: int,
    draws: int,
    learning_rate: float,
    settings: Mapping[str, Any],
) -> Params:
    """Train the networks with checkpoints, metrics and progress in the run, or go on where an earlier start stopped.

    Args:
        run: the run, opened.
        name: of the checkpoints' folder and of the loss among the metrics.
        update: the networks and their loss.
        given: what each network is trained on, along a leading axis.
        key: consumed for the parameters and the draws.
        steps: updates of each network.
        draws: of each network in an update.
        learning_rate: its peak.
        settings: what the checkpoints are told apart by.

    Returns:
        Parameters `[networks, ...]`.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    count = len(jax.tree.leaves(given)[0])
    with (
        Checkpoints(run.checkpoints / name, config=dict(settings), keep=2) as checkpoints,
        metric_lines(run, saved=(saved := checkpoints.good_step()), name=name) as write,
        run.progress(steps, f"training {count} {name}") as progress,
    ):
        if run.resumed:
            run.resume_metrics(saved or 0, metric=f"{name}_loss")

        def report(step: int, metrics: dict) -> None:
            mean = float(metrics["loss"].mean())
            progress.update(step, loss=mean)
            write(step, {f"{name}_loss": mean})

        mesh = mesh_of(run)
        state = fit(
            update,
            initial_state(update.model, key, count),
            (Rate(np.asarray(learning_rate, np.float32), np.asarray(steps, np.float32)), given),
            in_memory(np.arange(draws, dtype=np.int32), draws, jax.random.key(0), shuffle=False, mesh=mesh),
            steps=steps,
            mesh=mesh,
            axes=logical_axes(update.model),
            fully_sharded=run.fully_sharded,
            checkpoints=checkpoints,
            resume=run.resumed,
            save_every=max(steps // 4, 1),
            log_every=_LOG_EVERY,
            on_metrics=report,
            stop=run.stop,
        )
    if state.step < steps:
        raise Interrupted
    return state.params
