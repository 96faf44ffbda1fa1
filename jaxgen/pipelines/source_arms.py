"""Train image models of several sources in two arms: one network that all share, or one network each.

Both arms see the same images in the same order with the same noise, and move by the same learning rate: they differ in
which parameters the sources share, and in nothing else.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, Shaped

from jaxgen.models import EDM2, logical_axes
from jaxgen.pipelines.denoising_update import DenoisingUpdate, initial_state
from jaxgen.pipelines.edm2_recipe import EDM2Recipe
from jaxgen.pipelines.image_sampling import Method, generate_images, guided_heun
from jaxgen.pipelines.latents import LatentScaling
from jaxgen.pipelines.loss_by_level import LevelLosses, loss_by_level
from jaxgen.pipelines.objectives import Objective
from jaxgen.pipelines.optimisation import averaged_params
from jaxgen.pipelines.steps_per_call import steps_per_call
from jaxgen.training import SEED_AXES, Checkpoints, TrainState, check_batch, fit, in_memory
from jaxgen.typing import ArrayLike, Params, PRNGKey

# Networks are stacked along a leading axis; the key is one for all, so that source k meets the noise of source k.
_STACKED = SEED_AXES._replace(key=None)


@dataclasses.dataclass(frozen=True)
class Arm:
    """How K sources are modelled: which networks there are, and which one serves a source.

    Attributes:
        model: a network whose classes are the sources; its `num_classes` is K.
        shared: True for this one network; False for K networks of one class each, of the same sizes.
    """

    model: EDM2
    shared: bool

    @property
    def num_sources(self) -> int:
        """Return K."""
        return self.model.config.num_classes

    @property
    def network(self) -> EDM2:
        """Return the network that serves a source."""
        if self.shared:
            return self.model
        return dataclasses.replace(self.model, config=dataclasses.replace(self.model.config, num_classes=1))

    def label(self, source: int) -> int:
        """Return the class by which the network of a source knows it."""
        return source if self.shared else 0

    def recipe(self, recipe: EDM2Recipe) -> EDM2Recipe:
        """Return the recipe of a network, given that of one source.

        The shared network sees K times the images in a step, so its ramp is K times as long in images: as many steps.
        """
        sources = self.num_sources if self.shared else 1
        return dataclasses.replace(
            recipe, batch_size=sources * recipe.batch_size, ramp_images=sources * recipe.ramp_images
        )


@dataclasses.dataclass(frozen=True)
class ArmUpdate:
    """One step of training an arm, as `fit` wants it; equal ones share a compiled program.

    A batch is [batch, sources, ...]: as many images of each source. The separate networks are one program, the `vmap`
    of the step of one. Image i of source k has the same noise in both arms.

    Attributes:
        arm: which networks there are.
        update: the step of one network.
    """

    arm: Arm
    update: DenoisingUpdate

    def __call__(
        self, state: TrainState, constants: Any, batch: Shaped[Array, "batch sources ..."]
    ) -> tuple[TrainState, dict]:
        """Take one step on the mean loss; metrics of separate networks have a leading axis of sources."""
        images = jnp.swapaxes(batch, 0, 1)
        sources, count = images.shape[:2]
        key = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(key, k), count))(jnp.arange(sources))
        labels = jnp.asarray([[self.arm.label(k)] * count for k in range(sources)], jnp.int32)
        examples = {"image": images, "label": labels}
        if self.arm.shared:
            # Image by image rather than source by source, so that devices and parts of a gradient see all sources.
            mixed = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), (keys, examples))
            return self.update.step(state, constants, *mixed)
        step = jax.vmap(self.update.step, in_axes=(_STACKED, None, 0, 0), out_axes=(_STACKED, 0))
        return step(state, constants, keys, examples)


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial_arm(arm: Arm, recipe: EDM2Recipe, key: PRNGKey) -> TrainState:
    """Draw the parameters of an arm, and put its state together at step 0; the key is consumed.

    Separate networks are stacked along a leading axis of every field but `step` and `key`.
    """
    init_key, run_key = jax.random.split(key)
    own = arm.recipe(recipe)
    if arm.shared:
        return initial_state(arm.network, own, init_key)._replace(key=run_key)
    # A loop, and not `vmap`: the draws are the same, and the program of one network compiles five times as fast.
    keys = jax.random.split(init_key, arm.num_sources)
    stacked = jax.lax.map(lambda key: initial_state(arm.network, own, key), keys)
    return stacked._replace(step=stacked.step[0], key=run_key)


def train_arm(
    arm: Arm,
    objective: Objective,
    images: Shaped[ArrayLike, "count sources height width channels"],
    key: PRNGKey,
    recipe: EDM2Recipe,
    *,
    latents: LatentScaling | None = None,
    mesh: Mesh | None = None,
    fully_sharded: bool = False,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train the networks of an arm on as many images of each source.

    Given one key, images and recipe, both arms see the same images with the same noise in every step.

    Args:
        arm: one network or K.
        objective: what a network predicts.
        images: the images of each source, as bytes or scaled to about [-1, 1]; in the order of the training they are
            drawn without replacement within an epoch, all sources at once.
        key: typed key, consumed: parameters, order, noise.
        recipe: how to train, told for one source: `batch_size` counts its images in a step, `ramp_images` those over
            which the rate rises.
        latents: where given, `images` are stored posteriors of latents, see `train_on_batches`.
        mesh: devices to train on; None trains on one.
        fully_sharded: see `fit`, and so for the rest.
        checkpoints: see there.
        resume: see there.
        save_every: see there.
        on_metrics: see there.
        stop: see there.

    Returns:
        The state after the last step, see `initial_arm`; `arm_weights` takes a source's network out of it.

    Raises:
        ValueError: for images that do not fit the arm, or a batch that devices cannot share, before anything is
            compiled.
        TrainingDivergedError: if the loss or a parameter is not finite.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    images = np.asarray(images)
    _check_images(arm, images, latents)
    if mesh is not None:
        check_batch(recipe.batch_size, mesh)
    own = arm.recipe(recipe)
    state_key, data_key = jax.random.split(key)
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    update = DenoisingUpdate(
        arm.network, objective, own.optimisation(), mirror=own.mirror, accumulate=own.accumulate, latents=latents
    )
    return fit(
        ArmUpdate(arm, update),
        initial_arm(arm, recipe, state_key),
        own.hyperparameters(),
        in_memory(images, recipe.batch_size, data_key, mesh=mesh),
        steps=own.steps,
        mesh=mesh,
        axes=logical_axes(arm.network),
        fully_sharded=fully_sharded,
        checkpoints=checkpoints,
        resume=resume,
        save_every=save_every,
        on_metrics=on_metrics,
        stop=stop,
        steps_per_call=steps_per_call(mesh, convolutional=True),
    )


def arm_weights(arm: Arm, state: TrainState, source: int) -> tuple[Params, PyTree]:
    """Return the averaged parameters and the other collections of the network that serves a source.

    Raises:
        ValueError: there is no such source.
    """
    _check_source(arm, source)
    both = averaged_params(state.ema), state.variables
    return both if arm.shared else jax.tree.map(lambda leaf: leaf[source], both)


def sample_source(
    arm: Arm,
    objective: Objective,
    weights: tuple[Params, PyTree],
    source: int,
    count: int,
    key: PRNGKey,
    *,
    method: Method = guided_heun,
    steps: int = 32,
    block_size: int = 200,
    mesh: Mesh | None = None,
    on_block: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "count height width channels"]:
    """Draw images of a source; one key gives both arms the same noise to start from.

    Args:
        arm: one network or K.
        objective: what they predict.
        weights: of the network of the source, see `arm_weights`.
        source: in [0, K).
        count: images.
        key: typed key, consumed.
        method: builds the sampler.
        steps: of its grid.
        block_size: images in one call of the compiled program.
        mesh: devices that share each block.
        on_block: called with the number of finished images.

    Returns:
        Images as the network was trained on, not clipped.

    Raises:
        ValueError: there is no such source, or a number is out of range.
    """
    _check_source(arm, source)
    params, variables = weights
    return generate_images(
        arm.network,
        objective,
        params,
        np.full(count, arm.label(source), np.int32),
        key,
        method=method,
        steps=steps,
        block_size=block_size,
        mesh=mesh,
        on_block=on_block,
        variables=variables,
    )


def source_losses(
    arm: Arm,
    objective: Objective,
    weights: tuple[Params, PyTree],
    source: int,
    images: Float[ArrayLike, "count height width channels"],
    key: PRNGKey,
    levels: Any,
) -> LevelLosses:
    """Measure the loss of images of a source at noise levels; one key gives both arms the same noise.

    Arguments and errors are those of `loss_by_level`.
    """
    _check_source(arm, source)
    params, variables = weights
    labels = np.full(len(images), arm.label(source), np.int32)
    return loss_by_level(arm.network, objective, params, images, labels, key, levels, variables=variables)


def _check_images(arm: Arm, images: np.ndarray, latents: LatentScaling | None) -> None:
    *sides, channels = arm.model.config.image_shape
    expected = (arm.num_sources, *sides, channels if latents is None else 2 * channels)
    if images.ndim != 5 or images.shape[1:] != expected or not len(images):
        raise ValueError(
            f"images must have shape [count, {', '.join(map(str, expected))}], as many of each source, got "
            f"{list(images.shape)}"
        )
    if images.dtype != np.uint8 and (images.dtype.kind != "f" or not np.isfinite(images).all()):
        raise ValueError(f"images must be bytes or finite real numbers, got {images.dtype}: convert or clean them")


def _check_source(arm: Arm, source: int) -> None:
    if not 0 <= source < arm.num_sources:
        raise ValueError(f"a source must lie in 0 ... {arm.num_sources - 1}, got {source}")
