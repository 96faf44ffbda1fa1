"""What data say about one number, as a confidence distribution: parametric tests.

A *confidence distribution* (Schweder & Hjort 2016; Xie & Singh 2013) holds every one-sided test of a parameter at once:
for each bound, the p-value of "the parameter is below the bound" and of "the parameter is above it". Intervals are its
quantiles, and the verdicts of `jaxgen.statistics.verdicts` read nothing else, so a rule and a test combine freely.
Everything here runs on the host in float64.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from jaxgen.statistics.power import Number, binomial_power, normal_power, t_power
from jaxgen.typing import ArrayLike

Values: TypeAlias = Float[ArrayLike, " units"] | Sequence[Number]
OtherValues: TypeAlias = Float[ArrayLike, " others"] | Sequence[Number]


LARGEST = 1e100  # a larger number has diverged, and float64 cannot hold its square


class Confidence(NamedTuple):
    """All one-sided tests of one parameter.

    Attributes:
        estimate: The measured value of the parameter.
        stderr: Its standard error; for a quantity without randomness, the bound on its numerical error.
        units: Number of independent units (seeds, groups of draws, trials, points) behind the estimate.
        less: Maps a bound to the p-value of the alternative "parameter < bound".
        greater: Maps a bound to the p-value of the alternative "parameter > bound".
        limits: Maps a level in (0, 1) to the two ends of the central interval.
        power: Maps (units, lower, upper, alpha) to the probability that this many units show "lower < parameter <
            upper" at one-sided level alpha, if the estimate and its spread are the truth.
        random: Whether p-values mean anything; False where the estimate has no randomness.
        defect: Why these data cannot decide anything, or empty; `less` and `greater` are then 1 everywhere.
    """

    estimate: float
    stderr: float
    units: int
    less: Callable[[float], float]
    greater: Callable[[float], float]
    limits: Callable[[float], tuple[float, float]]
    power: Callable[[int, float, float, float], float]
    random: bool = True
    defect: str = ""


def t_mean(values: Values) -> Confidence:
    """Test the mean of independent units by Student's t; the paired t-test, where `values` are differences by seed.

    Args:
        values: One finite number for each unit, at least 2.

    Returns:
        The confidence distribution of the mean. A spread of exactly zero is a defect: the seeds have no effect.

    >>> tuple(round(end, 4) for end in t_mean([0.52, 0.49, 0.55, 0.50, 0.54]).limits(0.90))
    (0.4957, 0.5443)
    """
    data = finite_vector("values", values, at_least=2)
    if not has_spread(data):
        return undecided(float(data[0]), data.size, "the seeds have no effect")
    deviation = float(np.std(data, ddof=1))
    return _student(float(np.mean(data)), deviation / np.sqrt(data.size), data.size, lambda units: units - 1)


def welch(values: Values, control: OtherValues) -> Confidence:
    """Test the difference of two means by Welch's t (unequal variances, independent groups).

    Args:
        values: One finite number for each unit of the first group, at least 2.
        control: The same for the second group; the sizes may differ.

    Returns:
        The confidence distribution of mean(values) - mean(control); `units` is the size of the smaller group. Two
        groups without any spread are a defect.

    >>> round(welch([3.1, 2.9, 3.3, 3.0, 3.2], [3.6, 3.4, 3.7, 3.5, 3.9]).less(0.0), 7)
    0.0008843
    """
    first, second = (finite_vector(name, v, at_least=2) for name, v in (("values", values), ("control", control)))
    difference, units = float(np.mean(first) - np.mean(second)), min(first.size, second.size)
    if not has_spread(first) and not has_spread(second):
        return undecided(difference, units, "the seeds have no effect")
    parts = np.array([np.var(first, ddof=1) / first.size, np.var(second, ddof=1) / second.size])
    df = float(np.sum(parts) ** 2 / np.sum(parts**2 / np.array([first.size - 1, second.size - 1])))
    return _student(difference, float(np.sqrt(np.sum(parts))), units, lambda n: df * n / units)


def t_regression(x: Values, values: Values) -> Confidence:
    """Test the exponent of one power law: the least-squares slope of log(values) against log(x).

    Args:
        x: Positive abscissas, at least 3, not all equal.
        values: One positive number for each x, each from draws of its own.

    Returns:
        The confidence distribution of the slope, with len(x) - 2 degrees of freedom. Points that lie exactly on a line
        are a defect: they have no spread to judge by (compare `deterministic`).
    """
    horizontal, vertical = _log_points(x, values)
    units = horizontal.size
    if units < 3:
        raise ValueError(f"a regression needs at least 3 points, got {units}: add values of x")
    slope, _, _, _, stderr = map(float, stats.linregress(horizontal, vertical))
    if stderr == 0:
        return undecided(slope, units, "the points lie exactly on a line")
    return _student(slope, stderr, units, lambda n: n - 2)


def log_log_slopes(
    x: Float[ArrayLike, " points"] | Sequence[Number],
    curves: Float[ArrayLike, "units points"] | Sequence[Sequence[Number]],
) -> np.ndarray:
    """Fit one exponent to each unit: the least-squares slope of log(curve) against log(x).

    Args:
        x: Positive abscissas, shared by all units, at least 2, not all equal.
        curves: One row of positive values for each unit.

    Returns:
        Float64 slopes of shape `[units]`; test their mean with `t_mean` or `bootstrap_mean`.
    """
    points = [_log_points(x, curve) for curve in curves]
    return np.array([np.polyfit(horizontal, vertical, 1)[0] for horizontal, vertical in points])


def clopper_pearson(successes: int, trials: int) -> Confidence:
    """Test a proportion by the exact binomial tail (Clopper & Pearson 1934).

    Args:
        successes: Number of successes, from 0 to `trials`.
        trials: Number of independent trials, at least 1.

    Returns:
        The confidence distribution of the success probability; conservative, since the data are discrete.

    >>> tuple(round(end, 4) for end in clopper_pearson(47, 50).limits(0.95))
    (0.8345, 0.9875)
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in [0, trials] with trials >= 1, got {successes} of {trials}")
    rate, failures = successes / trials, trials - successes

    def limits(level):
        tail = (1 - level) / 2
        low = stats.beta.ppf(tail, successes, failures + 1) if successes else 0.0
        high = stats.beta.isf(tail, successes + 1, failures) if failures else 1.0
        return float(low), float(high)

    return Confidence(
        estimate=rate,
        stderr=float(np.sqrt(rate * (1 - rate) / trials)),
        units=trials,
        less=lambda bound: float(stats.binom.cdf(successes, trials, max(bound, 0.0))) if bound <= 1 else 0.0,
        greater=lambda bound: float(stats.binom.sf(successes - 1, trials, min(bound, 1.0))) if bound >= 0 else 0.0,
        limits=limits,
        power=lambda units, lower, upper, alpha: binomial_power(lower, upper, rate=rate, trials=units, alpha=alpha),
    )


