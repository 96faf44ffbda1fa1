"""The theorem and its lemmas, held against exact gradients and flows of the whole layer over the population."""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.claims import Cell
from experiments.keys import key_of
from experiments.mesa_optimization import figures, population, references
from experiments.run_directory import RunDirectory
from jaxgen.flows import (
    StartLaw,
    Status,
    describe,
    gaussian_start,
    laplace_start,
    one_hot_start,
    population_correlations,
    quartic_loss,
    rademacher_start,
    sample_sequences,
    sector_of,
    skewed_start,
    spiked_start,
    start_at,
)
from jaxgen.models import attend_by_scores, gaussian_params, in_context_loss, sector_params

_GRID = (-1.3, -0.4, 0.2, 0.7, 1.5)


class Problem(NamedTuple):
    """A law whose population is followed exactly, at one size."""

    name: str
    law: StartLaw
    reference: references.Law
    scale: float
    dimension: int
    length: int


def problems() -> list[Problem]:
    """List the paper's laws and scales at its size, its small context, and another size."""
    d, length, found = references.DIMENSION, references.LENGTH, []
    gaussian, sparse = references.LAWS["Gaussian"], references.LAWS["one-hot"]
    for scale in references.SCALES:
        found.append(Problem(f"Gaussian, scale {scale:g}", gaussian_start(scale), gaussian, scale, d, length))
        found.append(Problem(f"sparse, scale {scale:g}", one_hot_start(scale), sparse, scale, d, length))
    found.append(Problem("Gaussian, T = 5", gaussian_start(), gaussian, 1.0, d, references.SMALL_LENGTH))
    return [*found, Problem("Gaussian, d = 2, T = 20", gaussian_start(), gaussian, 1.0, 2, 20)]


def measure(config: Any, run: RunDirectory) -> None:
    """Measure what needs no sample, in float64."""
    del config
    with jax.enable_x64(True):
        for part in (_theorem, _skewed, _gradients, _loss_of_two, _every_start, _prediction, _dense_starts):
            part(run)


def _theorem(run: RunDirectory) -> None:
    """B1: the limit of the flow from diagonal starts, of W32 and W12 for every problem, of all parameters for three."""
    began = time.perf_counter()
    cells, collapse = [], {}
    for problem in problems():
        d, length, scale = problem.dimension, problem.length, problem.scale
        _, c2 = problem.reference.rates(d, length, scale)
        limit = problem.reference.limit(d, length, scale)
        whole = scale == 1.0 and d == references.DIMENSION
        for full in (False, True) if whole else (False,):
            flow = population.follow_to_minimum(
                population_correlations(problem.law, length, d, full=full),
                population.stacked_starts(references.STARTS, d, full=full),
                c2,
                precision=population.LIMIT_ALONE,
            )
            kind = f"{problem.name}, {'all parameters' if full else 'W32 and W12'}"
            for start, product in zip(references.STARTS, population.diagonal_products(flow.params), strict=True):
                shown = f"{kind}, ({start[0]:g}, {start[1]:g})"
                cells.append(Cell(shown, values=product, control=[limit] * len(product), rtol=1e-8))
            cells.append(_zero(f"{kind}: largest other entry", population.largest_other(flow.params)))
            if flow.saves is not None and not full:
                kept = flow.saves.values
                curve = np.asarray(kept["kq"][:, :, 0, 0] * kept["pv"][:, :, 0, 0])
                collapse[problem.name] = (curve / limit, np.array(references.STARTS) / np.sqrt(limit))
    run.record("B1", cells, seconds=time.perf_counter() - began)
    run.arrays(
        collapse_time=population.TIMES, **{f"collapse_{i}": curve for i, (curve, _) in enumerate(collapse.values())}
    )
    figures.collapse(run, population.TIMES, collapse)


def _skewed(run: RunDirectory) -> None:
    """B1s: tokens of mean 0 that are not symmetric."""
    began = time.perf_counter()
    law, a, b = skewed_start(), 0.3, 0.2
    gradient = population.gradient_at(start_at(a, b, 3), population_correlations(law, 6, 3))
    off = {name: float(gradient[field][0, 1]) for name, field in (("W32 off", "kq"), ("W12 off", "pv"))}
    diagonal = {name: float(gradient[field][0, 0]) for name, field in (("W32 diagonal", "kq"), ("W12 diagonal", "pv"))}
    cells = [_zero(f"gradient of {name}-diagonal entries", [value]) for name, value in off.items()]
    run.record("B1s", cells, seconds=time.perf_counter() - began)
    cells = [
        Cell(f"gradient of {name}", values=[(off | diagonal)[name]], control=[value])
        for name, value in references.SKEWED_GRADIENTS.items()
    ]
    d = length = references.SMALL_LENGTH
    starts = population.stacked_starts(references.STARTS[:1], d, full=False)
    flow = population.follow_to_minimum(population_correlations(law, length, d), starts, 6.0 * (length - 2))
    found = [float(flow.params[field][0, 0, j]) for field in ("kq", "pv") for j in (0, 1)]
    cells.append(Cell("limit (a, alpha, b, beta) at d = T = 5", values=found, control=references.SKEWED_LIMIT))
    cells.append(Cell("its loss", values=[float(flow.loss[0])], control=[references.SKEWED_LOSS]))
    run.record("B1s-size", cells, seconds=time.perf_counter() - began)
    gain = 1.0 - references.SKEWED_LOSS / references.SKEWED_LOSS_OF_THEOREM
    run.note(
        "Tokens that are 2 with probability 1/3 and else -1 are independent, of mean 0, and meet assumption 4.1 as it "
        "is printed. Yet the flow leaves the form of theorem 4.1: the gradient off the diagonals is a b² S_T μ₃² for "
        "W32 and a² b S_T μ₃² for W12, with μ₃ = E[x³], since E[x_r³ x_s³] = μ₃² does not vanish. At d = T = 5 the "
        f"dense limit has a loss {gain:.1%} below that of the theorem's form."
    )


