"""Attention of every token to every other one."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    query: Float[Array, "count tokens heads features"],
    key: Float[Array, "count others heads features"],
    value: Float[Array, "count others heads features"],
) -> Float[Array, "count tokens heads features"]:
    """Average the values with weights softmax(query . key / sqrt(features)), head by head (Vaswani et al. 2017, eq. 1).

    Half-precision inputs are averaged with weights that are computed in float32.
    """
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value)
    # The same numbers in double precision: dot_product_attention would compute in float32.
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
