"""The flow of guided DDIM for equal isotropic components: its map, the inverse, and the law that it carries noise to.

In the variables of `canonical` it is dy / dr = M_gamma(y, r) with y(0) ~ N(0, 1), whatever the path, and x_0 = s y(1).
Solved by an adaptive Runge-Kutta method of order 8 (diffrax); what could not be integrated comes back as not a number.
All of it maps over the scale and the points, and the map and its inverse differentiate backward.
"""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from jaxgen.diffusion.guidance.classifier_free import check_scale
from jaxgen.diffusion.laws.canonical import CanonicalProblem, canonical_drift, check_line
from jaxgen.diffusion.laws.density import Density, Moments, weighted_moments
from jaxgen.typing import Scalar

_POINTS = 401  # of the trapezoidal rule over the noise, exact to rounding for smooth functions
_REACH = 9.0  # how far the noise goes


def ddim_map(
    problem: CanonicalProblem, scale: Scalar, y0: Float[Array, " D"], *, rtol: float = 1e-9, atol: float = 1e-10
) -> Float[Array, " D"]:
    """Map standard normal noise to the clean sample of guided DDIM with infinitely small steps.

    Args:
        problem: the components.
        scale: guidance scale.
        y0: noise of variance 1, x / sigma where sigma is infinite.
        rtol: relative tolerance; float64 is needed for less than 1e-6.
        atol: absolute tolerance.

    Returns:
        The sample, in units of the data.

    Raises:
        ValueError: if the scale is known and not finite.
    """
    check_scale(scale)
    return jnp.asarray(problem.std * _flow(problem, scale, y0, 0.0, 1.0, rtol, atol))


def ddim_inverse(
    problem: CanonicalProblem, scale: Scalar, x: Float[Array, " D"], *, rtol: float = 1e-9, atol: float = 1e-10
) -> Float[Array, " D"]:
    """Map a clean sample to the noise from which `ddim_map` gets there; arguments and errors as there."""
    check_scale(scale)
    return _flow(problem, scale, jnp.asarray(x / problem.std), 1.0, 0.0, rtol, atol)


def ddim_log_density(
    problem: CanonicalProblem, scale: Scalar, x: Float[Array, " D"], *, rtol: float = 1e-9, atol: float = 1e-10
) -> Float[Array, ""]:
    """Return the log-density of guided DDIM at x, in any dimension, by the change of variables along its flow.

    log p(x) = log N(y(0); 0, 1) - int_0^1 div M_gamma dr - D log s, the divergence by automatic differentiation (Chen
    et al. 2018, theorem 1). Arguments and errors as `ddim_map`; integrates D + 1 variables.
    """
    check_scale(scale)
    return _log_density(problem, scale, x, rtol, atol)


@jax.jit
def _log_density(problem: CanonicalProblem, scale: Scalar, x: Array, rtol: Scalar, atol: Scalar) -> Array:
    dimension = len(x)

    def backward(r: Array, state: Array) -> Array:
        drift = lambda y: canonical_drift(problem, scale, y, r)  # noqa: E731
        divergence = jnp.trace(jax.jacfwd(drift)(state[:-1]))
        return jnp.append(drift(state[:-1]), divergence)

    state = jnp.append(jnp.asarray(x / problem.std), 0.0)
    end = _integrate(backward, state, 1.0, 0.0, rtol, atol)
    # end[-1] is the integral from 1 down to 0: minus that of the divergence.
    return jnp.asarray(jnp.sum(norm.logpdf(end[:-1])) + end[-1] - dimension * jnp.log(problem.std))


def ddim_moments(problem: CanonicalProblem, scale: Scalar) -> Moments:
    """Compute mean, variance and skewness of guided DDIM on a line, by the map and the trapezoidal rule over its noise.

    Raises:
        ValueError: if the problem has more than one dimension, or the scale is known and not finite.
    """
    check_line(problem)
    check_scale(scale)
    return _moments(problem, scale)


@jax.jit
def _moments(problem: CanonicalProblem, scale: Scalar) -> Moments:
    y = jnp.linspace(-_REACH, _REACH, _POINTS)
    x = jax.vmap(lambda start: ddim_map(problem, scale, start[None])[0])(y)
    return weighted_moments(x, jnp.exp(-0.5 * y**2))


def ddim_law(problem: CanonicalProblem, scale: Scalar, *, cells: int = 800) -> Density:
    """Compute the law of guided DDIM on a line: a cell has the probability of the noise that flows into it.

    Args:
        problem: the components.
        scale: guidance scale.
        cells: of the grid, which extends over the samples from noise between -9 and 9.

    Raises:
        ValueError: if the problem has more than one dimension, `cells` is below 2, or the scale is known and not
            finite.
    """
    check_line(problem)
    check_scale(scale)
    if cells < 2:
        raise ValueError(f"cells must be at least 2, got {cells}")
    ends = jnp.array([-_REACH, _REACH], problem.centres.dtype)
    low, high = jax.vmap(lambda y: ddim_map(problem, scale, y[None])[0])(ends)
    width = (high - low) / cells
    faces = low + width * jnp.arange(cells + 1)
    noise = jax.vmap(lambda x: ddim_inverse(problem, scale, x[None])[0])(faces)
    return Density(0.5 * (faces[1:] + faces[:-1]), jnp.diff(norm.cdf(noise)) / width)


@jax.jit
def _flow(
    problem: CanonicalProblem, scale: Scalar, start: Array, t0: Scalar, t1: Scalar, rtol: Scalar, atol: Scalar
) -> Array:
    return _integrate(lambda r, y: canonical_drift(problem, scale, y, r), start, t0, t1, rtol, atol)


def _integrate(
    slope: Callable[[Array, Array], Array], start: Array, t0: Scalar, t1: Scalar, rtol: Scalar, atol: Scalar
) -> Array:
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda r, y, _: slope(jnp.asarray(r), y)),
        diffrax.Dopri8(),
        t0=t0,
        t1=t1,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=4096,
        throw=False,
    )
    ends = solution.ys
    assert ends is not None
    return jnp.where(solution.result == diffrax.RESULTS.successful, ends[-1], jnp.nan)
