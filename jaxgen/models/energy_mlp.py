"""A small energy network of points of the unit cube, for one condition."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.models.relu_layers import check_sizes, relu_layers


@dataclasses.dataclass(frozen=True)
class EnergyMLPConfig:
    """Sizes of an `EnergyMLP`; by default 1,317 parameters, of which 4 embed the condition."""

    dimension: int = 2
    """Coordinates of a point."""
    embedding: int = 4
    """Features of the embedding of the condition."""
    width: int = 32
    """Features of a hidden layer."""
    layers: int = 3
    """Affine layers, with a ReLU between each two."""
    dtype: str | None = None
    """Type of the computation, for example "bfloat16"; None promotes the types of parameters and inputs."""

    def __post_init__(self):
        check_sizes(self, dimension=1, embedding=1, width=1, layers=1)


class EnergyMLP(nn.Module):
    """Map a point of [0, 1]^D to its energy u(x, e) under one condition; its density is proportional to exp(-u).

    The network of Wang et al. 2025 (A Theory for Conditional Generative Modeling on Multiple Data Sources): a ReLU MLP
    of the point and the embedding e of the condition. The parameter `condition` is that of one source: with `jax.vmap`
    over it, all other parameters shared, this is one model of many sources.
    """

    config: EnergyMLPConfig

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the argument of one call on a single point."""
        return (jnp.zeros(self.config.dimension),)

    @nn.compact
    def __call__(self, x: Float[Array, "*lead dim"]) -> Float[Array, "*lead"]:
        """Apply the network.

        Args:
            x: points in [0, 1]^dimension, of shape `(*lead, dimension)`, where `lead` may be empty.

        Returns:
            The energies, up to a constant that no density shows, in the dtype of `x`.

        Raises:
            ValueError: if the points have another dimension.
        """
        config = self.config
        if x.shape[-1:] != (config.dimension,):
            raise ValueError(f"x must have {config.dimension} coordinates on its last axis, got shape {x.shape}")
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embedding",))
        condition: Any = self.param("condition", init, (config.embedding,))
        # A uniform point has mean 0 and variance 1 after this, as the embeddings have.
        centred = math.sqrt(12.0) * (x - 0.5)
        repeated = jnp.broadcast_to(condition.astype(x.dtype), (*x.shape[:-1], config.embedding))
        h = jnp.concatenate([centred, repeated], axis=-1)
        return relu_layers(h, config.width, config.layers, 1, config.dtype)[..., 0].astype(x.dtype)
