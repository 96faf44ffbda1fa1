"""Array and key aliases that every room shares."""

from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

ArrayLike: TypeAlias = jax.Array | np.ndarray
Scalar: TypeAlias = Float[ArrayLike, ""] | float
Sample: TypeAlias = Float[ArrayLike, "..."]
PRNGKey: TypeAlias = Key[Array, ""]
PRNGKeys: TypeAlias = Key[Array, " count"]
Params: TypeAlias = PyTree

__all__ = ["ArrayLike", "PRNGKey", "PRNGKeys", "Params", "Sample", "Scalar"]
