"""A small convolutional classifier of images, whose penultimate layer serves as features."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.models.convolution import convolution, group_norm
from jaxgen.models.resampling import check_levels, halve
from jaxgen.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class ImageClassifierConfig:
    """Sizes of an `ImageClassifier`; the defaults are 81,610 parameters for grey images of 8x8 pixels."""

    image_shape: tuple[int, ...] = (8, 8)
    """Shape (side, side) or (side, side, channels) of one image; the side is a multiple of 2**(levels - 1)."""
    num_classes: int = 10
    """Number of classes."""
    width: int = 32
    """Features of the highest resolution, of which `multipliers` are multiples."""
    multipliers: tuple[int, ...] = (1, 2)
    """Features of each level over `width`; from one level to the next the sides halve."""
    blocks: int = 1
    """Residual blocks of a level."""
    features: int = 64
    """Length of the penultimate layer."""
    dtype: str | None = None
    """Type of the products, for example "bfloat16"; None promotes the types of parameters and inputs."""

    def __post_init__(self):
        for name, least in (("num_classes", 2), ("width", 1), ("blocks", 1), ("features", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if len(self.image_shape) not in (2, 3):
            raise ValueError(f"image_shape must be (side, side) or (side, side, channels), got {self.image_shape}")
        check_levels(self.image_shape, self.multipliers)


def _conv(features: int, size: int, axes: tuple[str, str], name: str, dtype: str | None, *, zero: bool = False):
    kernel_init = nn.initializers.zeros_init() if zero else nn.initializers.he_normal()
    return convolution(features, size, axes, name, dtype, kernel_init=kernel_init)


def _dense(features: int, axes: tuple[str, str], name: str | None, *, zero: bool = False):
    kernel_init = nn.initializers.zeros_init() if zero else nn.initializers.he_normal()
    return nn.Dense(
        features,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )


class _Block(nn.Module):
    """x + Conv(SiLU(GroupNorm(Conv(SiLU(GroupNorm(x)))))), with activations before weights (He et al. 2016)."""

    features: int
    dtype: str | None

    @nn.compact
    def __call__(self, x):
        h = nn.silu(group_norm(x, "norm"))
        # Only the features between the two convolutions are split over devices: one sum joins them again.
        h = _conv(self.features, 3, ("width", "hidden"), "expand", self.dtype)(h)
        h = nn.silu(group_norm(h, "hidden_norm", axis="hidden"))
        h = _conv(self.features, 3, ("hidden", "width"), "contract", self.dtype, zero=True)(h)
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, ("width", "width_out"), "skip", self.dtype)(x)
        return x + h


class _Trunk(nn.Module):
    """The network up to the penultimate layer, for one batch axis."""

    config: ImageClassifierConfig

    @nn.compact
    def __call__(self, h: Float[Array, "count side side channels"]) -> Float[Array, "count features"]:
        config = self.config
        h = _conv(config.width, 3, ("channels", "width"), "enter", config.dtype)(h)
        for level, multiplier in enumerate(config.multipliers):
            h = halve(h) if level else h
            for index in range(config.blocks):
                h = _Block(config.width * multiplier, config.dtype, name=f"level_{level}_{index}")(h)
        h = nn.silu(group_norm(h, "norm")).mean((1, 2))
        return nn.silu(_dense(config.features, ("width", "hidden"), "features")(h))


class ImageClassifier(nn.Module):
    """Map images to the logits of their classes; the method `features` stops at the penultimate layer.

    Residual blocks at each resolution, then what is left when the places are averaged out:

        conv - blocks - 2x2 mean - blocks ... - norm, SiLU, mean over pixels - dense, SiLU = features - dense = logits

    Group norms, not batch norms: every operation acts on one sample, so that `jax.vmap` over samples equals a call
    with leading dimensions and the features of an image do not depend on its batch. The last layer of each block
    starts at zero, and so do the logits. Parameters are float32 whatever `dtype` is; norms, features and logits are
    computed in float32 at least.

    Called as `apply({"params": params}, images)`, or with `method="features"`.
    """

    config: ImageClassifierConfig

    def setup(self):
        """Make the layers below and above the features."""
        self.trunk = _Trunk(self.config)
        self.head = _dense(self.config.num_classes, ("hidden", "classes"), None, zero=True)

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the argument of one call on a single image."""
        return (jnp.zeros(self.config.image_shape),)

    def __call__(self, images: Float[ArrayLike, "*lead_and_image"]) -> Float[Array, "*lead classes"]:
        """Compute the logits.

        Args:
            images: of shape `(*lead, *image_shape)`, where `lead` may be empty; scaled to about [-1, 1].

        Raises:
            ValueError: if the images do not have the configured shape.
        """
        return self.head(self.features(images))

    def features(self, images: Float[ArrayLike, "*lead_and_image"]) -> Float[Array, "*lead features"]:
        """Compute the penultimate layer, after its nonlinearity; arguments and errors as for a call."""
        shape = self.config.image_shape
        lead = images.shape[: max(images.ndim - len(shape), 0)]
        if images.shape != (*lead, *shape):
            raise ValueError(f"images must end in the image shape {shape}, got {images.shape}")
        rows = jnp.reshape(images, (math.prod(lead), *shape[:2], math.prod(shape[2:])))
        return self.trunk(rows).reshape(*lead, self.config.features)
