"""The probability that a planned number of units decides a claim.

Each function answers: if the truth is `mean` (or `rate`), how often do two one-sided tests at level `alpha` show that
the parameter lies between `lower` and `upper`? An infinite end leaves a one-sided test. Runs on the host in float64.
"""

import functools
from typing import TypeAlias

import numpy as np
from scipy import special, stats

Number: TypeAlias = float | int

_NODES = 200  # Gauss-Legendre nodes over the sample spread: agrees with the noncentral t to 1e-10


@functools.cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NODES)


def t_power(lower: Number, upper: Number, *, mean: Number, stderr: Number, df: Number, alpha: float = 0.05) -> float:
    """Compute the power of two one-sided t-tests exactly (Owen 1965, a bivariate noncentral t).

    Args:
        lower: Lower end of the claimed range, or -inf.
        upper: Upper end of the claimed range, or inf.
        mean: The true parameter.
        stderr: True standard deviation of its estimate, positive.
        df: Degrees of freedom of the estimated spread, positive.
        alpha: Level of each one-sided test.

    Returns:
        The probability that both tests reject.
    """
    if stderr <= 0 or df <= 0:
        raise ValueError(f"stderr and df must be positive, got {stderr} and {df}")
    critical = float(special.stdtrit(df, 1 - alpha))
    below, above = (lower - mean) / stderr, (upper - mean) / stderr
    # Given s, the estimated over the true spread, both tests reject when below + t s < z < above - t s with z normal.
    start, most = stats.chi.ppf([1e-14, 1 - 1e-14], df) / np.sqrt(df)
    end = min(most, (above - below) / (2 * critical))
    if end <= start:
        return 0.0
    nodes, weights = _legendre()
    spread = start + (nodes + 1) * (end - start) / 2
    density = stats.chi.pdf(spread * np.sqrt(df), df) * np.sqrt(df)
    inside = special.ndtr(above - critical * spread) - special.ndtr(below + critical * spread)
    return float(np.clip(np.sum(weights * density * inside) * (end - start) / 2, 0, 1))


def tost_power(margin: Number, units: int, *, difference: Number = 0.0, alpha: float = 0.05) -> float:
    """Compute the power of `equal` over `units` seeds, in standard deviations of one seed.

    Args:
        margin: Half width of the claimed range, in standard deviations.
        units: Number of seeds, at least 2.
        difference: True distance from the reference, in standard deviations.
        alpha: Level of each one-sided test.

    >>> round(tost_power(1.5, 8), 2)
    0.97
    """
    if margin <= 0 or units < 2:
        raise ValueError(f"tost_power needs a positive margin and at least 2 units, got {margin} and {units}")
    return t_power(-margin, margin, mean=difference, stderr=1 / np.sqrt(units), df=units - 1, alpha=alpha)


def normal_power(lower: Number, upper: Number, *, mean: Number, stderr: Number, alpha: float = 0.05) -> float:
    """Compute the power of two one-sided z-tests; arguments as for `t_power`, with a known spread."""
    critical = special.ndtri(1 - alpha)
    inside = special.ndtr((upper - mean) / stderr - critical) - special.ndtr((lower - mean) / stderr + critical)
    return float(max(inside, 0.0))


def binomial_power(lower: Number, upper: Number, *, rate: Number, trials: int, alpha: float = 0.05) -> float:
    """Compute the power of two exact binomial tests by summing over every possible count.

    Args:
        lower: Lower end of the claimed range of the success probability; below 0 it needs no test.
        upper: Upper end of the claimed range; above 1 it needs no test.
        rate: The true success probability.
        trials: Number of trials.
        alpha: Level of each one-sided test.
    """
    counts = np.arange(trials + 1)
    below = upper > 1 or stats.binom.cdf(counts, trials, max(upper, 0.0)) < alpha
    above = lower < 0 or stats.binom.sf(counts - 1, trials, min(lower, 1.0)) < alpha
    return float(np.sum(stats.binom.pmf(counts, trials, rate), where=np.logical_and(below, above)))
