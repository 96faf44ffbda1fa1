"""The Fréchet distance between the features of images, under a name that says which features."""

from typing import NamedTuple, TypeAlias

from jaxgen.statistics.feature_functions import INCEPTION_ID
from jaxgen.statistics.feature_moments import FeatureMoments, Features, check_feature_moments, check_features
from jaxgen.statistics.frechet_host import Factored, factor_moments, factor_samples, factored_distance
from jaxgen.statistics.streaming_moments import Moments

FeatureSet: TypeAlias = Features | FeatureMoments
"""All features, or what is left of them: their moments."""


class FrechetDistance(NamedTuple):
    """A Fréchet distance of features, with what decides whether it may be compared with another.

    Attributes:
        value: the squared distance, in the squared unit of the features.
        name: `fd[<feature id>]`; `fid` for Inception's features alone.
        num_images: of the two sets. The distance is biased upwards by about a / n + b / m, so compare only distances of
            equal counts, or those of `frechet_bias`.
        singular: whether a set has no more images than features, so that its covariance is singular and the distance
            says as much about the count as about the images.
    """

    value: float
    name: str
    num_images: tuple[int, int]
    singular: bool


def fd(first: FeatureSet, second: FeatureSet) -> FrechetDistance:
    """Measure the Fréchet distance between two sets of features, in float64 on the host.

    Args:
        first: features, or their moments. Features give the exact distance at any rank; moments of fewer images than
            features lose half the digits of each zero eigenvalue.
        second: the other set, from the same feature function.

    Raises:
        ValueError: the feature ids or dimensions differ, a set has fewer than 2 images, or its numbers are unsound.

    >>> import numpy as np
    >>> a = FeatureMoments(np.zeros(2), np.diag([1.0, 4.0]), 1000, "mine")
    >>> fd(a, FeatureMoments(np.array([1.0, 2.0]), np.diag([9.0, 1.0]), 1000, "mine"))
    FrechetDistance(value=10.0, name='fd[mine]', num_images=(1000, 1000), singular=False)
    """
    check_comparable(first, second)
    counts = num_images(first), num_images(second)
    value = factored_distance(factor(first), factor(second))
    return FrechetDistance(value, distance_name(first.feature_id), counts, min(counts) <= _dim(first))


def distance_name(feature_id: str) -> str:
    """Return what a distance of these features is called: `fid` for Inception's alone."""
    return "fid" if feature_id == INCEPTION_ID else f"fd[{feature_id}]"


def check_comparable(*sets: FeatureSet) -> None:
    """Refuse sets of features between which a distance means nothing.

    Raises:
        ValueError: a set is unsound or has fewer than 2 images, or the feature ids or dimensions differ.
    """
    for features in sets:
        if isinstance(features, FeatureMoments):
            check_feature_moments(features)
        elif num_images(check_features(features)) < 2:
            raise ValueError(f"a Fréchet distance needs at least 2 images, got {num_images(features)}")
        if features.feature_id != sets[0].feature_id:
            raise ValueError(
                f"features of one function can be compared, got {sets[0].feature_id} and {features.feature_id}: "
                "compute both with the same one"
            )
        if _dim(features) != _dim(sets[0]):
            raise ValueError(f"features must share one dimension, got {_dim(sets[0])} and {_dim(features)}")


def factor(features: FeatureSet) -> Factored:
    """Return the mean and a factor of the unbiased covariance of a set of features."""
    if isinstance(features, FeatureMoments):
        return factor_moments(Moments(features.mean, features.covariance))
    return factor_samples(features.values)


def num_images(features: FeatureSet) -> int:
    """Return how many images a set of features is of."""
    return features.num_images if isinstance(features, FeatureMoments) else features.values.shape[0]


def _dim(features: FeatureSet) -> int:
    return features.mean.shape[0] if isinstance(features, FeatureMoments) else features.values.shape[1]
