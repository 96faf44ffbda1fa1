"""How Gaussian one reverse step is, and what many of them lose (E1, E2, E3)."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.claims import Cell
from experiments.run_directory import RunDirectory
from experiments.step_by_step import figures, problems, references
from jaxgen.diffusion import (
    GaussianMixture,
    Level,
    reverse_kernel_kl,
    reverse_log_density,
    reverse_mean,
    score,
    tutorial_ddpm,
)

SHOWN = (1.0, 0.5, 0.25)
"""Steps whose kernels are drawn, as in figure 2: sigma, in units of the data."""
_STDS = (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625)
_SLOPE = slice(3, 5)  # .05 and .025, between which the references are given
_EXACT = (2.0, 1.0, 0.5, 0.25, 0.1, 0.05)
_STEP_COUNTS = (10, 100, 1000)
# The values are of order 1 before they cancel to the divergence, in float64.
_ROUNDING = 1e-14


def measure(config: Any, run: RunDirectory) -> None:
    """Measure one reverse step by quadrature and DDPM's whole path step by step, in float64."""
    del config
    with jax.enable_x64(True):
        _kernels(run)
        problems.stop_here(run)
        divergences, errors = _divergences(run), _means(run)
        problems.stop_here(run)
        path, samples = _paths(run)
    figures.divergences(run, np.array(_STDS), divergences, errors, np.array(_STEP_COUNTS), path, samples)


