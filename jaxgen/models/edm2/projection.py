"""Forced weight normalisation of EDM2 (Karras et al. 2024, section 2.3, eq. 66)."""

from typing import Any

import jax

from jaxgen.models.edm2.magnitude import normalize
from jaxgen.typing import Params


def project_weights(params: Params) -> Params:
    """Bring every filter of a network back to root mean square 1, before an update computes its gradient.

    A step of training is `params = project_weights(params)`, then the gradient, the optimiser and the averages of its
    result. The gradient is not taken through the projection. Layers normalise their weights as well, so the projection
    changes what the network computes by the epsilon of `normalize` at most, 1e-4 of a filter; it keeps the weights from
    growing, which would lower their effective learning rate. The root mean square becomes r / (r + 1e-4), where it was
    r: repeated projections meet at 1 - 1e-4.

    Args:
        params: the parameters of an `EDM2`, or a pytree of which they are a part. Only what is called "kernel" is
            projected, over all of its axes but the last; gains are left alone.

    Returns:
        The structure, shapes and dtypes of `params`.
    """
    return jax.tree_util.tree_map_with_path(_project, params)


def _project(path: tuple[Any, ...], leaf: Any) -> Any:
    is_kernel = bool(path) and getattr(path[-1], "key", None) == "kernel"
    return normalize(leaf, range(leaf.ndim - 1)) if is_kernel else leaf
