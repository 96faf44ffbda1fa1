"""PCG of one coordinate with Gaussian p(x | c) and p(x), in the variables of `gaussian`.

With z = s^2 / (s^2 + tau) what is left at the data of a deviation at z is z^((1 + K) / 2) g(z)^(K (1 - gamma') / 2).
Its square times the noise K d tau, and itself times the pull of the means, are integrated over z.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgen.diffusion.laws.gaussian import at_start
from jaxgen.diffusion.laws.quadrature import integral
from jaxgen.typing import Scalar

_NEGLIGIBLE = 45.0  # e^-45 is 3e-20


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
    p, delta = at_start(scale, variance, unconditional_variance, noise_variance, start_variance)
    count, exponent = _corrections(num_steps, scale)
    log_p = _log(p)
    # In logarithms: one factor may overflow where the other vanishes.
    kept = jnp.exp(count * log_p + exponent * _log_growth(p, delta))
    start = variance * kept if start_variance is None else start_variance * p * kept
    # z = e^(-v / K)
    safe = jnp.where(count > 0, count, 1.0)
    factor = lambda v: jnp.exp(-v + exponent * _log_growth(jnp.exp(-v / safe), delta))  # noqa: E731
    rate = jnp.asarray(1.0 - (1.0 - scale) * delta / (1.0 + delta))
    drawn = _fading(factor, exponent, rate, delta, -safe * log_p)
    return jnp.asarray(start + jnp.where(count > 0, variance * drawn, 0.0))


def pcg_mean(
    scale: Scalar,
    mean: Scalar,
    num_steps: Scalar | int = 1,
    unconditional_mean: Scalar = 0.0,
    variance: Scalar = 1.0,
    unconditional_variance: Scalar = 2.0,
    *,
    noise_variance: Scalar | None = None,
) -> Float[Array, ""]:
    """Return the mean of PCG with K corrections at a scale, from the conditional's own.

    1/2 int z^((K-1)/2) g(z)^(K (1 - scale) / 2) ((1 + K scale) m_c + K (1 - scale) m_u / (1 + delta z)) dz: K = 0 is
    the conditional, K = 1 guided DDPM at (1 + scale) / 2, and K = infinity the powered law.

    Args:
        scale: guidance scale gamma' of the corrections.
        mean: m_c.
        num_steps: K, at least 0, any real number.
        unconditional_mean: m_u.
        variance: s^2, of the conditional.
        unconditional_variance: S^2.
        noise_variance: of the noise at the start; None for infinitely much.

    Raises:
        ValueError: as `pcg_variance`.
    """
    p, delta = at_start(scale, variance, unconditional_variance, noise_variance, None)
    count, exponent = _corrections(num_steps, scale)
    log_p, half = _log(p), 0.5 * (1.0 + count)
    carried = jnp.exp(half * log_p + 0.5 * exponent * _log_growth(p, delta)) * mean

    def pull(v: Array) -> Array:  # z = e^(-v / half)
        z = jnp.exp(-v / half)
        centre = ((1.0 + count * scale) * mean + exponent * unconditional_mean / (1.0 + delta * z)) / (1.0 + count)
        return jnp.asarray(centre * jnp.exp(-v + 0.5 * exponent * _log_growth(z, delta)))

    rate = 1.0 - 0.5 * exponent / half * delta / (1.0 + delta)
    return jnp.asarray(carried + _fading(pull, 0.5 * exponent, rate, delta, -half * log_p))


def _corrections(num_steps: Scalar | int, scale: Scalar) -> tuple[Array, Array]:
    """Check K, and return it and K (1 - gamma'), the power of g."""
    if not isinstance(num_steps, Tracer) and not 0.0 <= float(num_steps) < math.inf:
        raise ValueError(f"num_steps must be at least 0 and finite, got {num_steps}")
    count = jnp.asarray(num_steps, jnp.result_type(float))
    return count, jnp.asarray(count * (1.0 - scale))


def _log(p: Array) -> Array:
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def _log_growth(z: Array, delta: Array) -> Array:
    return jnp.log1p(delta) - jnp.log1p(delta * z)


def _fading(function: Callable[[Array], Array], exponent: Array, rate: Array, delta: Array, end: Array) -> Array:
    """Integrate to `end`, or to where nothing is left.

    The integrand falls as e^-v at last, at first as e^(-rate v), and grows by e^gain at most between.
    """
    gain = jnp.abs(exponent * jnp.log1p(delta))
    latest = _NEGLIGIBLE + gain
    last = jnp.where(rate > 0, jnp.minimum(_NEGLIGIBLE / jnp.clip(rate, 1e-3, 1.0), latest), latest)
    return integral(function, jnp.minimum(last, end))
