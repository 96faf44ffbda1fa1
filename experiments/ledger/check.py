"""Judge every row again from its raw data, and hold it against what its experiment declares."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from experiments import packages
from experiments.claims import Claim, recompute
from experiments.ledger.runs import Entry

_TOLERANCE = 1e-6  # quantiles and quadratures of two scipy releases agree to about 1e-9
_UNJUDGED = ("reason", "units_needed")  # words for a person, and a plan rounded to whole units
_DECLARED = ("rule", "test", "reference", "margin", "primary", "expected")


def report(entries: Iterable[Entry]) -> int:
    """Print what differs, a line a row, and then the sum; returns the number of rows that differ."""
    entries = list(entries)
    declared = {experiment: declared_claims(experiment) for experiment in {entry.experiment for entry in entries}}
    failed = 0
    for entry in entries:
        found = differences(entry.judged) + departures(entry.judged, declared[entry.experiment].get(entry.judged["id"]))
        failed += bool(found)
        if found:
            print(f"{entry.experiment} {entry.judged['id']} ({entry.run.path}): {'; '.join(found)}")
    print(f"checked {len(entries)} rows from their raw data: {failed or 'none'} differ{'s' if failed == 1 else ''}")
    return failed


def differences(row: Mapping[str, Any]) -> list[str]:
    """Recompute a row and say where it says something else: its verdict first, else the numbers."""
    try:
        again = recompute(row)
    except (ValueError, TypeError, KeyError) as error:
        return [f"cannot be judged again ({error})"]
    if again["verdict"] != row["verdict"]:
        return [f"the row says {row['verdict']!r}, its data say {again['verdict']!r}"]
    return [f"{path} is {stored!r}, its data say {found!r}" for path, stored, found in _differing("", row, again)]


def departures(row: Mapping[str, Any], claim: Claim | None) -> list[str]:
    """Say where a row was judged by another rule than its claim declares today."""
    if claim is None:
        return []
    stored = {**row, "reference": row["declared_reference"]}
    pairs = [(name, stored[name], getattr(claim, name)) for name in _DECLARED]
    return [f"judged with {name} {old!r}, declared with {new!r}" for name, old, new in pairs if old != new]


def declared_claims(experiment: str) -> dict[str, Claim]:
    """Read the claims that an experiment declares; none where there is no such experiment any more."""
    if experiment not in packages.names():
        return {}
    return {claim.id: claim for claim in getattr(packages.load(experiment), "CLAIMS", ())}


def _differing(path: str, stored: Any, again: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(again, Mapping) and isinstance(stored, Mapping):
        keys = [key for key in again if key not in _UNJUDGED]
        found = [_differing(f"{path}.{key}" if path else key, stored.get(key), again[key]) for key in keys]
        return [item for items in found for item in items]
    if isinstance(again, list) and isinstance(stored, list) and len(again) == len(stored):
        pairs = enumerate(zip(stored, again, strict=True))
        return [item for i, pair in pairs for item in _differing(f"{path}[{i}]", *pair)]
    return [] if _same(stored, again) else [(path, stored, again)]


def _same(stored: Any, again: Any) -> bool:
    if isinstance(stored, float) and isinstance(again, float):
        return math.isclose(stored, again, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return stored == again
