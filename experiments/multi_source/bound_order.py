"""How sharing lowers the bound: orders of bracketing numbers, and ratios of the bounds, over a grid of each family."""

import math
import time
from collections.abc import Mapping

from experiments.claims import Cell
from experiments.run_directory import RunDirectory
from jaxgen.statistics.bracketing import ArmSize, EbmSize, log_bracket_arm, log_bracket_ebm, log_bracket_gaussian
from jaxgen.statistics.tv_bounds import rate_arm, rate_ebm, rate_gaussian, rate_ratio

_BOUND = 5.0  # means of the Gaussians lie within
_GRID = [(sources, n) for sources in (1, 2, 3, 5, 10, 15, 100) for n in (10, 500, 10**6)]
_DIMENSIONS = [(own, 10 - own) for own in range(11)]
_ARM_SIZES = [
    ArmSize(depth, 64, nonzero, bound, length, 32, embedding)
    for depth, nonzero, bound, length, embedding in (
        (3, 1000, 1.0, 16, 8),
        (1, 10, 4.0, 2, 64),
        (8, 10**6, 2.0, 512, 1),
    )
]
_EBM_SIZES = [
    EbmSize(depth, 64, nonzero, bound, embedding)
    for depth, nonzero, bound, embedding in ((3, 1000, 1.0, 8), (1, 10, 4.0, 64), (8, 10**6, 2.0, 1))
]


def measure(run: RunDirectory) -> None:
    """Measure what is algebra."""
    _order(run)
    _ratios(run)


def _order(run: RunDirectory) -> None:
    """A2: logarithms of bracketing numbers with sharing less those without, over a grid of each family."""
    began, cells = time.perf_counter(), []
    for family, pairs in _log_brackets().items():
        for name, strict in (("K > 1 and similarity > 0", True), ("K = 1 or similarity 0", False)):
            differences = [shared - apart for gains, shared, apart in pairs if gains == strict]
            if not differences:
                continue
            # Each is a product of a whole number and one logarithm, which both arms share: it rounds in the last digit.
            rounding = 1e-15 * max(apart for _, _, apart in pairs) if strict else 0.0
            tolerance = {} if strict else {"margin": 1e-12, "margin_reason": "both arms are one family"}
            shown = f"{family}, {name}: largest of {len(differences)} differences"
            cells.append(Cell(shown, values=[max(differences)], error=rounding, **tolerance))
    run.record("A2", cells, seconds=time.perf_counter() - began)


def _log_brackets() -> Mapping[str, list[tuple[bool, float, float]]]:
    """List, for every point of each family's grid, whether sharing gains anything, and both logarithms."""
    found: dict[str, list[tuple[bool, float, float]]] = {}
    for sources, n in _GRID:
        for own, common in _DIMENSIONS:
            pair = [log_bracket_gaussian(sources, own, common, _BOUND, 1 / n, shared=s) for s in (True, False)]
            found.setdefault("Gaussian", []).append((sources > 1 and common > 0, pair[0], pair[1]))
        for size in _ARM_SIZES:
            pair = [log_bracket_arm(size, sources, 1 / n, shared=s) for s in (True, False)]
            found.setdefault("autoregressive", []).append((sources > 1, pair[0], pair[1]))
        for size in _EBM_SIZES:
            pair = [log_bracket_ebm(size, sources, 1 / n, shared=s) for s in (True, False)]
            found.setdefault("energy-based", []).append((sources > 1, pair[0], pair[1]))
    return found


def _ratios(run: RunDirectory) -> None:
    """A3: ratios of the bounds against the formula, whose similarity is counted here from the parameters."""
    began, cells = time.perf_counter(), []
    families = {
        "Gaussian": [
            ((sources, common / 10), [rate_gaussian(n, sources, own, common, shared=s) for s in (True, False)])
            for sources, n in _GRID
            for own, common in _DIMENSIONS
        ],
        "autoregressive": [
            ((sources, _arm_similarity(size)), [rate_arm(n, sources, size, shared=s) for s in (True, False)])
            for sources, n in _GRID
            for size in _ARM_SIZES
        ],
        "energy-based": [
            (
                (sources, size.nonzero / (size.nonzero + size.embedding)),
                [rate_ebm(n, sources, size, shared=s) for s in (True, False)],
            )
            for sources, n in _GRID
            for size in _EBM_SIZES
        ],
    }
    for family, points in families.items():
        ratios = [pair[0] / pair[1] for _, pair in points]
        formula = [math.sqrt(1 - (sources - 1) / sources * beta) for (sources, beta), _ in points]
        cells.append(Cell(f"{family}, {len(points)} cases", values=ratios, control=formula))
        ours = [rate_ratio(sources, beta) for (sources, beta), _ in points]
        cells.append(Cell(f"{family}, as jaxgen computes the formula", values=ours, control=formula))
    run.record("A3", cells, seconds=time.perf_counter() - began)


def _arm_similarity(size: ArmSize) -> float:
    common = size.nonzero + size.length + (size.length + size.categories) * size.embedding
    return common / (common + size.embedding)
