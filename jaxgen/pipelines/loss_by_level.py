"""The loss of a trained network at given noise levels: where it is good, and where it only knows its data by heart."""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxgen.diffusion import Level
from jaxgen.models import ImageNetwork, check_labels
from jaxgen.pipelines.denoising_update import predict_given
from jaxgen.pipelines.objectives import Objective
from jaxgen.typing import ArrayLike, Params, PRNGKey


class LevelLosses(NamedTuple):
    """The losses of images at noise levels, each from one draw of the noise.

    Attributes:
        network: of the network, `[levels, count]`.
        zero: of the network whose raw output is 0, with the same noise, `[levels, count]`.
    """

    network: Float[np.ndarray, "levels count"]
    zero: Float[np.ndarray, "levels count"]


def loss_by_level(
    model: ImageNetwork,
    objective: Objective,
    params: Params,
    images: Float[ArrayLike, "count ..."],
    labels: Int[ArrayLike, " count"],
    key: PRNGKey,
    levels: Level,
    *,
    variables: PyTree = (),
) -> LevelLosses:
    """Measure the loss of each image at each level, as in training but for augmentation, dropout and learned weights.

    Args:
        model: the network.
        objective: how it is read, and what its loss is.
        params: its parameters.
        images: of the model's image shape, scaled as in training; all of them go through the network at once.
        labels: the class of each; `num_classes` asks without one.
        key: typed key, consumed; image i has one noise, drawn from `fold_in(key, i)`, at every level.
        levels: a Level of arrays `[levels]`; their sigma is above 0.
        variables: the network's other collections.

    Raises:
        ValueError: for images or labels that do not fit the model, or a level without noise.
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if images.shape[1:] != model.config.image_shape or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must have shape [count, {', '.join(map(str, model.config.image_shape))}] and labels [count], "
            f"got {images.shape} and {labels.shape}"
        )
    check_labels(labels, model.config.num_classes)
    levels = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), levels)
    count = np.size(levels.sigma)
    if not (np.ndim(levels.sigma) == 1 and np.all(levels.sigma > 0)):
        raise ValueError(f"levels must be a list with sigma above 0, got {levels.sigma}")
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(images)))
    fixed = (model, objective, params, variables, keys, images, labels.astype(np.int32))
    # One level at a time bounds the memory, and its program is compiled once.
    parts = [jax.tree.map(operator.itemgetter(index), levels) for index in range(count)]
    found = [_measure(*fixed, level) for level in parts]
    network, zero = (np.stack([np.asarray(pair[part]) for pair in found]) for part in (0, 1))
    return LevelLosses(network, zero)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(model: ImageNetwork, objective: Objective, params, variables, keys, images, labels, level):
    def one(key, image, label):
        def predict(x, level):
            return predict_given(model, objective, params, x, level, label, variables=variables)

        def predict_zero(x, level):
            return objective.predict(lambda x, condition: jnp.zeros_like(x), x, level)

        return objective.loss(predict, key, image, level), objective.loss(predict_zero, key, image, level)

    return jax.vmap(one)(keys, images, labels)
