"""Train a class-conditional denoising network on images in memory."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxgen.diffusion import Level, Prediction
from jaxgen.models import ImageMLP, check_labels, drop_labels, init_params, logical_axes
from jaxgen.pipelines.augmentation import SHIFT_FEATURES, random_shift
from jaxgen.pipelines.objectives import Objective
from jaxgen.training import Checkpoints, TrainState, create, ema, fit, in_memory
from jaxgen.typing import ArrayLike, Params, PRNGKey, Sample, Scalar


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train; the defaults suit a thousand small images."""

    steps: int = 8000
    """Updates."""
    batch_size: int = 256
    """Images in an update, drawn without replacement within an epoch."""
    learning_rate: float = 2e-3
    """Peak of the learning rate, which rises linearly, then falls to 0 along a cosine."""
    warmup_steps: int = 100
    """Updates over which the learning rate rises."""
    weight_decay: float = 1e-4
    """Decoupled weight decay (AdamW)."""
    second_moment_decay: float = 0.99
    """AdamW's b2."""
    ema_half_life: float = 200.0
    """Half-life of the average of the parameters, in updates."""
    label_dropout: float = 0.15
    """Share of labels replaced by the null class, so that the network is unconditional too."""
    largest_shift: float = 1.0
    """Most pixels that half of the images are shifted by, told to the network; 0 for no augmentation."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "ema_half_life"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("weight_decay", "largest_shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in ("label_dropout", "second_moment_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


class Hyperparameters(NamedTuple):
    """The numbers of a recipe that the compiled update takes as arguments: changing them compiles nothing."""

    steps: Scalar
    learning_rate: Scalar
    warmup_steps: Scalar
    weight_decay: Scalar
    second_moment_decay: Scalar
    label_dropout: Scalar
    largest_shift: Scalar


def hyperparameters(recipe: Recipe) -> Hyperparameters:
    """Turn the numbers of a recipe into float32 arrays."""
    return Hyperparameters(*(np.asarray(getattr(recipe, name), np.float32) for name in Hyperparameters._fields))


def predict_given(
    model: ImageMLP, objective: Objective, params: Params, x: Sample, level: Level, label: Int[ArrayLike, ""]
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

    The state's average is of the parameters; constants are `Hyperparameters`; a batch holds `image` and `label`.
    """

    model: ImageMLP
    objective: Objective
    ema_half_life: float

    def __call__(self, state: TrainState, constants: Hyperparameters, batch: PyTree) -> tuple[TrainState, dict]:
        """Take one AdamW step on the mean loss of a batch."""
        key = jax.random.fold_in(state.key, state.step)
        keys = jax.random.split(key, len(batch["label"]))

        def mean_loss(params: Params) -> Scalar:
            return jnp.mean(
                jax.vmap(lambda key, image, label: self._loss(params, constants, key, image, label))(
                    keys, batch["image"], batch["label"]
                )
            )

        loss, gradient = jax.value_and_grad(mean_loss)(state.params)
        change, opt_state = optimiser(constants, state.step).update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, change)
        average = ema(half_life=self.ema_half_life).update(state.ema, params)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return state._replace(params=params, opt_state=opt_state, ema=average), metrics

    def _loss(
        self,
        params: Params,
        constants: Hyperparameters,
        key: PRNGKey,
        image: Float[Array, "..."],
        label: Int[Array, ""],
    ) -> Scalar:
        label_key, shift_key, level_key, noise_key = jax.random.split(key, 4)
        label = drop_labels(label_key, label, constants.label_dropout, self.model.config.null_label)
        shift = jnp.zeros(0, image.dtype)
        if self.model.config.augmentation:
            image, shift = random_shift(shift_key, image, constants.largest_shift)
        level = self.objective.draw_level(level_key)

        def predict(x: Sample, level: Level) -> Prediction:
            return _predict(self.model, self.objective, params, x, level, label, shift)

        return self.objective.loss(predict, noise_key, image, level)


