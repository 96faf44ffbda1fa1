"""Laws of the first token of a sequence, with their exact moments.

A start law draws one token of any dimension and knows E[prod_j x_j^e_j] for every exponent up to the sixth order, the
highest that the dynamics of a linear attention layer ask for.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxgen.pytrees import register_dataclass
from jaxgen.typing import ArrayLike, PRNGKey, Scalar

ORDER = 6
"""The highest order of a moment that the laws know."""


@runtime_checkable
class StartLaw(Protocol):
    """A law of a real token x of any dimension."""

    def sample(self, key: PRNGKey, dimension: int) -> Float[Array, " dim"]:
        """Draw one token; the key is consumed."""
        ...

    def moments(self, exponents: Int[np.ndarray, "*batch dim"]) -> Float[Array, "*batch"]:
        """Return E[prod_j x_j^e_j] for each row of exponents, which are at least 0 and add up to at most `ORDER`."""
        ...


@runtime_checkable
class CoordinateLaw(Protocol):
    """A law of one real number, in its own unit."""

    def sample(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw independent numbers; the key is consumed."""
        ...

    def moment(self, order: int) -> float:
        """Return E[x^order]."""
        ...


@dataclasses.dataclass(frozen=True)
class Normal:
    """N(0, 1)."""

    def sample(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw independent numbers; the key is consumed."""
        return jax.random.normal(key, shape)

    def moment(self, order: int) -> float:
        """Return (order - 1)!! for even orders."""
        return 0.0 if order % 2 else float(math.prod(range(order - 1, 0, -2)))


@dataclasses.dataclass(frozen=True)
class Interval:
    """The uniform law on [-1, 1]."""

    def sample(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw independent numbers; the key is consumed."""
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    def moment(self, order: int) -> float:
        """Return 1 / (order + 1) for even orders."""
        return 0.0 if order % 2 else 1.0 / (order + 1)


@dataclasses.dataclass(frozen=True)
class DoubleExponential:
    """The Laplace law with density exp(-|x|) / 2."""

    def sample(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw independent numbers; the key is consumed."""
        return jax.random.laplace(key, shape)

    def moment(self, order: int) -> float:
        """Return order! for even orders."""
        return 0.0 if order % 2 else float(math.factorial(order))


@dataclasses.dataclass(frozen=True)
class PoissonCount:
    """A Poisson count, by default with a random sign in front."""

    rate: float = 1.0
    """Mean of the count."""
    symmetrised: bool = True
    """Whether a fair sign is put in front, without which no odd moment vanishes."""

    def __post_init__(self):
        _positive("rate", self.rate)

    def sample(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw independent numbers; the key is consumed."""
        count_key, sign_key = jax.random.split(key)
        count = jax.random.poisson(count_key, self.rate, shape).astype(float)
        return _with_sign(sign_key, count) if self.symmetrised else count

    def moment(self, order: int) -> float:
        """Return the Touchard polynomial of the rate: sum over k of S(order, k) rate^k, Stirling numbers S."""
        if self.symmetrised and order % 2:
            return 0.0
        return sum(_stirling(order, k) * self.rate**k for k in range(order + 1))


@dataclasses.dataclass(frozen=True)
class GammaSize:
    """A Gamma number with scale 1, by default with a random sign in front."""

    shape: float = 2.0
    """The law's shape parameter."""
    symmetrised: bool = True
    """Whether a fair sign is put in front, without which no odd moment vanishes."""

    def __post_init__(self):
        _positive("shape", self.shape)

    def sample(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw independent numbers; the key is consumed."""
        size_key, sign_key = jax.random.split(key)
        size = jax.random.gamma(size_key, self.shape, shape)
        return _with_sign(sign_key, size) if self.symmetrised else size

    def moment(self, order: int) -> float:
        """Return shape (shape + 1) ... (shape + order - 1)."""
        return 0.0 if self.symmetrised and order % 2 else math.prod((self.shape + k for k in range(order)), start=1.0)


@dataclasses.dataclass(frozen=True)
class Atoms:
    """A law on finitely many numbers."""

    values: tuple[float, ...]
    """Where the mass lies."""
    probabilities: tuple[float, ...]
    """How much of it; positive, adding up to 1."""

    def __post_init__(self):
        if len(self.values) != len(self.probabilities) or not self.values:
            raise ValueError(
                f"values and probabilities must be as many, got {len(self.values)} and {len(self.probabilities)}"
            )
        if min(self.probabilities) < 0 or abs(sum(self.probabilities) - 1.0) > 1e-9:
            raise ValueError(f"probabilities must be at least 0 and add up to 1, got {self.probabilities}")

    def sample(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draw independent numbers; the key is consumed."""
        return jax.random.choice(key, jnp.asarray(self.values), shape, p=jnp.asarray(self.probabilities))

    def moment(self, order: int) -> float:
        """Return the sum of p x^order."""
        return math.fsum(p * x**order for x, p in zip(self.values, self.probabilities, strict=True))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Independent:
    """Independent coordinates: x_j = scale_j z_j, where all z_j have one law."""

    coordinate: CoordinateLaw = dataclasses.field(metadata={"static": True})
    scale: Float[ArrayLike, "*dim"] | float = 1.0
    """One number, or one for each coordinate."""

    def sample(self, key: PRNGKey, dimension: int) -> Float[Array, " dim"]:
        """Draw one token; the key is consumed."""
        return jnp.asarray(self.scale) * self.coordinate.sample(key, (dimension,))

    def moments(self, exponents: Int[np.ndarray, "*batch dim"]) -> Float[Array, "*batch"]:
        """Return the product over the coordinates of scale_j^e_j E[z^e_j]."""
        _check_exponents(exponents)
        table = np.array([self.coordinate.moment(order) for order in range(ORDER + 1)])
        xp, scale = _host_or_device(self.scale)
        scale = xp.broadcast_to(scale, exponents.shape[-1:])
        powers = xp.stack([scale**order for order in range(ORDER + 1)])
        found = (xp.asarray(table)[exponents] * powers[exponents, np.arange(len(scale))]).prod(axis=-1)
        return jnp.asarray(found, jnp.result_type(float))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OneHot:
    """One coordinate, each as likely, is +-value with even odds; the others are 0 (Zheng et al. 2024, example 4.1)."""

    value: Scalar = 1.0

    def sample(self, key: PRNGKey, dimension: int) -> Float[Array, " dim"]:
        """Draw one token; the key is consumed."""
        place_key, sign_key = jax.random.split(key)
        place = jax.random.randint(place_key, (), 0, dimension)
        return jax.nn.one_hot(place, dimension) * _with_sign(sign_key, jnp.asarray(self.value, float))

    def moments(self, exponents: Int[np.ndarray, "*batch dim"]) -> Float[Array, "*batch"]:
        """Return value^e / d where one exponent e alone is not 0 and is even."""
        _check_exponents(exponents)
        order, active = exponents.sum(axis=-1), (exponents > 0).sum(axis=-1)
        xp, value = _host_or_device(self.value)
        powers = xp.stack([value**k for k in range(ORDER + 1)])
        alone = (active == 1) & (order % 2 == 0)
        found = xp.where(order == 0, 1.0, alone / exponents.shape[-1] * powers[order])
        return jnp.asarray(found, jnp.result_type(float))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Ones:
    """Every coordinate is `value`: nothing about the first token is random."""

    value: Scalar = 1.0

    def sample(self, key: PRNGKey, dimension: int) -> Float[Array, " dim"]:
        """Return the token; the key is not used."""
        del key
        return jnp.full(dimension, self.value, float)

    def moments(self, exponents: Int[np.ndarray, "*batch dim"]) -> Float[Array, "*batch"]:
        """Return value to the power of the order."""
        _check_exponents(exponents)
        xp, value = _host_or_device(self.value)
        powers = xp.stack([value**k for k in range(ORDER + 1)])
        return jnp.asarray(powers[exponents.sum(axis=-1)], jnp.result_type(float))


def gaussian_start(std: Float[ArrayLike, "*dim"] | float = 1.0) -> Independent:
    """Build N(0, std^2) in each coordinate; `std` may be one number for each.

    >>> law = gaussian_start(2.0)
    >>> law.moments(np.array([[4, 2, 0]])).tolist()  # 3 sigma^4 sigma^2
    [192.0]
    """
    return Independent(Normal(), _positive("std", std))


def rademacher_start(value: Scalar = 1.0) -> Independent:
    """Build independent coordinates of +-value with even odds."""
    return Independent(Atoms((-1.0, 1.0), (0.5, 0.5)), _nonzero("value", value))


def uniform_start(half_width: Scalar = 1.0) -> Independent:
    """Build independent coordinates, uniform on [-half_width, half_width]."""
    return Independent(Interval(), _positive("half_width", half_width))


def laplace_start(scale: Scalar = 1.0) -> Independent:
    """Build independent Laplace coordinates of variance 2 scale^2."""
    return Independent(DoubleExponential(), _positive("scale", scale))


def poisson_start(rate: float = 1.0, *, symmetrised: bool = True) -> Independent:
    """Build independent Poisson counts, with random signs unless `symmetrised` is False."""
    return Independent(PoissonCount(rate, symmetrised))


def gamma_start(shape: float = 2.0, *, symmetrised: bool = True) -> Independent:
    """Build independent Gamma numbers of scale 1, with random signs unless `symmetrised` is False."""
    return Independent(GammaSize(shape, symmetrised))


def spiked_start(probability: float = 0.2, value: Scalar = 1.0) -> Independent:
    """Build independent coordinates of +-value, each with half the probability, and else 0."""
    if not 0 < probability <= 1:
        raise ValueError(f"probability must lie in (0, 1], got {probability}")
    half = probability / 2
    return Independent(Atoms((0.0, -1.0, 1.0), (1.0 - probability, half, half)), _nonzero("value", value))


def skewed_start(scale: Scalar = 1.0) -> Independent:
    """Build independent coordinates of mean 0 and third moment 2: twice the scale with probability 1/3, else minus it.

    Such laws have vanishing means, yet Zheng et al. 2024, assumption 4.1 does not give theorem 4.1 for them: the proof
    also needs E[x_r^3 x_s^3] = 0.
    """
    return Independent(Atoms((2.0, -1.0), (1 / 3, 2 / 3)), _positive("scale", scale))


def one_hot_start(value: Scalar = 1.0) -> OneHot:
    """Build the sparse law of Zheng et al. 2024, example 4.1: one coordinate is +-value, the others are 0."""
    return OneHot(_nonzero("value", value))


def moment_table_start(moments: Sequence[float | int]) -> Independent:
    """Build independent coordinates with given moments E[x], ..., E[x^6], as the law on at most four atoms with them.

    The atoms are the eigenvalues of the Jacobi matrix of the moments, their masses the squares of its eigenvectors'
    first entries (Golub & Welsch 1969). Four atoms leave the seventh moment free: it is chosen so that the
    last diagonal entry of the matrix repeats the one before.

    Raises:
        ValueError: there are not six moments, or no law has them.

    >>> law = moment_table_start([0, 1, 0, 3, 0, 15])
    >>> np.round(law.moments(np.array([[4, 0], [2, 4], [6, 0]])), 4).tolist()
    [3.0, 3.0, 15.0]
    """
    if len(moments) != ORDER:
        raise ValueError(f"a moment table holds the moments 1 to {ORDER}, got {len(moments)} numbers")
    sequence = np.array([1.0, *map(float, moments), 0.0])
    for count in (4, 3, 2, 1) if np.isfinite(sequence).all() else ():
        indices = np.add.outer(np.arange(count), np.arange(count))
        scale = sequence[2] ** (0.5 * indices) if sequence[2] > 0 else 1.0
        try:
            factor = np.linalg.cholesky(sequence[indices] / scale)
        except np.linalg.LinAlgError:
            continue
        if factor.diagonal().min() < 1e-6:  # a law on fewer atoms, up to rounding
            continue
        inverse = np.linalg.inv(factor)
        jacobi = inverse @ (sequence[indices + 1] / scale) @ inverse.T
        if count == 4:  # its last entry alone knows the seventh moment
            jacobi[3, 3] = jacobi[2, 2]
        values, vectors = np.linalg.eigh(jacobi)
        law = Atoms(tuple(values.tolist()), tuple((vectors[0] ** 2).tolist()))
        found = np.array([law.moment(order) for order in range(1, ORDER + 1)])
        if np.allclose(found, sequence[1:-1], rtol=1e-6, atol=1e-6 * abs(sequence[ORDER])):
            return Independent(law)
    raise ValueError(f"no law has the moments {tuple(map(float, moments))}")


def _host_or_device(value: Float[ArrayLike, "..."] | float):
    """Return numpy and a known number, in double precision, or jax.numpy and one that is traced."""
    # Tables of moments have many shapes, each of which jax would compile anew.
    if isinstance(value, Tracer):
        return jnp, jnp.asarray(value, jnp.result_type(float))
    return np, np.asarray(value, float)


def _with_sign(key: PRNGKey, size: Float[Array, "..."]) -> Float[Array, "..."]:
    return size * jax.random.rademacher(key, size.shape, dtype=size.dtype)


def _stirling(n: int, k: int) -> int:
    """Count the partitions of n things into k parts."""
    return sum((-1) ** (k - j) * math.comb(k, j) * j**n for j in range(k + 1)) // math.factorial(k)


def _check_exponents(exponents: Int[np.ndarray, "*batch dim"]) -> None:
    if exponents.size and (exponents.min() < 0 or exponents.sum(axis=-1).max() > ORDER):
        raise ValueError(f"exponents must be at least 0 and add up to at most {ORDER}")


def _positive(name: str, value):
    if not isinstance(value, Tracer) and not np.all((np.asarray(value) > 0) & np.isfinite(value)):
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return value


def _nonzero(name: str, value):
    if not isinstance(value, Tracer) and not np.all((np.asarray(value) != 0) & np.isfinite(value)):
        raise ValueError(f"{name} must be finite and not 0, got {value}")
    return value
