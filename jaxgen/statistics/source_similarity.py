"""How much sources have in common, estimated from the errors of two small experiments, and what it predicts.

Sharing among K sources multiplies the error by sqrt(1 - (K - 1) / K beta), where beta, the share of parameters in
common, cannot be seen in data. Read backwards, the errors of a shared and of separate models give an effective beta,
and with it the ratio to expect at any other K. Everything here runs on the host in float64.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgen.statistics.confidence import Values, finite_vector
from jaxgen.typing import ArrayLike


class Similarity(NamedTuple):
    """An effective similarity of sources.

    Attributes:
        value: the estimate; below 0 where sharing hurts, above 1 where it helps more than equal sources would.
        lower: end of its bootstrap interval.
        upper: its other end.
    """

    value: float
    lower: float
    upper: float


def estimated_similarity(
    tv_multi: Values,
    tv_single: Values,
    num_sources: int,
    *,
    seed: int,
    draws: int = 9_999,
    level: float = 0.95,
) -> Similarity:
    """Estimate beta = (1 - (TV_multi / TV_single)^2) K / (K - 1) from mean errors, with a bootstrap interval.

    Args:
        tv_multi: the error of the shared model on each data set.
        tv_single: the error of separate models on the same data sets, which are resampled in pairs.
        num_sources: K, at least 2.
        seed: of the resampling.
        draws: resamples.
        level: of the interval, between the percentiles of the resamples.

    Raises:
        ValueError: a number is out of range or not finite, or the data sets are not paired.

    >>> estimated_similarity([0.3, 0.5], [0.6, 1.0], 4, seed=0).value
    1.0
    """
    _check_sources(num_sources)
    multi, single = (
        finite_vector(name, of, at_least=2) for name, of in (("tv_multi", tv_multi), ("tv_single", tv_single))
    )
    if multi.size != single.size:
        raise ValueError(
            f"tv_multi and tv_single must be of the same data sets, got {multi.size} and {single.size} of them"
        )
    if np.min(multi) < 0 or np.min(single) <= 0:
        raise ValueError(
            f"errors must be at least 0, and above 0 for separate models, got {min(np.min(multi), np.min(single))}"
        )
    if draws < 199:
        raise ValueError(f"draws must be at least 199, got {draws}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    chosen = np.random.default_rng(seed).integers(0, multi.size, (draws, multi.size))
    drawn = _similarity(multi[chosen].mean(axis=1), single[chosen].mean(axis=1), num_sources)
    lower, upper = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    value = float(_similarity(np.mean(multi, keepdims=True), np.mean(single, keepdims=True), num_sources)[0])
    return Similarity(value, float(lower), float(upper))


def predicted_ratio(similarity: Float[ArrayLike, "*batch"] | float, num_sources: int) -> Float[np.ndarray, "*batch"]:
    """Predict the ratio of the errors of a shared and of separate models, sqrt(1 - (K - 1) / K beta).

    Args:
        similarity: beta, also an estimate outside [0, 1]; the ratio is 0 where it exceeds K / (K - 1).
        num_sources: K, at least 2.

    Raises:
        ValueError: there are fewer than 2 sources.

    >>> round(float(predicted_ratio(0.5, 5)), 12)
    0.774596669241
    """
    _check_sources(num_sources)
    rest = 1 - (num_sources - 1) / num_sources * np.asarray(similarity, np.float64)
    return np.asarray(np.sqrt(np.maximum(rest, 0.0)))


def _similarity(multi: np.ndarray, single: np.ndarray, num_sources: int) -> np.ndarray:
    return (1 - (multi / single) ** 2) * num_sources / (num_sources - 1)


def _check_sources(num_sources: int) -> None:
    if num_sources < 2:
        raise ValueError(f"num_sources must be at least 2, got {num_sources}: one source has nothing to share")
