"""Train a classifier of images, tell how often it is right, and use its penultimate layer as features."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxgen.models import init_params, logical_axes
from jaxgen.models.image_classifier import ImageClassifier
from jaxgen.pipelines.augmentation import random_shift
from jaxgen.pipelines.optimisation import Hyperparameters, adamw
from jaxgen.pipelines.pixels import scaled
from jaxgen.pipelines.ranges import check_least, check_not_negative, check_positive, check_share
from jaxgen.pipelines.steps_per_call import steps_per_call
from jaxgen.statistics.feature_functions import FeatureFunction
from jaxgen.training import Checkpoints, TrainState, check_batch, create, fingerprint, fit, in_memory
from jaxgen.typing import ArrayLike, Params, PRNGKey, Scalar


class ClassifierHyperparameters(NamedTuple):
    """The numbers of a recipe that the compiled update takes as arguments: changing them compiles nothing."""

    optimiser: Hyperparameters
    label_smoothing: Scalar


@dataclasses.dataclass(frozen=True)
class ClassifierRecipe:
    """How to train a classifier; the defaults suit a thousand small images."""

    steps: int = 300
    """Updates."""
    batch_size: int = 64
    """Images in an update, drawn without replacement within an epoch."""
    learning_rate: float = 5e-3
    """Peak of the learning rate, which rises linearly, then falls to 0 along a cosine."""
    warmup_steps: int = 20
    """Updates over which the learning rate rises."""
    weight_decay: float = 1e-2
    """Decoupled weight decay (AdamW)."""
    second_moment_decay: float = 0.99
    """AdamW's b2."""
    label_smoothing: float = 0.0
    """Share of a label that is spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    largest_shift: float = 0.0
    """Most pixels that half of the images are shifted by; 0 for no augmentation."""
    mirror: bool = False
    """Whether half of the images are mirrored, left for right."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        check_least(self, 1, "steps", "batch_size")
        check_least(self, 0, "warmup_steps")
        check_positive(self, "learning_rate")
        check_not_negative(self, "weight_decay", "largest_shift")
        check_share(self, "label_smoothing", "second_moment_decay")

    def hyperparameters(self) -> ClassifierHyperparameters:
        """Return the numbers that the compiled update takes as arguments, as float32 scalars."""
        numbers = {**dataclasses.asdict(self), "label_dropout": 0.0}
        return ClassifierHyperparameters(
            Hyperparameters(*(np.asarray(numbers[name], np.float32) for name in Hyperparameters._fields)),
            np.asarray(self.label_smoothing, np.float32),
        )


@dataclasses.dataclass(frozen=True)
class ClassifierUpdate:
    """One step of training, as `fit` wants it; equal ones share a compiled program.

    Constants are `recipe.hyperparameters()`; a batch holds `image`, scaled to about [-1, 1] or as bytes, and `label`.

    Attributes:
        model: the network.
        shift: whether half of the images are shifted, by as much as the constants say.
        mirror: whether half of the images are mirrored.
    """

    model: ImageClassifier
    shift: bool = False
    mirror: bool = False

    def __call__(
        self, state: TrainState, constants: ClassifierHyperparameters, batch: PyTree
    ) -> tuple[TrainState, dict]:
        """Take one AdamW step on the mean cross-entropy of a batch."""
        images, labels = scaled(batch["image"]), batch["label"]
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(labels))
        images = jax.vmap(self.augment, (0, 0, None))(keys, images, constants.optimiser.largest_shift)

        def mean_loss(params: Params) -> tuple[Scalar, Scalar]:
            logits = _apply(self.model, params, images)
            wanted = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(wanted, constants.label_smoothing))
            return jnp.mean(losses), jnp.mean(jnp.argmax(logits, axis=-1) == labels)

        (loss, accuracy), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        change, opt_state = adamw(constants.optimiser).update(gradient, state.opt_state, state.params)
        rate = opt_state.hyperparams["learning_rate"]  # pyright: ignore[reportAttributeAccessIssue]
        norm = optax.tree.norm(gradient)
        metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": norm, "learning_rate": rate}
        return state._replace(params=optax.apply_updates(state.params, change), opt_state=opt_state), metrics

    def augment(self, key: PRNGKey, image: Float[Array, "..."], largest: Scalar) -> Float[Array, "..."]:
        """Shift one image by at most `largest` pixels and mirror it, each with probability a half where asked for."""
        shift_key, mirror_key = jax.random.split(key)
        if self.shift:
            planes = image.reshape(*image.shape[:2], -1)
            # One key: all channels of an image move together.
            planes = jax.vmap(lambda plane: random_shift(shift_key, plane, largest)[0], -1, -1)(planes)
            image = planes.reshape(image.shape)
        if self.mirror:
            image = jnp.where(jax.random.bernoulli(mirror_key), image[:, ::-1], image)
        return image


def initial_classifier(model: ImageClassifier, recipe: ClassifierRecipe, key: PRNGKey) -> TrainState:
    """Draw the parameters, and put the state of a run together at step 0; the key is consumed.

    No average is kept: the learning rate falls to 0, so that the last parameters are settled.
    """
    init_key, run_key = jax.random.split(key)
    params = init_params(model, init_key)
    return create(run_key, params, adamw(recipe.hyperparameters().optimiser).init(params))


