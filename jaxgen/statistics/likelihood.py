"""Maximum likelihood of models of several sources with few parameters, by Newton's method, to the last digits.

The Hessian of such a model is an arrow: sources meet only in what they share. Eliminating every source's own
parameters first (a Schur complement) costs time proportional to the number of sources, and separate models, which share
nothing, come out as that many small systems. Both arms are therefore fitted by one function.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxgen.statistics.source_params import SourceParams, check_per_source, num_sources
from jaxgen.statistics.source_vectors import flatten_sources

_HALVINGS = 30
_DECREASE = 1e-4  # Armijo's share of the decrease that the slope promises


class MaximumLikelihood(NamedTuple):
    """Where a fit ended.

    Attributes:
        params: the parameters.
        log_likelihood: summed over the sources.
        gradient: its largest entry in size, of the gradient in all parameters.
        steps: Newton steps taken.
        converged: whether `gradient` is at most the tolerance; False after too many steps, or where no step along
            Newton's direction raises the likelihood any more, as from rounding.
    """

    params: SourceParams
    log_likelihood: Float[Array, ""]
    gradient: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def fit_mle(
    log_likelihood: Callable[..., Float[Array, ""]],
    params: SourceParams,
    *data: PyTree,
    tolerance: float = 1e-9,
    max_steps: int = 100,
) -> MaximumLikelihood:
    r"""Maximise a concave log-likelihood of several sources by regularised Newton steps with backtracking.

    The direction d solves (H + |g| I) d = g, with gradient g and Hessian -H. The regularisation keeps the system
    positive definite where H is singular, which it is in every direction that leaves all laws as they are (a gauge),
    and vanishes with the gradient, so that the convergence stays quadratic (Li, Fukushima, Qi & Yamashita 2004,
    Regularized Newton methods for convex minimization problems with singular solutions). A step is halved until it
    raises the likelihood by a share of what the slope promises; undamped Newton steps diverge for some data. Of the
    maintained minimisers optax's L-BFGS reaches the same gradients under `jax.vmap`, in some ten times the steps.

    The result is deterministic and traceable: `jax.vmap` fits many data sets, until the last has converged.

    Args:
        log_likelihood: called as `log_likelihood(params of one source, *data of that source)`, twice differentiable.
        params: where to start. With `separate` or `init_single` parameters this fits separate models.
        data: pytrees with a leading axis of sources, such as counts of the states.
        tolerance: of the largest entry of the gradient; 1e-9 needs float64. In float32 a mean over samples, not a sum,
            reaches about 1e-6.
        max_steps: Newton steps at most.

    Raises:
        ValueError: `tolerance` or `max_steps` is not positive, nothing is specific, or the data have another number of
            sources.

    >>> start = SourceParams({"logits": None}, {"logits": jnp.zeros((1, 2))})
    >>> fit = fit_mle(lambda p, c: c @ jax.nn.log_softmax(p["logits"]), start, jnp.array([[1.0, 3.0]]), tolerance=1e-5)
    >>> f"{jax.nn.softmax(fit.params.specific['logits'])[0, 1]:.3f}"
    '0.750'
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    check_per_source("data", data, num_sources(params))
    flat = flatten_sources(params)

    def loss(vector: Array, *args: PyTree) -> Array:
        return -log_likelihood(flat.whole(vector), *args)

    def total(shared: Array, specific: Array) -> Array:
        return jnp.sum(jax.vmap(loss)(_vectors(shared, specific), *data))

    def keep_on(state: _State) -> Array:
        return ~state.done & (state.steps < max_steps + 1)

    step = partial(_newton, loss=loss, total=total, data=data, tolerance=tolerance, most=max_steps)
    zero = jnp.zeros((), flat.specific.dtype)
    start = _State(flat.shared, flat.specific, zero, zero, jnp.int32(0), jnp.asarray(False))
    end = jax.lax.while_loop(keep_on, step, start)
    # The last round only looks: what is returned is of the parameters that are returned.
    steps = jnp.maximum(end.steps - 1, 0)
    return MaximumLikelihood(
        flat.restore(end.shared, end.specific), -end.loss, end.gradient, steps, end.gradient <= tolerance
    )


