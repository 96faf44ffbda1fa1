"""The law of guided DDPM, and of PCG with any number of corrections, on a line: a Fokker-Planck equation.

In the variables of `canonical`, with v = 2 ln r from minus infinity to 0, PCG with K corrections at gamma' becomes

    dy = (r M_c / 2 + K (r M_gamma' - y) / 2) dv + sqrt(K) dw

as its steps shrink, and guided DDPM at gamma is K = 1 and gamma' = 2 gamma - 1 (Bradley & Nakkiran 2024, theorem 3). It
starts from N(0, 1). The density is carried by finite volumes with the fluxes of Scharfetter and Gummel (1969), which
are positive and of second order, and by the trapezoidal rule in v.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgen.diffusion.guidance.classifier_free import check_scale
from jaxgen.diffusion.laws.canonical import CanonicalProblem, check_line, posterior_centre
from jaxgen.diffusion.laws.density import Density, Moments, weighted_moments
from jaxgen.typing import Scalar

_FIRST_R = 1e-3  # where the law is N(its mean, 1) up to r^2


def pcg_law(
    problem: CanonicalProblem,
    scale: Scalar,
    num_steps: Scalar | int = 1,
    *,
    cells: int = 800,
    steps: int = 800,
    reach: float = 9.0,
) -> Density:
    """Compute the law of PCG in the limit of small steps, on a line.

    Args:
        problem: the components.
        scale: guidance scale gamma' of the corrections.
        num_steps: K, corrections at each level, positive; any real number.
        cells: of the grid; the error falls as their square.
        steps: of the time v; the error falls as their square.
        reach: the grid extends this far, in units of the components' standard deviation, beyond the outermost places to
            which guidance can push a component.

    Raises:
        ValueError: if the problem has more than one dimension, `cells` or `steps` is below 2, K is known and not
            positive, or the scale is known and not finite.
    """
    check_line(problem)
    if cells < 2 or steps < 2:
        raise ValueError(f"cells and steps must be at least 2, got {cells} and {steps}")
    if not isinstance(num_steps, Tracer) and not 0.0 < float(num_steps) < math.inf:
        raise ValueError(f"num_steps must be positive and finite, got {num_steps}")
    check_scale(scale)
    count = jnp.asarray(num_steps, problem.centres.dtype)
    return _solve(problem, scale, count, cells, steps, reach)


@partial(jax.jit, static_argnames=("cells", "steps"))
def _solve(
    problem: CanonicalProblem, scale: Scalar, count: Float[Array, ""], cells: int, steps: int, reach: Scalar
) -> Density:
    low, high = _ends(problem.centres[:, 0], scale, count, reach)
    width = (high - low) / cells
    y = low + width * (jnp.arange(cells) + 0.5)
    faces = low + width * jnp.arange(1, cells)
    times = jnp.asarray(np.linspace(2.0 * np.log(_FIRST_R), 0.0, steps + 1), y.dtype)

    def drift(y: Array, r: Array) -> Array:
        def at(point: Array) -> Array:
            conditional = posterior_centre(problem, problem.log_weights, point[None], r)[0]
            unconditional = posterior_centre(problem, problem.unconditional_log_weights, point[None], r)[0]
            guided = scale * conditional + (1.0 - scale) * unconditional
            return 0.5 * r * conditional + 0.5 * count * (r * guided - point)

        return jax.vmap(at)(y)

    start = drift(jnp.zeros(1, y.dtype), jnp.asarray(_FIRST_R, y.dtype))[0] / (0.5 + 0.5 * count)
    p = _evolve(jnp.exp(-0.5 * (y - start) ** 2), times, lambda r: drift(faces, r), 0.5 * count, width)
    return Density(jnp.asarray(problem.std * y), p / (jnp.sum(p) * width * problem.std))


def _evolve(
    first: Array, times: Array, drift: Callable[[Array], Array], diffusion: Array, width: Array
) -> Float[Array, " cells"]:
    """Carry masses through the times v by the trapezoidal rule, under the drift at the faces that r gives."""

    def operator(v: Array) -> tuple[Array, Array, Array]:
        return _fluxes(drift(jnp.exp(0.5 * v)), diffusion, width)

    def step(p: Array, inputs: tuple) -> tuple[Array, None]:
        now, next = inputs
        half = 0.5 * (next - now)
        below, middle, above = operator(now)
        known = p + half * _apply(below, middle, above, p)
        below, middle, above = operator(next)
        solved = jax.lax.linalg.tridiagonal_solve(-half * below, 1.0 - half * middle, -half * above, known[:, None])
        return solved[:, 0], None

    return jax.lax.scan(step, first, (times[:-1], times[1:]))[0]


def ddpm_law(problem: CanonicalProblem, scale: Scalar, **options: int | float) -> Density:
    """Compute the law of guided DDPM in the limit of small steps, on a line; options and errors as `pcg_law`."""
    return pcg_law(problem, 2.0 * scale - 1.0, 1.0, **options)  # pyright: ignore[reportArgumentType]


def pcg_moments(
    problem: CanonicalProblem, scale: Scalar, num_steps: Scalar | int = 1, *, cells: int = 800, steps: int = 800
) -> Moments:
    """Compute mean, variance and skewness of `pcg_law`, extrapolated from its cells and steps and half of each."""
    rough, fine = (
        weighted_moments(*pcg_law(problem, scale, num_steps, cells=cells // part, steps=steps // part))
        for part in (2, 1)
    )
    return Moments(*((4.0 * f - r) / 3.0 for r, f in zip(rough, fine, strict=True)))


def ddpm_moments(problem: CanonicalProblem, scale: Scalar, *, cells: int = 800, steps: int = 800) -> Moments:
    """Compute mean, variance and skewness of `ddpm_law`, as `pcg_moments` does."""
    return pcg_moments(problem, 2.0 * scale - 1.0, 1.0, cells=cells, steps=steps)


def _ends(centres: Array, scale: Scalar, count: Array, reach: Scalar) -> tuple[Array, Array]:
    """Bound where guidance can push a component, and go `reach` further.

    y is Gaussian of variance at most 1 about a mean over the past of (M_c + K M_gamma') / (1 + K). At a negative scale
    M_gamma' lies up to |scale| of the centres' extent beyond them, far out in y too; above 1 it is back among them
    there, and half of scale - 1 has more than enough room.
    """
    low, high = jnp.min(centres), jnp.max(centres)
    away = jnp.maximum(-scale, 0.0) * count / (1.0 + count)
    pushed = (0.5 * jnp.maximum(scale - 1.0, 0.0) + away) * (high - low)
    return low - pushed - reach, high + pushed + reach


def _fluxes(drift: Array, diffusion: Array, width: Array) -> tuple[Array, Array, Array]:
    """Build the tridiagonal operator of -d(b p)/dy + D d2p/dy2 with no flux through the ends.

    The flux through a face is D / h (B(-q) p_left - B(q) p_right) with q = b h / D and B(q) = q / (e^q - 1).
    """
    q = drift * width / diffusion
    safe = jnp.where(jnp.abs(q) < 1e-4, 1.0, q)
    bernoulli = jnp.where(jnp.abs(q) < 1e-4, 1.0 - q / 2.0 + q**2 / 12.0, safe / jnp.expm1(safe))
    right, left = diffusion / width**2 * bernoulli, diffusion / width**2 * (bernoulli + q)
    zero = jnp.zeros(1, q.dtype)
    out = jnp.concatenate([left, zero]) + jnp.concatenate([zero, right])
    return jnp.concatenate([zero, left]), -out, jnp.concatenate([right, zero])


def _apply(below: Array, middle: Array, above: Array, p: Array) -> Array:
    zero = jnp.zeros(1, p.dtype)
    return below * jnp.concatenate([zero, p[:-1]]) + middle * p + above * jnp.concatenate([p[1:], zero])
