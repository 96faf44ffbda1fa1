"""From evidence to verdicts: does a number hold, is it refuted, or do the data not say?

A claim says that a parameter lies in a range. One cell *holds* when two one-sided tests at .05 place it inside (TOST,
Schuirmann 1987: the 90 % interval lies in the range), and is *refuted* when the opposite tests, doubled because there
are two of them, place it outside. A row of cells holds when every cell does (an intersection-union test: its p-value
is the largest) and is refuted when one cell is after Holm's correction.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from jaxgen.statistics.confidence import Confidence, Values
from jaxgen.statistics.power import Number

ALPHA = 0.05
POWER = 0.8
MOST_UNITS = 10_000

Verdict: TypeAlias = Literal["holds", "refuted", "inconclusive"]


class Decision(NamedTuple):
    """The verdict on one cell.

    Attributes:
        verdict: "holds", "refuted" or "inconclusive".
        p_holds: P-value of "the parameter lies in the range"; 0 or 1 where nothing is random.
        p_refuted: P-value of "it lies outside".
        excess: How far the estimate lies beyond the nearest end of the range, in half widths (absolute where the range
            is one-sided; for `exact` beyond the tolerance); negative inside.
        random: Whether the p-values mean anything.
        reason: Why the cell is inconclusive or which case fails; else empty.
        units_needed: Units that would decide an inconclusive cell with a power of 0.8 if the estimate and its spread
            are the truth; None where the cell is decided or no number within reach would do.
    """

    verdict: Verdict
    p_holds: float
    p_refuted: float
    excess: float
    random: bool
    reason: str
    units_needed: int | None


class Row(NamedTuple):
    """The verdict on a row of cells.

    Attributes:
        verdict: "holds", "refuted" or "inconclusive".
        p_holds: The largest p-value of the random cells (0 if all are deterministic and hold, 1 if one of these fails).
        p_refuted: The smallest p-value of the cells after Holm's correction over the random ones.
        worst: Index of the cell that speaks most against the claim.
    """

    verdict: Verdict
    p_holds: float
    p_refuted: float
    worst: int


def equal(evidence: Confidence, reference: Number, margin: Number) -> Decision:
    """Decide "the parameter equals `reference` within `margin`" (two one-sided tests).

    Args:
        evidence: The confidence distribution of the parameter.
        reference: The claimed value.
        margin: Half width of the range that counts as equal, positive.

    >>> from jaxgen.statistics.confidence import t_mean
    >>> equal(t_mean([0.52, 0.49, 0.55, 0.50, 0.54]), 0.5, 0.05).verdict
    'holds'
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"equality needs a margin above 0 and finite, got {margin}: no data can show exact equality")
    return _inside(evidence, reference - margin, reference + margin)


def less(evidence: Confidence, bound: Number) -> Decision:
    """Decide "the parameter is below `bound`"."""
    return _inside(evidence, -math.inf, bound)


def greater(evidence: Confidence, bound: Number) -> Decision:
    """Decide "the parameter is above `bound`"; for an order, the parameter is a difference and the bound is 0."""
    return _inside(evidence, bound, math.inf)


def exact(values: Values, targets: Values, *, atol: Number, rtol: Number = 0.0) -> tuple[Decision, int]:
    """Decide "every value meets its target": |value - target| <= atol + rtol |target| on every case, in float64.

    Args:
        values: One measured number for each case; one that is not finite misses its target.
        targets: The exact numbers, finite.
        atol: Absolute tolerance, at least 0.
        rtol: Tolerance relative to each target, at least 0.

    Returns:
        The decision, which holds or is refuted, and the index of the worst case.
    """
    measured, wanted = np.asarray(values, np.float64), np.asarray(targets, np.float64)
    if measured.shape != wanted.shape or measured.size == 0:
        raise ValueError(f"values and targets must be rows of one length, got {measured.shape} and {wanted.shape}")
    if min(atol, rtol) < 0 or not np.all(np.isfinite(wanted)):
        raise ValueError(f"tolerances must be at least 0 and targets finite, got atol={atol}, rtol={rtol}, {wanted}")
    error = np.where(np.isfinite(measured), np.abs(measured - wanted), np.inf)
    excess = error - (atol + rtol * np.abs(wanted))
    worst, failed = int(np.argmax(excess)), int(np.sum(excess > 0))
    verdict = "refuted" if failed else "holds"
    reason = f"{failed} of {error.size} cases miss their target, the worst by {error[worst]:.3g}" if failed else ""
    p_holds = float(failed > 0)
    return Decision(verdict, p_holds, 1 - p_holds, float(excess[worst]), False, reason, None), worst


