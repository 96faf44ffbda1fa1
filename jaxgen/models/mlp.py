"""A plain ReLU network of a point and a time, for data of few dimensions."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.models.conditioning import fourier_features
from jaxgen.models.relu_layers import check_sizes, relu_layers
from jaxgen.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Sizes of an `MLP`; the defaults are the network of Step-by-Step Diffusion (Nakkiran et al. 2024, figure 6)."""

    dimension: int = 2
    """Coordinates of a point, of which the output has as many."""
    width: int = 128
    """Features of a hidden layer."""
    layers: int = 3
    """Affine layers, with a ReLU between each two."""
    frequencies: int = 0
    """Sine and cosine pairs that encode the time; with 0 the time is one more coordinate, as it is."""
    frequency_range: tuple[float, float] = (0.125, 8.0)
    """Lowest and highest frequency, in cycles per unit of time, spaced geometrically."""
    dtype: str | None = None
    """Type of the computation, for example "bfloat16"; None promotes the types of parameters and inputs."""

    def __post_init__(self):
        check_sizes(self, dimension=1, width=1, layers=1, frequencies=0)
        low, high = self.frequency_range
        if not 0 < low <= high < math.inf:
            raise ValueError(f"frequency_range must be 0 < low <= high, got {self.frequency_range}")


class MLP(nn.Module):
    """Map a point and a time to a vector of the point's shape: the expected clean point, or a velocity.

    The time enters beside the coordinates. Every operation acts on one point: `jax.vmap` over points and a call with
    leading dimensions run the same matrix products.
    """

    config: MLPConfig

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the arguments of one call on a single point: the point, its time."""
        return jnp.zeros(self.config.dimension), jnp.zeros(())

    @nn.compact
    def __call__(self, x: Float[Array, "*lead dim"], time: Float[ArrayLike, "*lead"]) -> Float[Array, "*lead dim"]:
        """Apply the network.

        Args:
            x: points of shape `(*lead, dimension)`, where `lead` may be empty.
            time: what the network is told, of shape `lead` and order 1.

        Returns:
            The output, with the shape and dtype of `x`.

        Raises:
            ValueError: if the shapes do not belong together.
        """
        config, time = self.config, jnp.asarray(time)
        if x.shape != (*time.shape, config.dimension):
            raise ValueError(f"x must have the shape of time and {config.dimension} more, got {x.shape}, {time.shape}")
        encoded = (
            fourier_features(time, config.frequencies, *config.frequency_range)
            if config.frequencies
            else time[..., None]
        )
        h = jnp.concatenate([x, encoded.astype(x.dtype)], axis=-1)
        h = relu_layers(h, config.width, config.layers, config.dimension, config.dtype)
        return h.astype(x.dtype)
