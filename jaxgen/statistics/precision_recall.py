"""Precision and recall of a generative model: are its samples realistic, and do they cover the data?"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgen.statistics.samples import check_samples, squared_distances
from jaxgen.typing import ArrayLike


class PrecisionRecall(NamedTuple):
    """Fractions in [0, 1]: generated samples within the data, and data within the generated samples."""

    precision: Float[Array, ""]
    recall: Float[Array, ""]


@partial(jax.jit, static_argnames=("neighbors", "block"))
def precision_recall(
    generated: Float[ArrayLike, "generated dim"],
    real: Float[ArrayLike, "real dim"],
    *,
    neighbors: int = 5,
    block: int = 64,
) -> PrecisionRecall:
    """Measure precision and recall with k-nearest-neighbour balls (Kynkäänniemi et al. 2019, equations 1 and 2).

    A set is taken to cover the closed balls around its samples whose radius is the distance to the `neighbors`-th
    nearest other sample of the set (a duplicate counts as another sample). Precision is the share of generated samples
    that the real set covers, recall the share of real samples that the generated set covers: exchanging the arguments
    exchanges the two.

    Args:
        generated: samples of the model.
        real: samples of the data.
        neighbors: k.
        block: samples whose distances are computed together; memory is `block` times the larger count.

    Returns:
        Both fractions, for few samples even of equal laws below 1; NaN if a sample is not finite.

    Raises:
        ValueError: `neighbors` is below 1 or a set has no more than `neighbors` samples.

    >>> line = jnp.arange(4.0)[:, None]
    >>> precision, recall = precision_recall(line[:2], line, neighbors=1)
    >>> print(precision, recall)
    1.0 0.75
    """
    if neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, got {neighbors}")
    check_samples(generated, real, minimum=neighbors + 1)
    generated, real = jnp.asarray(generated), jnp.asarray(real)
    precision = _covered(generated, real, _squared_radii(real, neighbors, block), block)
    recall = _covered(real, generated, _squared_radii(generated, neighbors, block), block)
    finite = jnp.all(jnp.isfinite(generated)) & jnp.all(jnp.isfinite(real))  # a comparison with NaN would drop it
    return PrecisionRecall(jnp.where(finite, precision, jnp.nan), jnp.where(finite, recall, jnp.nan))


def _squared_radii(samples: Float[Array, "count dim"], neighbors: int, block: int) -> Float[Array, " count"]:
    """Return each sample's squared distance to its `neighbors`-th nearest other sample."""

    def radius(index: Int[Array, ""]) -> Float[Array, ""]:
        others = squared_distances(samples[index], samples).at[index].set(jnp.inf)
        return -jax.lax.top_k(-others, neighbors)[0][-1]

    return jax.lax.map(radius, jnp.arange(samples.shape[0]), batch_size=block)


def _covered(
    points: Float[Array, "points dim"],
    centres: Float[Array, "centres dim"],
    squared_radii: Float[Array, " centres"],
    block: int,
) -> Float[Array, ""]:
    """Return the share of points that lie in at least one ball."""

    def covered(point: Float[Array, " dim"]) -> Bool[Array, ""]:
        return jnp.any(squared_distances(point, centres) <= squared_radii)

    return jnp.mean(jax.lax.map(covered, points, batch_size=block), dtype=points.dtype)
