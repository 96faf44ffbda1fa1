"""What a trained layer can do, law by law: R^2 = 1 - L* / L(0) against kappa_1^2 / (kappa_2 m2)."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claims import Cell
from experiments.keys import key_of
from experiments.mesa_optimization import figures_beyond, population, references, training
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
_LENGTHS = (50, 100, 200)
_MORE = {"Laplace": 4}  # what its loss scatters by are twelfth moments
_SKEWS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
_SKEWED_LENGTHS = (5, 10, 20, 50, 100)


class Capability(NamedTuple):
    """What the layer explains of one law, over `_LENGTHS` and beyond.

    Attributes:
        explained: R^2 at each length, from the last loss of the flow.
        product: ab at each length.
        limit: R^2 for long sequences, extrapolated from the shortest and the longest.
        between: R^2 that the extrapolation gives for the length between them.
    """

    explained: list[float]
    product: list[float]
    limit: float
    between: float


def measure(config: Any, run: RunDirectory) -> None:
    """Follow exact flows of eight laws to their limits, in float64."""
    del config
    with jax.enable_x64(True):
        _exactly(run)
        _raw_laws(run)
        _skewness(run)


def measure_samples(config: Any, run: RunDirectory) -> None:
    """Train on sequences of each law, and draw the table of capabilities, in float64."""
    with jax.enable_x64(True):
        sampled = _sampled(config, run)
    run.arrays(capability_laws=list(LAWS), capability_sampled=np.array(list(sampled.values())))
    figures_beyond.capability(config, run, sampled)


def _exactly(run: RunDirectory) -> None:
    """B7-limit, B8 and B10: the limits of the flows, and what they tend to for long sequences."""
    began = time.perf_counter()
    found = {name: _capability(name, law) for name, law in LAWS.items()}
    cells, d = [], references.DIMENSION
    for name, law in references.LAWS.items():
        of = found[name]
        wanted = [law.explained(d, length) for length in _LENGTHS]
        cells.append(Cell(f"{name}: R^2 at T = 50, 100, 200", values=of.explained, control=wanted))
        cells.append(Cell(f"{name}: extrapolated to T = 100", values=[of.between], control=[of.explained[1]]))
        cells.append(Cell(f"{name}: extrapolated", values=[of.limit], control=[law.explained_at_infinity]))
    seconds = time.perf_counter() - began
    run.record("B8", cells, seconds=seconds)
    error = max(abs(of.between - of.explained[1]) for of in found.values()) + 1e-7
    bounded = [Cell(f"{name}: R^2", values=[found[name].limit], error=error) for name in references.OUTSIDE]
    run.record("B10", bounded, seconds=seconds)
    products = found["Gaussian"].product
    ratios = _extrapolate(products[0], products[2])
    cells = [
        Cell("extrapolated", values=[ratios[0]], reference=0.2),
        Cell("extrapolated to T = 100", values=[ratios[1]], reference=products[1]),
    ]
    run.record("B7-limit", cells, seconds=seconds)
    run.arrays(capability_limit=[of.limit for of in found.values()])
    run.arrays(capability_explained=[of.explained for of in found.values()])


def _capability(name: str, law: StartLaw) -> Capability:
    explained, products, d = [], [], references.DIMENSION
    for length in _LENGTHS:
        correlations = population_correlations(law, length, d)
        _, c2 = references.LAWS[name].rates(d, length)
        starts = population.stacked_starts(references.STARTS[1:2], d, full=False)
        flow = population.follow_to_minimum(correlations, starts, c2)
        explained.append(1.0 - float(flow.loss[0]) / float(correlations.constant))
        products.append(float(population.diagonal_products(flow.params).mean()))
    return Capability(explained, products, *_extrapolate(explained[0], explained[2]))


def _extrapolate(shortest: float, longest: float) -> tuple[float, float]:
    """Take the inverse to be affine in S_T / (T - 2): what it is for T without end, and for the length between."""
    x = [harmonic_sum(length) / (length - 2) for length in _LENGTHS]
    slope = (1.0 / shortest - 1.0 / longest) / (x[0] - x[2])
    limit = 1.0 / longest - slope * x[2]
    return 1.0 / limit, 1.0 / (limit + slope * x[1])


def _raw_laws(run: RunDirectory) -> None:
    """B10-raw: Poisson and Gamma tokens as they are have odd moments."""
    began, cells = time.perf_counter(), []
    for name, law in (("Poisson(1)", poisson_start(symmetrised=False)), ("Gamma(2)", gamma_start(symmetrised=False))):
        odd = np.asarray(law.moments(np.array([[1, 0], [1, 2], [3, 1]])))
        cells.append(Cell(f"{name}: E[x_1], E[x_1 x_2^2], E[x_1^3 x_2]", values=odd, control=[0.0] * 3))
        gradient = population.gradient_at(start_at(0.3, 0.2, 3), population_correlations(law, 6, 3))
        off = [float(gradient[field][0, 1]) for field in ("kq", "pv")]
        cells.append(Cell(f"{name}: off-diagonal gradients of W32 and W12", values=off, control=[0.0, 0.0]))
    run.record("B10-raw", cells, seconds=time.perf_counter() - began)


def _skewness(run: RunDirectory) -> None:
    """Draw how large the part off the diagonals is, against the skewness of the tokens and the length."""
    d = references.DIMENSION
    starts = population.stacked_starts([(0.3, 0.3)], d, full=False)
    shares = np.zeros((len(_SKEWS), len(_SKEWED_LENGTHS), 2))
    for i, skew in enumerate(_SKEWS):
        for j, length in enumerate(_SKEWED_LENGTHS):
            correlations = population_correlations(_two_atoms(skew), length, d)
            flow = population.follow_to_minimum(correlations, starts, float(length - 2), end=1e4)
            for k, field in enumerate(("kq", "pv")):
                shares[i, j, k] = abs(flow.params[field][0, 0, 1] / flow.params[field][0, 0, 0])
    run.arrays(skewness=_SKEWS, skewness_lengths=_SKEWED_LENGTHS, skewness_shares=shares)
    figures_beyond.skewness(run, _SKEWS, _SKEWED_LENGTHS, shares)


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
            whole, explained = population_correlations(law, length, d), []
            for seed in range(config.seeds):
                if run.stop():
                    raise Interrupted
                key = key_of(run, f"law {name}", seed)
                count = config.law_sequences * _MORE.get(name, 1)
                correlations = training.correlations_of(config, run, key, law, count, length=length, full=False)
                c1, c2 = references.LAWS[name].rates(d, length)
                params = train_sector(correlations, c1, c2)
                explained.append(1.0 - float(quartic_loss(params, whole)) / float(whole.constant))
            found[name] = np.array(explained)
            if name != "one-hot":  # which is exact on every training set: B9-limit
                cells.append(Cell(name, values=explained, reference=references.LAWS[name].explained(d, length)))
            progress.update(number)
    scale = training.scale_of(config, config.law_sequences)
    run.record("B8-sampled", cells, seconds=time.perf_counter() - began, scale=scale)
    return found


@partial(jax.jit, static_argnames=("epochs",))
def train_sector(correlations: Correlations, c1: Scalar, c2: Scalar, *, epochs: int = 300) -> Params:
    """Train W32 and W12 by gradient descent with a step in units of the curvature, until it has converged."""
    size = 0.8 * jnp.sqrt(jnp.asarray(c2) / c1)
    start = start_at(size, size, correlations.cross.shape[0])
    # The curvature at the limit is 2 c2 along ab.
    loss = partial(quartic_loss, correlations=correlations)
    return gradient_descent(loss, start, optax.sgd(0.2 / jnp.asarray(c2)), epochs, observe=lambda params: ()).params
