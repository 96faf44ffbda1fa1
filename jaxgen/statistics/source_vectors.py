"""Parameters of several sources as vectors, for methods that need all derivatives in one matrix."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxgen.statistics.source_params import SourceParams, merge, num_sources


class Flat(NamedTuple):
    """Parameters of several sources as vectors.

    Attributes:
        shared: `[shared]`, of length 0 for separate models.
        specific: `[sources, specific]`.
        whole: maps the shared vector followed by that of one source, `[shared + specific]`, to the tree of the source.
        restore: maps the two arrays to `SourceParams`.
    """

    shared: Float[Array, " shared"]
    specific: Float[Array, "sources specific"]
    whole: Callable[[Array], PyTree]
    restore: Callable[[Array, Array], SourceParams]


def flatten_sources(params: SourceParams) -> Flat:
    """Turn the parameters of several sources into vectors, of one dtype.

    Args:
        params: parameters with leaves of a real floating dtype.

    Raises:
        ValueError: a leaf has another dtype, or nothing is specific.
    """
    num_sources(params)
    params = jax.tree.map(jnp.asarray, params)
    leaves = jax.tree.leaves(params)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"parameters must be real floating arrays, got {leaf.dtype}")
    dtype = jnp.result_type(*leaves)
    shared, unravel_shared = ravel_pytree(params.shared)
    _, unravel_own = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], params.specific))
    specific = jax.vmap(lambda tree: ravel_pytree(tree)[0])(params.specific)
    shared, size = shared.astype(dtype), shared.size

    def whole(vector: Array) -> PyTree:
        return merge(unravel_shared(vector[:size]), unravel_own(vector[size:]))

    def restore(shared: Array, specific: Array) -> SourceParams:
        return SourceParams(unravel_shared(shared), jax.vmap(unravel_own)(specific))

    return Flat(shared, specific.astype(dtype), whole, restore)
