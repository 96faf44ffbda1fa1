"""Marginal flows: the mean of the pointwise velocities through a point, which carries base to data."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.diffusion.flow_matching.pointwise import Velocity
from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.predictions import Predict
from jaxgen.typing import Sample, Scalar


def marginal_velocity(
    log_densities: Sequence[Scalar] | Float[Array, " flows"], velocities: Float[Array, "flows ..."]
) -> Float[Array, "..."]:
    """Average velocities at one point by the density with which each of their flows passes it (lemma 2).

    Args:
        log_densities: logarithm of the weight of each flow times the density of its samples at this point and time;
            weights alone do not carry the law.
        velocities: of each flow at this point and time.
    """
    shares = jax.nn.softmax(jnp.asarray(log_densities))
    return jnp.tensordot(shares, velocities, 1)


def linear_marginal_flow(predict: Predict, base_std: Scalar = 1.0) -> Velocity:
    """Build E[x0 - x1 | x_t] for straight paths from an independent base N(0, base_std^2): rectified flow.

    Args:
        predict: the exact denoiser of the data, or a network.
        base_std: in units of the data.
    """

    def velocity(x: Sample, t: Scalar) -> Sample:
        t = jnp.asarray(t, x.dtype)
        predicted = predict(x, Level(t, 1.0 - t, t * base_std))
        return predicted.x0 - base_std * predicted.noise

    return velocity


def linear_diffusion_marginal_flow(predict: Predict, sigma_q: Scalar) -> Velocity:
    """Build E[x0 - x1 | x_t] for straight paths under the diffusion coupling, E[x0 - x_t | x_t] / t.

    x_t = x0 + t (x1 - x0) has the noise t sigma_q. At the time sqrt(t) it is where DDIM is at t (claim 4); the paper's
    lemma 4 prints the velocity without the division by t.

    Args:
        predict: the exact denoiser of the data, or a network.
        sigma_q: standard deviation of x1 - x0, in units of the data.
    """

    def velocity(x: Sample, t: Scalar) -> Sample:
        t = jnp.asarray(t, x.dtype)
        return -sigma_q * predict(x, Level(t, jnp.ones_like(t), t * sigma_q)).noise

    return velocity


def diffusion_marginal_flow(predict: Predict, sigma_q: Scalar) -> Velocity:
    """Build the flow of DDIM, E[x0 - x_t | x_t] / (2 t) with the noise sigma_q sqrt(t).

    It is the marginal of `ddim_flow` under the diffusion coupling.

    Args:
        predict: the exact denoiser of the data, or a network.
        sigma_q: standard deviation of the noise at t = 1, in units of the data.
    """

    def velocity(x: Sample, t: Scalar) -> Sample:
        t = jnp.asarray(t, x.dtype)
        sigma = sigma_q * jnp.sqrt(t)
        return -sigma * predict(x, Level(t, jnp.ones_like(t), sigma)).noise / (2.0 * t)

    return velocity
