"""Affine layers with a ReLU between each two, as small networks of several kinds end in them."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float


def relu_layers(
    h: Float[Array, "*lead inputs"], width: int, layers: int, outputs: int, dtype: str | None
) -> Float[Array, "*lead outputs"]:
    """Apply affine layers named `dense_0`, `dense_1`, ..., inside a compact method.

    Args:
        h: features.
        width: features of a hidden layer.
        layers: affine layers, at least 1.
        outputs: features of the last one.
        dtype: of the computation; None promotes the types of parameters and `h`.
    """
    for index in range(layers):
        last = index == layers - 1
        # Only every other axis may be split over devices, so that one sum over them joins two layers.
        names = ("width", "hidden") if index % 2 == 0 else ("hidden", "width")
        axes = ("inputs" if index == 0 else names[0], "outputs" if last else names[1])
        h = nn.Dense(
            outputs if last else width,
            dtype=dtype,
            # He et al. 2015 where a ReLU follows, so that signals keep their size.
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.lecun_normal() if last else nn.initializers.he_normal(), axes
            ),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:]),
            name=f"dense_{index}",
        )(h)
        h = h if last else nn.relu(h)
    return h


def check_sizes(config: Any, **least: int) -> None:
    """Refuse sizes of a configuration that are too small.

    Args:
        config: a dataclass.
        least: the smallest value of each field, by its name.

    Raises:
        ValueError: names the field, its value and the range.
    """
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {getattr(config, name)}")
