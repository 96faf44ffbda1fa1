"""When sharing hurts: the spread of the sources at which it stops helping, shrinkage, and shares of the sources."""

import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.claims import Cell
from experiments.keys import key_of
from experiments.multi_source import figures_theory
from experiments.multi_source.misspecified import (
    GROUPS,
    SHARED,
    SOURCES,
    SPECIFIC,
    WAYS,
    Errors,
    padded,
    simulate,
    spread_means,
)
from experiments.run_directory import RunDirectory
from jaxgen.statistics.source_weights import optimal_source_weights, weighted_expected_tv

SIZES = ((3, 500), (5, 500), (10, 500), (5, 100))
"""Sources and samples. A source has 20 samples or more, since v* is the law of many."""
FACTORS = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0])
"""Spreads of the sources over v* = (K - 1) / n."""
TARGETS = ((0.6, 0.1, 0.1, 0.1, 0.1), (0.5, 0.3, 0.12, 0.05, 0.03))
"""Weights of the sources in the error, none of them met best by equal or by proportional shares."""
_SAMPLES = 500
_ARMS = {"shared": True, "separate": False}  # in the order of WAYS
_SHARED, _SEPARATE, _SHRUNK = range(len(WAYS))


class Case(NamedTuple):
    """What was found with so many sources and samples, at every spread.

    Attributes:
        sources: K.
        n: samples in a data set.
        star: (K - 1) / n.
        errors: of the simulations.
    """

    sources: int
    n: int
    star: float
    errors: Errors

    @property
    def name(self) -> str:
        """Return how a cell calls it."""
        return f"K = {self.sources}, n = {self.n}"


def measure(config: Any, run: RunDirectory) -> None:
    """Measure what sharing costs where the sources differ, and what can be done about it."""
    began = time.perf_counter()
    cases = [_simulated(config, run, *size) for size in SIZES]
    seconds = time.perf_counter() - began
    for case in cases:
        name = f"sharing_{case.sources}_{case.n}"
        run.arrays(**{f"{name}_squared": case.errors.squared, f"{name}_tv": case.errors.tv})
    run.arrays(sharing_factors=FACTORS)
    _crossovers(run, cases, seconds)
    _shrinkage(run, cases, seconds)
    _weights(config, run)
    figures_theory.phase_diagram(run, cases, FACTORS)
    figures_theory.shrinkage(run, cases, FACTORS)


def _simulated(config: Any, run: RunDirectory, sources: int, n: int) -> Case:
    star, p_y = (sources - 1) / n, padded(np.full((len(FACTORS), sources), 1 / sources))
    means, key = spread_means(run.seed, sources, FACTORS * star), key_of(run, f"sharing {sources} {n}")
    return Case(sources, n, star, simulate(key, config.sharing_replicates, n, means, p_y, p_y))


def crossings(gaps: Float[np.ndarray, "groups spreads"]) -> Float[np.ndarray, " groups"]:
    """Return where each group's gap first rises through 0, in the unit of FACTORS; NaN where it does not."""
    found = np.full(len(gaps), np.nan)
    for group, gap in enumerate(gaps):
        for i in np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))[:1]:
            found[group] = FACTORS[i] - gap[i] * (FACTORS[i + 1] - FACTORS[i]) / (gap[i + 1] - gap[i])
    return found


def _crossovers(run: RunDirectory, cases: list[Case], seconds: float) -> None:
    """A14: the spread at which shared and separate models have one squared error, over (K - 1) / n."""
    cells, found, exact = [], [], []
    for case in cases:
        gaps = [part[..., _SHARED] - part[..., _SEPARATE] for part in case.errors]
        squared, tv = map(crossings, gaps)
        cells.append(Cell(case.name, values=squared))
        whole = crossings(gaps[1].mean(axis=0)[None])[0]
        found.append(f"{whole:.3f} ({case.name}; standard error {np.std(tv, ddof=1) / GROUPS**0.5:.3f})")
        exact.append(f"{_exact_crossing(case.sources, case.n) / case.star:.3f} ({case.name})")
        run.arrays(
            **{f"sharing_{case.sources}_{case.n}_crossing_{part}": at for part, at in (("e", squared), ("tv", tv))}
        )
    run.record("A14", cells, seconds=seconds)
    means = [case.errors.squared.mean(axis=0)[-1] for case in cases]
    worst = max(mean[_SHARED] / mean[_SEPARATE] for mean in means)
    run.note(
        "Sources that differ with the variance v in a coordinate that the model shares: in the squared error sharing "
        "stops to help at v* = (K - 1) / n, but for what comes from the random number of samples of a source, whose "
        f"E[1 / N] is above K / n: exactly at these multiples of v*, {', '.join(exact)}. At {FACTORS[-1]:g} v* the "
        f"shared model's squared error is up to {worst:.2f} times that of separate models. In total variation the "
        "crossing depends on how the means lie; for the one pattern of means that was drawn for each number of "
        f"sources it was at {', '.join(found)}."
    )


