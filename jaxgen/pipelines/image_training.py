"""Train a class-conditional denoising network on images in memory, or on batches that stream from files."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxgen.models import (
    EDM2,
    ImageConv,
    ImageNetwork,
    check_labels,
    logical_axes,
)
from jaxgen.pipelines.augmentation import SHIFT_FEATURES
from jaxgen.pipelines.denoising_update import DenoisingUpdate, initial_state
from jaxgen.pipelines.latents import LatentScaling
from jaxgen.pipelines.objectives import Objective
from jaxgen.pipelines.optimisation import TrainingRecipe
from jaxgen.pipelines.recipe import Recipe
from jaxgen.pipelines.steps_per_call import steps_per_call
from jaxgen.training import (
    Batches,
    Checkpoints,
    Snapshots,
    Timing,
    TrainState,
    check_batch,
    fit,
    in_memory,
)
from jaxgen.typing import ArrayLike, PRNGKey


def train_diffusion(
    model: ImageNetwork,
    objective: Objective,
    images: Float[ArrayLike, "count ..."],
    labels: Int[ArrayLike, " labels"],
    key: PRNGKey,
    recipe: TrainingRecipe = Recipe(),
    *,
    level_edges: Sequence[float] = (),
    mesh: Mesh | None = None,
    fully_sharded: bool = False,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
    snapshots: Snapshots | None = None,
    snapshot_every: int | None = None,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    on_timing: Callable[[int, Timing], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train a network to denoise images of known classes, which are held in memory.

    Args:
        model: the network; with an augmentation condition of 2 features, images are shifted by the recipe.
        objective: what it predicts.
        images: of the model's image shape, scaled to about [-1, 1].
        labels: the class of each.
        key: typed key of the whole run, consumed: parameters, order of the data, noise.
        recipe: how to train: a `Recipe`, or an `EDM2Recipe`.
        level_edges: intervals of noise that the metrics tell the loss of, see `DenoisingUpdate`.
        mesh: devices to train on; None trains on one.
        fully_sharded: split parameters and the optimiser's state over the mesh's data axis as well.
        checkpoints: where to save, at the end and as the next arguments say.
        resume: continue from the newest checkpoint, if there is one.
        save_every: updates between checkpoints.
        snapshots: where the averages are kept for `reconstruct`, with an `EDM2Recipe`.
        snapshot_every: updates between snapshots.
        on_metrics: called as `on_metrics(step, metrics)` after each update, with "loss", "gradient_norm",
            "learning_rate" and what the recipe and the network add.
        on_timing: called as `on_timing(step, timing)`, see `fit`.
        stop: asked between updates; once it returns true, the state is saved and returned early.

    Returns:
        The state after the last update; `averaged_params(state.ema)` are the parameters to sample with.

    Raises:
        ValueError: for images, labels or a recipe that do not fit the model or the mesh, before anything is compiled.
        TrainingDivergedError: if the loss or a parameter is not finite.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_model(model, recipe, mesh)
    _check_data(model, images, labels)
    state_key, data_key = jax.random.split(key)
    batches = in_memory(
        {"image": images.astype(np.float32), "label": labels.astype(np.int32)},
        recipe.batch_size,
        data_key,
        mesh=mesh,
    )
    return train_on_batches(
        model,
        objective,
        batches,
        state_key,
        recipe,
        level_edges=level_edges,
        mesh=mesh,
        fully_sharded=fully_sharded,
        checkpoints=checkpoints,
        resume=resume,
        save_every=save_every,
        snapshots=snapshots,
        snapshot_every=snapshot_every,
        on_metrics=on_metrics,
        on_timing=on_timing,
        stop=stop,
    )


def train_on_batches(
    model: ImageNetwork,
    objective: Objective,
    batches: Batches,
    key: PRNGKey,
    recipe: TrainingRecipe = Recipe(),
    *,
    latents: LatentScaling | None = None,
    level_edges: Sequence[float] = (),
    mesh: Mesh | None = None,
    fully_sharded: bool = False,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
    snapshots: Snapshots | None = None,
    snapshot_every: int | None = None,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    on_timing: Callable[[int, Timing], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train a network to denoise images of known classes, which come as batches (see `streamed`).

    Args:
        model: as for `train_diffusion`.
        objective: what it predicts.
        batches: of `image`, as bytes or scaled to about [-1, 1], and `label`.
        key: typed key of parameters and noise, consumed.
        recipe: how to train: a `Recipe`, or an `EDM2Recipe`.
        level_edges: intervals of noise that the metrics tell the loss of, see `DenoisingUpdate`.
        latents: where given, the batches are of stored posteriors of latents (see `latent_folder`), of twice as many
            channels as the model's images; each is drawn anew in every step, and scaled so.
        level_edges: as for `train_diffusion`, and so are all others.
        mesh: see there.
        fully_sharded: see there.
        checkpoints: see there.
        resume: see there.
        save_every: see there.
        snapshots: see there.
        snapshot_every: see there.
        on_metrics: see there.
        on_timing: see there.
        stop: see there.

    Returns:
        The state after the last update.

    Raises:
        ValueError: for batches or a recipe that do not fit the model or the mesh, before anything is compiled.
        TrainingDivergedError: if the loss or a parameter is not finite.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    _check_model(model, recipe, mesh)
    _check_batches(model, batches, recipe, latents)
    if snapshots is not None and snapshots.widths != getattr(recipe, "ema_widths", ()):
        raise ValueError(
            f"the snapshots are of averages of widths {snapshots.widths}, but the recipe has "
            f"{getattr(recipe, 'ema_widths', 'another average')}; give both the same"
        )
    return fit(
        DenoisingUpdate(
            model,
            objective,
            recipe.optimisation(),
            mirror=recipe.mirror,
            accumulate=recipe.accumulate,
            level_edges=tuple(level_edges),
            latents=latents,
        ),
        initial_state(model, recipe, key),
        recipe.hyperparameters(),
        batches,
        steps=recipe.steps,
        mesh=mesh,
        axes=logical_axes(model),
        fully_sharded=fully_sharded,
        checkpoints=checkpoints,
        resume=resume,
        save_every=save_every,
        snapshots=snapshots,
        snapshot_every=snapshot_every,
        on_metrics=on_metrics,
        on_timing=on_timing,
        stop=stop,
        steps_per_call=steps_per_call(mesh, convolutional=isinstance(model, ImageConv | EDM2)),
    )


def _check_model(model: ImageNetwork, recipe: TrainingRecipe, mesh: Mesh | None) -> None:
    config = model.config
    if config.augmentation not in (0, SHIFT_FEATURES) or (config.augmentation and len(config.image_shape) != 2):
        raise ValueError(
            f"shifts are {SHIFT_FEATURES} features of a grey image, but the network has {config.augmentation} for "
            f"images of shape {config.image_shape}"
        )
    if bool(recipe.largest_shift) != bool(config.augmentation):
        raise ValueError(
            f"a largest shift of {recipe.largest_shift} and a network with {config.augmentation} features for it do "
            f"not go together; set both or neither"
        )
    if mesh is not None:
        check_batch(recipe.batch_size // recipe.accumulate, mesh)


def _check_data(model: ImageNetwork, images: np.ndarray, labels: np.ndarray) -> None:
    config = model.config
    if images.shape[1:] != config.image_shape or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must have shape [count, {', '.join(map(str, config.image_shape))}] and labels [count], "
            f"got {images.shape} and {labels.shape}"
        )
    if images.dtype.kind != "f":
        raise ValueError(f"images must be real numbers scaled to about [-1, 1], got {images.dtype}; convert them first")
    if not np.isfinite(images).all():
        raise ValueError(f"images must be finite, got {np.sum(~np.isfinite(images))} entries that are not")
    check_labels(labels, config.num_classes - 1)


def _check_batches(
    model: ImageNetwork, batches: Batches, recipe: TrainingRecipe, latents: LatentScaling | None
) -> None:
    batch = jax.eval_shape(batches.select, batches.load(0, 1), jax.ShapeDtypeStruct((), jnp.int32))
    if latents is not None and recipe.mirror:
        raise ValueError("mirror is for images: a mirrored latent is none of the mirrored image; store these as well")
    *sides, channels = model.config.image_shape
    expected = (recipe.batch_size, *sides, channels if latents is None else 2 * channels)
    if batch["image"].shape != expected or batch["label"].shape != expected[:1]:
        raise ValueError(
            f"a batch must hold images {expected} and labels {expected[:1]}, "
            f"got {batch['image'].shape} and {batch['label'].shape}"
        )
