"""How many steps of training one call of the compiled program takes."""

import jax
from jax.sharding import Mesh


def steps_per_call(mesh: Mesh | None, *, convolutional: bool) -> int | None:
    """Return what `fit` takes by that name, for a network with convolutions or without.

    On a CPU, XLA runs the backward pass of a convolution ten to twenty times slower inside a loop (jax issue 12868).
    """
    platform = (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).platform
    return None if platform == "cpu" and convolutional else 16
