"""The laws whose denoisers are known exactly, and what every part asks of the library on them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.run_directory import Interrupted, RunDirectory
from experiments.step_by_step import references
from jaxgen.diffusion import (
    Denoiser,
    GaussianMixture,
    Level,
    Markov,
    Sampler,
    Tutorial,
    denoiser,
    diagonal_mixture,
    gaussian_mixture,
    predict_exactly,
    predict_from_points,
    sample,
    time_grid,
    trajectory,
    uniform_grid,
)
from jaxgen.typing import ArrayLike, PRNGKeys

SIGMA_Q = float(np.sqrt(references.VARIANCE_Q))


def gaussian() -> GaussianMixture:
    """Build N(0, 1)."""
    return diagonal_mixture([1.0], [[0.0]], [[1.0]])


def variance_at(time: Float[np.ndarray, "*times"]) -> Float[np.ndarray, "*times"]:
    """Return W(t) = 1 + 25 t, the variance of N(0, 1) under the noise of `time`."""
    return 1.0 + references.VARIANCE_Q * time


def line_mixture() -> GaussianMixture:
    """Build the mixture on a line whose reverse kernels are measured."""
    weights, means, stds = references.KERNEL_MIXTURE
    return diagonal_mixture(list(weights), [[mean] for mean in means], [[std**2] for std in stds])


def plane_mixture(noise: float = 0.0) -> GaussianMixture:
    """Build two correlated Gaussians in the plane, with noise of that standard deviation added to them."""
    covariances = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.05], [-0.05, 0.6]]])
    return gaussian_mixture([0.4, 0.6], [[1.0, 0.0], [-1.0, 2.0]], covariances + noise**2 * np.eye(2))


def exact(law: GaussianMixture) -> Denoiser:
    """Return the denoiser that a network would learn from infinitely many samples of `law`."""
    return denoiser(lambda x, level: predict_exactly(law, jnp.asarray(x), level))


def of_points(points: Float[ArrayLike, "count dim"]) -> Denoiser:
    """Return the denoiser of the uniform law on finitely many points."""
    return denoiser(lambda x, level: predict_from_points(jnp.asarray(points), jnp.asarray(x), level))


def tutorial_grid(steps: int, sigma_q: float = SIGMA_Q) -> Level:
    """Return the tutorial's grid: equal steps in time from 1 to 0."""
    return uniform_grid(Tutorial(sigma_q), steps)


def even_noise_grid(steps: int, sigma_q: float = SIGMA_Q) -> Level:
    """Return the grid of equal steps in sqrt(t), so in the noise, of the same path."""
    return time_grid(Tutorial(sigma_q), np.linspace(1.0, 0.0, steps + 1) ** 2)


def ends(sampler: Sampler, keys: PRNGKeys, starts: Float[Array, "count dim"], grid: Level) -> Float[Array, "count dim"]:
    """Sample from each start with its own key."""
    return jax.jit(jax.vmap(lambda key, x, grid: sample(sampler, key, x, grid), (0, 0, None)))(keys, starts, grid)


def paths(
    sampler: Sampler, keys: PRNGKeys, starts: Float[Array, "count dim"], grid: Level
) -> Float[Array, "count levels dim"]:
    """Sample from each start and keep the way, the start included."""
    follow = jax.jit(jax.vmap(lambda key, x, grid: trajectory(sampler, key, x, grid)[0], (0, 0, None)))
    return follow(keys, starts, grid)


def affine_steps(sampler: Sampler, grid: Level) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    """Return factor and standard deviation of every step of a sampler whose steps are x' = a x + b noise on a line."""
    key = jax.random.key(0)

    def step(now: Level, next: Level) -> tuple[Array, Array]:
        kernel = lambda x: sampler.step(key, Markov(x, ()), now, next)[0].x  # noqa: E731
        origin = kernel(jnp.zeros(1))
        noise = jax.random.normal(key, (1,), origin.dtype)
        return (kernel(jnp.ones(1)) - origin)[0], (origin / noise)[0]

    now, after = (Level(*(jnp.asarray(leaf)[part] for leaf in grid)) for part in (slice(-1), slice(1, None)))
    return jax.jit(jax.vmap(step))(now, after)


def doubled(function: Callable[[int], float], steps: int) -> tuple[float, float]:
    """Evaluate at `steps` and at twice as many; returns the finer value and their difference as its error bound."""
    coarse, fine = function(steps), function(2 * steps)
    return fine, abs(fine - coarse)


def stop_here(run: RunDirectory) -> None:
    """Leave the run where a signal asks for it; what is recorded stays.

    Raises:
        Interrupted: it does.
    """
    if run.stop():
        raise Interrupted
