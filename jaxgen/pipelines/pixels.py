"""Pixels as networks see them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxgen.typing import ArrayLike


def scaled(images: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Scale bytes to [-1, 1] and leave all else."""
    images = jnp.asarray(images)
    return images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images
