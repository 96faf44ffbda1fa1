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
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgen.typing import Scalar

_NODES, _PANELS = 24, 12


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
    p, delta = _start(scale, variance, unconditional_variance, noise_variance, start_variance)
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
    p, delta = _start(scale, variance, unconditional_variance, noise_variance, start_variance)
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


def pcg_variance(
    scale: Scalar,
    num_steps: Scalar | int = 1,
    variance: Scalar = 1.0,
    unconditional_variance: Scalar = 2.0,
    *,
    noise_variance: Scalar | None = None,
    start_variance: Scalar | None = None,
) -> Float[Array, ""]:
    """Return the variance of PCG with K corrections at a scale, s^2 K int_0^1 z^(K-1) g(z)^(K (1 - scale)) dz.

    K = 0 is the conditional, K = 1 guided DDPM at (1 + scale) / 2, and K = infinity the powered law. By quadrature, to
    1e-12 of it.

    Args:
        scale: guidance scale gamma' of the corrections.
        num_steps: K, at least 0, any real number.
        variance: s^2, of the conditional.
        unconditional_variance: S^2.
        noise_variance: of the noise at the start; None for infinitely much.
        start_variance: of the start; None for the exact conditional marginal.

    Raises:
        ValueError: as `ddim_variance`, and if K is known and negative.
    """
    p, delta = _start(scale, variance, unconditional_variance, noise_variance, start_variance)
    if not isinstance(num_steps, Tracer) and not 0.0 <= float(num_steps) < math.inf:
        raise ValueError(f"num_steps must be at least 0 and finite, got {num_steps}")
    count = jnp.asarray(num_steps, jnp.result_type(float))
    exponent = count * (1.0 - scale)
    log_p = jnp.log(jnp.maximum(p, jnp.finfo(count.dtype).tiny))
    # In logarithms: one factor may overflow where the other vanishes.
    kept = jnp.exp(count * log_p + exponent * (jnp.log1p(delta) - jnp.log1p(delta * p)))
    start = variance * kept if start_variance is None else start_variance * p * kept
    # z = e^(-v / K): the integrand falls as e^-v at last, at first as e^(-rate v), and grows by e^gain at most between.
    safe = jnp.where(count > 0, count, 1.0)
    rate = 1.0 - (1.0 - scale) * delta / (1.0 + delta)
    gain = jnp.abs(exponent) * jnp.abs(jnp.log1p(delta))
    last = jnp.where(rate > 0, jnp.minimum(45.0 / jnp.clip(rate, 1e-3, 1.0), 45.0 + gain), 45.0 + gain)
    end = jnp.minimum(last, -safe * log_p)
    factor = lambda v: jnp.exp(-v + exponent * (jnp.log1p(delta) - jnp.log1p(delta * jnp.exp(-v / safe))))  # noqa: E731
    drawn = _integral(factor, end)
    return jnp.asarray(start + jnp.where(count > 0, variance * drawn, 0.0))


def powered_variance(scale: Scalar, variance: Scalar = 1.0, unconditional_variance: Scalar = 2.0) -> Float[Array, ""]:
    """Return the variance of p(x | c)^scale p(x)^(1 - scale), s^2 / (scale (1 - r) + r) with r = s^2 / S^2.

    Raises:
        ValueError: as `ddim_variance`, and if the law is known to have no integral.
    """
    _start(scale, variance, unconditional_variance, None, None)
    precision = scale / variance + (1.0 - scale) / unconditional_variance
    if not isinstance(precision, Tracer) and not float(precision) > 0:
        ratio = float(variance) / float(unconditional_variance)
        side = "above" if ratio < 1 else "below"
        raise ValueError(
            f"p(x | c)^scale p(x)^(1 - scale) has no integral at scale {scale}; it needs a scale {side} "
            f"{ratio / (ratio - 1):g}"
        )
    return jnp.asarray(1.0 / precision)


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
    p, delta = _start(scale, variance, unconditional_variance, noise_variance, None)
    first = jnp.sqrt(p)
    carried = first * _power(p, delta, 0.5 * (1.0 - scale)) * mean

    def pull(r: Array) -> Array:
        centre = scale * mean + (1.0 - scale) * unconditional_mean / (1.0 + delta * r**2)
        return jnp.asarray(centre * _power(r**2, delta, 0.5 * (1.0 - scale)))

    return jnp.asarray(carried + _integral(lambda r: pull(1.0 - r), 1.0 - first))


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
    p, delta = _start(scale, variance, unconditional_variance, noise_variance, None)
    carried = p * _power(p, delta, 1.0 - scale) * mean

    def pull(at: Array) -> Array:
        centre = scale * mean + (1.0 - scale) * unconditional_mean / (1.0 + delta * at)
        return jnp.asarray(centre * _power(at, delta, 1.0 - scale))

    return jnp.asarray(carried + _integral(lambda rest: pull(1.0 - rest), 1.0 - p))


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


def _start(
    scale: Scalar, variance: Scalar, unconditional: Scalar, noise: Scalar | None, start: Scalar | None
) -> tuple[Array, Array]:
    """Check what is known, and return p at the start and delta."""
    if not isinstance(scale, Tracer) and not math.isfinite(float(scale)):
        raise ValueError(f"the guidance scale must be finite, got {scale}")
    given = {"variance": variance, "unconditional_variance": unconditional}
    given |= {name: of for name, of in (("noise_variance", noise), ("start_variance", start)) if of is not None}
    for name, value in given.items():
        if not isinstance(value, Tracer) and not 0.0 < float(value) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if noise is None and start is not None:
        raise ValueError("a start_variance needs the noise_variance that it starts from, which is infinite here")
    p = jnp.zeros(()) if noise is None else jnp.asarray(variance / (variance + noise))
    return p, jnp.asarray(unconditional / variance - 1.0)


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


def _integral(function: Callable[[Array], Array], end: Scalar) -> Array:
    """Integrate over [0, end] by Gauss-Legendre rules on panels that are finer towards 0."""
    nodes, weights = _graded_rule()
    end = jnp.asarray(end)
    points = end * jnp.asarray(nodes, end.dtype)
    return end * jnp.dot(jax.vmap(function)(points), jnp.asarray(weights, end.dtype))


def _graded_rule() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    edges = (np.arange(_PANELS + 1) / _PANELS) ** 2
    widths = np.diff(edges)
    nodes = edges[:-1, None] + widths[:, None] * (points + 1.0) / 2.0
    return nodes.ravel(), (widths[:, None] * weights / 2.0).ravel()