def fisher_z(x: Values, values: Values) -> Confidence:
    """Test a Pearson correlation through Fisher's z = atanh(r), normal with standard error 1 / sqrt(n - 3).

    Args:
        x: One finite number for each unit, at least 4.
        values: The number measured together with each x.

    Returns:
        The confidence distribution of the correlation; `stderr` is that of r to first order, (1 - r^2) / sqrt(n - 3).
    """
    first, second = finite_vector("x", x, at_least=4), finite_vector("values", values, at_least=4)
    _same_length(first, second)
    if not has_spread(first) or not has_spread(second):
        return undecided(0.0, first.size, "a variable without spread has no correlation")
    r = float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))
    if abs(r) == 1:
        return undecided(r, first.size, "the points lie exactly on a line")
    z, spread = np.arctanh(r), 1 / np.sqrt(first.size - 3)

    def transform(bound):
        with np.errstate(divide="ignore"):
            return np.arctanh(np.clip(bound, -1, 1))

    def limits(level):
        half = special.ndtri((1 + level) / 2) * spread
        return float(np.tanh(z - half)), float(np.tanh(z + half))

    def power(units, lower, upper, alpha):
        stderr = 1 / np.sqrt(units - 3)
        return normal_power(float(transform(lower)), float(transform(upper)), mean=z, stderr=stderr, alpha=alpha)

    return Confidence(
        estimate=r,
        stderr=(1 - r**2) * float(spread),
        units=first.size,
        less=lambda bound: float(special.ndtr((z - transform(bound)) / spread)),
        greater=lambda bound: float(special.ndtr((transform(bound) - z) / spread)),
        limits=limits,
        power=power,
    )