def p_values(evidence: Confidence, lower: Number, upper: Number) -> tuple[float, float]:
    """Compute the p-values of "lower < parameter < upper" and of its opposite; either end may be infinite.

    The first is the larger of two one-sided p-values. The second is the smaller of the two opposite ones, doubled where
    something is random.
    """
    p_outside = min(evidence.less(lower), evidence.greater(upper))
    return max(evidence.less(upper), evidence.greater(lower)), min(1.0, 2 * p_outside) if evidence.random else p_outside


def combine(cells: Sequence[Decision]) -> Row:
    """Join the cells of one claim: it holds if all hold, and is refuted if one is after Holm over the random cells."""
    if not cells:
        raise ValueError("a row needs at least one cell, got none")
    corrected = iter(holm([cell.p_refuted for cell in cells if cell.random]))
    p_refuted = [next(corrected) if cell.random else cell.p_refuted for cell in cells]
    if min(p_refuted) < ALPHA:
        verdict = "refuted"
    else:
        verdict = "holds" if all(cell.verdict == "holds" for cell in cells) else "inconclusive"
    keys = [(cell.p_holds, -p, cell.excess) for cell, p in zip(cells, p_refuted, strict=True)]
    if verdict == "refuted":
        keys = [(-p, cell.p_holds, cell.excess) for cell, p in zip(cells, p_refuted, strict=True)]
    return Row(verdict, max(cell.p_holds for cell in cells), min(p_refuted), keys.index(max(keys)))


def holm(p_values: Sequence[Number]) -> list[float]:
    """Correct p-values for their number, step by step (Holm 1979): reject at alpha where the result is below alpha.

    >>> [round(p, 3) for p in holm([0.001, 0.012, 0.02, 0.04, 0.30])]
    [0.005, 0.048, 0.06, 0.08, 0.3]
    """
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def units_needed(evidence: Confidence, lower: Number, upper: Number) -> int | None:
    """Find the fewest units, more than now, that decide `lower < parameter < upper` with a power of 0.8.

    The estimate and its spread are taken for the truth: inside the range the power is that of "holds", outside it that
    of "refuted". Returns None where 10,000 units, or ten times those measured, would not do, as for an estimate on the
    very end of the range.
    """
    if not evidence.random or evidence.defect:
        return None
    most = _most_units(evidence)

    def decided(units):
        if lower < evidence.estimate < upper:
            return evidence.power(units, lower, upper, ALPHA) >= POWER
        ends = ((upper, math.inf), (-math.inf, lower))
        # The opposite tests are doubled, so each of them is made at half the level.
        return max(evidence.power(units, *end, ALPHA / 2) for end in ends if not all(map(math.isinf, end))) >= POWER

    low, high = evidence.units, evidence.units + 1
    while not decided(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _inside(evidence: Confidence, lower: Number, upper: Number) -> Decision:
    p_holds, p_refuted = p_values(evidence, lower, upper)
    verdict = "holds" if p_holds < ALPHA else "refuted" if p_refuted < ALPHA else "inconclusive"
    half_width = (upper - lower) / 2 if math.isfinite(upper - lower) else 1.0
    excess = max(evidence.estimate - upper, lower - evidence.estimate) / half_width if not evidence.defect else 0.0
    needed = units_needed(evidence, lower, upper) if verdict == "inconclusive" else None
    reason = _why_open(evidence, needed) if verdict == "inconclusive" else ""
    return Decision(verdict, p_holds, p_refuted, excess, evidence.random, reason, needed)


def _most_units(evidence: Confidence) -> int:
    return max(MOST_UNITS, 10 * evidence.units)


def _why_open(evidence: Confidence, needed: int | None) -> str:
    if evidence.defect:
        return evidence.defect
    if not evidence.random:
        return f"the numerical error bound {evidence.stderr:.3g} reaches across the end of the range: refine"
    if needed is None:
        return (
            f"not even {_most_units(evidence)} units would decide it: the estimate is too close to the end of the range"
        )
    return f"about {needed} units would decide it, {evidence.units} were measured"
