"""Explicit solvers of the least-squares problem that a trained linear attention layer solves in its context.

At position t the pairs (x_i, x_{i+1}), i = 1, ..., t-1, are the data of

    OLS_t(W) = 1/2 sum_{i=1}^{t-1} ||x_{i+1} - W x_i||^2,    W complex, d by d

(Zheng et al. 2024, eq. 3), and the prediction of x_{t+1} is W x_t. A trained layer takes one gradient step from W = 0
(corollary 4.1); here are several steps, the exact solution and the exact diagonal one to compare it with.
Sequences are `[..., T, d]`, complex or real, and predictions `[..., T-2, d]`, for t = 2, ..., T-1.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from jaxgen.models.linear_attention import check_sequences
from jaxgen.typing import ArrayLike, Scalar


def in_context_loss(
    w: Inexact[ArrayLike, "*lead d d"], x: Inexact[ArrayLike, "*lead T d"], t: int
) -> Float[Array, "*lead"]:
    """Return OLS_t(W) of each sequence.

    `jax.grad` of it in a complex W is the conjugate of the direction of steepest ascent.

    Args:
        w: the linear map, one for each sequence.
        x: sequences.
        t: position, counted from 1; x_1, ..., x_t are used.

    Raises:
        ValueError: if t is not in [2, T].

    >>> float(in_context_loss(jnp.array([[2.0]]), jnp.array([[1.0], [3.0], [5.0]]), 3))
    1.0
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    if not 2 <= t <= x.shape[-2]:
        raise ValueError(f"t must lie in [2, {x.shape[-2]}], got {t}")
    read = jnp.einsum("...jk,...ik->...ij", w, x[..., : t - 1, :], precision=jax.lax.Precision.HIGHEST)
    return 0.5 * jnp.sum(_squares(x[..., 1:t, :] - read), axis=(-2, -1))


def gradient_steps_predict(
    x: Inexact[ArrayLike, "*lead T d"], steps: Float[ArrayLike, " count"]
) -> Inexact[Array, "*lead T-2 d"]:
    """Predict by gradient descent on OLS_t from W = 0, run anew at every position.

    Step k is W <- W + (steps[k] / (t - 1)) sum_{i<t} (x_{i+1} - W x_i) x_i^*. One step of size a b is the layer with
    `diagonal_params(a, b, d)`.

    Args:
        x: sequences.
        steps: one step size for each step, before the division by t - 1; they may be traced. No step predicts 0.

    Raises:
        ValueError: if T < 3 or d < 1.

    >>> gradient_steps_predict(jnp.array([[1.0], [2.0], [4.0]]), jnp.array([0.5, 0.5])).tolist()  # W = 2 (1 - 1 / 4)
    [[3.0]]
    """
    check_sequences(x)

    def predict(x):
        before, after = x[:-2], x[1:-1]
        rho = jnp.arange(1, len(x) - 1, dtype=x.real.dtype)[:, None, None]
        products = (left[:, :, None] * before.conj()[:, None, :] for left in (before, after))
        gram, cross = (jnp.cumsum(of, axis=0) / rho for of in products)

        def step(w, size):
            product = jnp.matmul(w, gram, precision=jax.lax.Precision.HIGHEST)
            return w + size.astype(rho.dtype) * (cross - product), None

        return _apply(jax.lax.scan(step, jnp.zeros_like(gram), jnp.asarray(steps))[0], after)

    return jnp.vectorize(predict, signature="(t,d)->(s,d)")(jnp.asarray(x))


