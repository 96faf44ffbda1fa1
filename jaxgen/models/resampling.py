"""Changes of resolution by a box filter (Karras et al. 2022, appendix F)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def check_levels(image_shape: tuple[int, ...], multipliers: tuple[int, ...]) -> None:
    """Refuse images whose sides cannot be halved from each level to the next.

    Args:
        image_shape: (side, side, channels), or (side, side) where the network takes grey images.
        multipliers: features of each level, in units of the network's width.

    Raises:
        ValueError: names the value, the range and the mend.
    """
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must hold positive factors, one a level, got {multipliers}")
    factor = 2 ** (len(multipliers) - 1)
    if min(image_shape) < 1 or image_shape[0] != image_shape[1]:
        raise ValueError(f"image_shape must begin with two equal sides and hold positive sizes, got {image_shape}")
    if image_shape[0] % factor:
        raise ValueError(
            f"image_shape must have sides that {len(multipliers)} levels can halve, multiples of {factor}, got "
            f"{image_shape}; resize the images or take fewer multipliers"
        )


def halve(x: Float[Array, "count side side width"]) -> Float[Array, "count half half width"]:
    """Average each 2x2 pixels."""
    count, side, _, width = x.shape
    return x.reshape(count, side // 2, 2, side // 2, 2, width).mean((2, 4))


def double(x: Float[Array, "count side side width"]) -> Float[Array, "count twice twice width"]:
    """Repeat each pixel 2x2 times."""
    count, side, _, width = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (count, side, 2, side, 2, width)).reshape(
        count, 2 * side, 2 * side, width
    )
