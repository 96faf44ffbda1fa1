r"""Exact expectations of the total variation of fitted laws: conditional Gaussians, shared or not, and categorical.

The error of a mean that was fitted to N samples in d dimensions is e ~ N(0, I / N), and TV = P(|Z| < |e| / 2) for a
standard normal Z. So E TV = P(Z^2 < chi^2_d / (4 N)) is a value of Fisher's F distribution, or of Student's t:
2 T_d(sqrt(d / N) / 2) - 1. Where d_1 coordinates average N samples and d_2 shared ones all n of them, |e|^2 = X / N +
W / n with independent chi squares. Their sum is independent of the angle theta, X / (X + W) = sin^2 theta, and the same
law holds given theta with sin^2 theta / N + cos^2 theta / n for 1 / N: one integral is left, by Gauss-Legendre.

The number of samples of source k is binomial, N_k ~ Bin(n, p_k). What depends on n and the dimensions alone, the error
for each N, is computed in float64 on the host; what depends on p_Y can be traced and differentiated.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Real
from scipy import special

from jaxgen.statistics.conditional_mle import check_sources
from jaxgen.statistics.power import Number
from jaxgen.typing import ArrayLike, Scalar

_LOST = 1e-15  # probability of a binomial beyond the numbers of samples that are summed over
_DIRECT, _DEGREE = 256, 160  # up to how many N each is integrated; the degree that interpolates more in log N


def expected_tv_gaussian(count: Real[ArrayLike, "*batch"] | Number, dim: int) -> Float[Array, "*batch"]:
    r"""Return the expected total variation of a Gaussian of unit covariance whose mean was fitted to `count` samples.

    $2 T_d(\sqrt{d / N} / 2) - 1$ with Student's t of d degrees of freedom, as the incomplete beta function
    $I_x(1/2, d/2)$ at $x = 1 / (1 + 4 N)$.

    Args:
        count: number of samples N, or several; under a trace they are not looked at.
        dim: dimension d.

    Raises:
        ValueError: `dim` or a count is below 1.

    >>> print(round(float(expected_tv_gaussian(500, 10)), 5))
    0.05498
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    if not isinstance(count, Tracer) and not np.all(enough := np.asarray(count) >= 1):
        wrong = np.asarray(count)[~enough].flat[0]
        raise ValueError(f"count must be at least 1, got {wrong}: a mean is fitted to the samples that there are")
    count = _floating(count)
    half = jnp.full_like(count, 0.5)
    return jax.scipy.special.betainc(half, half * dim, 1 / (1 + 4 * count))


def expected_average_tv(
    n: int,
    p_y: Real[ArrayLike, " sources"],
    dim_specific: int,
    dim_shared: int,
    *,
    shared: bool,
    nodes: int = 120,
) -> Float[Array, ""]:
    """Return the expected average total variation of conditional Gaussians fitted to n samples of all sources.

    The average over the sources k with weights p_k of E TV_k, given that the source has samples; differentiable in p_y.

    Args:
        n: samples of all sources together.
        p_y: probability of each source.
        dim_specific: coordinates whose means differ between the sources.
        dim_shared: coordinates that they share.
        shared: whether the model shares these; without it each source is fitted alone.
        nodes: of the quadrature over the angle; the default is exact to 1e-12, and to 1e-9 where a source has one
            coordinate of its own and n is a million.

    Raises:
        ValueError: as `check_sources`; a dimension is negative, both are 0, or `nodes` is below 1.

    >>> print(round(float(expected_average_tv(500, jnp.full(5, 0.2), 5, 5, shared=True)), 5))
    0.09435
    """
    errors = expected_source_tv(n, p_y, dim_specific, dim_shared, shared=shared, nodes=nodes)
    return jnp.sum(_floating(p_y) * errors)


def expected_source_tv(
    n: int,
    p_y: Real[ArrayLike, " sources"],
    dim_specific: int,
    dim_shared: int,
    *,
    shared: bool,
    nodes: int = 120,
    empty: Number | None = None,
) -> Float[Array, " sources"]:
    """Return the expected total variation of each source, as `expected_average_tv` averages it.

    Args:
        n: samples of all sources together.
        p_y: probability of each source.
        dim_specific: coordinates whose means differ between the sources.
        dim_shared: coordinates that they share.
        shared: whether the model shares these.
        nodes: of the quadrature over the angle.
        empty: total variation of a source without samples; None conditions on there being some.

    Raises:
        ValueError: as `expected_average_tv`.
    """
    check_sources(p_y, n)
    p_y = _floating(p_y)
    tables = tables_by_count(n, dim_specific, dim_shared, shared=shared, nodes=nodes)
    return average_over_counts(p_y, *(jnp.asarray(table, p_y.dtype) for table in tables), empty)


