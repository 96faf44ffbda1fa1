"""Train a class-conditional denoising network on images in memory, or on batches that stream from files."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxgen.diffusion import Level, Prediction
from jaxgen.models import ImageConv, ImageNetwork, check_labels, drop_labels, init_params, logical_axes
from jaxgen.pipelines.augmentation import SHIFT_FEATURES, random_shift
from jaxgen.pipelines.objectives import Objective
from jaxgen.pipelines.recipe import Hyperparameters, Recipe, hyperparameters, optimiser
from jaxgen.training import (
    Batches,
    Checkpoints,
    Timing,
    TrainState,
    accumulated_gradient,
    check_batch,
    count_flops,
    create,
    ema,
    fit,
    in_memory,
)
from jaxgen.typing import ArrayLike, Params, PRNGKey, Sample, Scalar


def predict_given(
    model: ImageNetwork, objective: Objective, params: Params, x: Sample, level: Level, label: Int[ArrayLike, ""]
) -> Prediction:
    """Predict one image of class `label`, or of any for `model.config.null_label`, free of augmentation.

    Args:
        model: the network.
        objective: how its output is read.
        params: its parameters.
        x: one noisy image, of the model's image shape.
        level: where it is.
        label: class in [0, num_classes].
    """
    shift = jnp.zeros(model.config.augmentation, x.dtype)
    return _predict(model, objective, params, x, level, label, shift)


@dataclasses.dataclass(frozen=True)
class DenoisingUpdate:
    """One step of training, as `fit` wants it; equal ones share a compiled program.

    The state's average is of the parameters; constants are `Hyperparameters`; a batch holds `image`, scaled to about
    [-1, 1] or as bytes, and `label`.
    """

    model: ImageNetwork
    objective: Objective
    ema_half_life: float
    mirror: bool = False
    accumulate: int = 1

    def __call__(self, state: TrainState, constants: Hyperparameters, batch: PyTree) -> tuple[TrainState, dict]:
        """Take one AdamW step on the mean loss of a batch."""
        key = jax.random.fold_in(state.key, state.step)
        examples = (jax.random.split(key, len(batch["label"])), batch["image"], batch["label"])

        def mean_loss(params: Params, examples: tuple) -> Scalar:
            return jnp.mean(jax.vmap(lambda key, *example: self._loss(params, constants, key, *example))(*examples))

        loss, gradient = accumulated_gradient(mean_loss, state.params, examples, self.accumulate)
        change, opt_state = optimiser(constants).update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, change)
        average = ema(half_life=self.ema_half_life).update(state.ema, params)
        rate = opt_state.hyperparams["learning_rate"]  # pyright: ignore[reportAttributeAccessIssue]
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "learning_rate": rate}
        return state._replace(params=params, opt_state=opt_state, ema=average), metrics

    def _loss(
        self,
        params: Params,
        constants: Hyperparameters,
        key: PRNGKey,
        image: Shaped[Array, "..."],
        label: Int[Array, ""],
    ) -> Scalar:
        image = _scaled(image)
        label_key, shift_key, level_key, noise_key = jax.random.split(key, 4)
        label = drop_labels(label_key, label, constants.label_dropout, self.model.config.null_label)
        shift = jnp.zeros(0, image.dtype)
        if self.model.config.augmentation:
            image, shift = random_shift(shift_key, image, constants.largest_shift)
        if self.mirror:
            # Folded in, so that a recipe without it draws what it always drew.
            image = jnp.where(jax.random.bernoulli(jax.random.fold_in(shift_key, 1)), image[:, ::-1], image)
        level = self.objective.draw_level(level_key)

        def predict(x: Sample, level: Level) -> Prediction:
            return _predict(self.model, self.objective, params, x, level, label, shift)

        return self.objective.loss(predict, noise_key, image, level)


def initial_state(model: ImageNetwork, recipe: Recipe, key: PRNGKey) -> TrainState:
    """Draw the parameters, and put the state of a run together at step 0; the key is consumed."""
    init_key, run_key = jax.random.split(key)
    params = init_params(model, init_key)
    opt_state = optimiser(hyperparameters(recipe)).init(params)
    return create(run_key, params, opt_state, ema=ema(half_life=recipe.ema_half_life).init(params))


def training_flops(model: ImageNetwork, objective: Objective, recipe: Recipe) -> float:
    """Count the floating-point operations of the matrix products and convolutions in one update.

    These are the model's: what `remat` computes twice counts once (Chowdhery et al. 2022, PaLM, appendix B).
    """
    plain = dataclasses.replace(model, config=dataclasses.replace(model.config, remat=False))
    update = DenoisingUpdate(plain, objective, recipe.ema_half_life)
    state = jax.eval_shape(lambda: initial_state(plain, recipe, jax.random.key(0)))
    batch = {
        "image": jax.ShapeDtypeStruct((recipe.batch_size, *model.config.image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32),
    }
    return count_flops(update, state, hyperparameters(recipe), batch)


def train_diffusion(
    model: ImageNetwork,
    objective: Objective,
    images: Float[ArrayLike, "count ..."],
    labels: Int[ArrayLike, " labels"],
    key: PRNGKey,
    recipe: Recipe = Recipe(),
    *,
    mesh: Mesh | None = None,
    fully_sharded: bool = False,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
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
        recipe: how to train.
        mesh: devices to train on; None trains on one.
        fully_sharded: split parameters and the optimiser's state over the mesh's data axis as well.
        checkpoints: where to save, at the end and as the next arguments say.
        resume: continue from the newest checkpoint, if there is one.
        save_every: updates between checkpoints.
        on_metrics: called as `on_metrics(step, {"loss", "gradient_norm", "learning_rate"})` after each update.
        on_timing: called as `on_timing(step, timing)`, see `fit`.
        stop: asked between updates; once it returns true, the state is saved and returned early.

    Returns:
        The state after the last update; `state.ema.average` are the parameters to sample with.

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
        mesh=mesh,
        fully_sharded=fully_sharded,
        checkpoints=checkpoints,
        resume=resume,
        save_every=save_every,
        on_metrics=on_metrics,
        on_timing=on_timing,
        stop=stop,
    )


def train_on_batches(
    model: ImageNetwork,
    objective: Objective,
    batches: Batches,
    key: PRNGKey,
    recipe: Recipe = Recipe(),
    *,
    mesh: Mesh | None = None,
    fully_sharded: bool = False,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
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
        recipe: how to train.
        mesh: as for `train_diffusion`, and so are all others.
        fully_sharded: see there.
        checkpoints: see there.
        resume: see there.
        save_every: see there.
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
    _check_batches(model, batches, recipe)
    return fit(
        DenoisingUpdate(model, objective, recipe.ema_half_life, recipe.mirror, recipe.accumulate),
        initial_state(model, recipe, key),
        hyperparameters(recipe),
        batches,
        steps=recipe.steps,
        mesh=mesh,
        axes=logical_axes(model),
        fully_sharded=fully_sharded,
        checkpoints=checkpoints,
        resume=resume,
        save_every=save_every,
        on_metrics=on_metrics,
        on_timing=on_timing,
        stop=stop,
        steps_per_call=_steps_per_call(model, mesh),
    )


def _steps_per_call(model: ImageNetwork, mesh: Mesh | None) -> int | None:
    # On a CPU, XLA runs the backward pass of a convolution ten to twenty times slower inside a loop (jax issue 12868).
    platform = (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).platform
    return None if platform == "cpu" and isinstance(model, ImageConv) else 16


def _predict(model, objective, params, x, level, label, shift) -> Prediction:
    def network(x: Sample, condition: Scalar) -> Sample:
        augmentation = (shift,) if model.config.augmentation else ()
        return model.apply({"params": params}, x, condition, label, *augmentation)

    return objective.predict(network, x, level)


def _scaled(image: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Scale bytes to [-1, 1] and leave all else."""
    return image.astype(jnp.float32) / 127.5 - 1.0 if image.dtype == jnp.uint8 else image


def _check_model(model: ImageNetwork, recipe: Recipe, mesh: Mesh | None) -> None:
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


def _check_batches(model: ImageNetwork, batches: Batches, recipe: Recipe) -> None:
    batch = jax.eval_shape(batches.select, batches.load(0, 1), jax.ShapeDtypeStruct((), jnp.int32))
    expected = (recipe.batch_size, *model.config.image_shape)
    if batch["image"].shape != expected or batch["label"].shape != expected[:1]:
        raise ValueError(
            f"a batch must hold images {expected} and labels {expected[:1]}, "
            f"got {batch['image'].shape} and {batch['label'].shape}"
        )
