"""Conditional maximum likelihood over several sources, in closed form, and data sets drawn from them.

Labels are 0 .. K - 1 with known probabilities p_Y, and n is the number of samples of all sources together. A *shared*
model has one value of its shared parameters for all sources; without sharing each source is fitted by its own samples.
Sources that no sample fell on are marked, never NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from jaxgen.typing import ArrayLike, PRNGKey

_SUM_TOLERANCE = 1e-6


class GaussianFit(NamedTuple):
    """Means that were fitted to several sources.

    Attributes:
        means: one row a source; where a source has no samples, 0 in the coordinates that are its own.
        counts: samples of each source.
        observed: whether a source has samples.
    """

    means: Float[Array, "sources dim"]
    counts: Int[Array, " sources"]
    observed: Bool[Array, " sources"]


class CategoricalFit(NamedTuple):
    """Frequencies that were fitted to several sources.

    Attributes:
        probabilities: one row a source, which sums to 1; uniform where a source has no samples.
        counts: samples of each source.
        observed: whether a source has samples.
    """

    probabilities: Float[Array, "sources categories"]
    counts: Int[Array, " sources"]
    observed: Bool[Array, " sources"]


def check_sources(p_y: Real[ArrayLike, " sources"], n: int, name: str = "p_y") -> None:
    """Raise unless probabilities and a number of samples describe a data set; values under a trace are not looked at.

    Args:
        p_y: probability of each source.
        n: samples of all sources together.
        name: what an error calls the probabilities.

    Raises:
        ValueError: n is below 1, `p_y` is no row of at least one probability, or it does not sum to 1 within 1e-6.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: it counts the samples of all sources together")
    if jnp.ndim(p_y) != 1 or jnp.shape(p_y)[0] < 1:
        raise ValueError(f"{name} must be one probability for each of at least one source, got shape {jnp.shape(p_y)}")
    if isinstance(p_y, Tracer):
        return
    values = np.asarray(p_y, np.float64)
    if not np.all(values >= 0):
        raise ValueError(f"{name} must not be negative, got {values.tolist()}: it holds the probability of each source")
    if not abs(values.sum() - 1) <= _SUM_TOLERANCE:
        raise ValueError(f"{name} must sum to 1 within 1e-6, got a sum of {values.sum():.9g}: divide it by its sum")


def check_labels(y: Shaped[ArrayLike, " n"], num_sources: int, *, allow_empty: bool = True) -> None:
    """Raise unless labels are whole numbers that name sources; values under a trace are not looked at.

    Args:
        y: source of each sample.
        num_sources: K.
        allow_empty: whether sources without samples are let through.

    Raises:
        ValueError: K is below 1, there is no label, labels are not integers, one lies outside [0, K), or a source has
            no samples.
    """
    if num_sources < 1:
        raise ValueError(f"num_sources must be at least 1, got {num_sources}")
    if jnp.ndim(y) != 1 or jnp.shape(y)[0] < 1:
        raise ValueError(f"y must be one label for each of at least one sample, got shape {jnp.shape(y)}")
    _check_integers("y", y)
    if isinstance(y, Tracer):
        return
    labels = np.asarray(y)
    if labels.min() < 0 or labels.max() >= num_sources:
        raise ValueError(
            f"y must lie in [0, {num_sources}), got labels from {labels.min()} to {labels.max()}: "
            "count the sources from 0"
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=num_sources) == 0)
    if empty.size and not allow_empty:
        raise ValueError(
            f"y has no samples of the sources {empty.tolist()}, which cannot be fitted alone: draw more samples, or "
            "pass allow_empty=True and leave out what is not observed"
        )


def check_mask(shared_mask: Shaped[ArrayLike, " coordinates"]) -> None:
    """Raise unless a mask is boolean.

    Args:
        shared_mask: which coordinates the sources share.

    Raises:
        ValueError: it is not boolean.
    """
    if not jnp.issubdtype(dtype := jnp.asarray(shared_mask).dtype, jnp.bool_):
        raise ValueError(
            f"shared_mask must be boolean, one value for each coordinate, got {dtype}: pass "
            "shared_mask.astype(bool) if it is of zeros and ones"
        )


def sample_sources(
    key: PRNGKey, means: Real[ArrayLike, "sources dim"], p_y: Real[ArrayLike, " sources"], n: int
) -> tuple[Float[Array, "n dim"], Int[Array, " n"]]:
    """Draw a data set of Gaussians of unit covariance: labels from p_Y, then each point around its label's mean.

    Labels and noise depend on the key, p_Y and the shape alone: data sets of one key around other means share them.

    Args:
        key: consumed.
        means: one row a source.
        p_y: probability of each source.
        n: samples of all sources together.

    Returns:
        The points and their labels.

    Raises:
        ValueError: as `check_sources`, or `means` and `p_y` differ in their number of sources.
    """
    check_sources(p_y, n)
    if jnp.ndim(means) != 2 or jnp.shape(means)[0] != jnp.shape(p_y)[0]:
        raise ValueError(f"means must have a row for each of {jnp.shape(p_y)[0]} sources, got {jnp.shape(means)}")
    # Whole numbers become the default floating type.
    means, p_y = (jnp.asarray(part).astype(jnp.result_type(part, float)) for part in (means, p_y))
    ends = jnp.cumsum(p_y)
    label_key, noise_key = jax.random.split(key)
    # Inverting the distribution function takes one uniform number a label; divided by its last value, rounding leaves
    # nothing above it for a last source of probability 0.
    uniform = jax.random.uniform(label_key, (n, 1), ends.dtype)
    y = jnp.sum(uniform >= (ends / ends[-1])[None, :-1], axis=1)
    return means[y] + jax.random.normal(noise_key, (n, means.shape[1]), means.dtype), y


