"""Sizes of EDM2, and those that Karras et al. (2024) published."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxgen.models.resampling import check_levels

_COUNTS = ("num_classes", "width", "blocks", "channels_per_head", "uncertainty_width")
_BALANCES = ("label_balance", "residual_balance", "attention_balance", "concatenation_balance")
_DTYPES = (None, "bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class EDM2Config:
    """Sizes of an `EDM2`; the defaults are the 280 M parameters of its size S for ImageNet at 64 x 64 pixels.

    Source: Karras et al. 2024, table 6 and appendix B.
    """

    image_shape: tuple[int, int, int] = (64, 64, 3)
    """Shape (side, side, channels) of one image; the side is a multiple of 2**(levels - 1)."""
    num_classes: int = 1000
    """Number of classes; label `num_classes` is the null class, which stands for "no condition"."""
    width: int = 192
    """Features of the highest resolution, of which `multipliers` are multiples."""
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Features of each level over `width`; from one level to the next the sides halve."""
    blocks: int = 3
    """Blocks of a level on the way down that keep the resolution; on the way up there is one more."""
    attention_sides: tuple[int, ...] = (16, 8)
    """Sides of the levels whose blocks attend, but for those that change the resolution; a side that no level has says
    nothing. The first block of the way up attends whatever its side."""
    channels_per_head: int = 64
    """Features of an attention head, a divisor of the features of each level that attends."""
    uncertainty_width: int = 128
    """Cosines of the noise condition from which the uncertainty of the loss is read."""
    dropout: float = 0.0
    """Rate of dropout on the hidden features of every block, in [0, 1)."""
    label_balance: float = 0.5
    """Weight in [0, 1] of the label against the noise condition, in the embedding."""
    residual_balance: float = 0.3
    """Weight in [0, 1] of the residual branch against the trunk."""
    attention_balance: float = 0.3
    """Weight in [0, 1] of attention against the trunk."""
    concatenation_balance: float = 0.5
    """Weight in [0, 1] of a skip from the way down against the trunk, where they are concatenated."""
    clip: float = 256.0
    """Largest absolute activation that leaves a block."""
    dtype: str | None = None
    """Type of the trunk's products and activations, such as "bfloat16"; None promotes the types of parameters and
    inputs. Parameters, embeddings, norms and the last layer stay in float32."""
    remat: bool = False
    """Whether the backward pass recomputes each block instead of storing what is inside it."""

    def __post_init__(self):
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in _BALANCES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be positive and finite, got {self.clip}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {_DTYPES}, got {self.dtype!r}")
        if len(self.image_shape) != 3:
            raise ValueError(f"image_shape must be (side, side, channels), got {self.image_shape}")
        check_levels(self.image_shape, self.multipliers)
        self._check_attention()

    def _check_attention(self):
        if self.attention_sides and min(self.attention_sides) < 1:
            raise ValueError(f"attention_sides must hold positive sides, got {self.attention_sides}")
        levels = range(len(self.multipliers))
        # To leave attention out where it does not fit would be another network of the same name.
        for level in (level for level in levels if self.attends(level) or level == levels[-1]):
            if self.level_width(level) % self.channels_per_head:
                raise ValueError(
                    f"channels_per_head must divide the {self.level_width(level)} features of the level of side "
                    f"{self.level_side(level)}, which attends, got {self.channels_per_head}; take a divisor"
                )

    @property
    def null_label(self) -> int:
        """Return the label that stands for "no class given"; its embedding is zero."""
        return self.num_classes

    @property
    def augmentation(self) -> int:
        """Return 0: EDM2 is told of no augmentation."""
        return 0

    @property
    def embedding(self) -> int:
        """Return the features of the conditioning vector, those of the widest level."""
        return self.width * max(self.multipliers)

    def level_width(self, level: int) -> int:
        """Return the features of a level; level 0 has the highest resolution."""
        return self.width * self.multipliers[level]

    def level_side(self, level: int) -> int:
        """Return the side of a level, in pixels."""
        return self.image_shape[0] >> level

    def attends(self, level: int) -> bool:
        """Return whether the blocks of a level that keep the resolution attend."""
        return self.level_side(level) in self.attention_sides


_SIZES: Mapping[str, tuple[int, float]] = MappingProxyType(
    {
        "XXS": (64, 0.0),
        "XS": (128, 0.0),
        "S": (192, 0.0),
        "M": (256, 0.1),
        "L": (320, 0.1),
        "XL": (384, 0.1),
        "XXL": (448, 0.1),
    }
)
"""Width and dropout of each size."""


def edm2_config(size: str, image_shape: tuple[int, int, int], num_classes: int, **changes: Any) -> EDM2Config:
    """Return the configuration of a published size (Karras et al. 2024, table 6; XXS is of their released code).

    Args:
        size: "XXS", "XS", "S", "M", "L", "XL" or "XXL".
        image_shape: (side, side, channels); published are (64, 64, 3) for pixels and (64, 64, 4) for latents.
        num_classes: number of classes.
        **changes: fields of `EDM2Config` that differ.

    Raises:
        ValueError: if there is no such size, or the configuration is refused.

    >>> edm2_config("XS", (32, 32, 4), 10).width
    128
    """
    if size not in _SIZES:
        raise ValueError(f"size must be one of {', '.join(_SIZES)}, got {size!r}")
    width, dropout = _SIZES[size]
    return EDM2Config(
        **{"image_shape": image_shape, "num_classes": num_classes, "width": width, "dropout": dropout} | changes
    )