def _gradients(run: RunDirectory) -> None:
    """B2 and B3: the gradient of every parameter at W32 = a I, W12 = b I."""
    began = time.perf_counter()
    d, length = references.DIMENSION, references.LENGTH
    laws = {
        "Gaussian": gaussian_start(),
        "Rademacher": rademacher_start(),
        "Laplace": laplace_start(),
        "one-hot": one_hot_start(),
        "spiked": spiked_start(),
    }
    points = [(a, b) for a in _GRID for b in _GRID]
    gradients = jax.jit(jax.vmap(jax.grad(quartic_loss), in_axes=(0, None)))
    others, diagonals = [], []
    for name, law in laws.items():
        correlations = population_correlations(law, length, d, full=True)
        found = gradients(population.stacked_starts(points, d), correlations)
        others.append(_zero(name, population.largest_other(found)))
        c1, c2 = references.LAWS[name].rates(d, length)
        for (field, block), other in zip(population.sector_blocks(found).items(), (1, 0), strict=True):
            slope = -np.diagonal(block, axis1=1, axis2=2).reshape(-1)
            flow = [point[other] * (c2 - c1 * point[0] * point[1]) for point in points for _ in range(d)]
            shown = "da" if field == "kq" else "db"
            diagonals.append(Cell(f"{name}: {shown} / dtau", values=slope, control=flow, rtol=1e-9, **_tiny(1e-9)))
    seconds = time.perf_counter() - began
    run.record("B2", others, seconds=seconds)
    run.record("B3", diagonals, seconds=seconds)


def _loss_of_two(run: RunDirectory) -> None:
    """B4: the loss of (a, b) has the gradient of lemma 5.3, no convexity, and the Polyak-Lojasiewicz equality."""
    began = time.perf_counter()
    d, length = references.DIMENSION, references.LENGTH
    correlations = population_correlations(gaussian_start(), length, d)
    c1, c2 = references.LAWS["Gaussian"].rates(d, length)
    points = np.array([(a, b) for a in _GRID for b in _GRID])

    def of_two(point: Float[Array, "2"]) -> Array:
        # Each of the d diagonal entries moves by its own gradient, a d-th of that of their common value.
        return (quartic_loss(start_at(point[0], point[1], d), correlations) - _lowest(d, length)) / d

    @jax.jit
    @jax.vmap
    def look(point: Array) -> tuple[Array, Array, Array]:
        return of_two(point), jax.grad(of_two)(point), jnp.linalg.det(jax.hessian(of_two)(point))

    loss, slope, bend = (np.asarray(leaf) for leaf in look(jnp.asarray(points)))
    u = points.prod(axis=1)
    residual = (c2 - c1 * u)[:, None]
    close = {"rtol": 1e-9, **_tiny(1e-9)}
    equality = 2.0 * c1 * (points**2).sum(axis=1) * loss
    negative = ((u < c2 / (3.0 * c1)) | (u > c2 / c1)).astype(float)
    cells = [
        Cell("loss of (a, b) less its minimum", values=loss, control=residual[:, 0] ** 2 / (2.0 * c1), **close),
        Cell("its gradient", values=slope.ravel(), control=(-residual * points[:, ::-1]).ravel(), **close),
        Cell("|gradient|^2 = 2 c1 (a^2 + b^2) loss", values=(slope**2).sum(axis=1), control=equality, **close),
        Cell("where its Hessian has a negative determinant", values=(bend < 0).astype(float), control=negative),
    ]
    run.record("B4", cells, seconds=time.perf_counter() - began)


