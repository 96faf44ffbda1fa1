r"""Bounds on the average total variation of conditional maximum likelihood, and their order in counts of parameters.

Let $L = \log(N(1/n) / \delta)$ with N the upper bracketing number (`jaxgen.statistics.bracketing`). With probability at
least $1 - \delta$, for every bracketing function g at once, Markov's inequality for the product of $\sqrt{g / p^*}$
over the samples gives $\sum_i \frac12 \log (g / p^*)(x_i|y_i) \le -\frac n2 E H^2(g, p^*) + \frac{n \epsilon}2 + L$.
The function above the fitted law has a left side of at least 0, since the fit is at least as likely as the truth; so
$E H^2 \le \epsilon + 2 L / n$, and Cauchy & Schwarz give
$E\,TV \le \epsilon / 2 + \frac12 \sqrt{4 + 2 \epsilon} \sqrt{E H^2}$.
At $\epsilon = 1 / n$ that is `tv_bound_sharp`, which lies below `tv_bound`, $3 \sqrt{L / n}$, for $\delta \le 1/2$.
The rates are what stays of the bounds without constants and logarithms: they order, they do not bound.
"""

import math
from collections.abc import Callable

from jaxgen.statistics.bracketing import ArmSize, EbmSize, count_parameters
from jaxgen.statistics.power import Number

_MOST_SAMPLES = 10**15


def tv_bound(log_bracket: Number, n: int, delta: Number = 0.05) -> float:
    """Return what the error stays below with probability 1 - delta: 3 sqrt((log N + log 1 / delta) / n).

    Args:
        log_bracket: logarithm of the bracketing number at the gap 1 / n.
        n: samples of all sources together.
        delta: probability of more.

    Raises:
        ValueError: `log_bracket` is negative, n is below 1, or `delta` is not in (0, 1/2].

    >>> round(tv_bound(10.0, 100), 8)
    1.08148782
    """
    return 3 * math.sqrt(_exponent(log_bracket, n, delta) / n)


def tv_bound_sharp(log_bracket: Number, n: int, delta: Number = 0.05) -> float:
    """Return the bound before its constants are rounded up to 3: at most 0.958 times `tv_bound`, mostly about half.

    Args:
        log_bracket: logarithm of the bracketing number at the gap 1 / n.
        n: samples of all sources together.
        delta: probability of more.

    Raises:
        ValueError: as `tv_bound`.

    >>> round(tv_bound_sharp(10.0, 100), 8)
    0.52583032
    """
    exponent = _exponent(log_bracket, n, delta)
    return 1 / (2 * n) + math.sqrt(1 + 1 / (2 * n)) * math.sqrt((1 + 2 * exponent) / n)


def vacuous_below(log_bracket: Callable[[int], float], delta: Number = 0.05) -> int:
    """Return the smallest number of samples at which `tv_bound` is at most 1: with fewer it says nothing.

    Args:
        log_bracket: maps n to the logarithm of the bracketing number at the gap 1 / n, which grows slower than n.
        delta: probability of more.

    Raises:
        ValueError: the bound is above 1 up to 10^15 samples.
    """
    low, high = 0, 1
    while tv_bound(log_bracket(high), high, delta) > 1:
        low, high = high, 2 * high
        if high > _MOST_SAMPLES:
            raise ValueError("the bound is above 1 up to 10^15 samples: log_bracket must grow slower than n")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tv_bound(log_bracket(middle), middle, delta) <= 1 else (middle, high)
    return high


def similarity(num_shared: Number, num_specific: Number) -> float:
    """Return the share of a source's parameters that all sources have in common, beta.

    Raises:
        ValueError: a number is negative, or both are 0.

    >>> similarity(5, 5)
    0.5
    """
    if not (num_shared >= 0 and num_specific >= 0 and 0 < num_shared + num_specific < math.inf):
        raise ValueError(
            f"numbers of parameters must be at least 0 with a positive sum, got {num_shared} and {num_specific}"
        )
    return num_shared / (num_shared + num_specific)


def rate_ratio(num_sources: int, beta: Number) -> float:
    """Return the bound of the model that shares over that of separate ones: sqrt(1 - (K - 1) / K beta).

    Args:
        num_sources: K.
        beta: share of the parameters that are common, as `similarity` gives it.

    Raises:
        ValueError: K is below 1, or `beta` is not in [0, 1].

    >>> round(rate_ratio(5, 0.5), 12)
    0.774596669241
    """
    if num_sources < 1:
        raise ValueError(f"num_sources must be at least 1, got {num_sources}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}: it is a share of the parameters")
    return math.sqrt(1 - (num_sources - 1) / num_sources * beta)


def rate_gaussian(n: int, num_sources: int, dim_specific: int, dim_shared: int, *, shared: bool) -> float:
    """Return the order of the bound for conditional Gaussians: sqrt(((K - 1) d1 + d) / n), or sqrt(K d / n) apart.

    It is also the root of the expected squared error of all means together, where the sources are equally frequent.

    Raises:
        ValueError: n or K is below 1, or the dimensions are negative or both 0.

    >>> round(rate_gaussian(500, 5, 5, 5, shared=True), 6)
    0.244949
    """
    return _rate(1, count_parameters(dim_shared, dim_specific, num_sources, shared=shared), n)


def rate_arm(n: int, num_sources: int, size: ArmSize, *, shared: bool) -> float:
    """Return the order of the bound for autoregressive networks: sqrt(L (S + D + (D + M + K) d_e) / n), shared.

    Apart it is sqrt(K L (S + D + (D + M + 1) d_e) / n).

    Raises:
        ValueError: n, K or the depth is below 1, or a number of parameters is negative.
    """
    return _rate(size.depth, count_parameters(size.shared, size.specific, num_sources, shared=shared), n)


def rate_ebm(n: int, num_sources: int, size: EbmSize, *, shared: bool) -> float:
    """Return the order of the bound for energy networks: sqrt(L (S + K d_e) / n), or sqrt(K L (S + d_e) / n) apart.

    Raises:
        ValueError: n, K or the depth is below 1, or a number of parameters is negative.
    """
    return _rate(size.depth, count_parameters(size.shared, size.specific, num_sources, shared=shared), n)


def _rate(depth: int, parameters: int, n: int) -> float:
    for name, number in (("n", n), ("depth", depth)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    return math.sqrt(depth * parameters / n)


def _exponent(log_bracket: Number, n: int, delta: Number) -> float:
    """Return log(N / delta)."""
    if not 0 <= log_bracket < math.inf:
        raise ValueError(f"log_bracket must be finite and at least 0, got {log_bracket}: a bracket has a function")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 < delta <= 0.5:
        raise ValueError(f"delta must lie in (0, 1/2], got {delta}: it is the probability that the bound fails")
    return log_bracket - math.log(delta)