def optimiser(constants: Hyperparameters, step: Int[ArrayLike, ""] | int) -> optax.GradientTransformation:
    """Build AdamW at the learning rate of `step`: linear warm-up, then a cosine to 0."""
    warmup = jnp.minimum((step + 1.0) / jnp.maximum(constants.warmup_steps, 1.0), 1.0)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * step / constants.steps))
    rate = constants.learning_rate * warmup * cosine
    return optax.adamw(rate, b2=constants.second_moment_decay, weight_decay=constants.weight_decay)  # pyright: ignore[reportArgumentType]


def initial_state(model: ImageMLP, recipe: Recipe, key: PRNGKey) -> TrainState:
    """Draw the parameters, and put the state of a run together at step 0; the key is consumed."""
    init_key, run_key = jax.random.split(key)
    params = init_params(model, init_key)
    opt_state = optimiser(hyperparameters(recipe), 0).init(params)
    return create(run_key, params, opt_state, ema=ema(half_life=recipe.ema_half_life).init(params))


def train_diffusion(
    model: ImageMLP,
    objective: Objective,
    images: Float[ArrayLike, "count ..."],
    labels: Int[ArrayLike, " labels"],
    key: PRNGKey,
    recipe: Recipe = Recipe(),
    *,
    mesh: Mesh | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train a network to denoise images of known classes.

    Args:
        model: the network; with an augmentation condition of 2 features, images are shifted by the recipe.
        objective: what it predicts.
        images: of the model's image shape, scaled to about [-1, 1].
        labels: the class of each.
        key: typed key of the whole run, consumed: parameters, order of the data, noise.
        recipe: how to train.
        mesh: devices to train on; None trains on one.
        checkpoints: where to save, at the end and as the next arguments say.
        resume: continue from the newest checkpoint, if there is one.
        save_every: updates between checkpoints.
        on_metrics: called as `on_metrics(step, {"loss": ..., "gradient_norm": ...})` after each update.
        stop: asked between updates; once it returns true, the state is saved and returned early.

    Returns:
        The state after the last update; `state.ema.average` are the parameters to sample with.

    Raises:
        ValueError: for images, labels or a recipe that do not fit the model or the mesh, before anything is compiled.
        TrainingDivergedError: if the loss or a parameter is not finite.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_data(model, images, labels, recipe, mesh)
    state_key, data_key = jax.random.split(key)
    batches = in_memory(
        {"image": images.astype(np.float32), "label": labels.astype(np.int32)},
        recipe.batch_size,
        data_key,
        mesh=mesh,
    )
    return fit(
        DenoisingUpdate(model, objective, recipe.ema_half_life),
        initial_state(model, recipe, state_key),
        hyperparameters(recipe),
        batches,
        steps=recipe.steps,
        mesh=mesh,
        axes=logical_axes(model),
        checkpoints=checkpoints,
        resume=resume,
        save_every=save_every,
        on_metrics=on_metrics,
        stop=stop,
    )


def _predict(model, objective, params, x, level, label, shift) -> Prediction:
    def network(x: Sample, condition: Scalar) -> Sample:
        augmentation = (shift,) if model.config.augmentation else ()
        return model.apply({"params": params}, x, condition, label, *augmentation)

    return objective.predict(network, x, level)


def _check_data(model: ImageMLP, images: np.ndarray, labels: np.ndarray, recipe: Recipe, mesh: Mesh | None) -> None:
    config = model.config
    if images.shape[1:] != config.image_shape or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must have shape [count, {', '.join(map(str, config.image_shape))}] and labels [count], "
            f"got {images.shape} and {labels.shape}"
        )
    if not np.isfinite(images).all():
        raise ValueError(f"images must be finite, got {np.sum(~np.isfinite(images))} entries that are not")
    check_labels(labels, config.num_classes - 1)
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
    if mesh is not None and recipe.batch_size % mesh.shape.get("data", 1):
        raise ValueError(
            f"a batch of {recipe.batch_size} cannot be split evenly over data={mesh.shape['data']} devices; "
            f"choose a multiple"
        )
