"""Is a kernel discrepancy more than chance? The two-sample test by permutations."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgen.statistics.kernel import Kernel
from jaxgen.statistics.samples import check_samples
from jaxgen.typing import ArrayLike, PRNGKey


class PermutationTest(NamedTuple):
    """What a permutation test found.

    Attributes:
        statistic: the unbiased squared maximum mean discrepancy.
        p_value: share of relabellings with a statistic as large, the observed one included: valid at any count.
        null_quantile: the 95 % quantile of the statistic over relabellings.
    """

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]
    null_quantile: Float[Array, ""]


@partial(jax.jit, static_argnames=("kernel", "permutations", "block"))
def mmd_permutation_test(
    kernel: Kernel,
    first: Float[ArrayLike, "first dim"],
    second: Float[ArrayLike, "second dim"],
    key: PRNGKey,
    *,
    permutations: int = 999,
    block: int = 256,
) -> PermutationTest:
    """Test whether two sets of independent samples have one law (Gretton et al. 2012, section 5).

    The kernel matrix of all samples is computed once; each relabelling is a product with it. Memory is the square of
    the number of samples.

    Args:
        kernel: a function of two points [dim], a static argument: build it once, since a new one compiles again.
        first: samples of one law.
        second: samples of the other, as many or not.
        key: consumed for the relabellings.
        permutations: random relabellings.
        block: relabellings, and rows of the kernel matrix, that are computed together.

    Raises:
        ValueError: a set has fewer than 2 samples, the sets differ in dimension, or a count is below 1.
    """
    check_samples(first, second, minimum=2)
    if permutations < 1 or block < 1:
        raise ValueError(f"permutations and block must be at least 1, got {permutations} and {block}")
    points = jnp.concatenate([jnp.asarray(first), jnp.asarray(second)])
    total, count = len(points), len(first)
    matrix = jax.lax.map(lambda a: jax.vmap(kernel, (None, 0))(a, points), points, batch_size=block)
    matrix = matrix * (1.0 - jnp.eye(total, dtype=matrix.dtype))

    def discrepancy(chosen: Bool[Array, " total"]) -> Float[Array, ""]:
        ours = chosen.astype(matrix.dtype)
        theirs = 1.0 - ours
        from_ours = jnp.matmul(matrix, ours, precision=jax.lax.Precision.HIGHEST)
        from_theirs = jnp.matmul(matrix, theirs, precision=jax.lax.Precision.HIGHEST)
        rest = total - count
        within = jnp.dot(ours, from_ours) / (count * (count - 1)) + jnp.dot(theirs, from_theirs) / (rest * (rest - 1))
        return within - 2.0 * jnp.dot(ours, from_theirs) / (count * rest)

    labels = jnp.arange(total) < count
    observed = discrepancy(labels)

    def relabelled(index: Array) -> Float[Array, ""]:
        return discrepancy(jax.random.permutation(jax.random.fold_in(key, index), labels))

    null = jax.lax.map(relabelled, jnp.arange(permutations), batch_size=block)
    # Relabellings that exchange the groups give the observed value up to rounding: they count as large.
    slack = 8 * jnp.finfo(null.dtype).eps * jnp.max(jnp.abs(matrix))
    p_value = (1 + jnp.sum(null >= observed - slack)) / (1 + permutations)
    return PermutationTest(observed, p_value, jnp.quantile(null, 0.95))