def _every_start(run: RunDirectory) -> None:
    """B5 and B5-saddle: which diagonal starts reach the global minimum."""
    began = time.perf_counter()
    d, length = references.DIMENSION, references.LENGTH
    correlations = population_correlations(gaussian_start(), length, d)
    _, c2 = references.LAWS["Gaussian"].rates(d, length)
    off = [(a, b) for a in _GRID for b in _GRID if a + b != 0.0] + [(0.5, -0.499), (-2.0, 0.1), (1e-3, 0.0)]
    on = [(0.1, -0.1), (-0.7, 0.7), (1.5, -1.5), (0.0, 0.0)]
    ends = [population.follow(correlations, population.stacked_starts(part, d, full=False), c2) for part in (off, on)]
    lowest = _lowest(d, length)
    cells = [
        Cell(
            f"{len(part)} starts with a0 + b0 {kind} 0",
            values=np.asarray(end.loss),
            control=[lowest] * len(part),
            rtol=1e-8,
        )
        for part, kind, end in ((off, "other than", ends[0]), (on, "equal to", ends[1]))
    ]
    run.record("B5", cells, seconds=time.perf_counter() - began)
    wanted = (Status.MINIMUM, Status.SADDLE)
    cells = [
        Cell(
            f"a0 + b0 {kind} 0 ends in a {code.name.lower()}",
            values=np.asarray(end.status) == code,
            control=[1.0] * len(end.status),
        )
        for kind, end, code in zip(("other than", "equal to"), ends, wanted, strict=True)
    ]
    run.record("B5-saddle", cells, seconds=time.perf_counter() - began)
    run.note(
        f"Of {len(off)} starts with a0 + b0 other than 0: {describe(ends[0])}. Of {len(on)} with a0 = -b0: "
        f"{describe(ends[1])}. The line a0 = -b0 is the stable manifold of the saddle (0, 0), where the layer predicts "
        "0. It has measure 0, but the theorem speaks of every diagonal start."
    )


def _prediction(run: RunDirectory) -> None:
    """B6: what the trained layer computes is one gradient step in its context."""
    began = time.perf_counter()
    d, length = references.DIMENSION, references.LENGTH
    _, c2 = references.LAWS["Gaussian"].rates(d, length)
    correlations = population_correlations(gaussian_start(), length, d)
    starts = population.stacked_starts(references.STARTS[1:2], d, full=False)
    flow = population.follow_to_minimum(correlations, starts, c2)
    kq, pv = (flow.params[field][0] for field in ("kq", "pv"))
    size = float(kq[0, 0] * pv[0, 0])
    x = sample_sequences(key_of(run, "prediction", 0), gaussian_start(), 4, length, d)
    layer = np.asarray(attend_by_scores(sector_params(kq, pv), x))

    @partial(jax.jit, static_argnames=("t",))
    def step(x: Array, t: int) -> Array:
        # The gradient of a real function of a complex matrix: jax returns the conjugate of the direction of ascent.
        slope = jax.grad(lambda w: in_context_loss(w, x, t))(jnp.zeros((d, d), x.dtype)).conj()
        return -size / (t - 1) * slope @ x[t - 1]

    cells = []
    for t in (2, 20, 99):
        explicit = np.stack([np.asarray(step(one, t)) for one in x])
        found, wanted = (np.ravel([np.real(part), np.imag(part)]) for part in (layer[:, t - 2], explicit))
        cells.append(Cell(f"t = {t}", values=found, control=wanted))
    run.record("B6", cells, seconds=time.perf_counter() - began)


def _dense_starts(run: RunDirectory) -> None:
    """B15-exact: the flow from dense Gaussian initial values of W32 and W12."""
    began = time.perf_counter()
    d, length, cells = references.DIMENSION, references.LENGTH, []
    for name, law, product, loss in (
        ("Gaussian", gaussian_start(), references.DENSE_PRODUCT, references.DENSE_LOSS),
        ("one-hot", one_hot_start(), 1.0, 0.0),
    ):
        correlations = population_correlations(law, length, d)
        _, c2 = references.LAWS[name].rates(d, length)
        for std in references.INITIAL_STDS:
            draw = lambda key, std=std: sector_of(gaussian_params(key, d, std))  # noqa: E731
            starts = jax.vmap(draw)(jax.random.split(key_of(run, f"dense {name} {std}", 0), 4))
            flow = population.follow_to_minimum(correlations, starts, c2, end=40.0 * c2)
            found = population.diagonal_products(flow.params).ravel()
            shown, wanted = f"{name}, std {std:g}", [product] * len(found)
            cells.append(Cell(f"{shown}: products", values=found, control=wanted, rtol=1e-8))
            cells.append(
                Cell(f"{shown}: loss", values=np.asarray(flow.loss), control=[loss] * 4, rtol=1e-9, **_tiny(1e-8))
            )
    run.record("B15-exact", cells, seconds=time.perf_counter() - began)


def _lowest(d: int, length: int) -> float:
    """Return the loss of Gaussian tokens at the theorem's limit."""
    c1, c2 = references.LAWS["Gaussian"].rates(d, length)
    return 0.5 * d * (length - 2) - 0.5 * d * c2**2 / c1


def _zero(name: str, values: Any) -> Cell:
    return Cell(name, values=values, control=[0.0] * len(values), **_tiny(1e-9))


def _tiny(atol: float) -> dict[str, Any]:
    return {"margin": atol, "margin_reason": "float64 rounding"}
