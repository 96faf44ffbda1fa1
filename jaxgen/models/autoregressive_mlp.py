"""A small autoregressive network of enumerable sequences of tokens, for one condition."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.models.relu_layers import check_sizes, relu_layers
from jaxgen.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class AutoregressiveMLPConfig:
    """Sizes of an `AutoregressiveMLP`; by default 1,865 parameters, of which 16 embed the condition."""

    tokens: int = 3
    """Number of tokens."""
    length: int = 6
    """Tokens of a sequence."""
    embedding: int = 16
    """Features of the embeddings of tokens, positions and the condition."""
    width: int = 32
    """Features of a hidden layer."""
    layers: int = 3
    """Affine layers, with a ReLU between each two."""
    dtype: str | None = None
    """Type of the computation, for example "bfloat16"; None promotes the types of parameters and inputs."""

    def __post_init__(self):
        check_sizes(self, tokens=2, length=1, embedding=1, width=1, layers=1)


class AutoregressiveMLP(nn.Module):
    """Map the tokens before a position to the logits of the token at it, under one condition.

    The network of Wang et al. 2025 (A Theory for Conditional Generative Modeling on Multiple Data Sources): embeddings
    of the tokens so far are mixed over positions and enter an MLP beside those of the position and the condition,

        h = e + P_t + sum_{i < t} a_i E[x_i] * P_i,

    where P tells the places of the tokens apart. The parameter `condition` is the embedding e of one source: with
    `jax.vmap` over it, all other parameters shared, this is one model of many sources.
    """

    config: AutoregressiveMLPConfig

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the arguments of one call on a single sequence: its tokens, the position."""
        return jnp.zeros(self.config.length, jnp.int32), jnp.zeros((), jnp.int32)

    @nn.compact
    def __call__(
        self, tokens: Int[ArrayLike, "*lead length"], position: Int[ArrayLike, "*lead"]
    ) -> Float[Array, "*lead tokens"]:
        """Apply the network.

        Args:
            tokens: in [0, tokens), of shape `(*lead, length)`, where `lead` may be empty; those from `position` on are
                not looked at.
            position: of the token to predict, in [0, length), of shape `lead`.

        Returns:
            Logits of the token at `position`.

        Raises:
            ValueError: if the shapes do not belong together.
        """
        config, tokens, position = self.config, jnp.asarray(tokens), jnp.asarray(position)
        if tokens.shape != (*position.shape, config.length):
            raise ValueError(
                f"tokens must have the shape of position and {config.length} more, got {tokens.shape}, {position.shape}"
            )
        embed, mixed = nn.initializers.normal(1.0), nn.initializers.constant(1 / math.sqrt(config.length))
        size = config.embedding
        token_table = self._param("tokens", embed, (config.tokens, size), ("tokens", "embedding"))
        position_table = self._param("positions", embed, (config.length, size), ("positions", "embedding"))
        mixing = self._param("mixing", mixed, (config.length,), ("positions",))
        condition = self._param("condition", embed, (size,), ("embedding",))
        places = jnp.broadcast_to(jnp.arange(config.length), tokens.shape)
        weights = jnp.where(places < position[..., None], mixing[places], 0.0)
        # One contraction over positions, so that no array of all pairs of token and place is kept.
        history = jnp.einsum("...i,...id,id->...d", weights, token_table[tokens], position_table)
        h = history + position_table[position] + jnp.broadcast_to(condition, history.shape)
        return relu_layers(h, config.width, config.layers, config.tokens, config.dtype)

    def _param(self, name: str, init: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
        return self.param(name, nn.with_logical_partitioning(init, axes), shape)