def train_classifier(
    model: ImageClassifier,
    images: Shaped[ArrayLike, "count ..."],
    labels: Int[ArrayLike, " labels"],
    key: PRNGKey,
    recipe: ClassifierRecipe = ClassifierRecipe(),
    *,
    mesh: Mesh | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    save_every: int | None = None,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train a network to tell the classes of images apart, which are held in memory.

    Args:
        model: the network.
        images: of the model's image shape, scaled to about [-1, 1], or bytes, which are scaled so.
        labels: the class of each.
        key: typed key of the whole run, consumed: parameters, order of the data, augmentation.
        recipe: how to train.
        mesh: devices to train on; None trains on one.
        checkpoints: where to save, at the end and as the next arguments say.
        resume: continue from the newest checkpoint, if there is one.
        save_every: updates between checkpoints.
        on_metrics: called as `on_metrics(step, {"loss", "accuracy", "gradient_norm", "learning_rate"})` after each
            update; the accuracy is the batch's, before the update.
        stop: asked between updates; once it returns true, the state is saved and returned early.

    Returns:
        The state after the last update; `state.params` are the parameters of the classifier.

    Raises:
        ValueError: for images, labels or a batch that do not fit the model or the mesh, before anything is compiled.
        TrainingDivergedError: if the loss or a parameter is not finite.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_data(model, images, labels)
    if mesh is not None:
        check_batch(recipe.batch_size, mesh)
    state_key, data_key = jax.random.split(key)
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    arrays = {"image": images, "label": labels.astype(np.int32)}
    return fit(
        ClassifierUpdate(model, recipe.largest_shift > 0, recipe.mirror),
        initial_classifier(model, recipe, state_key),
        recipe.hyperparameters(),
        in_memory(arrays, recipe.batch_size, data_key, mesh=mesh),
        steps=recipe.steps,
        mesh=mesh,
        axes=logical_axes(model),
        checkpoints=checkpoints,
        resume=resume,
        save_every=save_every,
        on_metrics=on_metrics,
        stop=stop,
        steps_per_call=steps_per_call(mesh, convolutional=True),
    )


def label_accuracy(
    model: ImageClassifier,
    params: Params,
    images: Shaped[ArrayLike, "count ..."],
    labels: Int[ArrayLike, " labels"],
    *,
    block_size: int = 256,
) -> float:
    """Return the share of images whose most probable class is their label.

    Images and labels are as for `train_classifier`; `block_size` images are in one call of the compiled program.

    Raises:
        ValueError: for images, labels or a block size that do not fit.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_data(model, images, labels)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    size, right = min(block_size, len(images)), 0
    for first in range(0, len(images), size):
        part = images[first : first + size]
        # The last block is filled up, so that one program serves all.
        block = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        right += int(np.sum(_classes(model, params, block)[: len(part)] == labels[first : first + size]))
    return right / len(images)


def classifier_features(model: ImageClassifier, params: Params, *, image_dtype: str = "uint8") -> FeatureFunction:
    """Make features out of the penultimate layer of a classifier.

    The function maps images `[count, side, side, channels]` to float32 features `[count, features]`. Its products are
    computed in single precision on every device (unless the model's `dtype` says otherwise), so that features kept
    from one device can be compared with those of another.

    Args:
        model: the network.
        params: its parameters.
        image_dtype: "uint8" for bytes, or a floating type for images scaled to [-1, 1].

    Returns:
        The function; its id holds the sha256 of sizes and parameters, so that the features of bytes and of scaled
        images may be compared.

    Raises:
        ValueError: images cannot have that dtype.
    """
    sizes = np.frombuffer(repr(model.config).encode(), np.uint8)
    digest = fingerprint({"params": params, "sizes": sizes})
    return FeatureFunction(f"classifier-{digest[:16]}", _Penultimate(model), params, image_dtype=image_dtype)


@dataclasses.dataclass(frozen=True)
class _Penultimate:
    """What a `FeatureFunction` applies; equal for equal models, as jit asks."""

    model: ImageClassifier

    def __call__(self, params: Params, images: Shaped[ArrayLike, "count ..."]) -> Float[Array, "count features"]:
        shape = self.model.config.image_shape
        if images.shape[1:] != (*shape[:2], math.prod(shape[2:])):
            raise ValueError(
                f"images must have shape [count, {shape[0]}, {shape[1]}, {math.prod(shape[2:])}], got {images.shape}"
            )
        return _features(self.model, params, images.reshape(len(images), *shape))


@functools.partial(jax.jit, static_argnums=0)
def _features(model: ImageClassifier, params: Params, images: Shaped[ArrayLike, "count ..."]) -> Array:
    with jax.default_matmul_precision("highest"):
        return _apply(model, params, scaled(images), "features").astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _classes(model: ImageClassifier, params: Params, images: Shaped[ArrayLike, "count ..."]) -> Int[Array, " count"]:
    return jnp.argmax(_apply(model, params, scaled(images)), axis=-1)


def _apply(model: ImageClassifier, params: Params, images: ArrayLike, method: str = "__call__") -> Any:
    return model.apply({"params": params}, images, method=method)


def _check_data(model: ImageClassifier, images: np.ndarray, labels: np.ndarray) -> None:
    config = model.config
    if images.shape[1:] != config.image_shape or labels.shape != images.shape[:1] or not len(images):
        raise ValueError(
            f"images must have shape [count, {', '.join(map(str, config.image_shape))}] and labels [count] with a "
            f"count of at least 1, got {images.shape} and {labels.shape}"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"images must be bytes, or real numbers scaled to [-1, 1], got {images.dtype}; convert them")
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise ValueError(f"images must be finite, got {np.sum(~np.isfinite(images))} entries that are not")
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < config.num_classes:
        raise ValueError(
            f"labels must be integers in 0..{config.num_classes - 1}, got {labels.dtype} in "
            f"{labels.min()}..{labels.max()}"
        )
