"""What guided samplers are measured against: exact samples of the powered law, and scales that do the same (D11)."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import Cell
from experiments.guidance import clouds, figures, references
from experiments.run_directory import RunDirectory
from jaxgen.diffusion import karras_grid, laws, mixture_law, powered_particles

_STEPS = 24


def measure(config: Any, run: RunDirectory) -> None:
    """Sample powered laws by sequential Monte Carlo, and translate guidance scales between samplers."""
    _particles(config, run)
    _translation(run)


def _particles(config: Any, run: RunDirectory) -> None:
    began = time.perf_counter()
    rows: dict[tuple[float, float], dict[str, np.ndarray]] = {}
    grid = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), karras_grid(_STEPS, sigma_max=100.0))

    @jax.jit
    def moments(problem, key, scale):
        found = powered_particles(
            key,
            mixture_law(problem.conditional),
            mixture_law(problem.unconditional),
            scale,
            (config.smc_particles, 1),
            grid,
            data_std=1.0,
        )
        shares = jax.nn.softmax(found.log_weights)
        x = found.x[:, 0]
        mean = jnp.dot(shares, x)
        return mean, jnp.dot(shares, (x - mean) ** 2), found.effective_sizes[-1]

    cells = []
    with run.progress(len(references.TWO_CLUSTERS), "weighted particles") as progress:
        for number, ((mu, scale), of) in enumerate(references.TWO_CLUSTERS.items(), start=1):
            problem = clouds.two_clusters(mu)
            found = np.array(
                [moments(problem, key, jnp.float32(scale)) for key in clouds.seed_keys(run, config.seeds)], np.float64
            )
            rows[mu, scale] = {"mean": found[:, 0], "variance": found[:, 1]}
            for index, quantity in enumerate(("mean", "variance")):
                title = f"mu = {mu:g}, gamma = {scale:g}: {quantity} - powered law"
                cells.append(Cell(title, values=found[:, index] - of[2][index]))
            progress.update(number)
    run.record("D11", cells, seconds=time.perf_counter() - began)
    figures.yardstick(run, rows)


def _translation(run: RunDirectory) -> None:
    """Tell at which scales other samplers have the variance of guided DDIM on the Gaussian problem."""
    scales = np.linspace(1.05, 4.0, 60)
    with jax.enable_x64(True):
        targets = [
            ("guided DDPM", lambda g: laws.ddpm_variance(g)),
            ("PCG, K = 1", lambda g: laws.pcg_variance(g, 1)),
            ("PCG, K = 5", lambda g: laws.pcg_variance(g, 5)),
            ("powered law", lambda g: 1.0 / (g - (g - 1.0) / 2.0)),
        ]
        curves = {
            name: np.asarray(
                jax.jit(jax.vmap(lambda g, law=law: laws.translate(laws.ddim_variance(g), law, high=40.0)))(scales)
            )
            for name, law in targets
        }
    run.arrays(
        translated_from_ddim=scales, **{f"translated_{name}".replace(" ", "_"): of for name, of in curves.items()}
    )
    at = int(np.argmin(np.abs(scales - 2.0)))
    told = ", ".join(f"{name} {of[at]:.2f}" for name, of in curves.items())
    run.note(
        f"The variance of guided DDIM at scale {scales[at]:.2f} on the Gaussian problem is that of {told}: a guidance "
        "scale means nothing without its sampler."
    )
    figures.translation(run, scales, curves)
