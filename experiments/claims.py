"""Claims of papers as measured rows: declared in code before a run, judged from raw data, judged again from the file.

A claim is a sentence with a reference that comes from a paper or an independent derivation. Every number in it is a
`Cell`, which keeps the raw data that its test needs, so that `recompute` reaches the verdict again from the row alone.

| rule | the claim holds where |
|---|---|
| `equal` | the parameter lies within reference +- margin |
| `less` | it lies below reference + margin (the margin is a tolerance, 0 by default) |
| `greater` | it lies above reference - margin |
| `order` | values - control, paired by seed unless said otherwise, lies above reference - margin |
| `slope` | the exponent of values against x lies within reference +- margin |
| `exact` | every value meets its target (control, or else the reference) within margin + rtol * abs(target) |
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from experiments import strict_json
from experiments.declarations import PRESETS, SCALES, VERDICTS, Cell, Claim, finite, one_of

if TYPE_CHECKING:
    from experiments.evidence import Measurement

__all__ = [
    "PRESETS",
    "VERDICTS",
    "Cell",
    "Claim",
    "adjust",
    "contradicts",
    "judge",
    "not_run",
    "read_rows",
    "recompute",
]

_FAMILY_ALPHA = 0.05
_ROW_TYPES: Mapping[str, type | tuple[type, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("id", "statement", "source", "expected", "expected_reason", "rule", "test"), str),
        **dict.fromkeys(("margin_reason", "verdict", "reason", "note", "preset", "scale"), str),
        **dict.fromkeys(("reference", "declared_reference", "margin", "seconds"), (int, float)),
        **dict.fromkeys(("measured", "stderr", "p", "p_refuted"), (int, float, type(None))),
        **dict.fromkeys(("seeds", "declared_seeds"), int),
        "primary": bool,
        "cells": list,
    }
)


def judge(
    claim: Claim,
    cells: Iterable[Cell],
    *,
    seconds: float,
    preset: str,
    scale: str = "full",
    reason: str = "",
) -> dict[str, Any]:
    """Judge a claim by its cells.

    Args:
        claim: The declaration.
        cells: What was measured, at least one cell.
        seconds: Time the measurement took.
        preset: ci, default, gpu or paper.
        scale: "full", or "reduced" where the sizes are smaller than the claim speaks of.
        reason: What a person should know of this row; kept as `note` and appended to the row's reason.

    Returns:
        A row of claims.json: plain dicts, lists, strings, finite numbers and None.
    """
    from experiments.evidence import measure
    from jaxgen.statistics import verdicts

    one_of(f"claim {claim.id!r}: preset", preset, PRESETS)
    one_of(f"claim {claim.id!r}: scale", scale, SCALES)
    filled = [cell.of(claim) for cell in cells]
    if not filled:
        raise ValueError(f"claim {claim.id!r} needs at least one cell; record what was left out with not_run")
    measurements = [measure(claim.rule, cell, name=f"claim {claim.id!r}, cell {cell.name!r}") for cell in filled]
    row = verdicts.combine([measurement.decision for measurement in measurements])
    worst = measurements[row.worst]
    random = any(measurement.decision.random for measurement in measurements)
    return {
        **_declared(claim),
        "cells": [_entry(cell, measurement) for cell, measurement in zip(filled, measurements, strict=True)],
        "measured": worst.measured,
        "stderr": worst.stderr,
        "reference": worst.reference,
        "verdict": row.verdict,
        "reason": " ".join(filter(None, (_reason(row.verdict, filled, measurements), reason))),
        "note": reason,
        "p": row.p_holds if random else None,
        "p_refuted": row.p_refuted if random else None,
        "seeds": worst.units,
        "seconds": finite(f"claim {claim.id!r}: seconds", seconds, at_least=0),
        "preset": preset,
        "scale": scale,
    }


def not_run(claim: Claim, reason: str, *, preset: str) -> dict[str, Any]:
    """Make the row of a claim that was not measured, for the reason given (missing weights, hardware, the preset)."""
    one_of(f"claim {claim.id!r}: preset", preset, PRESETS)
    if not reason.strip():
        raise ValueError(f"claim {claim.id!r}: a row that is not run needs a reason")
    return {
        **_declared(claim),
        "cells": [],
        "measured": None,
        "stderr": None,
        "reference": claim.reference,
        "verdict": "not run",
        "reason": reason,
        "note": reason,
        "p": None,
        "p_refuted": None,
        "seeds": 0,
        "seconds": 0.0,
        "preset": preset,
        "scale": "full",
    }


def recompute(row: Mapping[str, Any]) -> dict[str, Any]:
    """Judge a row again from its own raw data; a row that was not run is made again from its declaration."""
    fields = ("id", "statement", "source", "rule", "primary", "expected", "expected_reason", "margin_reason", "test")
    claim = Claim(
        **{field: row[field] for field in fields},
        reference=row["declared_reference"],
        margin=row["margin"],
        seeds=row["declared_seeds"],
    )
    if row["verdict"] == "not run":
        if row["cells"]:
            raise ValueError(f"claim {claim.id!r} is said not to have run, but has {len(row['cells'])} cells")
        return not_run(claim, row["note"], preset=row["preset"])
    names = {field.name for field in dataclasses.fields(Cell)}
    cells = [Cell(**{key: value for key, value in cell.items() if key in names}) for cell in row["cells"]]
    timing = {"seconds": row["seconds"], "preset": row["preset"], "scale": row["scale"]}
    return judge(claim, cells, **timing, reason=row["note"])


def adjust(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Correct the rows of one paper for their number: Holm over the primary random rows.

    A row that is not run counts as p = 1, so that the family does not depend on the preset. The p-value of a row is
    that of its verdict. A verdict that does not survive becomes inconclusive, with both p-values in its reason.

    Returns:
        Copies of the rows, each with `adjusted_p` (None outside the family) and `verdict_alone`.
    """
    from jaxgen.statistics import verdicts

    family = [row for row in rows if row["primary"] and _is_random(row)]
    alone = [_decision_p(row) for row in family]
    adjusted = dict(zip(map(id, family), zip(alone, verdicts.holm(alone), strict=True), strict=True))
    result = []
    for row in rows:
        p, corrected = adjusted.get(id(row), (None, None))
        copy = {**row, "adjusted_p": corrected, "verdict_alone": row["verdict"]}
        if corrected is not None and row["verdict"] in ("holds", "refuted") and corrected >= _FAMILY_ALPHA:
            copy["verdict"] = "inconclusive"
            lost = f"{row['verdict']} alone (p = {p:.3g}), not after Holm over {len(family)} rows (p = {corrected:.3g})"
            copy["reason"] = " ".join(filter(None, (lost, row["reason"])))
        result.append(copy)
    return result


