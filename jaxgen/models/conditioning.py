"""What every network of images is told: the noise, the class, and how the image was augmented."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.typing import ArrayLike


def check_conditioning(config: Any) -> None:
    """Refuse sizes that no condition can be computed with.

    Args:
        config: an `ImageMLPConfig`, or one with the same fields for what the network is told.

    Raises:
        ValueError: names the field, its value and the range.
    """
    for name in ("num_classes", "embedding", "frequencies"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    low, high = config.frequency_range
    if not 0 < low <= high < math.inf:
        raise ValueError(f"frequency_range must be 0 < low <= high, got {config.frequency_range}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {config.dropout}")
    if config.augmentation < 0:
        raise ValueError(f"augmentation must be at least 0, got {config.augmentation}")


def example_inputs(config: Any) -> tuple[Array, ...]:
    """Return the arguments of one call on a single sample: image, noise condition, label, augmentation if any."""
    inputs = (jnp.zeros(config.image_shape), jnp.zeros(()), jnp.zeros((), jnp.int32))
    return (*inputs, jnp.zeros(config.augmentation)) if config.augmentation else inputs


def condition_vector(
    module: nn.Module,
    dense: Callable[..., nn.Module],
    noise_condition: Float[Array, "..."],
    label: Int[Array, "..."],
    augmentation: Float[ArrayLike, "..."] | None,
) -> Float[Array, "... embedding"]:
    """Sum the embeddings of noise, class and augmentation, and mix them; inside a compact method of `module`.

    Args:
        module: the network, whose `config` says the sizes; it gets the parameters.
        dense: builds a layer, as `dense(features, axes, name, dtype)`.
        noise_condition: scalars, of any shape.
        label: classes of the same shape; `num_classes` is the null class.
        augmentation: features on one more axis, where the configuration asks for them.
    """
    config: Any = module.config  # pyright: ignore[reportAttributeAccessIssue]
    table: Any = module.param(
        "classes",
        nn.with_logical_partitioning(nn.initializers.normal(1.0), ("classes", "embedding")),
        (config.num_classes + 1, config.embedding),
    )
    waves = fourier_features(noise_condition, config.frequencies, *config.frequency_range)
    total = dense(config.embedding, ("waves", "embedding"), "noise", config.dtype)(waves) + table[label]
    if config.augmentation:
        total += dense(config.embedding, ("augmentation", "embedding"), "augment", config.dtype)(augmentation)
    return nn.silu(dense(config.embedding, ("embedding", "embedding_out"), "mix", config.dtype)(nn.silu(total)))


def fourier_features(condition: Float[Array, "..."], count: int, low: float, high: float) -> Float[Array, "... pairs"]:
    """Encode a scalar as sines and cosines of geometrically spaced frequencies.

    Args:
        condition: the scalars, of any shape.
        count: number of frequencies.
        low: lowest frequency, cycles per unit of `condition`.
        high: highest frequency, cycles per unit of `condition`.

    Returns:
        `2 * count` features on a new last axis, scaled to unit mean square; at least float32.
    """
    dtype = jnp.promote_types(condition.dtype, jnp.float32)
    angular = jnp.asarray(2 * math.pi * np.geomspace(low, high, count), dtype)
    angles = condition.astype(dtype)[..., None] * jnp.broadcast_to(angular, (*condition.shape, count))
    return math.sqrt(2) * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def leading_shape(config, x, noise_condition, label, augmentation) -> tuple[int, ...]:
    """Return the leading shape that the inputs of an image network share; ValueError where they do not."""
    rank = x.ndim - len(config.image_shape)
    lead = x.shape[: max(rank, 0)]
    if x.shape != (*lead, *config.image_shape):
        raise ValueError(f"x must end in the image shape {config.image_shape}, got {x.shape}")
    for name, value in (("noise_condition", noise_condition), ("label", label)):
        if jnp.shape(value) != lead:
            raise ValueError(f"{name} must have the leading shape {lead} of x, got {jnp.shape(value)}")
    if (augmentation is None) != (config.augmentation == 0):
        raise ValueError(f"the network has {config.augmentation} augmentation features, got {augmentation}")
    if augmentation is not None and jnp.shape(augmentation) != (*lead, config.augmentation):
        raise ValueError(f"augmentation must have shape {(*lead, config.augmentation)}, got {jnp.shape(augmentation)}")
    return lead