def expected_tv_categorical(n: int, probabilities: Real[ArrayLike, " categories"]) -> Float[Array, ""]:
    r"""Return the expected total variation of the frequencies of n samples of a categorical law.

    Half the sum of $E|N_i - n p_i| / n$, each by de Moivre's $2 n p (1 - p) P(\mathrm{Bin}(n - 1, p) = \lfloor n p
    \rfloor)$. In float32 to about n times 1e-7, relatively.

    Args:
        n: number of samples.
        probabilities: of the categories.

    Raises:
        ValueError: as `check_sources`.

    >>> print(round(float(expected_tv_categorical(100, jnp.full(4, 0.25))), 5))
    0.06885
    """
    check_sources(probabilities, n, "probabilities")
    p, counts = _floating(probabilities), np.arange(n, dtype=np.float64)
    choices = special.gammaln(n) - special.gammaln(counts + 1) - special.gammaln(n - counts)
    return _deviation(p, jnp.asarray(choices, p.dtype))


@jax.jit
def _deviation(p: Float[Array, " categories"], log_choices: Float[Array, " n"]) -> Float[Array, ""]:
    """Sum p (1 - p) P(Bin(n - 1, p) = floor(n p)) over the categories."""
    n = log_choices.shape[0]
    # At whole n p both neighbours give the same value, so how the product rounds does not matter; at p = 1 the other
    # factor is 0.
    central = jnp.clip(jnp.floor(n * jax.lax.stop_gradient(p)), 0, n - 1)
    inside = (p > 0) & (p < 1)
    safe = jnp.where(inside, p, 0.5)
    log_mass = log_choices[central.astype(int)] + central * jnp.log(safe) + (n - 1 - central) * jnp.log1p(-safe)
    return jnp.sum(jnp.where(inside, safe * (1 - safe) * jnp.exp(log_mass), 0))


def tables_by_count(
    n: int, dim_specific: int, dim_shared: int, *, shared: bool, nodes: int = 120
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " steps"]]:
    """Return what `average_over_counts` reads: the errors at N = 1 .. n samples, and log C(n, N + 1) / C(n, N).

    The arrays are kept for the next call, so that they cannot be written to.

    Raises:
        ValueError: a dimension is negative, both are 0, or `nodes` is below 1.
    """
    if min(dim_specific, dim_shared) < 0 or dim_specific + dim_shared < 1:
        raise ValueError(
            f"dim_specific and dim_shared must be at least 0 with a sum of at least 1, got {dim_specific}, {dim_shared}"
        )
    if nodes < 1:
        raise ValueError(f"nodes must be at least 1, got {nodes}")
    return _errors(n, dim_specific, dim_shared, shared, nodes), _log_ratios(n)


@jax.jit
def average_over_counts(
    p_y: Float[Array, " sources"],
    errors: Float[Array, " n"],
    log_ratios: Float[Array, " steps"],
    empty: Scalar | None,
) -> Float[Array, " sources"]:
    """Average the errors of N = 1 .. n samples over N ~ Bin(n, p) for each p: one program for all tables of a size.

    Args:
        p_y: probabilities, differentiable.
        errors: of each number of samples.
        log_ratios: of binomial coefficients, see `tables_by_count`.
        empty: the error without samples; None conditions on N >= 1.
    """
    n, tiny = errors.shape[0], jnp.finfo(p_y.dtype).eps
    # By Hoeffding's inequality this many counts to either side hold all but _LOST of any binomial.
    half = math.ceil(math.sqrt(n * math.log(2 / _LOST) / 2))
    width = min(n, 2 * half + 1)

    def average(p: Float[Array, ""]) -> Float[Array, ""]:
        # Kept off 0 and 1, where the logarithms are infinite, with the gradient of what it was.
        p = p + jax.lax.stop_gradient(jnp.clip(p, tiny**2, 1 - tiny) - p)
        logit = jnp.log(p) - jnp.log1p(-p)
        middle = jnp.round(n * jax.lax.stop_gradient(p)).astype(int)
        start = jnp.clip(middle - half, 1, n - width + 1)
        error = jax.lax.dynamic_slice(errors, (start - 1,), (width,))
        steps = jax.lax.dynamic_slice(log_ratios, (start - 1,), (width - 1,))
        # log P(N) along the window, by steps log P(N + 1) / P(N), which are small where the mass is: binomial
        # coefficients would lose all digits of float32. The gradient of log P(N), up to a constant, is N - middle
        # times that of the logit, and 0 at the only N where p is 0 or 1.
        log_mass = jnp.concatenate([jnp.zeros(1, p.dtype), jnp.cumsum(steps + jax.lax.stop_gradient(logit))])
        distance = start + jnp.arange(width) - jnp.clip(middle, start, start + width - 1)
        log_mass = log_mass + distance.astype(p.dtype) * (logit - jax.lax.stop_gradient(logit))
        value = jnp.sum(jax.nn.softmax(log_mass) * error)
        if empty is None:
            return value
        nothing = jnp.exp(n * jnp.log1p(-p))
        return value + (empty - value) * nothing

    return jax.vmap(average)(p_y)


