"""How nearly Gaussian one reverse step is: the Kullback-Leibler divergences behind DDPM's correctness."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.mixtures import GaussianMixture, log_density, score
from jaxgen.typing import Scalar

_NODES = 80  # of Gauss-Hermite quadrature: exact to rounding for kernels narrower than the components


def reverse_mean(law: GaussianMixture, z: Float[Array, " D"], std: Scalar) -> Float[Array, " D"]:
    """Return E[x | x + noise = z] for noise of standard deviation `std`, by Tweedie: z + std^2 grad log p_noisy(z).

    Args:
        law: of x, at the earlier time.
        z: the point at the later time.
        std: of the noise between them, in units of the data.

    Source: Nakkiran et al. 2024, claim 1; exact for any size of step.
    """
    return z + std**2 * score(law, z, _with_noise(z, std))


def reverse_log_density(
    law: GaussianMixture, x: Float[Array, " D"], z: Float[Array, " D"], std: Scalar
) -> Float[Array, ""]:
    """Return log p(x | x + noise = z), the reverse kernel, by Bayes; arguments as `reverse_mean`."""
    dimension = z.shape[-1]
    forward = -0.5 * jnp.sum((z - x) ** 2) / std**2 - 0.5 * dimension * jnp.log(2.0 * jnp.pi * std**2)
    clean = _with_noise(z, jnp.zeros_like(jnp.asarray(std, z.dtype)))
    return log_density(law, x, clean) + forward - log_density(law, z, _with_noise(z, std))


def reverse_kernel_kl(
    law: GaussianMixture, z: Float[Array, " 1"], std: Scalar, mean: Float[Array, " 1"]
) -> Float[Array, ""]:
    """Compute KL(N(mean, std^2) || p(x | x + noise = z)) in one dimension, by Gauss-Hermite quadrature.

    Lemma 1 of Nakkiran et al. 2024: it is of the order std^4 at the right mean, where its coefficient is F''(z)^2 / 4
    with F = log p, and of the order std^2 at mean = z.

    Args:
        law: of x, at the earlier time.
        z: the point at the later time.
        std: of the noise between them, and of the Gaussian.
        mean: of the Gaussian, for example `reverse_mean`.

    Raises:
        ValueError: if `law` has more than one dimension.
    """
    if law.means.shape[-1] != 1:
        raise ValueError(f"the divergence is computed in one dimension, the law has {law.means.shape[-1]}")
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    points, weights = (jnp.asarray(array, z.dtype) for array in (points, weights / weights.sum()))

    def log_ratio(point: Float[Array, ""]) -> Float[Array, ""]:
        gaussian = -0.5 * point**2 - 0.5 * jnp.log(2.0 * jnp.pi * std**2)
        return gaussian - reverse_log_density(law, mean + std * point[None], z, std)

    return jnp.dot(weights, jax.vmap(log_ratio)(points))


def ddpm_path_kl(variance: Scalar, sigma_q: Scalar, steps: int) -> Float[Array, ""]:
    """Compute KL(path of DDPM || truth) for data N(0, variance), from the exact law at t = 1: O(1 / steps).

    Each step has the right mean and the variance sigma_q^2 dt instead of the posterior's, which is smaller by
    W(t - dt) / W(t) with W(t) = variance + sigma_q^2 t (Nakkiran et al. 2024, section 2.1; the chain rule is exact).

    Args:
        variance: of the data.
        sigma_q: standard deviation of the noise at t = 1.
        steps: number of steps N, dt = 1 / N.
    """
    noisy = _noisy_variances(variance, sigma_q, steps)
    excess = noisy[1:] / noisy[:-1]
    return 0.5 * jnp.sum(excess - 1.0 - jnp.log(excess))


def ddpm_marginal_kl(variance: Scalar, sigma_q: Scalar, steps: int) -> Float[Array, ""]:
    """Compute KL(law of DDPM's samples || data) for data N(0, variance): O(1 / steps^2), far below `ddpm_path_kl`.

    Arguments as there.
    """
    ratio = tutorial_ddpm_variance(variance, sigma_q, steps) / variance
    return jnp.asarray(0.5 * (ratio - 1.0 - jnp.log(ratio)))


def tutorial_ddpm_variance(
    variance: Scalar, sigma_q: Scalar, steps: int, start: Scalar | None = None
) -> Float[Array, ""]:
    """Compute the variance of the samples of `tutorial_ddpm` for data N(0, variance).

    s^4 (V_1 / W(1)^2 + sum_k sigma_q^2 dt / W(k dt)^2), with the start's variance V_1, by default the exact one.
    """
    noisy = _noisy_variances(variance, sigma_q, steps)
    first = noisy[-1] if start is None else start
    drawn = jnp.sum(sigma_q**2 / steps / noisy[:-1] ** 2)
    return jnp.asarray(variance**2 * (first / noisy[-1] ** 2 + drawn))


def _noisy_variances(variance: Scalar, sigma_q: Scalar, steps: int) -> Float[Array, " times"]:
    return jnp.asarray(variance + sigma_q**2 * jnp.arange(steps + 1) / steps)


def _with_noise(z: Float[Array, " D"], std: Scalar) -> Level:
    std = jnp.asarray(std, z.dtype)
    return Level(jnp.zeros_like(std), jnp.ones_like(std), std)
