"""A class-conditional convolutional U-Net for images, modulated by the noise level and the label (FiLM)."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.models.attention import attend
from jaxgen.models.conditioning import check_conditioning, condition_vector, example_inputs, leading_shape
from jaxgen.models.convolution import convolution, group_norm, largest_divisor
from jaxgen.models.resampling import check_levels, double, halve
from jaxgen.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class ImageConvConfig:
    """Sizes of an `ImageConv`; the defaults are 3.87 M parameters for colour images of 32x32 pixels."""

    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Shape (side, side, channels) of one image; the side is a multiple of 2**(levels - 1)."""
    num_classes: int = 10
    """Number of classes; label `num_classes` is the null class, which stands for "no condition"."""
    width: int = 64
    """Features of the highest resolution, of which `multipliers` are multiples."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Features of each level over `width`; from one level to the next the sides halve."""
    blocks: int = 2
    """Residual blocks of a level on the way down, and again on the way up."""
    attention: int = 1
    """Number of levels, counted from the lowest resolution, whose blocks end in self-attention."""
    head_width: int = 64
    """Features of an attention head, at least; a level of fewer features has one head."""
    embedding: int = 256
    """Features of the conditioning vector."""
    frequencies: int = 32
    """Number of sine and cosine pairs that encode the noise condition."""
    frequency_range: tuple[float, float] = (0.125, 8.0)
    """Lowest and highest frequency, in cycles per unit of the noise condition, spaced geometrically."""
    dropout: float = 0.0
    """Rate of dropout on the hidden features, in [0, 1)."""
    augmentation: int = 0
    """Features of an optional augmentation condition (Karras et al. 2022, appendix F.2); 0 for none."""
    dtype: str | None = None
    """Type of the products, for example "bfloat16"; None promotes the types of parameters and inputs."""
    scan: bool | None = None
    """Whether equal blocks of a level are one `nn.scan` with stacked parameters; None scans more than 4."""
    remat: bool = False
    """Whether the backward pass recomputes each block instead of storing what is inside it."""

    def __post_init__(self):
        for name in ("width", "blocks", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.image_shape) != 3:
            raise ValueError(f"image_shape must be (side, side, channels), got {self.image_shape}")
        check_levels(self.image_shape, self.multipliers)
        if not 0 <= self.attention <= len(self.multipliers):
            raise ValueError(f"attention must lie in 0..{len(self.multipliers)}, the levels, got {self.attention}")
        check_conditioning(self)

    @property
    def null_label(self) -> int:
        """Return the label that stands for "no class given"."""
        return self.num_classes

    def scanned(self, count: int) -> bool:
        """Return whether `count` equal blocks in a row share one scanned body."""
        return count > 4 if self.scan is None else self.scan


def _conv(features: int, size: int, axes: tuple[str, str], name: str, dtype: str | None, *, zero: bool = False):
    kernel_init = nn.initializers.zeros_init() if zero else nn.initializers.lecun_normal()
    return convolution(features, size, axes, name, dtype, kernel_init=kernel_init)


def _dense(features: int | tuple[int, int], axes: tuple[str, ...], name: str, dtype: str | None, *, zero: bool = False):
    kernel_init = nn.initializers.zeros_init() if zero else nn.initializers.lecun_normal()
    return nn.DenseGeneral(
        features,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )


