"""Maximum mean discrepancy: how far apart two laws are in the mean of a kernel's features."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxgen.statistics.samples import check_samples, squared_distances
from jaxgen.typing import ArrayLike, Scalar

Kernel: TypeAlias = Callable[[Float[Array, " dim"], Float[Array, " dim"]], Float[Array, ""]]
"""The inner product of the features of two points; `unbiased_mmd2` maps it over sets.

A plain function is static: build it once, since a new one compiles again. A `jax.tree_util.Partial`, as `rbf_kernel`
builds, carries numbers that may change, or be traced, without compiling again.
"""


def polynomial_kernel(*, degree: int = 3, offset: float = 1.0) -> Kernel:
    r"""Build $k(a, b) = (a \cdot b / \mathrm{dim} + \mathrm{offset})^{\mathrm{degree}}$ (Binkowski et al. 2018).

    Raises:
        ValueError: `degree` is below 1, or `offset` is negative (the kernel would not be positive definite).
    """
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}")
    if not offset >= 0:
        raise ValueError(f"offset must be at least 0, got {offset}")

    def kernel(a: Float[Array, " dim"], b: Float[Array, " dim"]) -> Float[Array, ""]:
        # Highest precision: a squared discrepancy is a small difference of large means.
        return (jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST) / a.size + offset) ** degree

    return kernel


def rbf_kernel(bandwidth: Scalar) -> Kernel:
    r"""Build $k(a, b) = \exp(-|a - b|^2 / 2 s^2)$ with the bandwidth s, in units of the samples; it may be traced.

    Raises:
        ValueError: a known `bandwidth` is not positive and finite.

    >>> print(f"{rbf_kernel(2.0)(jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0])):.4f}")  # exp(-8 / 8)
    0.3679
    """
    if not isinstance(bandwidth, Tracer) and not 0 < float(bandwidth) < math.inf:
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")
    return jax.tree_util.Partial(_rbf, bandwidth)


def _rbf(bandwidth: Scalar, a: Float[Array, " dim"], b: Float[Array, " dim"]) -> Float[Array, ""]:
    return jnp.exp(-0.5 * jnp.sum(((a - b) / bandwidth) ** 2))


def as_partial(kernel: Kernel) -> jax.tree_util.Partial:
    """Make of a kernel a pytree, which `jax.jit` takes as an argument: a plain function is part of its structure."""
    return kernel if isinstance(kernel, jax.tree_util.Partial) else jax.tree_util.Partial(kernel)


def median_bandwidth(samples: Float[ArrayLike, "count dim"]) -> Float[Array, ""]:
    """Choose the bandwidth s of `rbf_kernel` by s^2 = half the median squared distance between distinct samples.

    The heuristic of Gretton et al. 2012 (section 8), under which the kernel of a typical pair is 1 / e.

    Raises:
        ValueError: there are fewer than 2 samples, or half of all pairs coincide.
    """
    check_samples(samples, minimum=2)
    points = jnp.asarray(samples)
    pairs = jnp.triu_indices(len(points), 1)
    squared = jax.lax.map(lambda point: squared_distances(point, points), points)[pairs]
    bandwidth = jnp.sqrt(0.5 * jnp.median(squared))
    if not isinstance(bandwidth, Tracer) and not float(bandwidth) > 0:
        raise ValueError("half of all pairs of samples coincide: their median distance 0 is no bandwidth, choose one")
    return bandwidth


def unbiased_mmd2(
    kernel: Kernel, first: Float[ArrayLike, "first dim"], second: Float[ArrayLike, "second dim"], *, block: int = 256
) -> Float[Array, ""]:
    """Estimate the squared maximum mean discrepancy between the laws of two sets of samples, without bias.

    The U-statistic of Gretton et al. 2012 (lemma 6): the mean kernel over pairs of distinct samples within each set,
    less twice the mean over pairs across them. Its mean over draws is 0 for equal laws, so single values can be
    negative. Memory is `block` times the larger count: the kernel matrix is never held whole.

    Args:
        kernel: a function of two points [dim]; a plain one is static, see `Kernel`.
        first: samples of one law.
        second: samples of the other, as many or not.
        block: rows of the kernel matrix that are computed together.

    Raises:
        ValueError: a set has fewer than 2 samples, the sets differ in dimension, or `block` is below 1.

    >>> points = jnp.array([[0.0], [1.0]])
    >>> print(unbiased_mmd2(polynomial_kernel(degree=1, offset=0.0), points, points + 2.0))
    3.5
    """
    check_samples(first, second, minimum=2)
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    return _unbiased_mmd2(as_partial(kernel), jnp.asarray(first), jnp.asarray(second), block=block)


@partial(jax.jit, static_argnames="block")
def _unbiased_mmd2(
    kernel: jax.tree_util.Partial, first: Float[Array, "first dim"], second: Float[Array, "second dim"], *, block: int
) -> Float[Array, ""]:
    within = _mean_within(kernel, first, block) + _mean_within(kernel, second, block)
    return within - 2 * _mean_across(kernel, first, second, block)


def _mean_within(kernel: Kernel, samples: Float[Array, "count dim"], block: int) -> Float[Array, ""]:
    """Return the mean kernel over ordered pairs of distinct samples."""
    count = samples.shape[0]

    def mean_of_others(row: Float[Array, " count"], index: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.sum(row.at[index].set(0)) / (count - 1)

    return jnp.mean(_reduced_rows(kernel, samples, samples, mean_of_others, block))


def _mean_across(
    kernel: Kernel, first: Float[Array, "first dim"], second: Float[Array, "second dim"], block: int
) -> Float[Array, ""]:
    """Return the mean kernel over pairs of one sample from each set."""
    return jnp.mean(_reduced_rows(kernel, first, second, lambda row, _: jnp.mean(row), block))


def _reduced_rows(
    kernel: Kernel,
    rows: Float[Array, "rows dim"],
    columns: Float[Array, "columns dim"],
    reduce: Callable[[Float[Array, " columns"], Int[Array, ""]], Float[Array, ""]],
    block: int,
) -> Float[Array, " rows"]:
    """Reduce each row of the kernel matrix, `block` rows at a time."""

    def reduced(inputs: tuple[Float[Array, " dim"], Int[Array, ""]]) -> Float[Array, ""]:
        point, index = inputs
        return reduce(jax.vmap(kernel, in_axes=(None, 0))(point, columns), index)

    return jax.lax.map(reduced, (rows, jnp.arange(rows.shape[0])), batch_size=block)