def _kernels(run: RunDirectory) -> None:
    """Draw the reverse kernels of three step sizes over their Gaussians."""
    law, z = problems.line_mixture(), jnp.array([references.KERNEL_POINT])
    offsets = jnp.linspace(-4.0, 4.0, 401)

    @jax.jit
    @jax.vmap
    def densities(std: Float[jax.Array, ""]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = z + std * offsets
        standardised = (x - reverse_mean(law, z, std)) / std
        kernel = jnp.exp(jax.vmap(lambda x: reverse_log_density(law, x, z, std))(x[:, None]))
        return x, kernel, jnp.exp(-0.5 * standardised**2) / (jnp.sqrt(2.0 * jnp.pi) * std)

    found = [np.asarray(of) for of in densities(jnp.array(SHOWN))]
    shown = dict(zip(SHOWN, zip(*found, strict=True), strict=True))
    run.arrays(kernel_sigma=SHOWN, kernel_x=found[0], kernel_density=found[1], kernel_gaussian=found[2])
    figures.reverse_kernels(run, shown)
    gaps = ", ".join(f"{np.abs(k - g).max() / g.max():.1%} at sigma = {std:g}" for std, (_, k, g) in shown.items())
    run.note(
        "One reverse step from z = 0.4, between the two bumps of the law: the smaller the step, the more the kernel "
        f"looks like the Gaussian of its own mean and of variance sigma^2. They differ by {gaps} of the peak."
    )


def _divergences(run: RunDirectory) -> Float[np.ndarray, " stds"]:
    """E1: the KL of one step against its size, its exponent, its coefficient and its values."""
    began = time.perf_counter()
    law, z = problems.line_mixture(), jnp.array([references.KERNEL_POINT])
    stds = np.array(_STDS)
    divergence = jax.jit(jax.vmap(lambda std: reverse_kernel_kl(law, z, std, reverse_mean(law, z, std))))
    found, seconds = np.asarray(divergence(jnp.asarray(stds))), time.perf_counter() - began
    run.record("E1", [_exponent("KL from sigma = .05 to .025", stds[_SLOPE], found[_SLOPE])], seconds=seconds)
    # The next term is of order sigma^2: it falls out of the finer of two values plus a third of what halving changed.
    scaled = found / stds**4
    limits = scaled[1:] + (scaled[1:] - scaled[:-1]) / 3.0
    limit, error = limits[-1], abs(limits[-1] - limits[-2])
    run.record("E1-limit", [Cell("KL / sigma^4 at sigma = 0", values=[limit], error=error)], seconds=seconds)
    cells = [
        Cell(f"sigma = {std:g}", values=[found[_STDS.index(std)]], control=[value], rtol=1e-9 if std == 0.1 else 1e-6)
        for std, value in references.KERNEL_KL.items()
    ]
    run.record("E1-values", cells, seconds=seconds)
    run.arrays(step_sigma=stds, step_kl=found)
    return found


def _means(run: RunDirectory) -> Float[np.ndarray, " stds"]:
    """E2: the mean of the reverse kernel by quadrature, by Tweedie, and with the score of the earlier time."""
    began = time.perf_counter()
    law, z = problems.line_mixture(), jnp.array([references.KERNEL_POINT])
    clean = Level(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))

    @jax.jit
    @jax.vmap
    def errors(std: Float[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
        truth = _mean_by_quadrature(law, z, std)
        return (reverse_mean(law, z, std) - truth)[0], (z + std**2 * score(law, z, clean) - truth)[0]

    exact = np.asarray(errors(jnp.asarray(_EXACT))[0])
    cells = [Cell(f"sigma = {std:g}", values=[value]) for std, value in zip(_EXACT, exact, strict=True)]
    run.record("E2-exact", cells, seconds=time.perf_counter() - began)
    found = np.abs(np.asarray(errors(jnp.asarray(_STDS))[1]))
    seconds = time.perf_counter() - began
    cell = _exponent("mean error from sigma = .05 to .025", np.array(_STDS)[_SLOPE], found[_SLOPE])
    run.record("E2", [cell], seconds=seconds)
    cells = [
        Cell(f"sigma = {std:g}", values=[found[_STDS.index(std)]], control=[value], rtol=5e-4)
        for std, value in references.KERNEL_MEAN_ERROR.items()
    ]
    run.record("E2-values", cells, seconds=seconds, reason="The references are given to four digits.")
    run.arrays(step_mean_error=found)
    return found


def _mean_by_quadrature(
    law: GaussianMixture, z: Float[jax.Array, " 1"], std: Float[jax.Array, ""]
) -> Float[jax.Array, " 1"]:
    """Integrate x p(x | z) over a grid, whose error falls exponentially in its spacing."""
    x = z[0] + jnp.linspace(-12.0, 12.0, 4001) * jnp.minimum(std, 1.0)
    density = jnp.exp(jax.vmap(lambda x: reverse_log_density(law, x, z, std))(x[:, None]))
    return ((x * density).sum() / density.sum())[None]


def _paths(run: RunDirectory) -> tuple[Float[np.ndarray, " counts"], Float[np.ndarray, " counts"]]:
    """E3: the KL of DDPM's paths and of its samples to the truth, from factor and noise of each of its steps."""
    began = time.perf_counter()
    path, marginal = (np.array(of) for of in zip(*(_losses(steps) for steps in _STEP_COUNTS), strict=True))
    seconds = time.perf_counter() - began
    chosen = [_STEP_COUNTS.index(100), _STEP_COUNTS.index(1000)]
    durations = 1.0 / np.array(_STEP_COUNTS)
    run.record("E3", [_exponent("path, dt = .01 to .001", durations[chosen], path[chosen])], seconds=seconds)
    bound = [
        Cell(f"{steps} steps: samples less paths", values=[marginal[i]], control=[path[i]], error=1e-12)
        for i, steps in enumerate(_STEP_COUNTS)
    ]
    run.record("E3-bound", bound, seconds=seconds)
    cells = [
        Cell(f"{steps} steps: {name}", values=[found[_STEP_COUNTS.index(steps)]], control=[value], rtol=3e-6)
        for name, found, of in (("path", path, references.PATH_KL), ("samples", marginal, references.MARGINAL_KL))
        for steps, value in of.items()
    ]
    run.record("E3-values", cells, seconds=seconds, reason="The references are given to six digits.")
    run.arrays(kl_steps=_STEP_COUNTS, kl_path=path, kl_samples=marginal)
    run.note(
        f"One step loses a KL of order sigma^4 = dt^2, and its mean is off as much if the score of the wrong time is "
        f"taken. DDPM's whole path of N steps loses {path[-1]:.2g} at N = {_STEP_COUNTS[-1]}, in proportion to 1 / N; "
        f"its samples only {marginal[-1]:.2g}, in proportion to 1 / N^2."
    )
    return path, marginal


def _losses(steps: int) -> tuple[float, float]:
    """Return the KL of DDPM's path and of its samples on N(0, 1) from the exact law at t = 1, in nats."""
    grid = problems.tutorial_grid(steps)
    factors, stds = (
        np.asarray(of) for of in problems.affine_steps(tutorial_ddpm(problems.exact(problems.gaussian())), grid)
    )
    noisy = problems.variance_at(np.asarray(grid.time))
    now, next = noisy[:-1], noisy[1:]
    truth = references.VARIANCE_Q / steps * next / now  # variance of the true kernel, whose mean is next / now x
    drift = (factors - next / now) ** 2 * now / truth
    excess = stds**2 / truth
    path = 0.5 * float(np.sum(excess - 1.0 - np.log(excess) + drift))
    variance = now[0]
    for factor, std in zip(factors, stds, strict=True):
        variance = factor**2 * variance + std**2
    return path, references.gaussian_kl(float(variance))


def _exponent(name: str, x: Sequence[float] | np.ndarray, values: np.ndarray) -> Cell:
    """Make a cell of the exponent between two points, with the error that rounding gives it."""
    x = np.asarray(x)
    error = 2.0 * _ROUNDING / values.min() / abs(np.log(x[1] / x[0]))
    return Cell(name, values=values, x=x, error=float(error))
