"""What a trained layer can do, law by law: R^2 = 1 - L* / L(0) against kappa_1^2 / (kappa_2 m2)."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claims import Cell
from experiments.mesa_optimization import figures, references, training
from experiments.mesa_optimization.exact import follow, gradient_at, stacked_starts
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.flows import (
    Atoms,
    Correlations,
    Independent,
    StartLaw,
    gamma_start,
    gaussian_start,
    gradient_descent,
    harmonic_sum,
    laplace_start,
    one_hot_start,
    poisson_start,
    population_correlations,
    quartic_loss,
    rademacher_start,
    require_finished,
    spiked_start,
    start_at,
    uniform_start,
)
from jaxgen.typing import Params, Scalar

LAWS: Mapping[str, StartLaw] = {
    "Gaussian": gaussian_start(),
    "Rademacher": rademacher_start(),
    "uniform": uniform_start(),
    "Laplace": laplace_start(),
    "signed Poisson": poisson_start(),
    "signed Gamma": gamma_start(),
    "spiked": spiked_start(),
    "one-hot": one_hot_start(),
}
_LENGTHS = (50, 100)
_SKEWS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
_SKEWED_LENGTHS = (5, 10, 20, 50, 100)


def measure(config: Any, run: RunDirectory) -> None:
    """Follow exact flows of eight laws to their limits, and train on sequences of each, in float64."""
    with jax.enable_x64(True):
        at_length, limits = _exactly(run)
        _infinite_length(run)
        _raw_laws(run)
        _skewness(run)
        sampled = _sampled(config, run)
    run.arrays(capability_limit=list(limits.values()), capability_sampled=np.array(list(sampled.values())))
    figures.capability(run, at_length, limits, sampled)


def _exactly(run: RunDirectory) -> tuple[dict[str, float], dict[str, float]]:
    """B8 and B10: R^2 of each law at T = 100, and for long sequences, from the flow's last loss."""
    began = time.perf_counter()
    found, limits = {}, {}
    for name, law in LAWS.items():
        explained = [_explained(name, law, length) for length in _LENGTHS]
        found[name] = explained[-1]
        # 1 / R^2 is affine in S_T / (T - 2), which goes to 0.
        x = [harmonic_sum(length) / (length - 2) for length in _LENGTHS]
        inverse = [1.0 / value for value in explained]
        limits[name] = 1.0 / (inverse[1] - x[1] * (inverse[1] - inverse[0]) / (x[1] - x[0]))
    seconds = time.perf_counter() - began
    cells = []
    for name, law in references.LAWS.items():
        wanted = law.explained(references.DIMENSION, references.LENGTH)
        cells.append(Cell(f"{name}: R^2 at T = 100", values=[found[name]], control=[wanted]))
        cells.append(Cell(f"{name}: R^2 as T grows", values=[limits[name]], control=[law.explained_at_infinity]))
    run.record("B8", cells, seconds=seconds)
    bounded = [Cell(f"{name}: R^2 as T grows", values=[limits[name]], error=1e-8) for name in references.OUTSIDE]
    run.record("B10", bounded, seconds=seconds)
    return found, limits


def _explained(name: str, law: StartLaw, length: int) -> float:
    d = references.DIMENSION
    correlations = population_correlations(law, length, d)
    limit = references.LAWS[name].limit(d, length)
    _, c2 = references.LAWS[name].rates(d, length)
    # From a start of the size of the limit no law is stiff.
    start = [(1.2 * limit**0.5, 0.8 * limit**0.5)]
    flow = require_finished(follow(correlations, stacked_starts(start, d, full=False), c2))
    return 1.0 - float(flow.loss[0]) / float(correlations.constant)


def _infinite_length(run: RunDirectory) -> None:
    """B7-limit: the learned product for long sequences, from two lengths."""
    began, d = time.perf_counter(), references.DIMENSION
    products = []
    for length in _LENGTHS:
        correlations = population_correlations(gaussian_start(), length, d)
        flow = require_finished(
            follow(correlations, stacked_starts([references.STARTS[1]], d, full=False), 3.0 * (length - 2))
        )
        products.append(float(flow.params["kq"][0, 0, 0] * flow.params["pv"][0, 0, 0]))
    x = [harmonic_sum(length) / (length - 2) for length in _LENGTHS]
    inverse = [1.0 / product for product in products]
    limit = 1.0 / (inverse[1] - x[1] * (inverse[1] - inverse[0]) / (x[1] - x[0]))
    run.record("B7-limit", [Cell("ratio as T grows", values=[limit])], seconds=time.perf_counter() - began)


