"""Sampling p(x | c)^scale p(x)^(1 - scale), the law that guided samplers are taken for, by weighted particles.

Guided samplers draw from other laws (Bradley & Nakkiran 2024). Particles that carry weights draw from the powered one:
exactly so, as their number grows, where log-densities are known (`powered_particles`), and in the limit of small steps
from predictions alone (`feynman_kac_particles`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from jaxgen.diffusion.grids import check_grid
from jaxgen.diffusion.guidance import check_scale, combine
from jaxgen.diffusion.levels import Level, shrinkage
from jaxgen.diffusion.mixtures import GaussianMixture, log_density, predict_exactly
from jaxgen.diffusion.predictions import Predict
from jaxgen.diffusion.samplers.ddpm import NoiseStd, forward_std, posterior_std
from jaxgen.typing import PRNGKey, Sample, Scalar

# Maps (noise, x, memory, now, next) of one particle to its next x, its memory, and the log of its weight's factor.
_Move: TypeAlias = Callable[[Array, Array, PyTree, Level, Level], tuple[Array, PyTree, Array]]


class ExactLaw(NamedTuple):
    """A law that is known at every noise level.

    Attributes:
        log_density: maps (x, level) to log p(x), scalar, normalised or not.
        predict: maps (x, level) to the Prediction (E[x0 | x], E[noise | x]).
    """

    log_density: Callable[[Sample, Level], Scalar]
    predict: Predict


class Particles(NamedTuple):
    """Weighted samples: means under the law are sums with the weights exp(log_weights).

    Attributes:
        x: `[particles, ...]`, in units of the data.
        log_weights: `[particles]`; the weights sum to 1. `systematic_ancestors` makes equal weights of them.
        effective_sizes: `[steps]`, 1 / sum of squared weights after each step: how many equal weights do as well.
        log_normalizer: estimate of the logarithm of the integral of p(x | c)^scale p(x)^(1 - scale); its exponential
            is without bias for `powered_particles`.
    """

    x: Float[Array, "particles ..."]
    log_weights: Float[Array, " particles"]
    effective_sizes: Float[Array, " steps"]
    log_normalizer: Float[Array, ""]


def mixture_law(mixture: GaussianMixture) -> ExactLaw:
    """Read a Gaussian mixture as a law that is known at every level."""
    return ExactLaw(
        lambda x, level: log_density(mixture, x, level), lambda x, level: predict_exactly(mixture, x, level)
    )


def reverse_std(data_std: Sample | float) -> NoiseStd:
    """Return the standard deviation of p(x' | x) for Gaussian data of standard deviation `data_std`, for `ddpm`.

    By Bayes' rule its square is (1 - r^2) sigma^2 (alpha'^2 d^2 + sigma'^2) / (alpha^2 d^2 + sigma^2) with
    r = (sigma' / alpha') / (sigma / alpha): `posterior_std` at d = 0, alpha' / alpha times `forward_std` at
    d = infinity. For d > 0 it is not 0 where `next` is clean.

    Args:
        data_std: d, a scalar or of the shape of a sample.
    """

    def std(now: Level, next: Level) -> Sample:
        spread, spread_next = ((level.alpha * data_std) ** 2 + level.sigma**2 for level in (now, next))
        return now.sigma * jnp.sqrt((1.0 - shrinkage(now, next) ** 2) * spread_next / spread)

    return std


def powered_particles(
    key: PRNGKey,
    conditional: ExactLaw,
    unconditional: ExactLaw,
    scale: Scalar,
    shape: tuple[int, ...],
    grid: Level,
    *,
    data_std: Sample | float,
    proposal_scale: Scalar | None = None,
    resample_below: Scalar = 0.5,
    dtype: Any = jnp.float32,
) -> Particles:
    """Draw weighted particles of the normalised p(x | c)^scale p(x)^(1 - scale) at the last level of `grid`.

    A sequential Monte Carlo sampler (Del Moral, Doucet & Jasra 2006, section 3). The target pi of each level is the
    powered law there, with an exponent that rises from 1 in noise to `scale` at the end. Particles move by DDPM with
    `reverse_std(data_std)` as K(x' | x), the backward kernel is the forward noising q(x | x'), and a step multiplies a
    weight by pi'(x') q(x | x') / (pi(x) K(x' | x)). So particles converge to the law as their number grows, whatever
    the grid, the proposals and `data_std`, on which only the evenness of the weights depends: 5 steps may do.

    The default proposals are unguided. Until particles are resampled, their weights then follow
    (p(x | c) / p(x))^(scale - 1), which is bounded: it is (p(c | x) / p(c))^(scale - 1). Guided proposals miss part of
    the law, and the few particles there weigh far too much. Nor would an exponent of `scale` in noise do: between
    clusters at +-2, noised p(x | c)^5 p(x)^-4 is centred at 10.

    Args:
        key: consumed; step n uses `fold_in(key, n + 1)`.
        conditional: p(x | c).
        unconditional: p(x).
        scale: exponent; 0 is unconditional, 1 conditional. The powered law must be normalisable at every level.
        shape: `[particles, ...]`, the number of particles and the shape of one.
        grid: falling levels `[steps + 1]`. It may end at sigma = 0 where the law has a density there. It starts with
            particles of N(0, sigma^2 + alpha^2 data_std^2), weighted, so that it need not start at pure noise.
        data_std: standard deviation of p(x | c), or a little more; a scalar or of the shape of a sample. Weights have
            heavy tails where it is too small: as it goes to 0 (then K is `ddpm` with `posterior_std`) their variance
            is infinite if a step more than halves (sigma / alpha)^2.
        proposal_scale: guidance scale of the moves, min(scale, 1) by default.
        resample_below: particles are resampled before a step if their effective number is below this share: 0 never,
            1 always.
        dtype: of the particles.

    Raises:
        ValueError: if `shape` is empty or has no particle, a known `scale` is not finite, a known `data_std` is not
            positive, a known `resample_below` lies outside [0, 1], or the known grid does not fall.

    >>> from jaxgen.diffusion import diagonal_mixture, karras_grid
    >>> narrow, wide = (mixture_law(diagonal_mixture([1.0], [[0.0]], [[variance]])) for variance in (1.0, 2.0))
    >>> draw = jax.jit(lambda key, grid: powered_particles(key, narrow, wide, 3.0, (4000, 1), grid, data_std=1.0))
    >>> drawn = draw(jax.random.key(0), karras_grid(10))
    >>> variance = jnp.exp(drawn.log_weights) @ drawn.x[:, 0] ** 2
    >>> print(f"{variance:.1f}")  # 1 / (3 - 2 / 2); guided DDPM has .39, guided DDIM .25
    0.5
    """
    _check(shape, scale, resample_below, grid)
    if not isinstance(data_std, Tracer) and not np.all(np.asarray(data_std) > 0):
        raise ValueError(f"data_std must be positive, got {data_std}; take the standard deviation of the powered law")
    grid = _in_dtype(grid, dtype)
    first, last = (jax.tree.map(lambda leaf, at=at: leaf[at], grid) for at in (0, -1))
    proposal_scale = jnp.minimum(scale, 1.0) if proposal_scale is None else proposal_scale
    std, data_variance = reverse_std(data_std), jnp.mean(jnp.square(jnp.asarray(data_std, dtype)))

    def share(level: Level) -> Array:
        signal = level.alpha**2 * data_variance
        return jnp.asarray(signal / (signal + level.sigma**2))

    def log_target(x: Array, level: Level) -> Array:
        exponent = 1.0 + (scale - 1.0) * share(level) / share(last)
        given, free = conditional.log_density(x, level), unconditional.log_density(x, level)
        return jnp.asarray(exponent * given + (1.0 - exponent) * free)

    def move(noise: Array, x: Array, log_now: Array, now: Level, next: Level) -> tuple[Array, Array, Array]:
        predicted = combine(conditional.predict(x, now), unconditional.predict(x, now), proposal_scale)
        proposed, backward = std(now, next), forward_std(now, next)
        x_next = _reverse_mean(x, predicted.x0, now, next) + proposed * noise
        log_next = log_target(x_next, next)
        residual = (x - now.alpha / next.alpha * x_next) / backward
        # log q(x | x') - log K(x' | x): the factors 2 pi cancel.
        log_ratio = jnp.sum((noise**2 - residual**2) / 2 + jnp.log(proposed / backward))
        return x_next, log_next, log_next - log_now + log_ratio

    noise = jax.random.normal(jax.random.fold_in(key, 0), shape, dtype)
    start_std = jnp.sqrt((first.alpha * data_std) ** 2 + first.sigma**2) * jnp.ones(shape[1:], dtype)
    x = start_std[None] * noise
    log_start = jax.vmap(log_target, in_axes=(0, None))(x, first)
    log_drawn = -jnp.sum(_flat(noise**2) / 2, axis=1) - jnp.sum(jnp.log(jnp.sqrt(2 * jnp.pi) * start_std))
    return _run(key, x, log_start, log_start - log_drawn, grid, move, resample_below)


def feynman_kac_particles(
    key: PRNGKey,
    conditional: Predict,
    unconditional: Predict,
    scale: Scalar,
    x: Float[Array, "particles ..."],
    grid: Level,
    *,
    resample_below: Scalar = 0.5,
    std: NoiseStd = posterior_std,
) -> Particles:
    """Follow guided DDPM with the weights that correct it to p(x | c)^scale p(x)^(1 - scale) as steps go to 0.

    Feynman-Kac correctors (Skreta et al. 2025). For x / alpha, noised as dX = dW in the time T = (sigma / alpha)^2,
    each log p obeys d log p / dT = (laplacian + |gradient|^2) / 2. Along the guided reverse SDE, whose drift is the
    score of the powered law, all terms but one cancel: d log w = scale (scale - 1) / 2 |s_c - s_u|^2 (-dT), which is
    scale (scale - 1) / 2 (1 - r^2) |e_c - e_u|^2 for a step, with the two predicted noises e. First order in the step,
    and as good as the predictions, which must be the scores of noised laws for the law to be the powered one. At large
    scales most of the law descends from few particles: see how even the weights stay in `effective_sizes`.

    Args:
        key: step n uses `fold_in(key, n + 1)`.
        conditional: predicts from (x, level), given the condition; of one particle.
        unconditional: predicts from (x, level).
        scale: exponent and guidance scale; 0 is unconditional and 1 conditional sampling, with equal weights.
        x: the start, `[particles, ...]`, drawn from the first level, as by `prior`.
        grid: falling levels `[steps + 1]`.
        resample_below: as in `powered_particles`.
        std: standard deviation of the noise in a step of DDPM.

    Returns:
        The particles at the last level. `log_normalizer` counts from the first level, where it is 0 for pure noise.

    Raises:
        ValueError: as `powered_particles`.
    """
    _check(x.shape, scale, resample_below, grid)

    def move(noise: Array, x: Array, memory: tuple, now: Level, next: Level) -> tuple[Array, tuple, Array]:
        given, free = conditional(x, now), unconditional(x, now)
        x_next = _reverse_mean(x, combine(given, free, scale).x0, now, next) + std(now, next) * noise
        share = (1.0 - shrinkage(now, next) ** 2) * jnp.sum((given.noise - free.noise) ** 2)
        return x_next, memory, jnp.asarray(scale * (scale - 1.0) / 2 * share)

    return _run(key, x, (), jnp.zeros(len(x), x.dtype), _in_dtype(grid, x.dtype), move, resample_below)


def systematic_ancestors(key: PRNGKey, log_weights: Float[Array, " particles"]) -> Int[Array, " particles"]:
    """Choose which particles to keep, by systematic resampling: particle i floor(n w_i) or ceil(n w_i) times.

    Args:
        key: consumed; one uniform number shifts all n equidistant positions.
        log_weights: of n particles, normalised or not.

    Returns:
        Indices in rising order: `x[ancestors]` have equal weights, and the same means on average.
    """
    count = len(log_weights)
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    total = cumulative[-1]
    positions = (jnp.arange(count) + jax.random.uniform(key, (), total.dtype)) * total / count
    # Strictly below the total, and on the right: so that no particle of weight 0 is ever chosen.
    return jnp.searchsorted(cumulative, jnp.minimum(positions, jnp.nextafter(total, 0.0)), side="right")


def _run(
    key: PRNGKey, x: Array, memory: PyTree, log_weights: Array, grid: Level, move: _Move, resample_below: Scalar
) -> Particles:
    """Move, weight and resample the particles along the grid; `memory` is kept for each particle."""
    count = len(x)

    def normalized(log_weights: Array) -> tuple[Array, Array]:
        total = jax.nn.logsumexp(log_weights)
        return log_weights - total, total

    def body(carry: tuple, inputs: tuple) -> tuple[tuple, Array]:
        (x, memory, log_weights, log_normalizer), (n, now, next) = carry, inputs
        choose_key, noise_key = jax.random.split(jax.random.fold_in(key, n))
        due = _effective_size(log_weights) < resample_below * count
        kept = jnp.where(due, systematic_ancestors(choose_key, log_weights), jnp.arange(count))
        x, memory = jax.tree.map(lambda leaf: leaf[kept], (x, memory))
        log_weights = jnp.where(due, -jnp.log(jnp.asarray(count, x.dtype)), log_weights)
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        x, memory, factors = jax.vmap(move, in_axes=(0, 0, 0, None, None))(noise, x, memory, now, next)
        log_weights, total = normalized(log_weights + factors)
        return (x, memory, log_weights, log_normalizer + total), _effective_size(log_weights)

    log_weights, total = normalized(log_weights)
    now, next = (jax.tree.map(lambda leaf, at=at: leaf[at], grid) for at in (slice(None, -1), slice(1, None)))
    carry = (x, memory, log_weights, total - jnp.log(jnp.asarray(count, x.dtype)))
    carry, sizes = jax.lax.scan(body, carry, (1 + jnp.arange(len(now.sigma)), now, next))
    return Particles(carry[0], carry[2], sizes, carry[3])


def _effective_size(log_weights: Array) -> Array:
    return jnp.exp(-jax.nn.logsumexp(2.0 * log_weights))


def _reverse_mean(x: Array, x0: Sample, now: Level, next: Level) -> Array:
    """Return the mean of q(x' | x, x0), which is that of p(x' | x) at x0 = E[x0 | x]."""
    r = shrinkage(now, next)
    return jnp.asarray(r * next.sigma / now.sigma * x + next.alpha * (1.0 - r**2) * x0)


def _in_dtype(grid: Level, dtype: Any) -> Level:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), grid)


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1)


def _check(shape: tuple[int, ...], scale: Scalar, resample_below: Scalar, grid: Level) -> None:
    if not shape or shape[0] < 1:
        raise ValueError(f"shape must be [particles, ...] with at least 1 particle, got {tuple(shape)}")
    check_scale(scale)
    if not isinstance(resample_below, Tracer) and not 0.0 <= float(resample_below) <= 1.0:
        raise ValueError(f"resample_below must lie in [0, 1], got {resample_below}; 0 never resamples, 1 always does")
    check_grid(grid)
    if not any(isinstance(leaf, Tracer) for leaf in grid):
        angles = np.arctan2(np.asarray(grid.sigma), np.asarray(grid.alpha))
        if angles[0] < angles[-1]:
            raise ValueError("the grid must fall from noise to data, but its last level is the noisiest: reverse it")
