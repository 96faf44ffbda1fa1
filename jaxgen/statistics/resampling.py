"""What data say about one number, as a confidence distribution: tests by resampling.

Each test is a set of *typical values* of the parameter: the truth is as likely to lie between any two neighbours as
between any other two (Hartigan 1969). P-values count them and intervals are their order statistics. Random draws come
from `numpy.random.default_rng(seed)`, so that a stored seed reproduces every p-value.
"""

import itertools
import math

import numpy as np

from jaxgen.statistics.confidence import Confidence, OtherValues, Values, finite_vector, has_spread, undecided
from jaxgen.statistics.power import t_power

_EXACT = 20_000  # up to this many relabellings all are enumerated, in under 0.1 s


def bootstrap_mean(values: Values, *, seed: int, draws: int = 9_999) -> Confidence:
    """Test a mean by the studentised bootstrap over its units (Efron & Tibshirani 1993, section 12.5).

    Second-order accurate for skewed data, where percentiles are not; resamples without any spread count as infinitely
    far, so that very few units decide nothing.

    Args:
        values: One finite number for each unit, at least 2; differences by seed for a paired test.
        seed: Seed of the resampling, stored with the result.
        draws: Number of resamples.

    Returns:
        The confidence distribution of the mean. A spread of exactly zero is a defect: nothing is left to resample.
    """
    data = finite_vector("values", values, at_least=2)
    mean = float(np.mean(data))
    if not has_spread(data):
        return undecided(mean, data.size, "the seeds have no effect")
    drawn = data[np.random.default_rng(seed).integers(0, data.size, (draws, data.size))]
    stderr = float(np.std(data, ddof=1)) / math.sqrt(data.size)
    typical = mean - stderr * _studentised(drawn.mean(axis=1) - mean, drawn.var(axis=1, ddof=1) / data.size)
    return _typical_values(typical, mean, stderr, data.size, data.size - 1)


def bootstrap_difference(values: Values, control: OtherValues, *, seed: int, draws: int = 9_999) -> Confidence:
    """Test the difference of two means by the studentised bootstrap, each group resampled by itself.

    Args:
        values: One finite number for each unit of the first group, at least 2.
        control: The same for the second group; the sizes may differ.
        seed: Seed of the resampling, stored with the result.
        draws: Number of resamples.

    Returns:
        The confidence distribution of mean(values) - mean(control).
    """
    groups = [finite_vector(name, v, at_least=2) for name, v in (("values", values), ("control", control))]
    difference, units = float(groups[0].mean() - groups[1].mean()), min(group.size for group in groups)
    if not any(map(has_spread, groups)):
        return undecided(difference, units, "the seeds have no effect")
    rng = np.random.default_rng(seed)
    first, second = (group[rng.integers(0, group.size, (draws, group.size))] for group in groups)
    variance = first.var(axis=1, ddof=1) / first.shape[1] + second.var(axis=1, ddof=1) / second.shape[1]
    stderr = math.sqrt(sum(group.var(ddof=1) / group.size for group in groups))
    typical = difference - stderr * _studentised(first.mean(axis=1) - second.mean(axis=1) - difference, variance)
    return _typical_values(typical, difference, stderr, units, sum(group.size for group in groups) - 2)


def sign_flips(differences: Values, *, seed: int, draws: int = 9_999) -> Confidence:
    """Test the centre of symmetric differences by flipping their signs; the permutation test of paired data.

    The p-value of "centre < b" is the share of subsets whose mean is at least b, the empty one included.

    Args:
        differences: One finite number for each pair, at least 2.
        seed: Seed of the random subsets, used where there are too many to list.
        draws: Number of random subsets.

    Returns:
        The confidence distribution of the centre of symmetry; 5 pairs at least reach p < .05.
    """
    data = finite_vector("differences", differences, at_least=2)
    if 2**data.size <= _EXACT:
        chosen = np.array(list(itertools.product((False, True), repeat=data.size)))[1:]
    else:
        chosen = np.random.default_rng(seed).random((draws, data.size)) < 0.5
        chosen = chosen[chosen.any(axis=1)]
    typical = chosen @ data / chosen.sum(axis=1)
    stderr = float(np.std(data, ddof=1)) / math.sqrt(data.size)
    return _typical_values(typical, float(data.mean()), stderr, data.size, data.size - 1)


def group_permutations(values: Values, control: OtherValues, *, seed: int, draws: int = 9_999) -> Confidence:
    """Test a shift between two groups by exchanging their labels; the permutation test of independent data.

    The p-value of "shift < b" is the share of relabellings after which, with b taken off `values`, the difference of
    means is no larger than observed: those that exchange equal-sized subsets whose means differ by at least b.

    Args:
        values: One finite number for each unit of the first group, at least 2.
        control: The same for the second group; the sizes may differ.
        seed: Seed of the random relabellings, used where there are too many to list.
        draws: Number of random relabellings.

    Returns:
        The confidence distribution of the shift of `values` over `control`.
    """
    first, second = finite_vector("values", values, at_least=2), finite_vector("control", control, at_least=2)
    total, size = first.size + second.size, first.size
    if math.comb(total, size) <= _EXACT:
        labels = np.array(list(itertools.combinations(range(total), size)))
    else:
        labels = np.random.default_rng(seed).permuted(np.tile(np.arange(total), (draws, 1)), axis=1)[:, :size]
    kept = np.zeros((len(labels), total), bool)
    np.put_along_axis(kept, labels, True, axis=1)
    leaving, entering = ~kept[:, :size], kept[:, size:]
    moved = leaving.sum(axis=1)
    typical = ((leaving @ first - entering @ second)[moved > 0]) / moved[moved > 0]
    stderr = math.sqrt(first.var(ddof=1) / first.size + second.var(ddof=1) / second.size)
    return _typical_values(typical, float(first.mean() - second.mean()), stderr, min(size, total - size), total - 2)


def _studentised(deviation, variance):
    """Divide by the standard error of each resample; one without spread is infinitely far from the truth."""
    far = np.where(deviation < 0, -np.inf, np.inf)
    # The sign of 0/0 alternates, so that resamples that say nothing pull to neither side.
    far = np.where(deviation == 0, np.where(np.arange(deviation.size) % 2, np.inf, -np.inf), far)
    spread = variance > 0
    return np.where(spread, deviation / np.sqrt(np.where(spread, variance, 1.0)), far)


def _typical_values(typical, estimate, stderr, units, df) -> Confidence:
    """Count typical values; the observed sample, as it is, counts against both sides."""
    ordered = np.sort(typical)
    count = ordered.size

    def limits(level):
        # The interval keeps every bound whose two one-sided p-values are at least (1 - level) / 2.
        outside = math.ceil((count + 1) * (1 - level) / 2 - 1e-9) - 1
        return (float(ordered[outside - 1]), float(ordered[count - outside])) if outside > 0 else (-math.inf, math.inf)

    def power(more, lower, upper, alpha):
        if stderr == 0:
            return 0.0
        scaled = stderr * math.sqrt(units / more)
        return t_power(lower, upper, mean=estimate, stderr=scaled, df=df * more / units, alpha=alpha)

    return Confidence(
        estimate=estimate,
        stderr=stderr,
        units=units,
        less=lambda bound: float((1 + count - np.searchsorted(ordered, bound, side="left")) / (1 + count)),
        greater=lambda bound: float((1 + np.searchsorted(ordered, bound, side="right")) / (1 + count)),
        limits=limits,
        power=power,
    )
