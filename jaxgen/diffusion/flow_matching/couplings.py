"""Couplings: which point of the base is led to which point of the data."""

import jax
import optax
from jaxtyping import Array, Float

from jaxgen.typing import PRNGKey, Scalar


def independent_coupling(
    key: PRNGKey, base: Float[Array, "count ..."], data: Float[Array, "count ..."]
) -> tuple[Float[Array, "count ..."], Float[Array, "count ..."]]:
    """Pair a batch of the base with a batch of the data at random; returns (x1, x0). The key is consumed."""
    return base, jax.random.permutation(key, data)


def diffusion_coupling(
    key: PRNGKey, data: Float[Array, "count ..."], sigma_q: Scalar
) -> tuple[Float[Array, "count ..."], Float[Array, "count ..."]]:
    """Pair each point of the data with itself plus noise, x1 = x0 + N(0, sigma_q^2); returns (x1, x0).

    The base is the noised data. The key is consumed.
    """
    return data + sigma_q * jax.random.normal(key, data.shape, data.dtype), data


def minibatch_optimal_transport(
    base: Float[Array, "count ..."], data: Float[Array, "partners ..."]
) -> tuple[Float[Array, "count ..."], Float[Array, "count ..."]]:
    """Pair two batches so that the sum of squared distances is the smallest (Tong et al. 2024, section 3.2).

    The assignment is exact (the Hungarian algorithm) and on the device; its time grows as the cube of the batch.

    Returns:
        (x1, x0): the base as it is, and the data in the order of its partners.

    Raises:
        ValueError: if the batches differ in shape.
    """
    if base.shape != data.shape:
        raise ValueError(f"both batches must have one shape, got {base.shape} and {data.shape}")
    flat = [batch.reshape(len(batch), -1) for batch in (base, data)]
    costs = jax.vmap(lambda a: jax.vmap(lambda b: ((a - b) ** 2).sum())(flat[1]))(flat[0])
    rows, columns = optax.assignment.hungarian_algorithm(costs)
    partner = columns[rows.argsort()]
    return base, data[partner]