def _raw_laws(run: RunDirectory) -> None:
    """B10-raw: Poisson and Gamma tokens as they are have odd moments."""
    began, cells = time.perf_counter(), []
    for name, law in (("Poisson(1)", poisson_start(symmetrised=False)), ("Gamma(2)", gamma_start(symmetrised=False))):
        gradient = gradient_at(start_at(0.3, 0.2, 3), population_correlations(law, 6, 3))
        off = [float(gradient[field][0, 1]) for field in ("kq", "pv")]
        cells.append(Cell(f"{name}: off-diagonal gradients of W32 and W12", values=off, control=[0.0, 0.0]))
    run.record("B10-raw", cells, seconds=time.perf_counter() - began)


def _skewness(run: RunDirectory) -> None:
    """Draw how large the part off the diagonals is, against the skewness of the tokens and the length."""
    d = references.DIMENSION
    start = stacked_starts([(0.3, 0.3)], d, full=False)
    shares = np.zeros((len(_SKEWS), len(_SKEWED_LENGTHS), 2))
    for i, skew in enumerate(_SKEWS):
        for j, length in enumerate(_SKEWED_LENGTHS):
            law = _two_atoms(skew)
            flow = require_finished(follow(population_correlations(law, length, d), start, float(length - 2), end=1e4))
            for k, field in enumerate(("kq", "pv")):
                shares[i, j, k] = abs(flow.params[field][0, 0, 1] / flow.params[field][0, 0, 0])
    run.arrays(skewness=_SKEWS, skewness_lengths=_SKEWED_LENGTHS, skewness_shares=shares)
    figures.skewness(run, _SKEWS, _SKEWED_LENGTHS, shares)


def _two_atoms(skew: float) -> Independent:
    """Return the two-atom law of mean 0, variance 1 and this third moment."""
    high = 0.5 * (skew + (skew**2 + 4.0) ** 0.5)
    return Independent(Atoms((high, -1.0 / high), (1.0 / (1.0 + high**2), high**2 / (1.0 + high**2))))


def _sampled(config: Any, run: RunDirectory) -> dict[str, np.ndarray]:
    """B8-sampled: train W32 and W12 on sequences of each law, and ask the population what they explain."""
    began, found, cells = time.perf_counter(), {}, []
    d, length = config.dimension, config.length
    with run.progress(len(LAWS), "training on eight laws") as progress:
        for number, (name, law) in enumerate(LAWS.items(), start=1):
            if run.stop():
                raise Interrupted
            population = population_correlations(law, length, d)
            explained = []
            for seed in range(config.seeds):
                key = training.key_of(run, f"law {name}", seed)
                correlations = training.correlations_of(
                    config, run, key, law, config.law_sequences, length=length, full=False
                )
                c1, c2 = references.LAWS[name].rates(d, length)
                params = train_sector(correlations, c1, c2)
                explained.append(1.0 - float(quartic_loss(params, population)) / float(population.constant))
            found[name] = np.array(explained)
            wanted = references.LAWS[name].explained(d, length)
            cells.append(Cell(name, values=explained, reference=wanted))
            progress.update(number)
    run.record("B8-sampled", cells, seconds=time.perf_counter() - began)
    return found


@partial(jax.jit, static_argnames=("epochs",))
def train_sector(correlations: Correlations, c1: Scalar, c2: Scalar, *, epochs: int = 300) -> Params:
    """Train W32 and W12 by gradient descent with a step in units of the curvature, until it has converged."""
    start = start_at(*(2 * (0.8 * jnp.sqrt(c2 / c1),)), correlations.cross.shape[0])
    # The curvature at the limit is 2 c2 along ab.
    loss = partial(quartic_loss, correlations=correlations)
    return gradient_descent(loss, start, optax.sgd(0.2 / c2), epochs, observe=lambda params: ()).params
