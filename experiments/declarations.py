"""What a claim declares before a run, and the cells that a run measures for it; both checked where they are made."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PRESETS = ("ci", "default", "gpu", "paper")  # from the smallest to the largest
VERDICTS = ("holds", "refuted", "inconclusive", "not run")
SCALES = ("full", "reduced")
TESTS_OF_RULE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "equal": ("t", "binomial", "bootstrap", "permutation", "fisher_z", "deterministic"),
        "less": ("t", "binomial", "bootstrap", "permutation", "fisher_z", "deterministic"),
        "greater": ("t", "binomial", "bootstrap", "permutation", "fisher_z", "deterministic"),
        "order": ("t", "bootstrap", "permutation", "deterministic"),
        "slope": ("t", "bootstrap", "permutation", "deterministic"),
        "exact": ("deterministic",),
    }
)
TESTS = TESTS_OF_RULE["equal"]
_LARGEST = 1e100  # a larger number has diverged; the square of one is beyond float64


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence of a paper, with what would make it true; checked when it is declared."""

    id: str
    """Its name in the ledger: `A1`, `B12`, `M3`."""
    statement: str
    """The sentence."""
    _: dataclasses.KW_ONLY
    source: str
    """Paper, section, equation or figure."""
    rule: str
    """equal, less, greater, order, slope or exact."""
    reference: float
    """The claimed number, from the paper or an independent derivation, never from the code under test."""
    margin: float = 0.0
    """What counts as equal, or the tolerance of a bound, in the unit of the reference; `exact`: absolute tolerance."""
    margin_reason: str = ""
    """Why this margin; needed where there is one."""
    test: str = "t"
    """t, binomial, bootstrap, permutation, fisher_z or deterministic."""
    seeds: int = 8
    """Number of seeds that the run uses; fixed beforehand."""
    primary: bool = True
    """Whether the row belongs to the paper's family of main claims, over which Holm corrects."""
    expected: str = "holds"
    """The verdict that a derivation predicts."""
    expected_reason: str = ""
    """The derivation or source of any expectation but "holds"."""
    not_run: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Presets that leave the claim out, each with its reason and the estimated cost at the smallest honest size."""

    def __post_init__(self):
        """Refuse a declaration that could not be judged."""
        name = f"claim {self.id!r}"
        if not isinstance(self.id, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", self.id):
            raise ValueError(
                f"{name}: the id must be a letter followed by letters, digits, '.', '_' or '-', as in 'B12'"
            )
        for field in ("statement", "source"):
            if not str(getattr(self, field)).strip():
                raise ValueError(f"{name}: {field} must not be empty")
        one_of(f"{name}: rule", self.rule, tuple(TESTS_OF_RULE))
        one_of(f"{name}: test of the rule {self.rule!r}", self.test, TESTS_OF_RULE[self.rule])
        # Plain floats, so that a declaration from any library fits into JSON.
        object.__setattr__(self, "reference", finite(f"{name}: reference", self.reference))
        object.__setattr__(self, "margin", finite(f"{name}: margin", self.margin, at_least=0))
        if self.rule in ("equal", "slope") and self.margin == 0:
            raise ValueError(
                f"{name}: the rule {self.rule!r} needs a margin above 0, since no data show exact equality"
            )
        if self.margin and not self.margin_reason.strip():
            raise ValueError(f"{name}: the margin {self.margin:g} needs a margin_reason")
        if not isinstance(self.seeds, int) or self.seeds < 1:
            raise ValueError(f"{name}: seeds must be an integer of at least 1, got {self.seeds!r}")
        one_of(f"{name}: expected", self.expected, VERDICTS[:3])
        if self.expected != "holds" and not self.expected_reason.strip():
            raise ValueError(f"{name}: expecting {self.expected!r} needs an expected_reason that names a derivation")
        for preset, reason in self.not_run.items():
            one_of(f"{name}: preset in not_run", preset, PRESETS)
            if not reason.strip():
                raise ValueError(f"{name}: not_run at {preset!r} needs a reason with the estimated cost")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measured number of a claim, with the raw data that its test needs.

    Arrays of any library are taken and kept as tuples of floats; a value that is not finite, or beyond 1e100, is kept
    as None: the seed counts as crashed, and the cell decides nothing (a case of `exact` misses its target).
    """

    name: str
    """What was measured, as in `gamma=2, DDIM`."""
    _: dataclasses.KW_ONLY
    values: "Sequence[Any] | np.ndarray | None" = None
    """One number a unit (seed, group of draws, case); for `slope` one row of numbers over x a seed, or a single row."""
    control: "Sequence[Any] | np.ndarray | None" = None
    """What the values are compared with, one number a unit; for `exact` the target of each case."""
    x: "Sequence[Any] | np.ndarray | None" = None
    """Abscissas of `slope`, positive; the other variable of `fisher_z`."""
    successes: int | None = None
    """Successes of a `binomial` test."""
    trials: int | None = None
    """Trials of a `binomial` test."""
    error: float | None = None
    """`deterministic`: a bound on the numerical error of the number (of the exponent for `slope`), from refinement."""
    rtol: float = 0.0
    """`exact`: tolerance relative to each target."""
    paired: bool = True
    """Whether values[i] and control[i] come from one seed; False compares two independent groups."""
    seed: int = 0
    """Seed of the resampling of `bootstrap` and `permutation`."""
    draws: int = 9_999
    """Number of resamples."""
    reference: float | None = None
    """The claim's where None."""
    margin: float | None = None
    """The claim's where None."""
    margin_reason: str | None = None
    """The claim's where None."""
    test: str | None = None
    """The claim's where None."""

    def __post_init__(self):
        """Convert arrays to tuples and refuse numbers that no test can read."""
        name = f"cell {self.name!r}"
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"{name}: the name must be a string that is not empty")
        for field in ("values", "control", "x"):
            data = getattr(self, field)
            if data is not None:
                object.__setattr__(self, field, _plain(f"{name}: {field}", data))
        for field in ("successes", "trials"):
            count = getattr(self, field)
            if count is not None:
                object.__setattr__(self, field, _integer(f"{name}: {field}", count, at_least=0))
        object.__setattr__(self, "seed", _integer(f"{name}: seed", self.seed, at_least=0))
        object.__setattr__(self, "draws", _integer(f"{name}: draws", self.draws, at_least=199))
        for field, at_least in (("error", 0), ("rtol", 0), ("reference", -math.inf), ("margin", 0)):
            number = getattr(self, field)
            if number is not None:
                object.__setattr__(self, field, finite(f"{name}: {field}", number, at_least=at_least))
        if self.test is not None:
            one_of(f"{name}: test", self.test, TESTS)

    def of(self, claim: Claim) -> "Cell":
        """Fill in what the cell leaves to its claim, and check that the test finds its data."""
        own = {field: getattr(claim, field) for field in ("reference", "margin", "margin_reason", "test")}
        cell = dataclasses.replace(self, **{k: v for k, v in own.items() if getattr(self, k) is None})
        name = f"claim {claim.id!r}, cell {cell.name!r}"
        one_of(f"{name}: test of the rule {claim.rule!r}", cell.test, TESTS_OF_RULE[claim.rule])
        if claim.rule in ("equal", "slope") and not cell.margin:
            raise ValueError(f"{name}: the rule {claim.rule!r} needs a margin above 0")
        needed = {"binomial": ("successes", "trials"), "fisher_z": ("values", "x")}.get(cell.test or "", ("values",))
        needed += {"order": ("control",), "slope": ("x",)}.get(claim.rule, ())
        if cell.test == "deterministic" and claim.rule != "exact":
            needed += ("error",)
        for field in needed:
            if getattr(cell, field) is None:
                raise ValueError(f"{name}: the rule {claim.rule!r} with the test {cell.test!r} needs {field}")
        compared = claim.rule != "slope" and cell.test not in ("binomial", "fisher_z")
        read = {*needed, "control"} if compared else {*needed}
        for field in sorted({"values", "control", "x", "successes", "trials", "error"} - read):
            if getattr(cell, field) not in (None, 0):  # an error bound of 0 says nothing that could be lost
                raise ValueError(f"{name}: the rule {claim.rule!r} with the test {cell.test!r} does not read {field}")
        if cell.rtol and claim.rule != "exact":
            raise ValueError(f"{name}: the rule {claim.rule!r} does not read rtol")
        return cell


def _plain(name: str, data: Any) -> tuple[Any, ...]:
    """Convert one or two dimensions of numbers to tuples of floats, with None for what is not finite."""
    items = data.tolist() if hasattr(data, "tolist") else data
    if isinstance(items, str | bytes) or not isinstance(items, Sequence) or len(items) == 0:
        raise ValueError(f"{name} must be a row of numbers that is not empty, got {data!r}")
    return tuple(_plain(name, item) if _is_row(item) else _number(name, item) for item in items)


def _is_row(item: Any) -> bool:
    return getattr(item, "ndim", 0) > 0 or (isinstance(item, Sequence) and not isinstance(item, str | bytes))


def _number(name: str, value: Any) -> float | None:
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers, got {value!r}") from None
    return number if abs(number) <= _LARGEST else None


def _integer(name: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return int(value)


def finite(name: str, value: Any, *, at_least: float = -math.inf) -> float:
    """Return a finite float of at least `at_least`, or raise ValueError that begins with `name`."""
    number = _number(name, value)
    if number is None or number < at_least:
        wanted = "finite" if at_least == -math.inf else f"finite and at least {at_least}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return number


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
