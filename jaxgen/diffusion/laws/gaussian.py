"""Guided sampling of one coordinate with p(x | c) = N(m_c, s^2) and p(x) = N(m_u, S^2), in closed form.

Every path reduces to noise of variance tau added to x / alpha. With p = s^2 / (s^2 + tau), which is 1 at the data, and
delta = S^2 / s^2 - 1, everything is a power of g(p) = (1 + delta) / (1 + delta p). DDIM integrates
dx = -score d tau / 2, DDPM dx = -score d tau + dw, and PCG with K corrections
dx = -(score_c + K score_guided) d tau / 2 + sqrt(K) dw.

`noise_variance` is tau at the start, None for infinitely much; `start_variance` is that of the start, None for the
exact s^2 + tau. The formulas hold for any ratio of the variances and any real scale. At S^2 = 2 s^2 and infinite noise
they are those of Bradley & Nakkiran 2024, theorems 1 and 2, 2^(1 - gamma) and
(2 - 2^(2 - 2 gamma)) / (2 gamma - 1).
"""

import math

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxgen.diffusion.guidance.classifier_free import check_scale
from jaxgen.diffusion.laws.quadrature import integral
from jaxgen.typing import Scalar


def ddim_variance(
    scale: Scalar,
    variance: Scalar = 1.0,
    unconditional_variance: Scalar = 2.0,
    *,
    noise_variance: Scalar | None = None,
    start_variance: Scalar | None = None,
) -> Float[Array, ""]:
    """Return the variance of guided DDIM, s^2 (s^2 / S^2)^(gamma - 1) from infinite noise.

    Args:
        scale: guidance scale gamma.
        variance: s^2, of the conditional.
        unconditional_variance: S^2.
        noise_variance: of the noise at the start; None for infinitely much.
        start_variance: of the start; None for the exact conditional marginal.

    Raises:
        ValueError: if a variance is known and not positive, or the scale is known and not finite.
    """
    p, delta = at_start(scale, variance, unconditional_variance, noise_variance, start_variance)
    multiplier = _power(p, delta, 1.0 - scale)
    return jnp.asarray(variance * multiplier if start_variance is None else start_variance * p * multiplier)


def ddpm_variance(
    scale: Scalar,
    variance: Scalar = 1.0,
    unconditional_variance: Scalar = 2.0,
    *,
    noise_variance: Scalar | None = None,
    start_variance: Scalar | None = None,
) -> Float[Array, ""]:
    """Return the variance of guided DDPM; arguments and errors as `ddim_variance`.

    From infinite noise s^2 (1 - r^(2 gamma - 1)) / ((2 gamma - 1) (1 - r)) with r = s^2 / S^2, written so that r = 1
    and gamma = 1/2 are no exceptions.
    """
    p, delta = at_start(scale, variance, unconditional_variance, noise_variance, start_variance)
    kept = p * _power(p, delta, 2.0 * (1.0 - scale))
    start = variance * kept if start_variance is None else start_variance * p * kept
    # int k^2 d tau = s^2 S^2 (L / d) (1 - e^(-q L)) / (q L) with d = S^2 - s^2, q = 2 gamma - 1, and L the growth of
    # ln((s^2 + tau) / (S^2 + tau)).
    reach = (1.0 - p) / (1.0 + delta * p)
    length = jnp.log1p(delta * reach)
    drawn = (
        (1.0 + delta) * reach * _log1p_ratio(delta * reach) * _expm1_ratio(jnp.asarray((2.0 * scale - 1.0) * length))
    )
    return jnp.asarray(start + variance * drawn)


def normalisable(scale: Scalar, variance: Scalar = 1.0, unconditional_variance: Scalar = 2.0) -> Bool[Array, ""]:
    """Say whether p(x | c)^scale p(x)^(1 - scale) has an integral: whether scale (1 - r) + r > 0, r = s^2 / S^2.

    Raises:
        ValueError: as `ddim_variance`.
    """
    at_start(scale, variance, unconditional_variance, None, None)
    return jnp.asarray(_precision(scale, variance, unconditional_variance) > 0)


