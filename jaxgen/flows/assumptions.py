"""The moments that decide what a linear attention layer learns from a start law, and what the theory assumes of them.

Source: Zheng et al. 2024, On Mesa-Optimization in Autoregressively Trained Transformers.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.flows.start_laws import ORDER, StartLaw
from jaxgen.typing import Scalar

_LARGEST_CHECKED = 24  # which has 593,774 moments up to the sixth order
_ROUNDING = 1e-6  # relative, of float32 moments


class StartMoments(NamedTuple):
    """Even moments of a token x.

    Attributes:
        second: E[x_j^2], `[d]`.
        fourth: E[x_j^4], `[d]`.
        sixth: E[x_j^6], `[d]`.
        cross: E[x_j^2 x_r^4], `[d, d]`; the diagonal holds the sixth moments.
    """

    second: Float[Array, " dim"]
    fourth: Float[Array, " dim"]
    sixth: Float[Array, " dim"]
    cross: Float[Array, "dim dim"]


class Kappas(NamedTuple):
    """What theorem 4.1 is written in, of a law whose coordinates are alike.

    Attributes:
        second: m2 = E[x_j^2].
        fourth: kappa_1 = E[x_j^4].
        sixth: kappa_2 = E[x_j^6].
        cross: kappa_3 = sum over r other than j of E[x_j^2 x_r^4].
    """

    second: Scalar
    fourth: Scalar
    sixth: Scalar
    cross: Scalar


class Assumptions(NamedTuple):
    """Which assumptions of the paper a start law meets.

    Attributes:
        as_printed: assumption 4.1 to the letter: moments with one exponent of exactly 1 vanish.
        odd_moments_vanish: what the proof of theorem 4.1 needs: every moment with an odd exponent vanishes.
        coordinates_alike: kappa_1 to kappa_3 do not depend on the coordinate.
        recovers: assumption 4.2 in its sharp form: every coordinate is 0 or of one size.
    """

    as_printed: bool
    odd_moments_vanish: bool
    coordinates_alike: bool
    recovers: bool


def start_moments(law: StartLaw, dimension: int) -> StartMoments:
    """Collect the even moments of a law.

    Raises:
        ValueError: `dimension` is below 1.
    """
    check_dimension(dimension)
    one = np.eye(dimension, dtype=int)
    cross = 2 * one[:, None] + 4 * one[None]
    return StartMoments(law.moments(2 * one), law.moments(4 * one), law.moments(6 * one), law.moments(cross))


def kappas(law: StartLaw, dimension: int) -> Kappas:
    """Return kappa_1, kappa_2, kappa_3 and m2 of a law whose coordinates are alike.

    Raises:
        ValueError: the coordinates differ, so that there is no one kappa; or kappa_2 is not positive.

    >>> from jaxgen.flows import gaussian_start
    >>> [float(k) for k in kappas(gaussian_start(), 5)]
    [1.0, 3.0, 15.0, 12.0]
    """
    moments = start_moments(law, dimension)
    if not _alike(moments):
        raise ValueError(f"the coordinates must be alike, got the fourth moments {np.asarray(moments.fourth).tolist()}")
    if not moments.sixth[0] > 0:
        raise ValueError(f"kappa_2 = E[x^6] must be above 0, got {float(moments.sixth[0])}")
    others = moments.cross[0].sum() - moments.cross[0, 0]
    return Kappas(moments.second[0], moments.fourth[0], moments.sixth[0], others)


def check_assumptions(law: StartLaw, dimension: int) -> Assumptions:
    """Check what the paper assumes of a start law, moment by moment up to the sixth order.

    The assumption as printed is too weak: E[x_r^3 x_s^3] may differ from 0 under it, and then the layer is not what
    theorem 4.1 says. For sizes of coordinates |x_j|, E[x_j^4]^2 <= E[x_j^6] E[x_j^2], with equality exactly where |x_j|
    is 0 or one number: that is assumption 4.2.

    Raises:
        ValueError: `dimension` is below 1.

    >>> from jaxgen.flows import skewed_start
    >>> check_assumptions(skewed_start(), 3)
    Assumptions(as_printed=True, odd_moments_vanish=False, coordinates_alike=True, recovers=False)
    """
    check_dimension(dimension)
    if dimension > _LARGEST_CHECKED:
        raise ValueError(
            f"dimension must be at most {_LARGEST_CHECKED} to check every moment, got {dimension}; check fewer "
            "coordinates of the law"
        )
    exponents = _monomials(dimension)
    values = np.asarray(law.moments(exponents), dtype=float)
    moments = start_moments(law, dimension)
    # By Hoelder no moment of order n is above the sixth moment to the power n / 6, which makes it the unit.
    largest = float(jnp.max(moments.sixth))
    vanishes = np.abs(values) <= _ROUNDING * largest ** (exponents.sum(axis=1) / ORDER)
    gap = np.asarray(moments.fourth**2 - moments.sixth * moments.second)
    return Assumptions(
        as_printed=bool(vanishes[((exponents == 1).any(axis=1)) & ((exponents > 0).sum(axis=1) <= 4)].all()),
        odd_moments_vanish=bool(vanishes[(exponents % 2 == 1).any(axis=1)].all()),
        coordinates_alike=_alike(moments),
        recovers=bool((np.abs(gap) <= _ROUNDING * np.asarray(moments.fourth) ** 2).all()),
    )


def check_symmetry(law: StartLaw, dimension: int) -> None:
    """Refuse a law with an odd moment, for which theorem 4.1 says nothing.

    Raises:
        ValueError: E[prod_j x_j^e_j] does not vanish for an odd exponent.
    """
    if not check_assumptions(law, dimension).odd_moments_vanish:
        raise ValueError(
            "Assumption 4.1 violated: a moment with an odd exponent does not vanish, so that the limit need not be "
            "diagonal; symmetrise the law, or pass check=False"
        )


def check_dimension(dimension: int) -> None:
    """Raise ValueError unless the dimension is an integer of at least 1."""
    if not isinstance(dimension, int | np.integer) or dimension < 1:
        raise ValueError(f"dimension must be an integer of at least 1, got {dimension}")


def check_length(length: int) -> None:
    """Raise ValueError unless a sequence of this length has a position to predict from: at least 3 tokens."""
    if not isinstance(length, int | np.integer) or length < 3:
        raise ValueError(f"length must be an integer of at least 3 tokens, got {length}: prediction starts at t = 2")


def _alike(moments: StartMoments) -> bool:
    sums = moments.cross.sum(axis=0), moments.cross.sum(axis=1)
    rows = (moments.second, moments.fourth, moments.sixth, *sums)
    return all(bool(jnp.abs(row - row[0]).max() <= _ROUNDING * jnp.abs(row[0])) for row in rows)


def _monomials(dimension: int) -> Int[np.ndarray, "monomials dim"]:
    """List the exponents of every moment of order 1 to `ORDER`."""
    chosen = (
        places
        for order in range(1, ORDER + 1)
        for places in itertools.combinations_with_replacement(range(dimension), order)
    )
    return np.array([np.bincount(places, minlength=dimension) for places in chosen])
