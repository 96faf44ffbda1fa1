"""The images of each source, digits whose likeness is a knob or classes of a folder: to train on, and held out."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.datasets import load_digits

from experiments.multi_source.paper_settings import CLASS_LISTS
from experiments.multi_source.settings_check import fewest_images
from jaxgen.pipelines import LatentScaling, draw_latent
from jaxgen.training import ImageFolder, LatentFolder, image_folder, latent_folder

SIDE = 8
DIGITS = 10
DATA_STD = 0.5


class Sources(NamedTuple):
    """What one seed trains on and compares with.

    Attributes:
        train: what `train_arm` takes, `[count, sources, height, width, channels]`.
        seen: the same, as a network sees it and as `canonical` shows it, for each source.
        held_out: images of each source that no training sees, as `seen`.
        shown: puts images that a network of a source made as `seen` and `held_out` are, by source and images.
        inward: the way back, which only data without random latents have.
        names: of the sources.
        latents: how stored posteriors are scaled, None for images.
    """

    train: Shaped[np.ndarray, "count sources height width channels"]
    seen: Sequence[Float[np.ndarray, "count height width channels"]]
    held_out: Sequence[Float[np.ndarray, "held_out height width channels"]]
    shown: Callable[[int, np.ndarray], np.ndarray]
    inward: Callable[[int, np.ndarray], np.ndarray]
    names: Sequence[str]
    latents: LatentScaling | None


def digits(config: Any, sources: int, similarity: float, per_source: int, seed: Sequence[int]) -> Sources:
    """Choose digits, images and orders of pixels.

    A seed's images, and what is held out, are the same at every similarity, and so are those of a digit for every
    number of sources. Every cell permutes as many pixels of each image, so that a source by itself is as hard in all:
    what changes is whether the sources permute them alike.

    Args:
        config: the settings of the images.
        sources: digits, up to 10.
        similarity: share of the pixels that all permute alike.
        per_source: training images of a digit.
        seed: of everything: that of the run and that of the training.
    """
    pixels, classes = load_digits(return_X_y=True)
    random = np.random.default_rng([*seed, 7])
    chosen = random.permutation(DIGITS)[:sources]
    members = [random.permutation(np.flatnonzero(classes == digit)) for digit in range(DIGITS)]
    orders = pixel_orders(random, DIGITS, similarity, moved=1.0 - min(config.similarities))
    largest = max(config.per_source)
    train = np.stack([pixels[members[digit][:per_source]] for digit in chosen])
    centre, factor = train.mean(), DATA_STD / train.std()
    lowest, highest = ((end - centre) * factor for end in (0.0, 16.0))

    def scaled(images: np.ndarray) -> np.ndarray:
        return ((images - centre) * factor).astype(np.float32).reshape(-1, SIDE, SIDE, 1)

    def inward(source: int, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)[:, orders[chosen[source]]].reshape(images.shape)

    def shown(source: int, images: np.ndarray) -> np.ndarray:
        back = np.argsort(orders[chosen[source]])
        return np.clip(images.reshape(len(images), -1)[:, back].reshape(images.shape), lowest, highest)

    seen = [scaled(part) for part in train]
    held_out = [scaled(pixels[members[digit][largest : largest + config.held_out]]) for digit in chosen]
    arranged = np.stack([inward(source, images) for source, images in enumerate(seen)], axis=1)
    return Sources(arranged, seen, held_out, shown, inward, [f"digit {digit}" for digit in chosen], None)


def pixel_orders(
    random: np.random.Generator, sources: int, similarity: float, *, moved: float
) -> Int[np.ndarray, "sources 64"]:
    """Draw an order of the pixels for each source.

    A share `moved` of the pixels, the same ones in all sources, is permuted: of these, a share 1 - similarity of all
    pixels by each source in its own way, the others in a common way. The draws do not depend on the similarity.

    Args:
        random: consumed.
        sources: number of sources.
        similarity: share of the pixels that lie alike in all sources.
        moved: share of the pixels that are permuted at all, at least 1 - similarity.

    Raises:
        ValueError: a share lies outside [0, 1], or more pixels differ than are permuted.
    """
    for name, share in (("similarity", similarity), ("moved", moved)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
    count = SIDE**2
    own = round((1.0 - similarity) * count)
    if own > round(moved * count):
        raise ValueError(f"moved must be at least 1 - similarity = {1 - similarity:g}, got {moved:g}")
    places = random.permutation(count)[: round(moved * count)]
    # Ranks, from which a permutation of any subset follows: with another similarity the draws stay the same.
    common, ranks = random.random(count), random.random((sources, count))
    orders = np.tile(np.arange(count), (sources, 1))
    for order, rank in zip(orders, ranks, strict=True):
        for part, by in ((places[:own], rank), (places[own:], common)):
            order[np.sort(part)] = np.sort(part)[np.argsort(by[np.sort(part)])]
    return orders


def classes_of(names: Sequence[str], class_list: str, sources: int, data: Path) -> tuple[int, ...]:
    """Return the numbers of the classes that are the sources.

    Raises:
        ValueError: the folder has no such classes.
    """
    wanted = tuple(range(sources)) if class_list == "first" else CLASS_LISTS[class_list][:sources]
    if len(wanted) < sources or max(wanted) >= len(names):
        raise ValueError(
            f"--images.class-lists {class_list} needs class {max(wanted)} for {sources} sources, and {data} has "
            f"{len(names)} classes from 0; name another list, or fewer sources"
        )
    return wanted


def check_counts(config: Any, stored: ImageFolder | LatentFolder, classes: Sequence[int]) -> None:
    """Refuse classes that are too small.

    Raises:
        ValueError: names the class and the mend.
    """
    largest, least = max(config.per_source), fewest_images(config.features)
    for label in classes:
        count = int(np.sum(stored.labels == label))
        if count < largest + least:
            raise ValueError(
                f"class {label} of {config.data} has {count} images, but --images.per-source {largest} and at least "
                f"{least} held out are needed; lower --images.per-source or --images.features"
            )


@functools.lru_cache(maxsize=1)
def open_folder(data: Path, side: int) -> ImageFolder | LatentFolder:
    """Open a folder of images, or a folder or zip of stored latents, which has a dataset.json.

    Raises:
        ValueError: it is none of these.
    """
    if data.is_file() or (data / "dataset.json").is_file():
        return latent_folder(data)
    return image_folder(data, side)


def folder(config: Any, sources: int, class_list: str, per_source: int, seed: Sequence[int]) -> Sources:
    """Choose images of classes of a folder, without replacement, and hold others out.

    Raises:
        ValueError: a class has too few images, or is not there.
    """
    stored = open_folder(config.data, config.side)
    random = np.random.default_rng([*seed, 8])
    classes = classes_of(stored.classes, class_list, sources, config.data)
    largest, chosen = max(config.per_source), []
    check_counts(config, stored, classes)
    for label in classes:
        members = np.random.default_rng([*seed, 8, label]).permutation(np.flatnonzero(stored.labels == label))
        chosen.append(members)
    read = lambda numbers: np.stack([stored[int(number)]["image"] for number in numbers])  # noqa: E731
    train = [read(members[:per_source]) for members in chosen]
    rest = [read(members[largest : largest + config.held_out]) for members in chosen]
    latents = LatentScaling() if isinstance(stored, LatentFolder) else None
    key = jax.random.key(int(random.integers(2**31)))

    def seen(images: np.ndarray) -> np.ndarray:
        if latents is None:
            return images.astype(np.float32) / 127.5 - 1.0
        keys, scaling = jax.random.split(key, len(images)), latents
        return np.asarray(jax.vmap(lambda key, image: draw_latent(key, image, scaling))(keys, images))

    def shown(source: int, images: np.ndarray) -> np.ndarray:
        return images if latents is not None else np.clip(images, -1.0, 1.0)

    names = [stored.classes[label] for label in classes]
    arrays = np.stack(train, axis=1)
    return Sources(
        arrays, [*map(seen, train)], [*map(seen, rest)], shown, lambda source, images: images, names, latents
    )
