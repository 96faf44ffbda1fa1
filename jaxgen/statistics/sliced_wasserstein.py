"""Wasserstein distances along random lines."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.statistics.samples import check_samples
from jaxgen.typing import ArrayLike, PRNGKey


@partial(jax.jit, static_argnames=("projections", "block"))
def sliced_wasserstein2(
    key: PRNGKey,
    first: Float[ArrayLike, "first dim"],
    second: Float[ArrayLike, "second dim"],
    *,
    projections: int = 128,
    block: int = 32,
) -> Float[Array, ""]:
    """Estimate the sliced 2-Wasserstein distance of two sets of samples, in their units (Bonneel et al. 2015).

    The root of the mean, over uniform directions, of the squared 2-Wasserstein distance between both projections, which
    sorting solves exactly, for unequal counts too. Between finite samples of one law it is above 0: compare with that.

    Args:
        key: consumed for the directions.
        first: samples of one law.
        second: samples of the other, as many or not.
        projections: number of directions.
        block: directions that are computed together.

    Raises:
        ValueError: a set is empty, the sets differ in dimension, or a count is below 1.

    >>> points = jnp.array([[0.0], [1.0]])
    >>> print(sliced_wasserstein2(jax.random.key(0), points, points + 3.0))
    3.0
    """
    check_samples(first, second, minimum=1)
    if projections < 1 or block < 1:
        raise ValueError(f"projections and block must be at least 1, got {projections} and {block}")
    first, second = jnp.asarray(first), jnp.asarray(second)
    lengths, ours, theirs = _common_steps(len(first), len(second))
    directions = jax.random.normal(key, (projections, first.shape[1]), first.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)

    def squared(direction: Float[Array, " dim"]) -> Float[Array, ""]:
        along = (jnp.sort(jnp.matmul(of, direction, precision=jax.lax.Precision.HIGHEST)) for of in (first, second))
        a, b = along
        return jnp.sum(jnp.asarray(lengths, a.dtype) * (a[ours] - b[theirs]) ** 2)

    return jnp.sqrt(jnp.mean(jax.lax.map(squared, directions, batch_size=block)))


def _common_steps(first: int, second: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lengths of the intervals on which both quantile functions are constant, and the sample of each."""
    # In units of 1 / (first second), so that ends which coincide do so exactly.
    ends = np.unique(np.concatenate([np.arange(1, first + 1) * second, np.arange(1, second + 1) * first]))
    lengths = np.diff(ends, prepend=0)
    return lengths / (first * second), (ends - 1) // second, (ends - 1) // first
