"""The two-dimensional dynamics of W32 = a I, W12 = b I, in closed form.

    da/dtau = b (c2 - c1 a b),    db/dtau = a (c2 - c1 a b)

(Zheng et al. 2024, lemma 5.2.) The product u = ab follows an equation of its own, since a^2 - b^2 is conserved.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.flows.assumptions import Kappas, check_dimension, check_length, check_symmetry, kappas
from jaxgen.flows.start_laws import StartLaw
from jaxgen.typing import Scalar


class Rates(NamedTuple):
    """The two constants of the dynamics.

    Attributes:
        c1: (T - 2) kappa_2 + S_T kappa_3.
        c2: (T - 2) kappa_1.
    """

    c1: Scalar
    c2: Scalar


def harmonic_sum(length: int) -> float:
    """Return S_T = sum over t from 2 to T-1 of 1 / (t-1) (Zheng et al. 2024, theorem 4.1).

    Raises:
        ValueError: the sequence has fewer than 3 tokens.

    >>> harmonic_sum(5)  # 1 + 1/2 + 1/3
    1.8333333333333333
    """
    check_length(length)
    return float((1.0 / np.arange(1, length - 1)[::-1]).sum())


def rates(moments: Kappas, length: int) -> Rates:
    """Return c1 and c2 of lemma 5.2, in units of the loss, which is a sum over T - 2 positions.

    Args:
        moments: of the first token.
        length: number of tokens T.

    Raises:
        ValueError: the sequence has fewer than 3 tokens.
    """
    return Rates((length - 2) * moments.sixth + harmonic_sum(length) * moments.cross, (length - 2) * moments.fourth)


def limit_product(law: StartLaw, length: int, dimension: int, *, check: bool = True) -> Scalar:
    """Return the limit of ab: kappa_1 / (kappa_2 + kappa_3 S_T / (T-2)) (theorem 4.1).

    Args:
        law: of the first token.
        length: number of tokens T.
        dimension: coordinates d of a token.
        check: refuse a law for which the theorem does not hold.

    Raises:
        ValueError: the law has an odd moment, its coordinates differ, or a size is out of range.

    >>> from jaxgen.flows import gaussian_start
    >>> round(float(limit_product(gaussian_start(), 5, 5)), 6)  # 9 / 67
    0.134328
    """
    check_dimension(dimension)
    if check:
        check_symmetry(law, dimension)
    c1, c2 = rates(kappas(law, dimension), length)
    return c2 / c1


def population_loss(a: Scalar, b: Scalar, moments: Kappas, length: int, dimension: int) -> Scalar:
    """Return the expected loss at W32 = a I, W12 = b I: d ((T-2) m2 / 2 + c1 u^2 / 2 - c2 u) with u = ab.

    Args:
        a: diagonal of W32.
        b: diagonal of W12.
        moments: of the first token, which meets assumption 4.1.
        length: number of tokens T.
        dimension: coordinates d of a token.

    Raises:
        ValueError: the sequence has fewer than 3 tokens.
    """
    c1, c2 = rates(moments, length)
    u = a * b
    return dimension * (0.5 * (length - 2) * moments.second + 0.5 * c1 * u**2 - c2 * u)


def flow_product(a0: Scalar, b0: Scalar, c1: Scalar, c2: Scalar, tau: Scalar) -> Scalar:
    """Return ab at time tau, in closed form; arguments may be arrays that broadcast.

    With delta = a^2 - b^2, u = ab = |delta| sinh(theta) / 2 and u* = c2 / c1, w = sinh((theta* - theta) / 2) /
    cosh((theta* + theta) / 2) falls as exp(-K tau), K = c1 sqrt(delta^2 + 4 u*^2). Written in v = w / |delta| there is
    no special case at delta = 0 but the diagonal a0 = -b0, which leads into the saddle at 0.

    Args:
        a0: W32 = a0 I at the start.
        b0: W12 = b0 I at the start.
        c1: of `Rates`, positive.
        c2: of `Rates`, positive.
        tau: time of the gradient flow of the whole loss, 0 or more.

    >>> round(float(flow_product(0.5, 1.5, 2.0, 3.0, 0.3)), 4)
    1.3791
    """
    kind = jnp.result_type(float)
    a0, b0, c1, c2, tau = (jnp.asarray(value, kind) for value in (a0, b0, c1, c2, tau))
    u0, limit = a0 * b0, c2 / c1
    delta = (a0 - b0) * (a0 + b0)
    delta_squared = delta**2
    size, limit_size = jnp.sqrt(delta_squared + 4.0 * u0**2), jnp.sqrt(delta_squared + 4.0 * limit**2)
    saddle = (a0 + b0 == 0) | (delta_squared == 0) & (u0 <= 0)
    # size * limit_size + 4 u* u0, without the difference of two large numbers where u0 < 0.
    above = size * limit_size + 4.0 * limit * jnp.abs(u0)
    joint = jnp.where(u0 < 0, delta_squared * (delta_squared + 4.0 * limit**2 + 4.0 * u0**2) / above, above)
    # A start of 1e-140 has a v whose square is beyond the largest number, one of 1e-155 has no v at all.
    least = jnp.finfo(kind).tiny / jnp.finfo(kind).eps
    v = (
        2.0
        * (limit - u0)
        * jnp.exp(-c1 * limit_size * tau)
        / jnp.where(saddle, 1.0, jnp.maximum(delta_squared + joint, least))
    )
    rest = 1.0 - (delta * v) ** 2
    moving = (rest * limit - delta_squared * v) / jnp.where(saddle, 1.0, rest + 4.0 * limit * v)
    shrunk = jnp.exp(-2.0 * c2 * tau)
    return jnp.where(saddle, u0 * shrunk / (1.0 - u0 / limit * (1.0 - shrunk)), moving)


def flow_scalars(a0: Scalar, b0: Scalar, c1: Scalar, c2: Scalar, tau: Scalar) -> tuple[Scalar, Scalar]:
    """Return (a, b) at time tau: from ab, the conserved a^2 - b^2, and the sign of a + b, which never changes.

    The arguments are those of `flow_product`.
    """
    return scalars_of(flow_product(a0, b0, c1, c2, tau), a0, b0)


def limit_scalars(a0: Scalar, b0: Scalar, limit: Scalar) -> tuple[Scalar, Scalar]:
    """Return the (a, b) that the flow ends in, with ab = `limit`; from a0 = -b0 it ends in the saddle (0, 0)."""
    a, b = scalars_of(limit, a0, b0)
    escapes = jnp.asarray(a0) + jnp.asarray(b0) != 0
    return jnp.where(escapes, a, 0.0), jnp.where(escapes, b, 0.0)


def scalars_of(product: Scalar, a0: Scalar, b0: Scalar) -> tuple[Scalar, Scalar]:
    """Return the (a, b) with this product on the orbit of (a0, b0)."""
    a0, b0 = jnp.asarray(a0), jnp.asarray(b0)
    delta = a0**2 - b0**2
    size = jnp.hypot(delta, 2.0 * product)
    # The larger of the two first; the other from the product, which loses no digits.
    larger = jnp.sqrt(0.5 * (size + jnp.abs(delta)))
    smaller = product / jnp.where(larger > 0, larger, 1.0)
    a_larger = jnp.abs(a0) >= jnp.abs(b0)
    a, b = jnp.where(a_larger, larger, smaller), jnp.where(a_larger, smaller, larger)
    leading = jnp.where(a_larger, a0, b0)
    sign = jnp.where(leading < 0, -1.0, 1.0)
    return sign * a, sign * b


def descend_scalars(
    a0: Scalar, b0: Scalar, c1: Scalar, c2: Scalar, step_size: Scalar, num_steps: int
) -> Float[Array, "epochs 2"]:
    """Return (a, b) after 0 ... `num_steps` steps of gradient descent on the population loss.

    Args:
        a0: W32 = a0 I at the start.
        b0: W12 = b0 I at the start.
        c1: of `Rates`.
        c2: of `Rates`.
        step_size: of gradient descent on all entries of W32 and W12.
        num_steps: number of steps.
    """

    def step(state: Array, _: None) -> tuple[Array, Array]:
        a, b = state
        moved = state + step_size * jnp.stack([b, a]) * (c2 - c1 * a * b)
        return moved, moved

    start = jnp.stack([jnp.asarray(a0, jnp.result_type(float)), jnp.asarray(b0, jnp.result_type(float))])
    return jnp.concatenate([start[None], jax.lax.scan(step, start, length=num_steps)[1]])


def time_to(fraction: Scalar, start: Scalar, limit: Scalar) -> Scalar:
    """Return c2 tau at which ab reaches a fraction of its limit from a0 = b0 = start.

    Args:
        fraction: between 0 and 1.
        start: a0 = b0, with start^2 below the limit.
        limit: of ab.
    """
    return 0.5 * jnp.log(fraction / (1.0 - fraction) * (limit / jnp.asarray(start) ** 2 - 1.0))


def explained(moments: Kappas, length: int) -> Scalar:
    """Return R^2 = 1 - L* / L(0) = u* kappa_1 / m2 of the trained layer."""
    c1, c2 = rates(moments, length)
    return c2 / c1 * moments.fourth / moments.second


def explained_at_infinity(moments: Kappas) -> Scalar:
    """Return kappa_1^2 / (kappa_2 m2), the R^2 for long sequences: 1 exactly where |x| is 0 or one number."""
    return moments.fourth**2 / (moments.sixth * moments.second)
