"""Changes of resolution by a box filter (Karras et al. 2022, appendix F)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