def powered_variance(scale: Scalar, variance: Scalar = 1.0, unconditional_variance: Scalar = 2.0) -> Float[Array, ""]:
    """Return the variance of p(x | c)^scale p(x)^(1 - scale), s^2 / (scale (1 - r) + r) with r = s^2 / S^2.

    Where all is traced and the law has no integral, it is not a number.

    Raises:
        ValueError: as `ddim_variance`, and if the law is known to have no integral.
    """
    exists = normalisable(scale, variance, unconditional_variance)
    if not isinstance(exists, Tracer) and not exists:
        ratio = float(variance) / float(unconditional_variance)
        side = "above" if ratio < 1 else "below"
        raise ValueError(
            f"p(x | c)^scale p(x)^(1 - scale) has no integral at scale {scale}; it needs a scale {side} "
            f"{ratio / (ratio - 1):g}"
        )
    precision = _precision(scale, variance, unconditional_variance)
    return jnp.where(exists, 1.0 / jnp.where(exists, precision, 1.0), jnp.nan)


def powered_mean(
    scale: Scalar,
    mean: Scalar,
    unconditional_mean: Scalar = 0.0,
    variance: Scalar = 1.0,
    unconditional_variance: Scalar = 2.0,
) -> Float[Array, ""]:
    """Return the mean of p(x | c)^scale p(x)^(1 - scale); errors as `powered_variance`."""
    pull = scale * mean / variance + (1.0 - scale) * unconditional_mean / unconditional_variance
    return powered_variance(scale, variance, unconditional_variance) * pull


def ddim_mean(
    scale: Scalar,
    mean: Scalar,
    unconditional_mean: Scalar = 0.0,
    variance: Scalar = 1.0,
    unconditional_variance: Scalar = 2.0,
    *,
    noise_variance: Scalar | None = None,
) -> Float[Array, ""]:
    """Return the mean of guided DDIM from the conditional's own; it overshoots, and comes back at large scales.

    int over r of (gamma m_c + (1 - gamma) m_u / (1 + delta r^2)) g(r^2)^((1 - gamma) / 2), with r = sqrt(p).

    Args:
        scale: guidance scale gamma.
        mean: m_c.
        unconditional_mean: m_u.
        variance: s^2, of the conditional.
        unconditional_variance: S^2.
        noise_variance: of the noise at the start; None for infinitely much.

    Raises:
        ValueError: as `ddim_variance`.
    """
    p, delta = at_start(scale, variance, unconditional_variance, noise_variance, None)
    first = jnp.sqrt(p)
    carried = first * _power(p, delta, 0.5 * (1.0 - scale)) * mean

    def pull(r: Array) -> Array:
        centre = scale * mean + (1.0 - scale) * unconditional_mean / (1.0 + delta * r**2)
        return jnp.asarray(centre * _power(r**2, delta, 0.5 * (1.0 - scale)))

    return jnp.asarray(carried + integral(lambda r: pull(1.0 - r), 1.0 - first))


def ddpm_mean(
    scale: Scalar,
    mean: Scalar,
    unconditional_mean: Scalar = 0.0,
    variance: Scalar = 1.0,
    unconditional_variance: Scalar = 2.0,
    *,
    noise_variance: Scalar | None = None,
) -> Float[Array, ""]:
    """Return the mean of guided DDPM from the conditional's own, m_c (2 - 2^(1 - gamma)) at S^2 = 2 s^2, m_u = 0.

    int over p of (gamma m_c + (1 - gamma) m_u / (1 + delta p)) g(p)^(1 - gamma); arguments and errors as `ddim_mean`.
    """
    p, delta = at_start(scale, variance, unconditional_variance, noise_variance, None)
    carried = p * _power(p, delta, 1.0 - scale) * mean

    def pull(at: Array) -> Array:
        centre = scale * mean + (1.0 - scale) * unconditional_mean / (1.0 + delta * at)
        return jnp.asarray(centre * _power(at, delta, 1.0 - scale))

    return jnp.asarray(carried + integral(lambda rest: pull(1.0 - rest), 1.0 - p))


