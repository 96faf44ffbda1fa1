"""The exact denoiser of a finite set of points: what a network that memorises its training data would learn."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Prediction


def predict_from_points(points: Float[Array, "count D"], x: Float[Array, " D"], level: Level) -> Prediction:
    """Return E[x0 | x] and E[noise | x] where x0 is one of the points, each as likely as the others.

    Args:
        points: the data.
        x: one sample at `level`.
        level: where it is; sigma must be above 0.
    """
    squared = jnp.sum((x[None] - level.alpha * points) ** 2, axis=-1)
    x0 = jax.nn.softmax(-0.5 * squared / level.sigma**2) @ points
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)