def gaussian_mle(
    x: Float[ArrayLike, "n dim"],
    y: Shaped[ArrayLike, " n"],
    num_sources: int,
    shared_mask: Shaped[ArrayLike, " coordinates"],
    *,
    shared: bool,
    allow_empty: bool = False,
) -> GaussianFit:
    """Fit the means of Gaussians of unit covariance by maximum likelihood.

    A source's own coordinates are the mean over its samples. Shared ones are, with `shared`, the mean over all samples;
    without it the sources are fitted apart and the mask says nothing.

    Args:
        x: the points of all sources.
        y: the source of each, integers.
        num_sources: K.
        shared_mask: which coordinates the sources share, boolean, each on its own: any of them, or none.
        shared: whether the model shares these.
        allow_empty: whether a source without samples is marked in the result, and not an error. Under a trace, where
            labels are not known, it is always marked.

    Raises:
        ValueError: as `check_labels` and `check_mask`; x, y and the mask do not fit together.
    """
    if jnp.ndim(x) != 2 or jnp.shape(x)[:1] != jnp.shape(y):
        raise ValueError(f"x must be [n, dim] with a label for each row, got {jnp.shape(x)} and labels {jnp.shape(y)}")
    if jnp.shape(shared_mask) != jnp.shape(x)[1:]:
        raise ValueError(
            f"shared_mask must say for each of {jnp.shape(x)[1]} coordinates whether it is shared, got shape "
            f"{jnp.shape(shared_mask)}"
        )
    check_mask(shared_mask)
    check_labels(y, num_sources, allow_empty=allow_empty)
    x, counts = jnp.asarray(x), _counts(y, num_sources)
    sums = jax.ops.segment_sum(x, jnp.asarray(y), num_sources)
    means = sums / jnp.maximum(counts, 1).astype(x.dtype)[:, None]
    if shared:
        pooled = jnp.sum(sums, axis=0) / x.shape[0]
        means = jnp.where(jnp.asarray(shared_mask)[None], pooled[None], means)
    return GaussianFit(means, counts, counts > 0)


def categorical_mle(
    y_categories: Shaped[ArrayLike, " n"], y: Shaped[ArrayLike, " n"], num_sources: int, num_categories: int
) -> CategoricalFit:
    """Fit one categorical law a source by maximum likelihood: the frequencies of its samples.

    Args:
        y_categories: the category of each sample, an integer in [0, num_categories).
        y: the source of each, an integer.
        num_sources: K.
        num_categories: how many categories there are.

    Raises:
        ValueError: as `check_labels`, for sources and for categories; or the two differ in length.

    >>> print(categorical_mle(jnp.array([0, 1, 1, 1]), jnp.array([0, 0, 0, 0]), 1, 2).probabilities)
    [[0.25 0.75]]
    """
    if jnp.shape(y_categories) != jnp.shape(y):
        raise ValueError(f"each category needs a label, got {jnp.shape(y_categories)} and {jnp.shape(y)}")
    if num_categories < 1:
        raise ValueError(f"num_categories must be at least 1, got {num_categories}")
    check_labels(y, num_sources)
    _check_integers("y_categories", y_categories)
    if not isinstance(y_categories, Tracer):
        found = np.asarray(y_categories)
        if found.min() < 0 or found.max() >= num_categories:
            raise ValueError(
                f"y_categories must lie in [0, {num_categories}), got {found.min()} to {found.max()}: count from 0"
            )
    # Labels of few bits would overflow in the products.
    y, y_categories = (jnp.asarray(part).astype(int) for part in (y, y_categories))
    counts = _counts(y, num_sources)
    # One cell a pair of source and category. What lies outside, under a trace, is counted nowhere, not in the next row.
    inside = (y_categories >= 0) & (y_categories < num_categories) & (y >= 0)
    cells = jnp.where(inside, y * num_categories + y_categories, -1)
    pairs = _counts(cells, num_sources * num_categories).reshape(num_sources, num_categories)
    dtype = jnp.result_type(float)
    frequencies = pairs.astype(dtype) / jnp.maximum(counts, 1).astype(dtype)[:, None]
    observed = counts > 0
    return CategoricalFit(jnp.where(observed[:, None], frequencies, 1 / num_categories), counts, observed)


def _counts(y: Int[ArrayLike, " n"], num_sources: int) -> Int[Array, " sources"]:
    """Return how many samples each source has."""
    y = jnp.asarray(y)
    return jax.ops.segment_sum(jnp.ones(y.shape, int), y, num_sources)


def _check_integers(name: str, labels: Shaped[ArrayLike, " n"]) -> None:
    if not jnp.issubdtype(dtype := jnp.asarray(labels).dtype, jnp.integer):
        raise ValueError(f"{name} must hold integers, got {dtype}: pass {name}.astype(int) if they are whole")
