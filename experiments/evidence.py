"""From the strings of a claim to the functions of `jaxgen.statistics` that read its data."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from experiments.declarations import Cell
from jaxgen.statistics import confidence, resampling, verdicts

LEVEL = 0.90  # two one-sided tests at .05 are this interval


class Measurement(NamedTuple):
    """What one cell says: the decision, and the numbers that a row shows."""

    decision: verdicts.Decision
    measured: float | None
    stderr: float | None
    reference: float
    interval: list[float | None] | None
    units: int


def measure(rule: str, cell: Cell, *, name: str) -> Measurement:
    """Decide one cell, filled in by `Cell.of`; a ValueError says `name` first."""
    reference, margin = cast(float, cell.reference), cast(float, cell.margin)
    try:
        if rule == "exact":
            return _exact(cell, reference, margin)
        evidence = _evidence(rule, cell)
        if rule in ("equal", "slope"):
            decision = verdicts.equal(evidence, reference, margin)
        elif rule == "less":
            decision = verdicts.less(evidence, reference + margin)
        else:
            decision = verdicts.greater(evidence, reference - margin)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    ends = [_finite(end) for end in evidence.limits(LEVEL)]
    interval = None if ends == [None, None] else ends
    shown = _finite(evidence.estimate), _finite(evidence.stderr)
    return Measurement(decision, *shown, reference, interval, evidence.units)


def _exact(cell: Cell, reference: float, atol: float) -> Measurement:
    values = [math.nan if value is None else value for value in cell.values or ()]
    targets = list(cell.control) if cell.control is not None else [reference] * len(values)
    decision, worst = verdicts.exact(values, targets, atol=atol, rtol=cell.rtol)
    return Measurement(decision, _finite(values[worst]), 0.0, targets[worst], None, len(values))


def _evidence(rule: str, cell: Cell) -> confidence.Confidence:
    crashed, units = _crashed(cell)
    if crashed:
        return confidence.undecided(
            math.nan, units, f"{crashed} of {units} units gave no finite number, and they count"
        )
    if cell.test == "binomial":
        return confidence.clopper_pearson(cast(int, cell.successes), cast(int, cell.trials))
    # A cell has turned its arrays into tuples.
    values, control, x = cast(Sequence[Any], cell.values or ()), cell.control, cast(Sequence[Any], cell.x or ())
    if cell.test == "fisher_z":
        return confidence.fisher_z(x, values)
    if rule == "slope":
        if cell.test == "t" and not _curves(values):
            return confidence.t_regression(x, values)
        curves = values if _curves(values) else (values,)
        values, control = confidence.log_log_slopes(x, curves).tolist(), None
    if control is not None and (cell.paired or cell.test == "deterministic"):
        if len(values) != len(control):
            raise ValueError(f"{len(values)} values cannot be paired with {len(control)} controls: set paired=False")
        values, control = [value - other for value, other in zip(values, control, strict=True)], None
    return _random_evidence(cell, values, control) if cell.test != "deterministic" else _certain(cell, values)


def _random_evidence(cell: Cell, values: Any, control: Any) -> confidence.Confidence:
    resampled = {"seed": cell.seed, "draws": cell.draws}
    if control is None:
        if cell.test == "t":
            return confidence.t_mean(values)
        return (resampling.bootstrap_mean if cell.test == "bootstrap" else resampling.sign_flips)(values, **resampled)
    if cell.test == "t":
        return confidence.welch(values, control)
    test = resampling.bootstrap_difference if cell.test == "bootstrap" else resampling.group_permutations
    return test(values, control, **resampled)


def _certain(cell: Cell, values: Any) -> confidence.Confidence:
    if len(values) != 1:
        raise ValueError(f"a deterministic cell holds one number, got {len(values)}: make a cell of each")
    return confidence.deterministic(values[0], cast(float, cell.error))


def _curves(values: Sequence[Any]) -> bool:
    return isinstance(next(iter(values), None), tuple)


def _crashed(cell: Cell) -> tuple[int, int]:
    """Count the units with a missing number, and the units."""
    rows = [row if isinstance(row, tuple) else (row,) for row in cell.values or ()]
    partners = cell.x if cell.test == "fisher_z" else cell.control
    others = [row if isinstance(row, tuple) else (row,) for row in partners or ()]
    missing = [None in row for row in rows]
    if cell.paired and len(others) == len(rows):
        missing = [lost or None in other for lost, other in zip(missing, others, strict=True)]
    else:
        missing += [None in other for other in others]
    return sum(missing), len(missing)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
