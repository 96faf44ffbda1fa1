"""Two-sample tests by nearest neighbours and by a classifier: can the samples be told from the data?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.statistics.samples import check_samples, squared_distances
from jaxgen.typing import ArrayLike


@partial(jax.jit, static_argnames="block")
def nearest_neighbor_accuracy(
    first: Float[ArrayLike, "first dim"], second: Float[ArrayLike, "second dim"], *, block: int = 64
) -> Float[Array, ""]:
    """Score the leave-one-out 1-nearest-neighbour classifier that tells two sets of samples apart.

    Each sample of the pooled sets is given the label of its nearest other sample (Lopez-Paz & Oquab 2017).
    Equal laws give (count - 1) / (2 count - 1), about 0.5; 1 is far apart; well below 0.5, one set copies the other.
    Where several others are nearest at exactly the same distance, the score of the sample is the share of these that
    lie in its own set: a pair of duplicates across the sets scores 0, one duplicate in each set 0.5. The value depends
    neither on the order of the samples nor on that of the two sets.

    Args:
        first: samples of one law.
        second: as many samples of the other.
        block: samples whose distances to all are computed together; memory is `block` times the count.

    Returns:
        The mean score in [0, 1]; NaN if a sample is not finite.

    Raises:
        ValueError: the sets differ in count (equal laws would not give 0.5) or dimension, or have fewer than 2 samples.

    >>> print(nearest_neighbor_accuracy(jnp.array([[0.0], [1.0]]), jnp.array([[5.0], [6.0]])))
    1.0
    """
    check_samples(first, second, minimum=2)
    count = first.shape[0]
    if second.shape[0] != count:
        raise ValueError(f"both sets must have the same count, got {count} and {second.shape[0]}: draw equally many")
    pooled = jnp.concatenate([jnp.asarray(first), jnp.asarray(second)])
    in_first = jnp.arange(2 * count) < count

    def score(index: Int[Array, ""]) -> Float[Array, ""]:
        distances = squared_distances(pooled[index], pooled).at[index].set(jnp.inf)
        nearest = distances == jnp.min(distances)
        own = nearest & (in_first == in_first[index])
        return (jnp.sum(own) / jnp.sum(nearest)).astype(pooled.dtype)

    return jnp.mean(jax.lax.map(score, jnp.arange(2 * count), batch_size=block))


@partial(jax.jit, static_argnames="block")
def mean_nearest_neighbor_distance(
    samples: Float[ArrayLike, "count dim"], reference: Float[ArrayLike, "reference dim"], *, block: int = 64
) -> Float[Array, ""]:
    """Measure how far, in the mean, a sample is from the nearest reference: near 0 the samples copy the reference.

    Args:
        samples: generated samples.
        reference: what they might copy, such as the training images.
        block: samples whose distances are computed together; memory is `block` times the reference count.

    Returns:
        The mean Euclidean distance, in the unit of the samples; NaN if a sample or a reference is not finite.

    >>> print(mean_nearest_neighbor_distance(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [9.0, 9.0]])))
    5.0
    """
    check_samples(samples, reference, minimum=1)
    reference = jnp.asarray(reference)

    def nearest(point: Float[Array, " dim"]) -> Float[Array, ""]:
        return jnp.sqrt(jnp.min(squared_distances(point, reference)))

    return jnp.mean(jax.lax.map(nearest, jnp.asarray(samples), batch_size=block))


def classifier_accuracy(
    first: Float[ArrayLike, "first dim"],
    second: Float[ArrayLike, "second dim"],
    *,
    gamma: float = 0.016,
    penalty: float = 3.0,
    folds: int = 5,
    seed: int = 0,
) -> float:
    """Score a support-vector classifier that is trained to tell two sets of samples apart, by cross-validation.

    The classifier two-sample test (Lopez-Paz & Oquab 2017) with an RBF kernel, on the host. Each set weighs the same
    in training and in the score whatever its count, so equal laws give 0.5.

    Args:
        first: samples of one law.
        second: samples of the other.
        gamma: kernel exp(-gamma |a - b|^2); the default suits 64 pixels in [-1, 1].
        penalty: the classifier's C.
        folds: stratified and shuffled parts, each scored by a classifier trained on the others.
        seed: of the shuffle; samples in a sorted order are fine.

    Returns:
        The mean balanced accuracy over the folds, in [0, 1].

    Raises:
        ValueError: a set has fewer samples than folds, a sample is not finite, or the sets differ in dimension.
    """
    check_samples(first, second, minimum=folds)
    # Imported here: scikit-learn takes most of a second, which the other statistics should not cost.
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    samples = np.concatenate([np.asarray(first), np.asarray(second)])
    if not np.all(np.isfinite(samples)):
        raise ValueError(f"samples must be finite, got {np.sum(~np.isfinite(samples))} entries that are not: drop them")
    labels = np.repeat([0, 1], [first.shape[0], second.shape[0]])
    classifier = SVC(C=penalty, class_weight="balanced").set_params(gamma=gamma)  # its annotation knows only str
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(classifier, samples, labels, cv=parts, scoring="balanced_accuracy")))