def _exact_crossing(sources: int, n: int) -> float:
    """Return the spread at which E[1 / N | N >= 1] = (1 + v) / n + v."""
    counts = np.arange(1, n + 1)
    mass = stats.binom.pmf(counts, n, 1 / sources)
    return float((mass @ (1 / counts) / mass.sum() - 1 / n) / (1 + 1 / n))


def _shrinkage(run: RunDirectory, cases: list[Case], seconds: float) -> None:
    """A16: means shrunk by James and Stein's factor have a smaller squared error than separate ones, at any spread."""
    cells = [
        Cell(
            f"{case.name}, v = {factor:g} v*",
            values=case.errors.squared[:, i, _SEPARATE],
            control=case.errors.squared[:, i, _SHRUNK],
        )
        for case in cases
        if case.sources > 3  # below, nothing shrinks
        for i, factor in enumerate(FACTORS)
    ]
    run.record("A16", cells, seconds=seconds)
    shown, won, most = [], 0, 0.0
    for case in cases:
        if case.sources > 3:
            shared, separate, shrunk = case.errors.squared.mean(axis=0).T
            won, most = won + int(np.sum(shrunk < separate)), max(most, float(np.max(shrunk / separate)))
            kept = (separate[0] - shrunk[0]) / (separate[0] - shared[0])
            shown.append(f"{kept:.0%} ({case.name})")
    run.note(
        "Separate means shrunk towards the common one, coordinate by coordinate, had a smaller mean squared error than "
        f"separate means in {won} of {len(cells)} cases, from sources that agree to {FACTORS[-1]:g} v*; the largest "
        f"ratio was {most:.3f}. Where the sources agree it keeps this part of what sharing gains: {', '.join(shown)}."
    )


def _weights(config: Any, run: RunDirectory) -> None:
    """A17: data sets with the shares that the exact risk asks for, against equal and proportional ones."""
    began = time.perf_counter()
    dims, rivals = (_SAMPLES, SPECIFIC, SHARED), ("equal", "proportional")
    targets = np.array(TARGETS, np.float32)
    best = [[np.asarray(optimal_source_weights(target, *dims, shared=s)) for s in _ARMS.values()] for target in targets]
    # For each target the best shares of each arm, equal and proportional ones; then one case that fills the program.
    rows = [[*ours, np.full_like(target, 1 / len(target)), target] for ours, target in zip(best, targets, strict=True)]
    shares = np.concatenate([np.reshape(rows, (-1, targets.shape[1])), targets[:1]])
    weights = np.concatenate([np.repeat(targets, len(rows[0]), axis=0), targets[:1]])
    means = np.zeros((len(FACTORS), SOURCES, SPECIFIC + SHARED), np.float32)
    key = key_of(run, "source weights")
    errors = simulate(key, config.sharing_replicates, _SAMPLES, means, padded(shares), padded(weights))
    tv = errors.tv[:, : len(shares) - 1].reshape(GROUPS, len(targets), len(rows[0]), len(WAYS))
    run.arrays(weights_shares=shares[:-1], weights_targets=targets, weights_tv=tv)
    cells, shown = [], []
    for number, target in enumerate(targets):
        for column, (arm, shared) in enumerate(_ARMS.items()):
            risks = [float(weighted_expected_tv(target, p, *dims, shared=shared)) for p in rows[number]]
            found = tv[:, number, :, column]
            for row, rival in enumerate(rivals, start=len(_ARMS)):
                name = f"target {', '.join(map(str, TARGETS[number]))}; {arm} model against {rival} shares"
                cells.append(Cell(name, values=found[:, row], control=found[:, column]))
                gain = 1 - found[:, column].mean() / found[:, row].mean()
                shown.append(f"{name}: {1 - risks[column] / risks[row]:.1%} predicted, {gain:.1%} found")
    run.record("A17", cells, seconds=time.perf_counter() - began)
    run.note(
        f"Shares of the sources by the exact risk of {_SAMPLES} samples, weighted by a target. The gain in total "
        f"variation: {'. '.join(shown)}. Nothing is to be gained where the target is equal over the "
        "sources, whose best shares are equal, or on one of them."
    )
