"""The guidance-scale translator: at which scale does one sampler do what another does at its own?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgen.typing import Scalar

_HALVINGS = 60


def translate(
    value: Scalar, statistic: Callable[[Scalar], Scalar], *, low: Scalar = 1.0, high: Scalar = 50.0
) -> Float[Array, ""]:
    """Find the guidance scale at which a statistic of a sampler's law has a given value, by bisection.

    Args:
        value: what it is to be, for example the variance of guided DDIM at the scale that is to be translated.
        statistic: maps a scale to a number, monotone between the ends: for example `ddpm_variance`.
        low: lowest scale considered.
        high: highest scale considered.

    Returns:
        The scale, to 1e-16 of the range, differentiable in `value` and in what `statistic` closes over. Where it is
        traced and there is none between the ends, it is not a number.

    Raises:
        ValueError: if all is known and the statistic does not take the value between the ends.

    >>> from jaxgen.diffusion import laws
    >>> print(round(float(translate(laws.ddim_variance(2.0), laws.ddpm_variance)), 3))
    2.345
    """
    ends = jnp.asarray(low), jnp.asarray(high)
    values = [jnp.asarray(statistic(end)) for end in ends]
    known = [value, *values]
    if not any(isinstance(item, Tracer) for item in known):
        least, most = sorted(float(item) for item in values)
        if not least <= float(value) <= most:
            raise ValueError(
                f"no scale between {low} and {high} gives {float(value):.6g}: the statistic goes from {least:.6g} to "
                f"{most:.6g}; widen the range of scales or ask for another value"
            )
    rising, dtype = values[1] > values[0], jnp.result_type(float)
    inside = (jnp.minimum(*values) <= value) & (value <= jnp.maximum(*values))

    def bisect(off: Callable[[Array], Array], _: Array) -> Array:
        def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (bracket[0] + bracket[1])
            beyond = (off(middle) > 0) == rising
            return jnp.where(beyond, bracket[0], middle), jnp.where(beyond, middle, bracket[1])

        left, right = jax.lax.fori_loop(0, _HALVINGS, halve, tuple(end.astype(dtype) for end in ends))
        return 0.5 * (left + right)

    # The bisection itself has no derivative; the implicit function theorem gives that of the scale.
    scale = jax.lax.custom_root(
        lambda scale: jnp.asarray(statistic(scale) - value, dtype),
        jnp.asarray(0.5 * (low + high), dtype),
        bisect,
        lambda slope, y: y / slope(jnp.ones_like(y)),
    )
    return jnp.where(inside, scale, jnp.nan)


def pcg_scale_of_ddpm(scale: Scalar) -> Scalar:
    """Return the scale 2 gamma - 1 at which PCG with one correction is guided DDPM at gamma, whatever the data.

    In the limit of small steps (Bradley & Nakkiran 2024, theorem 3).
    """
    return 2.0 * scale - 1.0


def ddpm_scale_of_pcg(scale: Scalar) -> Scalar:
    """Return the scale (1 + gamma') / 2 at which guided DDPM is PCG with one correction at gamma'."""
    return 0.5 * (1.0 + scale)
