"""Learning rates that fall with the root of the images seen."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from jaxgen.typing import ArrayLike

Number: TypeAlias = float | int | np.number | Shaped[ArrayLike, ""]
OfImages: TypeAlias = Callable[[Number], Float[Array, ""]]


def inverse_root_rate(peak: Number, *, reference_images: Number, ramp_images: Number) -> OfImages:
    """Return the learning rate that falls with the root of the images seen, after a linear ramp.

    At n images it is peak / sqrt(max(n / reference_images, 1)) * min(n / ramp_images, 1) (Karras et al. 2024,
    "Analyzing and Improving the Training Dynamics of Diffusion Models", appendix B, where reference_images is t_ref
    batches). n counts the images before the step, so that with a
    ramp the first step has the rate 0.

    Args:
        peak: the rate between the ramp and the fall.
        reference_images: images after which the rate begins to fall, above 0.
        ramp_images: length of the ramp, of which the paper has 10 million: a run of fewer images would hardly learn;
            0 means none.

    Returns:
        A function from images seen to the rate. Any argument may be traced, so that another value compiles nothing.

    Raises:
        ValueError: if an argument that is not traced is out of range.

    >>> rate = inverse_root_rate(0.01, reference_images=1000, ramp_images=100)
    >>> [round(float(rate(images)), 4) for images in (0, 50, 1000, 4000)]
    [0.0, 0.005, 0.01, 0.005]
    """
    _check(peak, reference_images, ramp_images)

    def rate(images):
        passed = _real(images) / _real(reference_images)
        return _real(peak) / jnp.sqrt(jnp.maximum(passed, 1.0)) * _ramp(images, ramp_images)

    return rate


def stepped_inverse_root_rate(peak: Number, *, reference_images: Number, ramp_images: Number) -> OfImages:
    """Return the learning rate that halves at once after `reference_images`, and falls with the root from there.

    With r = n / reference_images it is peak for r <= 1 and peak / sqrt(4 r) for r > 1, times the ramp of
    `inverse_root_rate`: the schedule of the published code of Wang et al. 2025, "A Theory for Conditional Generative
    Modeling on Multiple Data Sources".

    Args:
        peak: the rate between the ramp and the fall.
        reference_images: images after which the rate halves, above 0.
        ramp_images: length of the ramp; 0 means none.

    Returns:
        A function from images seen to the rate. Any argument may be traced, so that another value compiles nothing.

    Raises:
        ValueError: if an argument that is not traced is out of range.

    >>> rate = stepped_inverse_root_rate(0.01, reference_images=1000, ramp_images=0)
    >>> [round(float(rate(images)), 4) for images in (0, 1000, 1001, 4000)]
    [0.01, 0.01, 0.005, 0.0025]
    """
    _check(peak, reference_images, ramp_images)

    def rate(images):
        passed = _real(images) / _real(reference_images)
        falling = _real(peak) / jnp.sqrt(4.0 * jnp.maximum(passed, 1.0))
        return jnp.where(passed > 1.0, falling, peak) * _ramp(images, ramp_images)

    return rate


def of_images(schedule: OfImages, batch_size: Number) -> optax.Schedule:
    """Turn a schedule of images seen into one of update counts, as optax asks for it.

    Args:
        schedule: a function from images seen to a rate.
        batch_size: images in a batch, above 0.

    Returns:
        A function of the number of updates done, which is 0 at the first one.

    Raises:
        ValueError: if `batch_size` is not traced and not above 0.

    >>> float(of_images(lambda images: images, 8)(3))
    24.0
    """
    if not _within(batch_size, above=0.0):
        raise ValueError(f"batch_size must be above 0, got {batch_size}")
    # In floating point: a long run sees more images than an int32 can count.
    return lambda count: schedule(_real(count) * batch_size)


def _ramp(images: Number, length: Number) -> Float[Array, ""]:
    length = _real(length)
    return jnp.where(length > 0, jnp.minimum(_real(images) / jnp.where(length > 0, length, 1.0), 1.0), 1.0)


def _real(value: Any) -> Float[Array, ""]:
    return jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.result_type(float)))


def _check(peak: Number, reference_images: Number, ramp_images: Number) -> None:
    if not _within(peak):
        raise ValueError(f"the peak of a learning rate must be at least 0 and finite, got {peak}")
    if not _within(reference_images, above=0.0):
        raise ValueError(f"reference_images must be above 0 and finite, got {reference_images}")
    if not _within(ramp_images):
        raise ValueError(f"ramp_images must be at least 0 and finite, 0 for no ramp, got {ramp_images}")


def _within(value: Any, *, above: float | None = None) -> bool:
    """Return whether a number is finite and above, or else not below 0; arrays of jax are not asked."""
    if isinstance(value, jax.Array):
        return True
    number = float(value)
    return math.isfinite(number) and (number >= 0 if above is None else number > above)
