"""The curvature of a loss at a point."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxgen.typing import Params


class Curvature(NamedTuple):
    """Extreme eigenvalues of a Hessian."""

    smallest: Float[Array, ""]
    """Smallest eigenvalue, with its sign."""
    scale: Float[Array, ""]
    """Largest absolute eigenvalue, against which the rounding of the others is to be measured."""


def curvature_at(loss: Callable[[Params], Array], params: Params, mask: Params | None = None) -> Curvature:
    """Compute the extreme eigenvalues of the Hessian of `loss` over the coordinates where `mask` is not zero.

    The Hessian of n coordinates is built whole: n gradients, n x n numbers, and one symmetric eigenvalue problem.

    Args:
        loss: real function of the parameters.
        params: a pytree of real arrays of one type.
        mask: zeros and ones of the structure and shapes of `params`; None leaves every coordinate free.

    Returns:
        Two numbers, not finite where the Hessian is not; both 0 if the mask leaves no coordinate free.

    Example:
        >>> find = jax.jit(lambda x: curvature_at(lambda x: x[0] ** 2 - 3.0 * x[1] ** 2, x))
        >>> smallest, scale = find(jnp.zeros(2))
        >>> float(smallest), float(scale)
        (-6.0, 6.0)
    """
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda flat: loss(unravel(flat)))(flat)
    if mask is not None:
        free = ravel_pytree(mask)[0] != 0
        hessian = jnp.where(free[:, None] & free[None, :], hessian, 0.0)
        # The mask may be traced, so that no submatrix can be cut out. The fixed coordinates are given the mean of the
        # free eigenvalues, which lies between the extremes and hides neither.
        mean = jnp.trace(hessian) / jnp.maximum(free.sum(), 1).astype(hessian.dtype)
        hessian = hessian + jnp.diag(jnp.where(free, 0.0, mean))
    values = jnp.linalg.eigvalsh(hessian)
    return Curvature(values[0], jnp.maximum(-values[0], values[-1]))
