"""Functions from images to features, each with an id that says which one made a set of features.

A Fréchet distance means something only between features of one function. An id names everything that decides the
features, so that equal ids may be compared; `feature_distance.fd` refuses others.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxgen.pytrees import register_dataclass
from jaxgen.typing import ArrayLike, Params

INCEPTION_ID = "inception-2048"
"""The id kept for the 2048 pool features of the Inception network that FID is defined by (Heusel et al. 2017)."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/@-]{0,199}")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureFunction:
    """A pure function from images to features, with its name: a pytree, so that `jax.jit` takes it as an argument.

    Attributes:
        id: says which features these are; 1 to 200 letters, digits and `._:+/@-`.
        apply: maps (params, images [B, H, W, C]) to features [B, F] of a real floating type. The features of an image
            depend on no other image of the batch.
        params: arrays that it reads, as arguments rather than constants of the compiled program.
        image_dtype: the dtype of the images it takes: uint8 in [0, 255], or a floating type in a range of its own.
        compiled: whether `apply` may be traced by jax; else it is called on the host with numpy arrays.

    Raises:
        ValueError: the id has another form, or images cannot have that dtype.
    """

    id: str = dataclasses.field(metadata={"static": True})
    apply: Callable[[Any, Any], Any] = dataclasses.field(metadata={"static": True})
    params: Params = ()
    image_dtype: str = dataclasses.field(default="uint8", metadata={"static": True})
    compiled: bool = dataclasses.field(default=True, metadata={"static": True})

    def __post_init__(self):
        check_feature_id(self.id)
        if self.image_dtype != "uint8" and not jnp.issubdtype(_dtype(self.image_dtype), jnp.floating):
            raise ValueError(f"image_dtype must be uint8 or a floating type, got {self.image_dtype}")

    def __call__(self, images: Shaped[ArrayLike, "batch height width channels"]) -> Float[ArrayLike, "batch dim"]:
        """Return the features of images.

        Raises:
            ValueError: the images have another rank or dtype, or the features are not real numbers [batch, dim].
        """
        check_images(self, images)
        features = self.apply(self.params, images)
        count = images.shape[0]
        if features.ndim != 2 or features.shape[0] != count or not jnp.issubdtype(features.dtype, jnp.floating):
            raise ValueError(
                f"the features {self.id} of {count} images must be real floating point [{count}, dim], got "
                f"{features.dtype} {list(features.shape)}"
            )
        return features