def contradicts(row: Mapping[str, Any]) -> bool:
    """Tell whether a row decided otherwise than its claim expects; an open row contradicts nothing."""
    return row["verdict"] in ("holds", "refuted") and row["verdict"] != row["expected"]


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read claims.json; a ValueError names file and line of what is malformed.

    Rows are checked for the keys and types that the ledger reads, numbers for being finite.
    """
    path = Path(path)
    text = strict_json.read_text(path)
    rows = strict_json.parse(text, path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}:1: claims must be a list of rows, got {type(rows).__name__}")
    for index, row in enumerate(rows):
        problem = _problem(row)
        if problem:
            raise ValueError(f"{path}:{strict_json.line_of_element(text, index)}: {problem}")
    return rows


def _declared(claim: Claim) -> dict[str, Any]:
    fields = ("id", "statement", "source", "primary", "expected", "expected_reason", "rule", "test", "margin")
    declared = {field: getattr(claim, field) for field in fields}
    reference = {"declared_reference": claim.reference, "declared_seeds": claim.seeds}
    return {**declared, "margin_reason": claim.margin_reason, **reference}


def _entry(cell: Cell, measurement: "Measurement") -> dict[str, Any]:
    """Write a cell: its raw data, without the fields left at their default, and what was found."""
    always = ["name", "reference", "margin", "margin_reason", "test", "values"]
    if cell.test in ("bootstrap", "permutation"):
        always += ["seed", "draws"]
    raw = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
    defaults = {field.name: field.default for field in dataclasses.fields(cell)}
    decision = measurement.decision
    return {
        **{field: _listed(raw[field]) for field in always},
        **{field: _listed(value) for field, value in raw.items() if field not in always and value != defaults[field]},
        "interval": measurement.interval,
        "p": decision.p_holds if decision.random else None,
        "p_refuted": decision.p_refuted if decision.random else None,
        "measured": measurement.measured,
        "stderr": measurement.stderr,
        "units": measurement.units,
        "units_needed": decision.units_needed,
        "verdict": decision.verdict,
    }


def _reason(verdict: str, cells: Sequence[Cell], measurements: Sequence["Measurement"]) -> str:
    """Say which cells stand in the way of "holds", and why."""
    reasons = []
    for cell, measurement in zip(cells, measurements, strict=True):
        decision = measurement.decision
        text = decision.reason
        if verdict == "inconclusive" and decision.verdict == "refuted":
            text = f"refuted alone (p = {decision.p_refuted:.3g}), not after Holm over the cells"
        if text:
            reasons.append(text if len(cells) == 1 else f"{cell.name}: {text}")
    more = f"; and {len(reasons) - 3} more cells" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more + "." if reasons else ""


def _is_random(row: Mapping[str, Any]) -> bool:
    # By declaration, so that a row counts whether or not it was run.
    return row["test"] != "deterministic"


def _decision_p(row: Mapping[str, Any]) -> float:
    if row["verdict"] == "not run":
        return 1.0
    holds = row["p"] if row["p"] is not None else float(row["verdict"] != "holds")
    refuted = row["p_refuted"] if row["p_refuted"] is not None else float(row["verdict"] != "refuted")
    return {"holds": holds, "refuted": refuted}.get(row["verdict"], min(holds, refuted))


def _problem(row: Any) -> str:
    """Say in one phrase what makes a row unreadable, or return an empty string."""
    if not isinstance(row, dict):
        return f"a row must be an object, got {type(row).__name__}"
    name = f"row {row.get('id', '?')!r}"
    for key, types in _ROW_TYPES.items():
        if key not in row:
            return f"{name} lacks the key {key!r}"
        if not isinstance(row[key], types) or (isinstance(row[key], bool) and types is not bool):
            return f"{name}: {key} has the wrong type, {type(row[key]).__name__}"
    for key, allowed in (("verdict", VERDICTS), ("expected", VERDICTS), ("preset", PRESETS), ("scale", SCALES)):
        if row[key] not in allowed:
            return f"{name}: {key} must be one of {', '.join(allowed)}, got {row[key]!r}"
    for cell in row["cells"]:
        if not isinstance(cell, dict) or not isinstance(cell.get("name"), str):
            return f"{name} has a cell without a name"
    return ""


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