def least_squares_predict(x: Inexact[ArrayLike, "*lead T d"], *, ridge: Scalar = 0.0) -> Inexact[Array, "*lead T-2 d"]:
    """Predict by the W that minimises OLS_t(W) + ridge / 2 ||W||_F^2 at every position (the mesa layer).

    W and the inverse Gram matrix are updated pair by pair (Sherman and Morrison), in time T d^2 and without a solver.
    With `ridge=0` the result is the minimiser of least norm, the limit of ridge to 0: as long as the t - 1 pairs are
    fewer than d the problem is rank deficient, and W is then 0 on the complement of what the context spans. This is
    Greville's recursion for the pseudo-inverse: a pair whose x_i has a part outside the span so far extends it, where
    parts below sqrt(epsilon) of ||x_i|| count as rounding. A sequence x_{i+1} = W x_i is predicted exactly as soon as
    x_t lies in the span of x_1, ..., x_{t-1}.

    Args:
        x: sequences.
        ridge: weight of the penalty, at least 0; it may be traced.

    Raises:
        ValueError: if T < 3 or d < 1, or if ridge is negative.

    >>> least_squares_predict(jnp.array([[1.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 8.0]])).round(3).tolist()
    [[0.0, 0.0], [0.0, 8.0]]
    """
    check_sequences(x)
    if not isinstance(ridge, Tracer) and not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}; 0 gives the solution of least norm")

    def predict(x):
        identity, none = jnp.eye(x.shape[-1], dtype=x.dtype), jnp.zeros((x.shape[-1],) * 2, x.dtype)
        weight = jnp.asarray(ridge, x.real.dtype)
        penalised = weight > 0
        inverse = jnp.where(penalised, identity / jnp.where(penalised, weight, 1.0), none)
        start = (none, inverse, jnp.where(penalised, none, identity))
        return jax.lax.scan(_read_pair, start, (x[:-2], x[1:-1]))[1]

    return jnp.vectorize(predict, signature="(t,d)->(s,d)")(jnp.asarray(x))


def diagonal_least_squares_predict(x: Inexact[ArrayLike, "*lead T d"]) -> Inexact[Array, "*lead T-2 d"]:
    """Predict by the diagonal W that minimises OLS_t, each coordinate by a regression of its own.

    Exact from t = 2 on for a sequence x_{t+1} = W x_t with diagonal W. A coordinate that was 0 so far predicts 0.

    Args:
        x: sequences.

    Raises:
        ValueError: if T < 3 or d < 1.

    >>> diagonal_least_squares_predict(jnp.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])).tolist()
    [[4.0, 0.0]]
    """
    check_sequences(x)
    x = jnp.asarray(x)
    before, after = x[..., :-2, :], x[..., 1:-1, :]
    cross = jnp.cumsum(after * before.conj(), axis=-2)
    squares = jnp.cumsum(_squares(before), axis=-2)
    seen = squares > 0
    return jnp.where(seen, cross / jnp.where(seen, squares, 1.0), 0.0) * after


def _read_pair(state, pair):
    """Add one pair to the regression, and predict what follows its second token.

    The state is (W, P, Q): the solution, the (pseudo-)inverse of the Gram matrix plus the penalty, and the projector
    on what the context does not span, which is 0 from the start where there is a penalty.
    """
    w, inverse, outside = state
    x, target = pair
    read = _apply(inverse, x)
    # Projected twice, since once leaves a part of the span as large as the rounding of x.
    new = _apply(outside, _apply(outside, x))
    size, squared = jnp.sum(_squares(x)), jnp.sum(_squares(new))
    extends = squared > jnp.finfo(x.dtype).eps * size
    share = 1 + jnp.sum(x.conj() * read).real
    # The untaken branch divides by 1, so that its derivative is finite.
    direction = new / jnp.where(extends, squared, 1.0)
    gain = jnp.where(extends, direction, read / share)
    grown = inverse - _outer(direction, read) - _outer(read, direction) + share * _outer(direction, direction)
    inverse = jnp.where(extends, grown, inverse - _outer(read, read) / share)
    outside = jnp.where(extends, outside - _outer(new, direction), outside)
    w = w + _outer(target - _apply(w, x), gain)
    return (w, inverse, outside), _apply(w, target)


def _apply(matrix: Array, vector: Array) -> Array:
    return jnp.einsum("...jk,...k->...j", matrix, vector, precision=jax.lax.Precision.HIGHEST)


def _outer(left: Array, right: Array) -> Array:
    return left[:, None] * right.conj()[None, :]


def _squares(z: Array) -> Array:
    # Not jnp.abs: its derivative at 0 is undefined.
    return z.real**2 + z.imag**2 if jnp.iscomplexobj(z) else z**2
