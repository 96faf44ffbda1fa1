"""What tests of several rooms share."""

import jax
import numpy as np

from jaxgen.models import abstract_params


def filled_params(model, seed=0, scale=0.1):
    """Parameters of a model from numpy instead of its own initialisers, whose compilation dominates a small test."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype), abstract_params(model)
    )
