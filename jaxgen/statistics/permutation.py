"""Do two sets of samples come from one law? A kernel test whose level is exact in finite samples."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgen.statistics.kernel import Kernel, as_partial
from jaxgen.statistics.samples import check_samples
from jaxgen.typing import ArrayLike, PRNGKey


class PermutationTest(NamedTuple):
    """What relabelling says of a statistic.

    Attributes:
        statistic: the unbiased squared maximum mean discrepancy of the two sets.
        p_value: (1 + permutations whose statistic is at least as large) / (1 + permutations); under equal laws it is at
            most u with a probability of at most u, for every u.
        null_quantile: the 95 % quantile over permutations, as that of them which the statistic must exceed for a
            p-value of at most 0.05; infinite below 19 permutations.
    """

    statistic: Float[Array, ""]
    p_value: Float[Array, ""]
    null_quantile: Float[Array, ""]


def mmd_permutation_test(
    kernel: Kernel,
    first: Float[ArrayLike, "first dim"],
    second: Float[ArrayLike, "second dim"],
    key: PRNGKey,
    *,
    permutations: int = 999,
    block: int = 128,
) -> PermutationTest:
    """Test whether two sets of samples have one law, by the unbiased MMD^2 and its permutations.

    Gretton et al. 2012 (lemma 6) for the statistic, Phipson & Smyth 2010 for the p-value. The kernel matrix of all
    samples is computed once and held: 4 bytes times the square of their number. Under equal laws the samples must be
    exchangeable: independent draws, and a kernel chosen without a view of which set is which.

    Args:
        kernel: as in `unbiased_mmd2`.
        first: samples of one law.
        second: samples of the other, as many or not.
        key: permutation p uses `fold_in(key, p)`.
        permutations: their number; the p-value is a multiple of 1 / (1 + permutations).
        block: permutations, and rows of the kernel matrix, that are computed together.

    Raises:
        ValueError: a set has fewer than 2 samples, the sets differ in dimension, or `permutations` or `block` is
            below 1.

    >>> from jaxgen.statistics.kernel import rbf_kernel
    >>> points = jax.random.normal(jax.random.key(0), (60, 2))
    >>> print(mmd_permutation_test(rbf_kernel(1.0), points[:30], points[30:] + 1.0, jax.random.key(1)).p_value)
    0.001
    """
    check_samples(first, second, minimum=2)
    for name, value in (("permutations", permutations), ("block", block)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    options = {"permutations": permutations, "block": block}
    return _test(as_partial(kernel), jnp.asarray(first), jnp.asarray(second), key, **options)


@partial(jax.jit, static_argnames=("permutations", "block"))
def _test(
    kernel: jax.tree_util.Partial,
    first: Float[Array, "first dim"],
    second: Float[Array, "second dim"],
    key: PRNGKey,
    *,
    permutations: int,
    block: int,
) -> PermutationTest:
    points = jnp.concatenate([first, second])
    matrix = jax.lax.map(lambda point: jax.vmap(kernel, (None, 0))(point, points), points, batch_size=block)
    matrix = _centred(matrix)
    labels = jnp.arange(len(points)) < len(first)

    def permuted(index: Int[Array, ""]) -> Float[Array, ""]:
        return _mmd2(matrix, jax.random.permutation(jax.random.fold_in(key, index), labels))

    statistic = _mmd2(matrix, labels)
    # A whole number of blocks: what is left over would be compiled once more.
    block = min(block, permutations)
    null = jax.lax.map(permuted, jnp.arange(-(-permutations // block) * block), batch_size=block)[:permutations]
    # Relabellings that give the same two sets, or exchange them, are equal but for the order of summation.
    rounding = 64 * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.abs(matrix))
    larger = jnp.sum(null >= statistic - rounding)
    # The p-value is at most .05 where the statistic exceeds all but (1 + permutations) / 20 - 1 others.
    rank = permutations + 1 - (permutations + 1) // 20
    null_quantile = jnp.sort(null)[rank - 1] if rank <= permutations else jnp.asarray(jnp.inf, null.dtype)
    return PermutationTest(statistic, (1 + larger) / (1 + permutations), null_quantile)


def _centred(matrix: Float[Array, "count count"]) -> Float[Array, "count count"]:
    """Subtract its mean from the kernel of distinct samples, which changes no MMD^2 but its rounding; 0 for equal."""
    distinct = ~jnp.eye(len(matrix), dtype=bool)
    return jnp.where(distinct, matrix - jnp.mean(matrix, where=distinct), 0)


def _mmd2(matrix: Float[Array, "count count"], labels: Bool[Array, " count"]) -> Float[Array, ""]:
    """Return the unbiased MMD^2 from a kernel matrix without diagonal; `vmap` makes one matrix product of many."""
    chosen = labels.astype(matrix.dtype)
    to_first = jnp.dot(matrix, chosen, precision=jax.lax.Precision.HIGHEST)
    ours = jnp.sum(chosen)
    others = len(matrix) - ours
    within, across = jnp.dot(to_first, chosen), jnp.dot(to_first, 1 - chosen)
    beyond = jnp.sum(matrix) - within - 2 * across
    return within / (ours * (ours - 1)) + beyond / (others * (others - 1)) - 2 * across / (ours * others)
