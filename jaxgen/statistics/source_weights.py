"""How to allot samples to sources: the mixing proportions that serve a target best, from the exact Gaussian risk."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxgen.statistics.conditional_mle import check_sources
from jaxgen.statistics.expected_tv import average_over_counts, expected_source_tv, tables_by_count
from jaxgen.typing import ArrayLike

_EMPTY = 1.0  # total variation of a source without samples: what no sample shows cannot be free
_STEPS = 60  # about six where the optimum lies inside; a probability that tends to 0 is halved in each
_LARGEST_FACTOR = 2.0  # by which a step changes a probability


def weighted_expected_tv(
    target: Real[ArrayLike, " sources"],
    p_y: Real[ArrayLike, " sources"],
    n: int,
    dim_specific: int,
    dim_shared: int,
    *,
    shared: bool,
) -> Float[Array, ""]:
    """Return the expected total variation of conditional Gaussians, weighted by a target, of samples from p_Y.

    A source without samples counts as total variation 1, the most there is: what no sample shows cannot be free.

    Args:
        target: weight of each source in the error.
        p_y: probability of each source in the data; differentiable.
        n: samples of all sources together.
        dim_specific: coordinates whose means differ between the sources.
        dim_shared: coordinates that they share.
        shared: whether the model shares these.

    Raises:
        ValueError: as `expected_tv.expected_average_tv`, for `target` as well; or the two differ in length.
    """
    check_sources(target, n, "target")
    if jnp.shape(target) != jnp.shape(p_y):
        raise ValueError(f"target and p_y must have one length, got {jnp.shape(target)} and {jnp.shape(p_y)}")
    errors = expected_source_tv(n, p_y, dim_specific, dim_shared, shared=shared, empty=_EMPTY)
    return jnp.sum(jnp.asarray(target) * errors)


def optimal_source_weights(
    target: Real[ArrayLike, " sources"], n: int, dim_specific: int, dim_shared: int, *, shared: bool
) -> Float[Array, " sources"]:
    """Find the probabilities of the sources in the data at which `weighted_expected_tv` is least.

    With separate models and many samples the error of a source falls as the root of its probability, so that the best
    are proportional to target^(2/3); neither equal nor proportional shares are best unless the target is equal. From
    there Newton's method goes on through the exact expectation, whose error of a source depends on its own probability
    alone. With few samples for many dimensions the risk is not convex, and what is found is a local optimum.

    Args:
        target: weight of each source in the error; a source of weight 0 gets no samples.
        n: samples of all sources together.
        dim_specific: coordinates whose means differ between the sources.
        dim_shared: coordinates that they share.
        shared: whether the model shares these.

    Returns:
        The probabilities, in the dtype of the target.

    Raises:
        ValueError: as `weighted_expected_tv`.

    >>> print(optimal_source_weights(jnp.array([0.8, 0.2]), 5000, 5, 5, shared=False).round(3))
    [0.716 0.284]
    """
    check_sources(target, n, "target")
    # Whole numbers, as where one source has all the weight, become the default floating type.
    target, tables = (
        jnp.asarray(target).astype(jnp.result_type(target, float)),
        tables_by_count(n, dim_specific, dim_shared, shared=shared),
    )
    return _minimise(target, *(jnp.asarray(table, target.dtype) for table in tables))


@jax.jit
def _minimise(
    target: Float[Array, " sources"], errors: Float[Array, " n"], log_ratios: Float[Array, " steps"]
) -> Float[Array, " sources"]:
    slope = jax.grad(lambda p: jnp.sum(target * average_over_counts(p, errors, log_ratios, _EMPTY)))
    info, served = jnp.finfo(target.dtype), target > 0

    def step(p: Float[Array, " sources"], _: None) -> tuple[Float[Array, " sources"], None]:
        # The Hessian is diagonal: its product with ones is all of it. The multiplier keeps the sum of the step at 0.
        first, second = jax.jvp(slope, (p,), (jnp.ones_like(p),))
        # What the slopes differ by, 0 at the optimum, keeps the step where the risk is nearly linear.
        differ = jnp.sum(p * jnp.abs(first - jnp.sum(p * first)))
        curvature = p * jnp.abs(second) + differ + info.eps**2
        multiplier = jnp.sum(p / curvature * first) / jnp.sum(p / curvature)
        change = (multiplier - first) / curvature
        p = p * jnp.clip(1 + change, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        return jnp.where(served, jnp.maximum(p / jnp.sum(p), info.eps**2), 0), None

    start = target ** (2 / 3)
    return jax.lax.scan(step, start / jnp.sum(start), length=_STEPS)[0]