def _floating(x: Real[ArrayLike, "*shape"] | Number) -> Float[Array, "*shape"]:
    """Return an array of the default floating type where whole numbers were given, and as it is otherwise."""
    x = jnp.asarray(x)
    return x.astype(jnp.result_type(x, float))


@functools.lru_cache(maxsize=8)
def _log_ratios(n: int) -> np.ndarray:
    """Return log C(n, N + 1) / C(n, N) for N = 1 .. n - 1."""
    counts = np.arange(1, n, dtype=np.float64)
    return _frozen(np.log((n - counts) / (counts + 1)))


@functools.lru_cache(maxsize=8)
def _errors(n: int, dim_specific: int, dim_shared: int, shared: bool, nodes: int) -> np.ndarray:
    """Return the expected total variation of a source with N = 1 .. n samples out of n."""
    return _frozen(_integrated(n, dim_specific, dim_shared, shared, nodes))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _integrated(n: int, dim_specific: int, dim_shared: int, shared: bool, nodes: int) -> np.ndarray:
    counts, dim = np.arange(1, n + 1, dtype=np.float64), dim_specific + dim_shared
    if not shared or dim_shared == 0:
        return _student(1 / counts, dim)
    if dim_specific == 0:
        return _student(np.full(n, 1 / n), dim)
    share, weights = _angles(dim_specific, dim_shared, nodes)

    def integrate(counts: np.ndarray) -> np.ndarray:
        return _student(share / counts[:, None] + (1 - share) / n, dim) @ weights

    if n <= _DIRECT:
        return integrate(counts)
    # Analytic in log N up to imaginary parts of pi: the interpolant is within 1e-12 for n up to 1e6.
    span = np.log(n)
    at = np.polynomial.chebyshev.chebpts1(_DEGREE + 1)
    series = np.polynomial.Chebyshev.fit(at, integrate(np.exp(span * (at + 1) / 2)), _DEGREE, domain=[-1, 1])
    return series(2 * np.log(counts) / span - 1)


def _student(variance: np.ndarray, dim: int) -> np.ndarray:
    """Return P(Z^2 < variance chi^2_dim / 4)."""
    return special.betainc(0.5, dim / 2, variance / (4 + variance))


def _angles(dim_specific: int, dim_shared: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sin^2 theta and its weights: the share of chi^2 of the first dimensions in that of all, by quadrature.

    theta has the density sin^(d1 - 1) cos^(d2 - 1) on [0, pi / 2], whose logarithm bends down by at least
    (sqrt(d1 - 1) + sqrt(d2 - 1))^2: nine of the standard deviations that this allows hold all of it.
    """
    roots = math.sqrt(dim_specific - 1), math.sqrt(dim_shared - 1)
    low, high = 0.0, math.pi / 2
    if sum(roots) > 0:
        mode, reach = math.atan2(*roots), 9.5 / sum(roots)
        low, high = max(low, mode - reach), min(high, mode + reach)
    at, weights = np.polynomial.legendre.leggauss(nodes)
    theta = low + (high - low) * (at + 1) / 2
    log_density = (dim_specific - 1) * np.log(np.sin(theta)) + (dim_shared - 1) * np.log(np.cos(theta))
    scale = np.log(2) - special.betaln(dim_specific / 2, dim_shared / 2)
    return np.sin(theta) ** 2, weights * (high - low) / 2 * np.exp(log_density + scale)