class _Block(nn.Module):
    """x + Conv(SiLU(FiLM(GroupNorm(Conv(SiLU(GroupNorm(x))))))), then x + self-attention where asked for.

    FiLM's scale and shift are computed from the condition (Nichol & Dhariwal 2021, appendix A; Perez et al. 2018).
    """

    config: ImageConvConfig
    features: int
    attention: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x, condition):
        config = self.config
        # Only the features between the two convolutions are split over devices: one sum joins them again.
        h = nn.silu(group_norm(x, "norm"))
        h = _conv(self.features, 3, ("width", "hidden"), "expand", config.dtype)(h)
        modulation = _dense((2, self.features), ("embedding", "film", "hidden"), "film", config.dtype)(condition)
        scale, shift = modulation[:, 0, None, None], modulation[:, 1, None, None]
        h = nn.silu(group_norm(h, "hidden_norm", affine=False) * (1 + scale) + shift)
        h = nn.Dropout(config.dropout)(h, deterministic=self.deterministic)
        h = _conv(self.features, 3, ("hidden", "width"), "contract", config.dtype, zero=True)(h)
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, ("width", "width_out"), "skip", config.dtype)(x)
        x = x + h
        return (x + self._attention(x) if self.attention else x), None

    def _attention(self, x):
        """Self-attention over the pixels (Ho et al. 2020, appendix B), the output projection starting at zero."""
        count, *sides, features = x.shape
        heads = largest_divisor(features, features // self.config.head_width)
        h = group_norm(x, "attention_norm").reshape(count, math.prod(sides), features)
        h = _dense((3, features), ("width", "query_key_value", "hidden"), "project", self.config.dtype)(h)
        tokens = h.reshape(count, math.prod(sides), 3, heads, features // heads)
        h = attend(*(tokens[:, :, index] for index in range(3))).reshape(count, *sides, features)
        return _dense(features, ("hidden", "width"), "attend", self.config.dtype, zero=True)(h)


class ImageConv(nn.Module):
    """Map a noisy image, its noise condition and a label to the raw network output of the image's shape.

    The plain baseline of denoising diffusion: the U-Net of Ho et al. (2020) with the FiLM blocks of Nichol & Dhariwal
    (2021), for side 32 and multipliers (1, 2, 2):

        side 32   conv - blocks ------------ concatenate - blocks - norm, SiLU, conv
        side 16            mean - blocks - concatenate - blocks - repeat
        side  8                     mean - blocks, blocks - repeat

    Each level hands ONE skip to the way up, so that all blocks of a stage but its first are equal and can be scanned.
    Means over 2x2 pixels and repetition change the resolution (a box filter: Karras et al. 2022, appendix F). The last
    layer starts at zero, so that a preconditioned denoiser starts at its skip connection (Karras et al. 2022,
    section 5), and so does the last layer of each block. Every operation acts on one sample: `jax.vmap` over samples
    equals a call with leading dimensions. Parameters are float32 whatever `dtype` is; norms, their statistics and the
    last layer are computed in float32 at least.
    """

    config: ImageConvConfig

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the arguments of one call on a single sample: image, noise condition, label, augmentation."""
        return example_inputs(self.config)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*lead_and_image"],
        noise_condition: Float[ArrayLike, "..."],
        label: Int[ArrayLike, "..."],
        augmentation: Float[ArrayLike, "..."] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "*lead_and_image"]:
        """Apply the network.

        Args:
            x: images of shape `(*lead, side, side, channels)`, where `lead` may be empty.
            noise_condition: what the network is told about the noise, shape `lead`; of order 1.
            label: classes in [0, num_classes], shape `lead`; `num_classes` is the null class.
            augmentation: shape `(*lead, augmentation)` where the configuration asks for it.
            deterministic: False turns dropout on, which draws from the "dropout" stream of `rngs`.

        Returns:
            The raw output F, with the shape and dtype of `x`.

        Raises:
            ValueError: if the shapes do not belong together or the augmentation condition is missing or unasked for.
        """
        config = self.config
        count = math.prod(leading_shape(config, x, noise_condition, label, augmentation))
        condition = condition_vector(
            self,
            _dense,
            jnp.reshape(noise_condition, count),
            jnp.reshape(label, count),
            None if augmentation is None else jnp.reshape(augmentation, (count, config.augmentation)),
        )
        h = x.reshape(count, *config.image_shape)
        h = _conv(config.width, 3, ("channels", "width"), "enter", config.dtype)(h)
        h = nn.silu(group_norm(self._levels(h, condition, deterministic), "norm"))
        h = _conv(config.image_shape[-1], 3, ("width", "channels"), "leave", None, zero=True)(h)
        return h.astype(x.dtype).reshape(x.shape)

    def _levels(self, h, condition, deterministic):
        """Go down the levels and up again."""
        lowest, skips = len(self.config.multipliers) - 1, []
        for level in range(lowest):
            h = self._stage(h, condition, level, self.config.blocks, f"down_{level}", deterministic)
            skips.append(h)
            h = halve(h)
        h = self._stage(h, condition, lowest, 2 * self.config.blocks, "lowest", deterministic)
        for level in reversed(range(lowest)):
            h = jnp.concatenate([double(h), skips.pop()], axis=-1)
            h = self._stage(h, condition, level, self.config.blocks, f"up_{level}", deterministic)
        return h

    def _stage(self, h, condition, level, count, name, deterministic):
        """Apply `count` blocks at one resolution, of which the first may change the number of features."""
        config = self.config
        attention = len(config.multipliers) - level <= config.attention
        arguments = (config, config.width * config.multipliers[level], attention, deterministic)
        scanned = config.scanned(count - 1) and count > 1
        block = nn.remat(_Block) if config.remat else _Block
        for index in range(1 if scanned else count):
            h, _ = block(*arguments, name=f"{name}_{index}")(h, condition)
        if not scanned:
            return h
        stack = nn.scan(
            nn.remat(_Block, prevent_cse=False) if config.remat else _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=count - 1,
            metadata_params={nn.PARTITION_NAME: "blocks"},
        )
        return stack(*arguments, name=f"{name}_rest")(h, condition)[0]
