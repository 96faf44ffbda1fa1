"""Random shifts of training images, told to the network so that none leaks into its samples."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxgen.typing import PRNGKey, Scalar

SHIFT_FEATURES = 2
"""Length of the condition that tells a network the shift: rows and columns, in pixels; zeros ask for none."""


def random_shift(
    key: PRNGKey, image: Float[Array, "height width"], largest: Scalar, *, rate: Scalar = 0.5, fill: float = -1.0
) -> tuple[Float[Array, "height width"], Float[Array, " 2"]]:
    """Shift an image by a random fraction of pixels, and return the shift beside it (Karras et al. 2022, appendix F.2).

    Args:
        key: typed key, consumed.
        image: one grey image.
        largest: most pixels in each direction, drawn uniformly; 0 leaves the image as it is.
        rate: share of images that are shifted.
        fill: value beyond the border.

    Returns:
        The image, by linear interpolation, and the shift (rows, columns) in pixels.
    """
    on_key, shift_key = jax.random.split(key)
    shift = largest * jax.random.uniform(shift_key, (2,), image.dtype, -1.0, 1.0)
    shift = jnp.where(jax.random.bernoulli(on_key, rate), shift, 0.0)
    rows, columns = (jnp.arange(size, dtype=image.dtype) for size in image.shape)
    coordinates = jnp.meshgrid(rows - shift[0], columns - shift[1], indexing="ij")
    return map_coordinates(image, coordinates, order=1, mode="constant", cval=fill), shift
