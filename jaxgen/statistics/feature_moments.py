"""Features of many images and their moments, from any iterable of batches, in float64 on the host."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from jaxgen.statistics import streaming_moments
from jaxgen.statistics.feature_functions import INCEPTION_ID, FeatureFunction, check_feature_id, check_images
from jaxgen.typing import ArrayLike

Batches: TypeAlias = Iterable[Shaped[ArrayLike, "..."]]

_ASYMMETRY = 1e-5  # of the largest variance; float32 sums in two orders differ by less


class Features(NamedTuple):
    """The features [num_images, dim] of images, and the id of the function that made them."""

    values: Float[ArrayLike, "num_images dim"]
    feature_id: str


class FeatureMoments(NamedTuple):
    """The mean [dim] and the unbiased covariance [dim, dim] of the features of `num_images` images."""

    mean: Float[ArrayLike, " dim"]
    covariance: Float[ArrayLike, "dim dim"]
    num_images: int
    feature_id: str


def feature_moments(
    function: FeatureFunction,
    batches: Batches,
    *,
    batch_size: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> FeatureMoments:
    """Stream images through a feature function and keep the moments of the features, in float64.

    Memory is a few batches and one covariance, whatever the number of images. The function is compiled once for each
    image size: a larger batch is cut, and the last one is padded with copies that are not counted.

    Args:
        function: computes the features; compiled in jax's ambient precision.
        batches: arrays of images [B, H, W, C] of the function's dtype. `[images]` with a `batch_size` will do.
        batch_size: images that are computed together; that of the first batch by default.
        sharding: how a batch lies on a mesh, such as `NamedSharding(mesh, P("data"))`; one device by default.

    Raises:
        ValueError: fewer than 2 images, images that the function does not take, features that are not finite or change
            their dimension, `batch_size` below 1 or not divisible over the sharding.
    """
    state = None
    for values in _feature_blocks(function, batches, batch_size, sharding):
        state = streaming_moments.init(values.shape[1], np.float64) if state is None else state
        state = streaming_moments.update(state, values)
    if state is None or state.count < 2:
        raise ValueError(f"moments need the features of at least 2 images, got {0 if state is None else state.count}")
    moments = FeatureMoments(*streaming_moments.moments(state), int(state.count), function.id)
    return check_feature_moments(moments)


def extract_features(
    function: FeatureFunction,
    batches: Batches,
    *,
    batch_size: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Features:
    """Stream images through a feature function and keep all features, which jackknife intervals ask for.

    Args, compilation and errors are those of `feature_moments`; one image is enough.
    """
    blocks = list(_feature_blocks(function, batches, batch_size, sharding))
    if not blocks:
        raise ValueError("features need at least 1 image, got 0")
    return check_features(Features(np.concatenate(blocks), function.id))


def moments_of_features(features: Features) -> FeatureMoments:
    """Return the moments of features, in float64.

    Raises:
        ValueError: fewer than 2, or not finite.
    """
    values = np.asarray(check_features(features).values)
    state = streaming_moments.update(streaming_moments.init(values.shape[1], np.float64), values)
    return FeatureMoments(*streaming_moments.moments(state), values.shape[0], features.feature_id)


def check_features(features: Features) -> Features:
    """Return features whose id, shape and numbers are sound.

    Raises:
        ValueError: they are not real and finite [num_images, dim], or claim the id of Inception at another dim.
    """
    values, feature_id = features
    check_feature_id(feature_id)
    if values.ndim != 2 or 0 in values.shape or not jnp.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"features must be real floating point [num_images, dim], got {values.dtype} {list(values.shape)}"
        )
    _check_inception(feature_id, values.shape[1])
    _check_finite("features", np.asarray(values))
    return features


def check_feature_moments(moments: FeatureMoments) -> FeatureMoments:
    """Return moments whose id, count, shapes and numbers are sound.

    Raises:
        ValueError: the shapes do not fit, an entry is not finite, the covariance is not symmetric or has a negative
            variance, there were fewer than 2 images, or the id of Inception stands at another dim.
    """
    mean, covariance = np.asarray(moments.mean), np.asarray(moments.covariance)
    num_images, feature_id = moments.num_images, moments.feature_id
    check_feature_id(feature_id)
    if num_images < 2:
        raise ValueError(f"num_images must be at least 2, got {num_images}")
    if mean.ndim != 1 or mean.size == 0 or covariance.shape != (mean.size, mean.size):
        raise ValueError(
            f"moments must be a mean [dim] and a covariance [dim, dim], got {list(mean.shape)} and "
            f"{list(covariance.shape)}"
        )
    _check_inception(feature_id, mean.size)
    _check_finite("mean", mean)
    _check_finite("covariance", covariance)
    variances = np.diagonal(covariance)
    if np.min(variances) < 0:
        raise ValueError(f"variances must be at least 0, got {np.min(variances):.3g}")
    apart = float(np.max(np.abs(covariance - covariance.T)))
    if apart > _ASYMMETRY * np.max(variances):
        raise ValueError(f"a covariance is symmetric, got entries that differ from their mirror by {apart:.3g}")
    return moments


def _feature_blocks(
    function: FeatureFunction, batches: Batches, batch_size: int | None, sharding: jax.sharding.Sharding | None
) -> Iterator[Float[np.ndarray, "block dim"]]:
    """Yield the features of the images, block by block, on the host."""
    waiting: list[tuple[ArrayLike, int, int]] = []
    start = dim = 0
    for images, count in _image_blocks(function, batches, batch_size):
        features = _apply(function, images, sharding)
        dim = dim or features.shape[1]
        waiting.append((features, start, count))
        start += count
        # One block is in flight while the host adds the block before it.
        if len(waiting) > 1:
            yield _on_host(function, dim, *waiting.pop(0))
    for block in waiting:
        yield _on_host(function, dim, *block)


def _image_blocks(function: FeatureFunction, batches: Batches, size: int | None) -> Iterator[tuple[ArrayLike, int]]:
    """Yield blocks of `size` images and how many of each are not padding."""
    if size is not None and size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    block_size = size
    for images in batches:
        check_images(function, images)
        block_size = block_size or max(images.shape[0], 1)
        for start in range(0, images.shape[0], block_size):
            block = images[start : start + block_size]
            count = block.shape[0]
            if count < block_size:
                # Copies of an image, not zeros, which some functions turn into NaN.
                block = np.asarray(block)[np.minimum(np.arange(block_size), count - 1)]
            yield block, count


def _apply(function: FeatureFunction, images: ArrayLike, sharding: jax.sharding.Sharding | None) -> ArrayLike:
    if not function.compiled:
        return function(np.asarray(images))
    if sharding is not None:
        try:
            sharding.shard_shape(images.shape)
        except ValueError:
            raise ValueError(
                f"a batch must divide evenly over {sharding.num_devices} devices, got {images.shape[0]} images: choose "
                "another batch_size"
            ) from None
        images = jax.device_put(images, sharding)
    return _compiled(function, images)


@jax.jit
def _compiled(function: FeatureFunction, images: Shaped[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
    return function(images)


def _on_host(function: FeatureFunction, dim: int, features: ArrayLike, start: int, count: int) -> np.ndarray:
    if features.shape[1] != dim:
        raise ValueError(f"the features {function.id} must keep their dimension, {dim}, got {features.shape[1]}")
    values = np.asarray(features)[:count]
    values = values if values.dtype == np.float64 else values.astype(np.float32)
    wild = np.flatnonzero(~np.all(np.isfinite(values), axis=1))
    if wild.size:
        raise ValueError(f"the features {function.id} must be finite, those of image {start + wild[0]} are not")
    return values


def _check_inception(feature_id: str, dim: int) -> None:
    if feature_id == INCEPTION_ID and dim != 2048:
        raise ValueError(f"the id {INCEPTION_ID} is kept for Inception's 2048 pool features, got {dim}: choose another")


def _check_finite(name: str, values: np.ndarray) -> None:
    wild = int(np.sum(~np.isfinite(values)))
    if wild:
        raise ValueError(f"{name} must be finite, got {wild} entries that are not")
