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


def ddpm_step(law, now, next, large=False):
    """The Gaussian q(x' | x, x0) of the chain x = a_ts x' + N(0, s_ts^2), with x0 replaced by its mean.

    Large: with the variance s_ts^2 of the chain for that of the Gaussian.
    """
    (_, alpha, sigma), (_, alpha_next, sigma_next) = now, next
    gain, offset = denoised(law, alpha, sigma)
    scale = alpha / alpha_next
    variance = sigma**2 - scale**2 * sigma_next**2
    of_x, of_x0 = scale * sigma_next**2 / sigma**2, alpha_next * variance / sigma**2
    std = np.sqrt(variance) * (1.0 if large else sigma_next / sigma)
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


def ancestral_step(law, now, next, eta=1.0):
    """k-diffusion's sample_euler_ancestral on y = x / a with noise rho = s / a, whose denoised is x0."""
    (_, alpha, sigma), (_, alpha_next, sigma_next) = now, next
    rho, rho_next = sigma / alpha, sigma_next / alpha_next
    up = min(rho_next, eta * np.sqrt(rho_next**2 * (rho**2 - rho_next**2) / rho**2))
    down = np.sqrt(rho_next**2 - up**2)
    gain, offset = denoised(law, alpha, sigma)
    eye, share = np.eye(len(gain)), (down - rho) / rho
    matrix = eye / alpha + share * (eye / alpha - gain)
    return Affine(alpha_next * matrix, -alpha_next * share * offset, (alpha_next * up * eye,))


def average(step, slope, now, next):
    """A trapezoid x' = x + h / 2 (d(x) + d'(x + h d(x))) from the Euler `step` and the affine slopes h d and h d'."""
    (first, constant), (again, other) = slope(now), slope(next)
    eye = np.eye(len(first))
    return Affine(eye + 0.5 * (first + again @ step.matrix), 0.5 * (constant + again @ step.shift + other))


def heun_step(law, now, next):
    """Algorithm 1 of Karras et al. (2022) without churn, on y = x / a in rho = s / a: dy / drho = noise."""
    if next[2] == 0 or now[1] == 0:
        return ddim_step(law, now, next)
    (_, alpha, sigma), (_, alpha_next, sigma_next) = now, next
    length = sigma_next / alpha_next - sigma / alpha

    def slope(level):  # of y, in y
        matrix, shift = noise_of(law, level[1], level[2])
        return length * level[1] * matrix, length * shift

    matrix, shift = slope(now)
    matrix, shift, _ = average(Affine(np.eye(len(matrix)) + matrix, shift), slope, now, next)
    return Affine(alpha_next / alpha * matrix, alpha_next * shift)


def heun_flow_step(law, now, next, rates):
    """The trapezoid of the velocity a_dot x0 + s_dot e in time; Euler's step to sigma = 0."""
    euler = euler_step(law, now, next, rates)
    if next[2] == 0:
        return euler

    def slope(level):
        (alpha_rate, sigma_rate), duration = rates(level[0]), next[0] - now[0]
        (gain, offset), (slant, constant) = denoised(law, *level[1:]), noise_of(law, *level[1:])
        return duration * (alpha_rate * gain + sigma_rate * slant), duration * (
            alpha_rate * offset + sigma_rate * constant
        )

    return average(euler, slope, now, next)


def euler_maruyama_step(law, now, next, coefficients):
    """x' = x - dt (f x - g^2 score) + g sqrt(dt) z with f and g^2 at the old time."""
    drift, diffusion = coefficients(now[0])
    (slope, level), duration = score(law, *now[1:]), now[0] - next[0]
    eye = np.eye(len(slope))
    matrix = (1.0 - duration * drift) * eye + duration * diffusion * slope
    return Affine(matrix, duration * diffusion * level, (np.sqrt(diffusion * duration) * eye,))


def multistep_walk(law, grid, stochastic=False):
    """The maps of DPM-Solver++ (2M), or of its stochastic form, on pairs (x, the x0 of the step before).

    h = l' - l with l = ln(a / s), D = x0 + h / (2 h_before) (x0 - x0_before):
    x' = s' / s x - a' (e^-h - 1) D, or s' / s e^-h x + a' (1 - e^-2h) D + s' sqrt(1 - e^-2h) z.
    """
    maps, before = [], np.inf
    for (_, alpha, sigma), (_, alpha_next, sigma_next) in levels(grid):
        with np.errstate(divide="ignore"):
            length = np.log(alpha_next) - np.log(sigma_next) - np.log(alpha) + np.log(sigma)
        share = 0.5 * length / before if np.isfinite(length) else 0.0
        before = length
        gain, offset = denoised(law, alpha, sigma)
        eye, zero = np.eye(len(gain)), np.zeros_like(gain)
        kept, pull = sigma_next / sigma, -alpha_next * np.expm1(-length)
        noises = ()
        if stochastic:
            kept, pull = kept * np.exp(-length), -alpha_next * np.expm1(-2 * length)
            noises = (np.vstack([sigma_next * np.sqrt(-np.expm1(-2 * length)) * eye, zero]),)
        of_x, of_before = kept * eye + pull * (1 + share) * gain, -pull * share * eye
        matrix = np.block([[of_x, of_before], [gain, zero]])
        maps.append(Affine(matrix, np.concatenate([pull * (1 + share) * offset, offset]), noises))
    return maps


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
    return [step(now, next) for now, next in levels(grid)]


def levels(grid):
    """The pairs of neighbours in a grid, each (time, alpha, sigma)."""
    return itertools.pairwise(zip(*(np.asarray(leaf, np.float64).tolist() for leaf in grid), strict=True))


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
