"""Layers whose outputs have the mean square of their inputs, and weights of no magnitude (Karras et al. 2024)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.models.edm2.magnitude import normalize
from jaxgen.typing import ArrayLike, Scalar


def filter_weight(kernel: Float[ArrayLike, "*inputs outputs"], gain: Scalar = 1.0) -> Float[Array, "*inputs outputs"]:
    """Return the weight that a layer applies: each filter, the numbers of one output, has the norm `gain` (eq. 47).

    The gradient with respect to the kernel is therefore orthogonal to each filter, but for the epsilon of `normalize`.

    Args:
        kernel: the parameter, whose last axis is that of the outputs.
        gain: norm of each filter.

    Returns:
        The shape of `kernel`; float32 at least.
    """
    single = jnp.asarray(kernel, jnp.promote_types(kernel.dtype, jnp.float32))
    unit = normalize(single, range(kernel.ndim - 1))
    return unit * (gain / math.sqrt(math.prod(kernel.shape[:-1])))


def zero_gain(module: nn.Module, name: str) -> Any:
    """Make a scalar parameter of `module` that starts at 0, which no projection of weights touches."""
    return module.param(name, nn.with_logical_partitioning(nn.initializers.zeros_init(), ()), ())


def _kernel(module: nn.Module, shape: tuple[int, ...], axes: tuple[str, ...]):
    return module.param("kernel", nn.with_logical_partitioning(nn.initializers.normal(1.0), axes), shape)


def _promoted(x, kernel, gain, dtype: str | None):
    """Return the input and the weight in the type of their product; weights are normalised before they lose digits."""
    product = jnp.promote_types(x.dtype, kernel.dtype) if dtype is None else jnp.dtype(dtype)
    return x.astype(product), filter_weight(kernel, gain).astype(product)


class MPDense(nn.Module):
    """A linear map without bias, each of whose filters has the norm `gain` whatever the kernel's (eq. 47).

    Attributes:
        features: number of outputs.
        axes: logical names of the kernel's axes, inputs and outputs.
        dtype: type of the product; None promotes the types of kernel and input.
    """

    features: int
    axes: tuple[str, str]
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"], gain: Scalar = 1.0) -> Float[Array, "... features"]:
        """Apply the map to the last axis."""
        kernel = _kernel(self, (x.shape[-1], self.features), self.axes)
        x, weight = _promoted(x, kernel, gain, self.dtype)
        return x @ weight


class MPConv(nn.Module):
    """A convolution without bias, padded with zeros, each of whose filters has the norm `gain` (eq. 47).

    Attributes:
        features: number of outputs.
        size: rows and columns of the kernel, odd.
        axes: logical names of the kernel's last two axes, inputs and outputs.
        dtype: type of the product; None promotes the types of kernel and input.
    """

    features: int
    size: int
    axes: tuple[str, str]
    dtype: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "count rows columns inputs"], gain: Scalar = 1.0
    ) -> Float[Array, "count rows columns features"]:
        """Apply the convolution."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = _kernel(self, shape, ("rows", "columns", *self.axes))
        x, weight = _promoted(x, kernel, gain, self.dtype)
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class MPFourier(nn.Module):
    """Cosines of a scalar at random frequencies and phases, of mean square 1 (eq. 75).

    Frequencies 2 pi N(0, 1) and phases 2 pi U(0, 1) are drawn once and never trained: they lie in the collection
    "buffers", which a checkpoint has to hold.

    Attributes:
        features: number of cosines.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "... features"]:
        """Return the features on a new last axis, float32 at least."""
        frequencies = self._drawn("frequencies", jax.random.normal)
        phases = self._drawn("phases", jax.random.uniform)
        dtype = jnp.promote_types(x.dtype, frequencies.dtype)
        shape = (*x.shape, self.features)
        angles = x.astype(dtype)[..., None] * jnp.broadcast_to(frequencies, shape) + jnp.broadcast_to(phases, shape)
        return math.sqrt(2) * jnp.cos(angles)

    def _drawn(self, name: str, draw):
        return self.variable(
            "buffers", name, lambda: 2 * math.pi * draw(self.make_rng("params"), (self.features,), jnp.float32)
        ).value
