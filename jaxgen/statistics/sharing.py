r"""What sharing costs where the sources are not alike, and an estimator that finds out how far to share.

In a coordinate that is taken to be shared let the sources' means have the variance v, weighted by p_Y. One mean for all
K sources then errs by v for ever, but by 1 / n instead of K / n from noise: sharing helps up to v of about (K - 1) / n.
Shrinking the sources' own means towards the common one, by as much as they are seen to differ, is never worse than
separate means of four sources or more (James & Stein 1961, towards the mean Lindley 1962) in the squared error that
weighs each source by its number of samples N_k, and so in the plain average where these are equal. Where they are not,
a source of few samples that lies apart from large ones that agree can lose more than they gain: with N = 1000, 1000,
1000, 1 and true means 0, 0, 0, 3 the plain sum of squared errors rises from 1.004 to 1.214.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxgen.statistics.bracketing import count_parameters
from jaxgen.statistics.conditional_mle import check_mask
from jaxgen.statistics.power import Number
from jaxgen.typing import ArrayLike


def squared_error(
    n: int, num_sources: int, dim_specific: int, dim_shared: int, spread: Number = 0.0, *, shared: bool
) -> float:
    r"""Return the expected squared error of the means of a source of conditional Gaussians, averaged over the sources.

    $K d_1 / n + d_2 ((1 + v) / n + v)$ with sharing, $K d / n$ without, for n / K samples of each source. Where their
    numbers are random, $E[1 / N_k]$ takes the place of K / n, which is $K (K - 1) / n^2$ more at large n.

    Args:
        n: samples of all sources together.
        num_sources: K, equally frequent.
        dim_specific: coordinates d_1 that each source has of its own.
        dim_shared: coordinates d_2 that are taken to be shared.
        spread: variance v of the sources' means in each of these.
        shared: whether the model shares these.

    Raises:
        ValueError: n or K is below 1, a dimension is negative or both are 0, or `spread` is negative.

    >>> round(squared_error(500, 5, 5, 5, 0.004, shared=True), 9)
    0.08004
    """
    _check(n, spread)
    apart = count_parameters(0, dim_specific + dim_shared, num_sources, shared=False) / n
    if not shared:
        return apart
    own = num_sources * dim_specific / n
    return own + dim_shared * ((1 + spread) / n + spread)


def crossover_spread(n: int, num_sources: int) -> float:
    """Return the variance of the sources' means at which sharing a coordinate neither helps nor hurts.

    (K - 1) / (n + 1), about (K - 1) / n, in the squared error; that in total variation depends on how the means lie.

    Raises:
        ValueError: n or K is below 1.

    >>> round(crossover_spread(499, 5), 6)
    0.008
    """
    _check(n, 0.0)
    if num_sources < 1:
        raise ValueError(f"num_sources must be at least 1, got {num_sources}")
    return (num_sources - 1) / (n + 1)


def james_stein_means(
    means: Float[ArrayLike, "sources dim"],
    counts: Int[ArrayLike, " sources"],
    shared_mask: Shaped[ArrayLike, " coordinates"],
) -> Float[Array, "sources dim"]:
    r"""Shrink the means of separate sources towards their common one, coordinate by coordinate.

    In each shared coordinate the deviations from the mean over all samples are multiplied by $(1 - (K - 3) / S)_+$ with
    $S = \sum_k N_k (\bar x_k - \bar x)^2$, which is chi square with K - 1 degrees of freedom where all means are one.
    The expectation of $\sum_k N_k (\hat\mu_k - \mu_k)^2$ is below that of separate means, whatever the true ones are;
    with other weights it need not be.

    Args:
        means: means over the samples of each source, of unit variance; those of sources without samples are not read.
        counts: samples N_k of each source.
        shared_mask: coordinates that are shrunk, boolean.

    Returns:
        The means; with fewer than 4 observed sources as they were. A source without samples has the common mean in
        the shared coordinates, and what was given in the others.

    Raises:
        ValueError: the shapes do not fit together, or the mask is not boolean.

    >>> means = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    >>> [round(float(mean), 4) for mean in james_stein_means(means, jnp.full(4, 2), jnp.array([True]))[:, 0]]
    [0.15, 1.05, 1.95, 2.85]
    """
    shape = jnp.shape(means)
    if len(shape) != 2 or jnp.shape(counts) != shape[:1] or jnp.shape(shared_mask) != shape[1:]:
        raise ValueError(
            f"means must be [sources, dim] with a count for each source and a mask for each coordinate, got "
            f"{list(shape)}, {list(jnp.shape(counts))} and {list(jnp.shape(shared_mask))}"
        )
    check_mask(shared_mask)
    means, counts = jnp.asarray(means), jnp.asarray(counts)
    weights, observed = counts.astype(means.dtype)[:, None], (counts > 0)[:, None]
    common = jnp.sum(weights * means, axis=0) / jnp.maximum(jnp.sum(weights), 1)
    deviations = jnp.where(observed, means - common[None], 0)
    needed = jnp.maximum(jnp.sum(observed) - 3, 0).astype(means.dtype)
    scatter = jnp.sum(weights * deviations**2, axis=0)
    kept = jnp.where(scatter > needed, 1 - needed / jnp.where(scatter > 0, scatter, 1), 0)
    return jnp.where(jnp.asarray(shared_mask)[None], common[None] + kept[None] * deviations, means)


def _check(n: int, spread: Number) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: it counts the samples of all sources together")
    if not spread >= 0:
        raise ValueError(f"spread must be at least 0, got {spread}: it is a variance")
