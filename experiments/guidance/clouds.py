"""Problems whose scores are known, and clouds of samples drawn on them by the samplers of the library."""

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.diffusion import (
    Denoiser,
    GaussianMixture,
    Level,
    Predict,
    Prediction,
    Sampler,
    ddim,
    ddpm,
    denoiser,
    diagonal_mixture,
    guide,
    karras_grid,
    pcg,
    predict_exactly,
    sample,
    score,
)
from jaxgen.typing import ArrayLike, PRNGKey, Sample, Scalar

CleanScore: TypeAlias = Callable[[Any], Any]
Method: TypeAlias = Callable[[Denoiser, Denoiser, CleanScore], Sampler]
# At this noise the start is forgotten: what is left of it is of the order of 1 / SIGMA_MAX.
SIGMA_MAX = 1000.0
EDGES = np.linspace(-8.0, 10.0, 181)


class Problem(NamedTuple):
    """A condition, and the law without it."""

    conditional: GaussianMixture
    unconditional: GaussianMixture


class Statistics(NamedTuple):
    """What is kept of clouds: arrays `[seeds, scales]`, the last two with one more axis.

    Attributes:
        mean: in units of the data.
        variance: in squared units of the data.
        skewness: dimensionless.
        shares: below -1.5, between, and above 1.5, `[..., 3]`.
        counts: of samples between the `EDGES`, `[..., bins]`.
    """

    mean: np.ndarray
    variance: np.ndarray
    skewness: np.ndarray
    shares: np.ndarray
    counts: np.ndarray


def gaussian_problem(condition: float = 1.0) -> Problem:
    """Build c ~ N(0, 1) and x | c ~ N(c, 1), at the given c."""
    return Problem(*(diagonal_mixture([1.0], [[mean]], [[variance]]) for mean, variance in ((condition, 1), (0.0, 2))))


def two_clusters(mu: float) -> Problem:
    """Build the clusters N(-mu, 1) and N(mu, 1) in equal shares, conditioned on the second."""
    return _clusters([-mu, mu], [0.0, 1.0], [0.5, 0.5])


def three_clusters() -> Problem:
    """Build the clusters N(-3, 1), N(0, 1), N(3, 1) in equal shares, conditioned on shares of (.05, .15, .80)."""
    return _clusters([-3.0, 0.0, 3.0], [0.05, 0.15, 0.80], [1 / 3, 1 / 3, 1 / 3])


def _clusters(means: list, conditional: list, unconditional: list) -> Problem:
    place = [[mean] for mean in means], [[1.0]] * len(means)
    return Problem(diagonal_mixture(conditional, *place), diagonal_mixture(unconditional, *place))


def by_ddim(conditional: Denoiser, guided: Denoiser, clean_score: CleanScore) -> Sampler:
    """Sample by DDIM under guidance."""
    del conditional, clean_score
    return ddim(guided)


def by_ddpm(conditional: Denoiser, guided: Denoiser, clean_score: CleanScore) -> Sampler:
    """Sample by DDPM under guidance."""
    del conditional, clean_score
    return ddpm(guided)


class ByPCG(NamedTuple):
    """Sample by PCG, with corrections of the clean samples too: these laws have a density."""

    corrections: int = 1

    def __call__(self, conditional: Denoiser, guided: Denoiser, clean_score: CleanScore) -> Sampler:
        """Build the sampler."""
        return pcg(conditional, guided, self.corrections, clean_score=clean_score)


def cloud_predictor(mixture: GaussianMixture) -> Callable[[Sample, Level], Prediction]:
    """Lift the exact prediction of one sample to a cloud `[particles, D]`, which a sampler takes for one sample."""
    if mixture.means.shape[-1] == 1:
        return lambda x, level: _predict_on_line(mixture, x, level)
    return lambda x, level: jax.vmap(lambda one: predict_exactly(mixture, one, level))(x)


def _predict_on_line(mixture: GaussianMixture, x: Sample, level: Level) -> Prediction:
    """Do what `predict_exactly` does for many points of a line at once.

    With one array for each component, and no axis of components, whose short sums would take ten times as long.
    """
    parts = []
    for k in range(len(mixture.log_weights)):
        mean, clean = mixture.means[k, 0], mixture.eigenvalues[k, 0]
        variance, offset = level.alpha**2 * clean + level.sigma**2, x - level.alpha * mean
        log_joint = mixture.log_weights[k] - 0.5 * (offset**2 / variance + jnp.log(variance))
        parts.append((log_joint, mean + level.alpha * clean / variance * offset, level.sigma / variance * offset))
    largest = functools.reduce(jnp.maximum, (log_joint for log_joint, _, _ in parts))
    shares = [jnp.exp(log_joint - largest) for log_joint, _, _ in parts]
    total = sum(shares)
    x0, noise = (sum(share * part[i] for share, part in zip(shares, parts, strict=True)) / total for i in (1, 2))
    return Prediction(jnp.asarray(x0), jnp.asarray(noise))