def check_images(function: FeatureFunction, images: Shaped[ArrayLike, "..."]) -> None:
    """Refuse images that a feature function does not take; shapes alone are read.

    Raises:
        ValueError: the images are not [batch, height, width, channels] of the function's dtype.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape [batch, height, width, channels], got {list(images.shape)}")
    if images.dtype != _dtype(function.image_dtype):
        raise ValueError(
            f"the features {function.id} are of {function.image_dtype} images, got {images.dtype}: convert them, in "
            "the range that the function expects"
        )


def check_feature_id(feature_id: str) -> None:
    """Refuse an id that could not be told from others in names and files.

    Raises:
        ValueError: it is not 1 to 200 letters, digits and `._:+/@-` with a letter or digit first.
    """
    if not _ID.fullmatch(feature_id):
        shown = feature_id if len(feature_id) <= 60 else feature_id[:60] + "..."
        raise ValueError(f"a feature id is 1 to 200 letters, digits and ._:+/@- after a letter or digit, got {shown!r}")


def custom_features(
    feature_id: str, function: Callable[[Any], Any], *, image_dtype: str = "uint8", compiled: bool = True
) -> FeatureFunction:
    """Name a function of your own, of images of any size, such as a pretrained network.

    Args:
        feature_id: names the function, its weights and how it resizes; `INCEPTION_ID` for what FID is defined by alone.
        function: maps images [B, H, W, C] to features [B, F]. What it closes over becomes a constant of the compiled
            program: for large weights make a `FeatureFunction` with `params`.
        image_dtype: the dtype it takes, "uint8" or a floating one such as "float32".
        compiled: False for a function that jax cannot trace, such as a network of another library; it gets numpy
            arrays.

    Raises:
        ValueError: the id or the dtype is refused by `FeatureFunction`.

    >>> brightness = custom_features("brightness", lambda images: images.mean((1, 2)), image_dtype="float32")
    >>> print(brightness(np.ones((2, 4, 4, 3), np.float32)).shape)
    (2, 3)
    """
    return FeatureFunction(feature_id, _WithoutParams(function), image_dtype=image_dtype, compiled=compiled)


def pca_features(reference: Shaped[ArrayLike, "count height width channels"], dim: int) -> FeatureFunction:
    """Project images onto the first principal components of a reference, without whitening.

    Fitted on the reference alone, whatever it is compared with later. With all components the Fréchet distance is that
    of the pixels; with fewer, that of the subspace where the reference varies most. uint8 pixels are scaled to [-1, 1].

    Args:
        reference: the images that are fitted, uint8 or floating; the function then takes images of their size and
            dtype.
        dim: how many components, from 1 to the smaller of count - 1 and height * width * channels.

    Returns:
        A function whose id holds the sha256 of its arrays. A fit on another machine may round differently and is then
        another function.

    Raises:
        ValueError: `dim` is out of range, or the reference is not finite images.
    """
    if reference.ndim != 4:
        raise ValueError(f"reference must have shape [count, height, width, channels], got {list(reference.shape)}")
    count, *size = reference.shape
    largest = min(count - 1, int(np.prod(size)))
    if not 1 <= dim <= largest:
        raise ValueError(f"dim must lie in [1, {largest}] for {count} images of {size}, got {dim}")
    dtype = np.dtype(reference.dtype)
    pixels = np.asarray(reference, np.float64).reshape(count, -1)
    wild = int(np.sum(~np.isfinite(pixels)))
    if wild:
        raise ValueError(f"reference must be finite, got {wild} entries that are not: drop their images")
    pixels = pixels / 127.5 - 1 if dtype == np.uint8 else pixels
    mean = np.mean(pixels, axis=0)
    components = np.linalg.svd(pixels - mean[None], full_matrices=False)[2][:dim]
    # The sign of a component is free: the largest entry is made positive, so that one fit has one id.
    largest_entry = np.take_along_axis(components, np.argmax(np.abs(components), axis=1)[:, None], axis=1)
    kept = np.float64 if dtype == np.float64 else np.float32
    params = {
        "mean": mean.reshape(size).astype(kept),
        "components": (components * np.sign(largest_entry)).astype(kept),
    }
    feature_id = f"pca-{dim}-{_digest(dtype.name, *params.values())}"
    return FeatureFunction(feature_id, _project, params, image_dtype=dtype.name)


def random_conv_features(
    seed: int, *, channels: int = 3, widths: Sequence[int] = (64, 128, 256), image_dtype: str = "uint8"
) -> FeatureFunction:
    """Build a convolutional network with random weights, whose last layer is averaged over space.

    Random features see local structure that no training chose, at any image size. 3x3 convolutions with relu, each
    after the first with stride 2; weights from `numpy.random.default_rng(seed)`, He scaled, biases of deviation 0.1.
    uint8 pixels are scaled to [-1, 1]; floating ones are expected there.

    Args:
        seed: of the weights.
        channels: of the images.
        widths: channels of each layer; the last one is the dimension of the features.
        image_dtype: "uint8" or a floating type.

    Returns:
        A function whose id holds the seed, the sizes and the sha256 of its arrays.

    Raises:
        ValueError: the seed is negative, or a number of channels is below 1.
    """
    sizes = (channels, *widths)
    if seed < 0 or len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"seed must be at least 0, channels and widths at least 1, got {seed}, {channels}, {widths}")
    rng = np.random.default_rng(seed)
    params = []
    for inputs, outputs in itertools.pairwise(sizes):
        kernel = rng.standard_normal((3, 3, inputs, outputs)) * np.sqrt(2 / (9 * inputs))
        params.append((kernel.astype(np.float32), 0.1 * rng.standard_normal(outputs).astype(np.float32)))
    digest = _digest(image_dtype, *(array for layer in params for array in layer))
    feature_id = f"random-conv-{seed}-{'x'.join(map(str, sizes))}-{digest}"
    return FeatureFunction(feature_id, _convolve, tuple(params), image_dtype=image_dtype)


@dataclasses.dataclass(frozen=True)
class _WithoutParams:
    """Give a function of images the signature of `FeatureFunction.apply`; equal for equal functions, as jit asks."""

    function: Callable[[Any], Any]

    def __call__(self, params: Params, images: ArrayLike) -> ArrayLike:
        return self.function(images)


def _project(params: dict[str, ArrayLike], images: ArrayLike) -> Array:
    mean, components = params["mean"], params["components"]
    if images.shape[1:] != mean.shape:
        raise ValueError(f"images must have the size that was fitted, {list(mean.shape)}, got {list(images.shape[1:])}")
    centred = (_scaled(images) - mean[None]).reshape(images.shape[0], -1)
    return jnp.matmul(centred, components.T, precision=jax.lax.Precision.HIGHEST)


def _convolve(params: tuple[tuple[ArrayLike, ArrayLike], ...], images: ArrayLike) -> Array:
    channels = params[0][0].shape[2]
    if images.shape[3] != channels:
        raise ValueError(f"images must have {channels} channels, got {images.shape[3]}")
    hidden = _scaled(images).astype(jnp.float32)
    for depth, (kernel, bias) in enumerate(params):
        hidden = jax.lax.conv_general_dilated(
            hidden,
            jnp.asarray(kernel),
            window_strides=(1, 1) if depth == 0 else (2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        hidden = jax.nn.relu(hidden + jnp.asarray(bias)[None, None, None])
    return jnp.mean(hidden, axis=(1, 2))


def _scaled(images: ArrayLike) -> Array:
    """Map uint8 pixels to [-1, 1] and leave floating ones, in float32 or better."""
    if images.dtype == np.uint8:
        return jnp.asarray(images, jnp.float32) / 127.5 - 1
    return jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))


def _digest(*parts: str | np.ndarray) -> str:
    """Return 16 hexadecimal digits of the sha256 of names and of arrays with their dtype and shape."""
    digest = hashlib.sha256()
    for part in parts:
        text = part if isinstance(part, str) else f"{part.dtype.str}{part.shape}"
        digest.update(text.encode() + b"\0")
        if not isinstance(part, str):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        raise ValueError(f"image_dtype must be the name of a dtype, such as uint8 or float32, got {name!r}") from None