def ddim_interval_variance(
    scale: Scalar, low: Scalar, high: Scalar, variance: Scalar = 1.0, unconditional_variance: Scalar = 2.0
) -> Float[Array, ""]:
    """Return the variance of DDIM guided where low < sigma / alpha <= high, from the exact conditional law.

    Args:
        scale: guidance scale inside the interval.
        low: lower end of the noise's standard deviation.
        high: upper end.
        variance: s^2, of the conditional.
        unconditional_variance: S^2.

    Raises:
        ValueError: as `ddim_variance`, and if the ends are known and 0 <= low < high does not hold.
    """
    inner, outer = _inside(low, high, variance, unconditional_variance)
    grown = ddim_variance(scale, *inner, noise_variance=outer)
    return jnp.asarray(grown * variance / inner[0])


def ddpm_interval_variance(
    scale: Scalar, low: Scalar, high: Scalar, variance: Scalar = 1.0, unconditional_variance: Scalar = 2.0
) -> Float[Array, ""]:
    """Return the variance of DDPM guided where low < sigma / alpha <= high; as `ddim_interval_variance`."""
    inner, outer = _inside(low, high, variance, unconditional_variance)
    grown = ddpm_variance(scale, *inner, noise_variance=outer)
    # Below the interval DDPM of the conditional forgets all but (s^2 / (s^2 + low^2))^2 of what is off.
    return jnp.asarray(variance + (grown - inner[0]) * (variance / inner[0]) ** 2)


def _inside(low: Scalar, high: Scalar, variance: Scalar, unconditional_variance: Scalar) -> tuple[tuple, Scalar]:
    if not any(isinstance(end, Tracer) for end in (low, high)) and not 0.0 <= float(low) < float(high) < math.inf:
        raise ValueError(f"a guidance interval needs 0 <= low < high, both finite, got {low} and {high}")
    return (variance + low**2, unconditional_variance + low**2), high**2 - low**2


def at_start(
    scale: Scalar, variance: Scalar, unconditional: Scalar, noise: Scalar | None, start: Scalar | None
) -> tuple[Array, Array]:
    """Check what is known, and return p at the start and delta."""
    check_scale(scale)
    given = {"variance": variance, "unconditional_variance": unconditional}
    given |= {name: of for name, of in (("noise_variance", noise), ("start_variance", start)) if of is not None}
    for name, value in given.items():
        if not isinstance(value, Tracer) and not 0.0 < float(value) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if noise is None and start is not None:
        raise ValueError("a start_variance needs the noise_variance that it starts from, which is infinite here")
    p = jnp.zeros(()) if noise is None else jnp.asarray(variance / (variance + noise))
    return p, jnp.asarray(unconditional / variance - 1.0)


def _precision(scale: Scalar, variance: Scalar, unconditional_variance: Scalar) -> Array:
    return jnp.asarray(scale / variance + (1.0 - scale) / unconditional_variance)


def _power(p: Array, delta: Array, exponent: Scalar) -> Array:
    """Return g(p)^exponent with g(p) = (1 + delta) / (1 + delta p)."""
    return jnp.exp(exponent * (jnp.log1p(delta) - jnp.log1p(delta * p)))


def _log1p_ratio(z: Array) -> Array:
    """Return ln(1 + z) / z, 1 at z = 0."""
    small = jnp.abs(z) < 1e-5
    safe = jnp.where(small, 1.0, z)
    return jnp.where(small, 1.0 - z / 2.0 + z**2 / 3.0, jnp.log1p(safe) / safe)


def _expm1_ratio(z: Array) -> Array:
    """Return (1 - e^-z) / z, 1 at z = 0."""
    small = jnp.abs(z) < 1e-5
    safe = jnp.where(small, 1.0, z)
    return jnp.where(small, 1.0 - z / 2.0 + z**2 / 6.0, -jnp.expm1(-safe) / safe)