class _State(NamedTuple):
    shared: Array
    specific: Array
    loss: Array
    gradient: Array
    steps: Array
    done: Array


def _newton(state: _State, *, loss: Callable, total: Callable, data: tuple, tolerance: float, most: int) -> _State:
    """Look at the loss and its derivatives, and take a step unless the gradient is small enough or `most` are taken."""

    def slope(vector: Array, *args: PyTree) -> tuple[Array, tuple[Array, Array]]:
        value, gradient = jax.value_and_grad(loss)(vector, *args)
        return gradient, (value, gradient)

    vectors = _vectors(state.shared, state.specific)
    hessians, (values, gradients) = jax.vmap(jax.jacfwd(slope, has_aux=True))(vectors, *data)
    value, size = jnp.sum(values), state.shared.size
    of_shared, of_own = jnp.sum(gradients[:, :size], axis=0), gradients[:, size:]
    largest = jnp.max(jnp.abs(jnp.concatenate([of_shared, of_own.reshape(-1)])))
    shared, own = _direction(of_shared, of_own, hessians)
    promised = jnp.sum(shared * of_shared) + jnp.sum(own * of_own)
    # Near the maximum the decrease drowns in the rounding of the loss itself.
    slack = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)

    def too_long(search: tuple[Array, Array]) -> Array:
        length, reached = search
        enough = reached <= value + _DECREASE * length * promised + slack
        return ~enough & (length > 0.5**_HALVINGS)

    def halve(search: tuple[Array, Array]) -> tuple[Array, Array]:
        length = 0.5 * search[0]
        return length, total(state.shared + length * shared, state.specific + length * own)

    one = jnp.ones_like(value)
    close = (largest <= tolerance) | (state.steps >= most)
    first = jnp.where(close, value, total(state.shared + shared, state.specific + own))
    length, reached = jax.lax.while_loop(too_long, halve, (one, first))
    moves = ~close & (reached <= value + slack)
    length = jnp.where(moves, length, 0.0)
    # where, not a product with 0: a direction that is not finite must not spoil the parameters.
    shared, own = (jnp.where(moves, length * part, 0.0) for part in (shared, own))
    return _State(state.shared + shared, state.specific + own, value, largest, state.steps + 1, ~moves)


def _direction(
    of_shared: Float[Array, " shared"],
    of_own: Float[Array, "sources specific"],
    hessians: Float[Array, "sources all all"],
) -> tuple[Float[Array, " shared"], Float[Array, "sources specific"]]:
    """Solve (H + |g| I) d = -g for the arrow-shaped H by its Schur complement."""
    size, own_size = of_shared.size, of_own.shape[1]
    norm = jnp.sqrt(jnp.sum(of_shared**2) + jnp.sum(of_own**2))
    scale = jnp.max(jnp.abs(jnp.diagonal(hessians, axis1=1, axis2=2)))
    damping = norm + 10 * jnp.finfo(norm.dtype).eps * scale
    corner = hessians[:, :size, :size].sum(axis=0) + damping * jnp.eye(size, dtype=norm.dtype)
    sides = hessians[:, :size, size:]
    blocks = hessians[:, size:, size:] + damping * jnp.eye(own_size, dtype=norm.dtype)[None]
    solve = jax.vmap(lambda block, right: cho_solve(cho_factor(block), right))
    solved = solve(blocks, jnp.concatenate([sides.mT, of_own[:, :, None]], axis=2))
    over_sides, over_own = solved[:, :, :size], solved[:, :, size]
    if size == 0:
        return -of_shared, -over_own
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    schur = corner - product("ksc,kct->st", sides, over_sides)
    right = of_shared - product("ksc,kc->s", sides, over_own)
    shared = -cho_solve(cho_factor(schur), right)
    return shared, -over_own - product("kcs,s->kc", over_sides, shared)


def _vectors(shared: Array, specific: Array) -> Float[Array, "sources all"]:
    """Put what is shared before what is specific, for each source."""
    repeated = jnp.broadcast_to(shared, (specific.shape[0], shared.size))
    return jnp.concatenate([repeated, specific], axis=1)
