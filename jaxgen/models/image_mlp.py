"""A class-conditional residual MLP for small images, modulated by the noise level and the label (FiLM)."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.models.conditioning import check_conditioning, condition_vector, example_inputs, leading_shape
from jaxgen.typing import ArrayLike

_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class ImageMLPConfig:
    """Sizes of an `ImageMLP`; the defaults are the 1.05 M parameters of the digits experiment."""

    image_shape: tuple[int, ...] = (8, 8)
    """Shape of one image, channels included if it has any."""
    num_classes: int = 10
    """Number of classes; label `num_classes` is the null class, which stands for "no condition"."""
    width: int = 256
    """Features of the residual stream."""
    hidden: int = 512
    """Features inside a block."""
    blocks: int = 3
    """Number of residual blocks."""
    embedding: int = 128
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
    """Type of the computation, for example "bfloat16"; None promotes the types of parameters and inputs."""
    scan: bool | None = None
    """Whether the blocks are one `nn.scan` with stacked parameters; None scans more than 4 blocks."""
    remat: bool = False
    """Whether the backward pass recomputes each block instead of storing what is inside it."""

    def __post_init__(self):
        for name in ("width", "hidden", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.image_shape or min(self.image_shape) < 1:
            raise ValueError(f"image_shape must hold positive sizes, got {self.image_shape}")
        check_conditioning(self)

    @property
    def null_label(self) -> int:
        """Return the label that stands for "no class given"."""
        return self.num_classes

    @property
    def scanned(self) -> bool:
        """Return whether the blocks share one scanned body."""
        return self.blocks > 4 if self.scan is None else self.scan


def _dense(features: int, axes: tuple[str, str], name: str, dtype: str | None, *, zero: bool = False) -> nn.Dense:
    kernel_init = nn.initializers.zeros_init() if zero else nn.initializers.lecun_normal()
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=name,
    )


def _normalise(x: Float[Array, "*lead width"], dtype: str | None) -> Float[Array, "*lead width"]:
    # Scale and shift come from the condition, so the norm itself has no parameters.
    return nn.LayerNorm(_NORM_EPSILON, dtype=dtype, use_scale=False, use_bias=False, use_fast_variance=False)(x)


class _Block(nn.Module):
    """x + Dense(SiLU(Dense(FiLM(LayerNorm(x))))), with the FiLM scale and shift computed from the condition."""

    config: ImageMLPConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x, condition):
        config = self.config
        modulation = _dense(2 * config.width, ("embedding", "film"), "film", config.dtype)(condition)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = _normalise(x, config.dtype) * (1 + scale) + shift
        h = nn.silu(_dense(config.hidden, ("width", "hidden"), "expand", config.dtype)(h))
        h = nn.Dropout(config.dropout)(h, deterministic=self.deterministic)
        return x + _dense(config.width, ("hidden", "width"), "contract", config.dtype)(h), None


class ImageMLP(nn.Module):
    """Map a noisy image, its noise condition and a label to the raw network output of the image's shape.

    The last layer starts at zero, so that a preconditioned denoiser starts at its skip connection
    (Karras et al. 2022, section 5). Every operation acts on one sample: `jax.vmap` over samples and a call with
    leading dimensions run the same matrix products.
    """

    config: ImageMLPConfig

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
            x: images of shape `(*lead, *image_shape)`, where `lead` may be empty.
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
        lead = leading_shape(config, x, noise_condition, label, augmentation)
        features = x.reshape((*lead, math.prod(config.image_shape)))
        h = _dense(config.width, ("pixels", "width"), "enter", config.dtype)(features)
        condition = condition_vector(self, _dense, jnp.asarray(noise_condition), jnp.asarray(label), augmentation)
        h = self._blocks(h, condition, deterministic)
        h = _dense(features.shape[-1], ("width", "pixels"), "leave", config.dtype, zero=True)(
            _normalise(h, config.dtype)
        )
        return h.astype(x.dtype).reshape(x.shape)

    def _blocks(self, h, condition, deterministic):
        block = nn.remat(_Block, prevent_cse=not self.config.scanned) if self.config.remat else _Block
        if not self.config.scanned:
            for index in range(self.config.blocks):
                h, _ = block(self.config, deterministic, name=f"block_{index}")(h, condition)
            return h
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.config.blocks,
            metadata_params={nn.PARTITION_NAME: "blocks"},
        )
        return stack(self.config, deterministic, name="blocks")(h, condition)[0]
