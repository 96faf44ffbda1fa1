"""Integrals of functions that vary fast towards either end of an interval, to the last digits of float64."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.typing import Scalar

_NODES, _PANELS, _RATIO = 12, 30, 1.5


def integral(function: Callable[[Array], Array], end: Scalar) -> Float[Array, ""]:
    """Integrate over [0, end] by Gauss-Legendre rules on panels that grow by half from either end to the middle.

    What varies over 1e-5 of the interval from an end is resolved. It differentiates in `end` and in what `function`
    closes over.
    """
    nodes, weights = _graded_rule()
    end = jnp.asarray(end)
    values = jax.vmap(function)(end * jnp.asarray(nodes, end.dtype))
    return end * jnp.dot(values, jnp.asarray(weights, end.dtype))


def _graded_rule() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.concatenate([[0.0], 0.5 * _RATIO ** -np.arange(_PANELS, -1.0, -1.0)])
    edges = np.concatenate([half, 1.0 - half[-2::-1]])
    widths = np.diff(edges)
    nodes = edges[:-1, None] + widths[:, None] * (points + 1.0) / 2.0
    return nodes.ravel(), (widths[:, None] * weights / 2.0).ravel()
