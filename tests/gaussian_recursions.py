"""What each sampler does to Gaussian data, written out in numpy float64 from the published formulas.

The exact denoiser of a Gaussian is affine, so every kernel is an affine map x' = A x + b + sum_k B_k z_k. A `law` is a
list of (weight, Gaussian) whose scores and posterior means are added up: [(1, c)] is the conditional, and
[(g, c), (1 - g, u)] is guidance at scale g.
"""

import itertools
from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]


class Affine(NamedTuple):
    matrix: np.ndarray  # [D, D]
    shift: np.ndarray  # [D]
    noises: tuple = ()  # of [D, D], in the order of the draws


def mixed(conditional, unconditional, scale):
    return [(scale, conditional), (1.0 - scale, unconditional)]


def score(law, alpha, sigma):
    """The gradient of log N(alpha m, alpha^2 C + sigma^2 I), as (matrix, shift)."""
    matrix = shift = 0.0
    for weight, (mean, covariance) in law:
        precision = np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(len(mean)))
        matrix, shift = matrix - weight * precision, shift + weight * precision @ (alpha * mean)
    return matrix, shift


def denoised(law, alpha, sigma):
    """E[x0 | x] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m), as (matrix, shift)."""
    matrix = shift = 0.0
    for weight, (mean, covariance) in law:
        gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(len(mean)))
        matrix, shift = matrix + weight * gain, shift + weight * (mean - alpha * gain @ mean)
    return matrix, shift


def noise_of(law, alpha, sigma):
    """e = (x - alpha E[x0 | x]) / sigma, and 0 at sigma = 0."""
    gain, offset = denoised(law, alpha, sigma)
    if sigma == 0:
        return 0 * gain, 0 * offset
    return (np.eye(len(gain)) - alpha * gain) / sigma, -alpha * offset / sigma


def ddim_step(law, now, next, eta=0.0):
    """x' = a' x0 + sqrt(s'^2 - c^2) e + c z with c^2 = eta^2 (s'^2 / s^2) (s^2 - (a / a')^2 s'^2)."""
    (_, alpha, sigma), (_, alpha_next, sigma_next) = now, next
    (gain, offset), (slope, level) = denoised(law, alpha, sigma), noise_of(law, alpha, sigma)
    fresh = eta**2 * (sigma_next / sigma) ** 2 * (sigma**2 - (alpha / alpha_next * sigma_next) ** 2) if eta else 0.0
    kept = np.sqrt(max(sigma_next**2 - fresh, 0.0))
    noises = (np.sqrt(fresh) * np.eye(len(gain)),) if eta else ()
    return Affine(alpha_next * gain + kept * slope, alpha_next * offset + kept * level, noises)


def ddpm_step(law, now, next):
    """The Gaussian q(x' | x, x0) of the chain x = a_ts x' + N(0, s_ts^2), with x0 replaced by its mean."""
    (_, alpha, sigma), (_, alpha_next, sigma_next) = now, next
    gain, offset = denoised(law, alpha, sigma)
    scale = alpha / alpha_next
    variance = sigma**2 - scale**2 * sigma_next**2
    of_x, of_x0 = scale * sigma_next**2 / sigma**2, alpha_next * variance / sigma**2
    std = np.sqrt(variance) * sigma_next / sigma
    eye = np.eye(len(gain))
    return Affine(of_x * eye + of_x0 * gain, of_x0 * offset, (std * eye,))


def euler_step(law, now, next, rates):
    """x' = x + (t' - t) (a_dot x0 + s_dot e)."""
    (time, alpha, sigma), duration = now, next[0] - now[0]
    alpha_rate, sigma_rate = rates(time)
    (gain, offset), (slope, level) = denoised(law, alpha, sigma), noise_of(law, alpha, sigma)
    return Affine(
        np.eye(len(gain)) + duration * (alpha_rate * gain + sigma_rate * slope),
        duration * (alpha_rate * offset + sigma_rate * level),
    )


def path_epsilon(now, next):
    """a'^2 (rho^2 - rho'^2)."""
    return next[1] ** 2 * ((now[2] / now[1]) ** 2 - (next[2] / next[1]) ** 2)


def langevin_step(law, now, next, count=1, epsilon=path_epsilon, clean=False):
    """x <- x + epsilon / 2 score(x) + sqrt(epsilon) z at the next level, `count` times; nothing at sigma = 0."""
    eye, epsilon = np.eye(len(law[0][1].mean)), epsilon(now, next)
    whole = Affine(eye, np.zeros(len(eye)))
    if next[2] == 0 and not clean:
        return whole._replace(noises=(0.0 * eye,) * count)
    slope, level = score(law, next[1], next[2])
    for _ in range(count):
        whole = then(whole, Affine(eye + epsilon / 2 * slope, epsilon / 2 * level, (np.sqrt(epsilon) * eye,)))
    return whole


def then(first, second):
    return Affine(
        second.matrix @ first.matrix,
        second.matrix @ first.shift + second.shift,
        tuple(second.matrix @ noise for noise in first.noises) + second.noises,
    )


def walk(step, grid):
    """The maps of all steps of a grid; `step` is one of the above with its law and options bound."""
    levels = list(zip(*(np.asarray(leaf, np.float64).tolist() for leaf in grid), strict=True))
    return [step(now, next) for now, next in itertools.pairwise(levels)]


def replay(maps, x, draws):
    """Run the maps from `x` with the noise of each, `draws[n][k]` of shape [D]."""
    for n, (matrix, shift, noises) in enumerate(maps):
        x = matrix @ x + shift + sum((noise @ draws[n][k] for k, noise in enumerate(noises)), np.zeros_like(x))
    return x


def moments(maps, mean, covariance):
    """The mean and covariance at the end, from those at the start."""
    for matrix, shift, noises in maps:
        mean = matrix @ mean + shift
        covariance = matrix @ covariance @ matrix.T + sum((noise @ noise.T for noise in noises), 0 * covariance)
    return mean, covariance