def cloud_score(problem: Problem, scale: Scalar, level: Level) -> CleanScore:
    """Return the guided score of a cloud at `level`, sigma = 0 included."""

    def guided(one: Array) -> Array:
        return jnp.asarray(
            scale * score(problem.conditional, one, level) + (1 - scale) * score(problem.unconditional, one, level)
        )

    return jax.vmap(guided)


@partial(jax.jit, static_argnames=("method", "particles"))
def draw_cloud(
    method: Method, problem: Problem, key: PRNGKey, scale: Scalar, grid: Level, *, particles: int
) -> Float[Array, "particles D"]:
    """Draw a cloud with exact scores."""
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], grid)
    clean = Level(0.0 * first.sigma, jnp.ones_like(first.sigma), 0.0 * first.sigma)
    predictors = cloud_predictor(problem.conditional), cloud_predictor(problem.unconditional)
    start = (particles, problem.conditional.means.shape[-1])
    mean = jnp.broadcast_to(jnp.exp(problem.conditional.log_weights) @ problem.conditional.means, start)
    return run_sampler(method, predictors, cloud_score(problem, scale, clean), mean, key, scale, grid)


def run_sampler(
    method: Method,
    predictors: tuple[Predict, Predict],
    clean_score: CleanScore,
    mean: Float[Array, "particles D"],
    key: PRNGKey,
    scale: Scalar,
    grid: Level,
) -> Float[Array, "particles D"]:
    """Run a sampler once, from noise around `mean`, whose shape the cloud has: the first level is all noise.

    The predictors are the conditional and the unconditional one.
    """
    conditional, unconditional = predictors
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], grid)
    sampler = method(denoiser(conditional), denoiser(guide(conditional, unconditional, scale)), clean_score)
    noise_key, sampler_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, mean.shape)
    return jnp.asarray(sample(sampler, sampler_key, first.alpha * mean + first.sigma * noise, grid))


def summary(x: Float[Array, " particles"]) -> tuple:
    """Return mean, variance, skewness, shares and counts of a cloud on a line, as `Statistics` holds them."""
    centred = x - jnp.mean(x)
    variance = jnp.sum(centred**2) / (len(x) - 1)
    shares = jnp.histogram(x, jnp.array([-jnp.inf, -1.5, 1.5, jnp.inf]))[0] / len(x)
    counts = jnp.histogram(x, jnp.asarray(EDGES, x.dtype))[0]
    return jnp.mean(x), variance, jnp.mean(centred**3) / variance**1.5, shares, counts


@partial(jax.jit, static_argnames=("method", "particles"))
def _summaries(method: Method, problem: Problem, key: PRNGKey, scales: Array, grid: Level, *, particles: int) -> tuple:
    # Every scale has the same noise: their differences are those of the scales.
    return jax.vmap(lambda scale: summary(draw_cloud(method, problem, key, scale, grid, particles=particles)[:, 0]))(
        scales
    )


def measure_clouds(
    run: RunDirectory,
    method: Method,
    problem: Problem,
    scales: Sequence[float],
    steps: int,
    *,
    particles: int,
    seeds: int,
) -> Statistics:
    """Draw a cloud for each seed and scale on the grid of Karras et al. and keep its statistics."""
    grid = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), karras_grid(steps, sigma_max=SIGMA_MAX))
    rows = [
        _summaries(method, problem, key, jnp.asarray(scales, jnp.float32), grid, particles=particles)
        for key in seed_keys(run, seeds)
    ]
    return Statistics(
        *(np.stack([np.asarray(part, np.float64) for part in column]) for column in zip(*rows, strict=True))
    )


def extrapolated(
    run: RunDirectory,
    method: Method,
    problem: Problem,
    scales: Sequence[float],
    steps: int,
    *,
    particles: int,
    seeds: int,
) -> Statistics:
    """Measure clouds with `steps` and twice as many, and extrapolate to small steps at first order.

    The counts are those of the finer run.
    """
    coarse, fine = (
        measure_clouds(run, method, problem, scales, count, particles=particles, seeds=seeds)
        for count in (steps, 2 * steps)
    )
    mean, variance, skewness, shares = (2 * f - c for c, f in zip(coarse[:-1], fine[:-1], strict=True))
    return Statistics(mean, variance, skewness, shares, fine.counts)


def seed_keys(run: RunDirectory, seeds: int) -> Iterator[PRNGKey]:
    """Yield the key of each seed, stopping where a signal asks for it."""
    for seed in range(seeds):
        if run.stop():
            raise Interrupted
        yield jax.random.fold_in(jax.random.key(run.seed), seed)


def density_of(counts: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Turn counts `[bins]` into the middles of the bins and a density, of the samples within the edges."""
    width = EDGES[1] - EDGES[0]
    counts = np.asarray(counts, np.float64)
    return (EDGES[1:] + EDGES[:-1]) / 2, counts / (counts.sum() * width)