def deterministic(value: Number, error: Number) -> Confidence:
    """Hold a number without randomness against a bound: it lies within `value` +- `error`.

    Args:
        value: The measured number.
        error: A bound on its numerical error, from refinement; finite and at least 0.

    Returns:
        A distribution whose p-values are 0 (certain) or 1, and whose limits are the same at every level.
    """
    if not np.isfinite(value):
        raise ValueError(f"a deterministic value must be finite, got {value}")
    if not 0 <= error < np.inf:
        raise ValueError(f"the error bound must be finite and at least 0, got {error}")
    low, high = float(value - error), float(value + error)
    return Confidence(
        estimate=float(value),
        stderr=float(error),
        units=1,
        less=lambda bound: float(high >= bound),
        greater=lambda bound: float(low <= bound),
        limits=lambda level: (low, high),
        power=lambda units, lower, upper, alpha: float(lower < low and high < upper),
        random=False,
    )


def undecided(estimate: Number, units: int, defect: str) -> Confidence:
    """Make the confidence distribution of data that can decide nothing, for the reason `defect`."""
    return Confidence(
        estimate=estimate,
        stderr=0.0,
        units=units,
        less=lambda bound: 1.0,
        greater=lambda bound: 1.0,
        limits=lambda level: (-np.inf, np.inf),
        power=lambda units, lower, upper, alpha: 0.0,
        defect=defect,
    )


def finite_vector(name: str, values: Values, *, at_least: int) -> np.ndarray:
    """Convert to a float64 vector, or raise ValueError where it is short, not finite or beyond LARGEST."""
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or data.size < at_least:
        raise ValueError(f"{name} must be one row of at least {at_least} numbers, got shape {data.shape}")
    wild = ~(np.abs(data) <= LARGEST)
    if np.any(wild):
        raise ValueError(f"{name} must be finite and at most {LARGEST:g} in size, got {data[wild][0]}: it crashed")
    return data


def has_spread(data: Float[np.ndarray, " units"]) -> bool:
    """Tell whether the values differ, by more than the smallest number whose square float64 holds."""
    return bool(np.ptp(data) > 0 and np.var(data) > 0)


def _student(estimate, stderr, units, degrees) -> Confidence:
    """Scale a t distribution; `degrees` maps a number of units to its degrees of freedom."""
    stderr, df = float(stderr), degrees(units)

    def limits(level):
        half = float(special.stdtrit(df, (1 + level) / 2)) * stderr
        return estimate - half, estimate + half

    def power(more, lower, upper, alpha):
        scaled = stderr * np.sqrt(units / more)
        return t_power(lower, upper, mean=estimate, stderr=scaled, df=degrees(more), alpha=alpha)

    return Confidence(
        estimate=estimate,
        stderr=stderr,
        units=units,
        less=lambda bound: float(special.stdtr(df, (estimate - bound) / stderr)),
        greater=lambda bound: float(special.stdtr(df, (bound - estimate) / stderr)),
        limits=limits,
        power=power,
    )


def _log_points(x, values):
    horizontal, vertical = finite_vector("x", x, at_least=2), finite_vector("values", values, at_least=2)
    _same_length(horizontal, vertical)
    if min(horizontal.min(), vertical.min()) <= 0:
        raise ValueError("an exponent needs positive x and values: pass sizes and errors, not their logarithms")
    if np.ptp(horizontal) == 0:
        raise ValueError(f"an exponent needs at least two different x, got only {horizontal[0]}")
    return np.log(horizontal), np.log(vertical)


def _same_length(x, values):
    if x.size != values.size:
        raise ValueError(f"x and values must have one length, got {x.size} and {values.size}")
