"""Rows: their verdicts, their way through a file and back, and Holm's correction over a paper."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.claims import Cell, Claim, adjust, contradicts, judge, not_run, read_rows, recompute
from experiments.declarations import TESTS_OF_RULE

HOLDS = (0.52, 0.49, 0.55, 0.50, 0.54)
REFUTED = (0.62, 0.59, 0.65, 0.60, 0.64)
OPEN = (0.52, 0.49, 0.65, 0.40, 0.64)
X = (10.0, 20.0, 40.0, 80.0)
DESIGN_KEYS = {
    *("id", "statement", "source", "primary", "expected", "rule", "cells", "measured", "stderr", "reference"),
    *("verdict", "reason", "seeds", "seconds", "preset", "scale"),
}
CELL_KEYS = {"name", "reference", "margin", "margin_reason", "test", "values", "interval", "p"}


def claim(rule="equal", reference=0.5, margin=0.05, **options):
    reason = "a reason" if margin else ""
    return Claim("D4", "a sentence", source="eq. 1", rule=rule, reference=reference, margin=margin,
                 margin_reason=reason, **options)  # fmt: skip


def judged(declared, *cells, **options):
    return judge(declared, cells, **{"seconds": 1.5, "preset": "ci", **options})


def curves(exponent, spread=0.02):
    rng = np.random.default_rng(0)
    return np.array(X) ** exponent * np.exp(spread * rng.normal(size=(5, 4)))


PAIRS = {"values": [1.3, 2.1, 2.9, 4.2, 5.1], "control": [1.0, 2.0, 2.5, 4.0, 4.6]}
# Rule, cell, and the verdict that a closed form or a glance gives; every allowed pair of rule and test is here.
CASES = [
    (claim(), Cell("a", values=HOLDS), "holds"),
    (claim(), Cell("a", values=REFUTED), "refuted"),
    (claim(), Cell("a", values=OPEN), "inconclusive"),
    (claim(), Cell("a", values=[v + 1 for v in HOLDS], control=[1.01, 0.99, 1, 1.01, 0.99]), "holds"),
    (claim(test="binomial"), Cell("a", successes=1010, trials=2000), "holds"),
    (claim(test="binomial"), Cell("a", successes=12, trials=2000), "refuted"),
    (claim(test="bootstrap"), Cell("a", values=HOLDS * 3, seed=3), "holds"),
    (claim(test="permutation"), Cell("a", values=HOLDS * 3), "holds"),
    (claim(test="fisher_z", margin=0.3), Cell("a", x=range(90), values=[v % 7 + v / 30 for v in range(90)]), "holds"),
    (claim(test="deterministic"), Cell("a", values=[0.52], error=0.01), "holds"),
    (claim(test="deterministic"), Cell("a", values=[0.52], error=0.04), "inconclusive"),
    (claim(test="deterministic"), Cell("a", values=[0.7], error=0.1), "refuted"),
    (claim("less", 0.6, 0), Cell("a", values=HOLDS), "holds"),
    (claim("less", 0.5, 0.1), Cell("a", values=HOLDS), "holds"),
    (claim("less", 0.5, 0), Cell("a", values=REFUTED), "refuted"),
    (claim("less", 0, 0), Cell("a", values=[3.1, 2.9, 3.3, 3.0, 3.2], control=[3.6, 3.4, 3.7, 3.5, 3.9],
                               paired=False), "holds"),
    (claim("less", 0.6, 0, test="binomial"), Cell("a", successes=1010, trials=2000), "holds"),
    (claim("less", 0.6, 0, test="bootstrap"), Cell("a", values=HOLDS * 2), "holds"),
    (claim("less", 0.6, 0, test="permutation"), Cell("a", values=HOLDS), "holds"),
    (claim("less", -0.2, 0, test="fisher_z"), Cell("a", x=range(9), values=[9, 7, 8, 6, 5, 3, 4, 1, 2]), "holds"),
    (claim("less", 0.6, 0, test="deterministic"), Cell("a", values=[0.5], error=0), "holds"),
    (claim("greater", 0.45, 0), Cell("a", values=HOLDS), "holds"),
    (claim("greater", 0.55, 0.1), Cell("a", values=HOLDS), "holds"),
    (claim("greater", 0.45, 0, test="binomial"), Cell("a", successes=1010, trials=2000), "holds"),
    (claim("greater", 0.45, 0, test="bootstrap"), Cell("a", values=HOLDS * 2), "holds"),
    (claim("greater", 0.45, 0, test="permutation"), Cell("a", values=HOLDS), "holds"),
    (claim("greater", 0.2, 0, test="fisher_z"), Cell("a", x=range(9), values=[1, 2, 4, 3, 5, 7, 6, 9, 8]), "holds"),
    (claim("greater", 0.45, 0, test="deterministic"), Cell("a", values=[0.5], error=0), "holds"),
    (claim("order", 0, 0), Cell("a", **PAIRS), "holds"),
    (claim("order", 0, 0), Cell("a", **PAIRS, paired=False), "inconclusive"),  # pairing is what decides
    (claim("order", 0, 0), Cell("a", values=PAIRS["control"], control=PAIRS["values"]), "refuted"),
    (claim("order", 0, 0, test="bootstrap"), Cell("a", **PAIRS), "holds"),
    (claim("order", 0, 0, test="bootstrap"), Cell("a", **PAIRS, paired=False), "inconclusive"),
    (claim("order", 0, 0, test="permutation"), Cell("a", **PAIRS), "holds"),
    (claim("order", 0, 0, test="permutation"), Cell("a", **PAIRS, paired=False), "inconclusive"),
    (claim("order", 0, 0, test="deterministic"), Cell("a", values=[2.0], control=[1.5], error=0.1), "holds"),
    (claim("slope", -0.5), Cell("a", x=X, values=curves(-0.5)), "holds"),
    (claim("slope", -1.0), Cell("a", x=X, values=curves(-0.5)), "refuted"),
    (claim("slope", -0.5, 0.1), Cell("a", x=X, values=curves(-0.5)[0]), "holds"),
    (claim("slope", -0.5, test="bootstrap"), Cell("a", x=X, values=curves(-0.5)), "holds"),
    (claim("slope", -0.5, test="permutation"), Cell("a", x=X, values=curves(-0.5)), "holds"),
    (claim("slope", 2.0, test="deterministic"), Cell("a", x=X, values=np.array(X) ** 2, error=0.01), "holds"),
    (claim("exact", 3.0, 0, test="deterministic"), Cell("a", values=[3.0, 3.0]), "holds"),
    (claim("exact", 3.0, 0, test="deterministic"), Cell("a", values=[3.0, 3.0 + 1e-15]), "refuted"),
    (claim("exact", 0.0, 1e-9, test="deterministic"),
     Cell("a", values=[1, 200.1], control=[1, 200], rtol=1e-3), "holds"),
    (claim("exact", 0.0, 0, test="deterministic"), Cell("a", values=[float("nan")]), "refuted"),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "cell", "verdict"), CASES)
def test_every_rule_and_test_reaches_its_verdict_and_reaches_it_again_from_the_file(declared, cell, verdict, tmp_path):
    row = judged(declared, cell)
    assert row["verdict"] == verdict
    assert row.keys() >= DESIGN_KEYS
    assert row["cells"][0].keys() >= CELL_KEYS
    path = tmp_path / "claims.json"
    path.write_text(json.dumps([row], allow_nan=False))
    assert recompute(read_rows(path)[0]) == row


def test_a_resampled_cell_stores_the_seed_of_its_draws():
    stored = judged(claim(test="bootstrap"), Cell("a", values=HOLDS))["cells"][0]
    assert (stored["seed"], stored["draws"]) == (0, 9_999)
    other = recompute(judged(claim(test="bootstrap"), Cell("a", values=HOLDS, seed=1)))["cells"][0]
    assert other["p"] != stored["p"]


def test_the_cases_reach_every_rule_with_every_test():
    covered = {(declared.rule, cell.test or declared.test) for declared, cell, _ in CASES}
    allowed = {(rule, test) for rule, tests in TESTS_OF_RULE.items() for test in tests}
    assert covered == allowed


def test_a_row_shows_its_worst_cell():
    row = judged(claim(), Cell("good", values=HOLDS), Cell("other", values=[0.7, 0.72, 0.69], reference=0.7))
    assert (row["verdict"], row["measured"], row["reference"], row["seeds"]) == ("holds", pytest.approx(0.52), 0.5, 5)
    row = judged(claim(), Cell("good", values=HOLDS), Cell("bad", values=REFUTED), Cell("open", values=OPEN))
    assert (row["verdict"], row["measured"]) == ("refuted", pytest.approx(0.62))
    assert row["p_refuted"] == pytest.approx(3 * 0.0035685, rel=1e-4)


def test_an_inconclusive_row_says_how_many_seeds_would_decide_it():
    row = judged(claim(), Cell("good", values=HOLDS), Cell("gamma=2", values=OPEN), reason="Budget spent.")
    needed = row["cells"][1]["units_needed"]
    assert row["reason"] == f"gamma=2: about {needed} units would decide it, 5 were measured. Budget spent."
    assert row["note"] == "Budget spent."


def test_a_refutation_that_is_lost_among_the_cells_says_so():
    slight = [0.58, 0.555, 0.59, 0.61, 0.575]
    alone = judged(claim(), Cell("a", values=slight))
    assert alone["verdict"] == "refuted"
    row = judged(claim(), Cell("slight", values=slight), *[Cell(str(i), values=HOLDS) for i in range(4)])
    assert row["verdict"] == "inconclusive"
    assert row["reason"].startswith("slight: refuted alone (p = ")


def test_seeds_without_effect_are_inconclusive():
    row = judged(claim(), Cell("a", values=[0.5] * 8))
    assert (row["verdict"], row["reason"], row["cells"][0]["interval"]) == (
        "inconclusive", "the seeds have no effect.", None)  # fmt: skip


@pytest.mark.parametrize("crash", [float("nan"), float("inf"), None])
def test_a_crashed_seed_counts(crash):
    row = judged(claim(), Cell("a", values=[*HOLDS, crash]))
    assert row["verdict"] == "inconclusive"
    assert row["reason"] == "1 of 6 units gave no finite number, and they count."
    assert row["seeds"] == 6
    assert row["measured"] is None
    paired = judged(claim("order", 0, 0), Cell("a", values=[1.0, crash, 3.0], control=[crash, 1.0, 1.0]))
    assert paired["reason"] == "2 of 3 units gave no finite number, and they count."
    correlated = judged(claim(test="fisher_z"), Cell("a", values=[1, 2, 3, 5], x=[crash, 1, 3, 4]))
    assert correlated["reason"] == "1 of 4 units gave no finite number, and they count."


def test_an_unpaired_control_of_a_deterministic_cell_is_still_taken_off():
    cell = Cell("a", values=[2.0], control=[1.5], error=0.1, paired=False)
    assert judged(claim("greater", 1.0, 0, test="deterministic"), cell)["verdict"] == "refuted"


def test_unpaired_lengths_are_refused_where_pairs_are_claimed():
    with pytest.raises(ValueError, match=r"claim 'D4', cell 'a': 3 values cannot be paired with 2 controls"):
        judged(claim("order", 0, 0), Cell("a", values=[1.0, 2.0, 3.0], control=[1.0, 2.0]))


def test_a_row_needs_a_cell_a_known_preset_and_a_known_scale():
    with pytest.raises(ValueError, match="claim 'D4' needs at least one cell"):
        judged(claim())
    with pytest.raises(ValueError, match="preset must be one of ci, default, gpu, paper, got 'big'"):
        judged(claim(), Cell("a", values=HOLDS), preset="big")
    with pytest.raises(ValueError, match="scale must be one of full, reduced, got 'small'"):
        judged(claim(), Cell("a", values=HOLDS), scale="small")
    with pytest.raises(ValueError, match="seconds must be finite"):
        judged(claim(), Cell("a", values=HOLDS), seconds=float("nan"))


def test_a_row_that_is_not_run_has_a_reason_and_survives_the_file(tmp_path):
    row = not_run(claim(), "needs weights", preset="default")
    assert row.keys() >= DESIGN_KEYS
    assert (row["verdict"], row["reason"], row["cells"]) == ("not run", "needs weights", [])
    (tmp_path / "claims.json").write_text(json.dumps([row]))
    assert recompute(read_rows(tmp_path / "claims.json")[0]) == row
    with pytest.raises(ValueError, match="needs a reason"):
        not_run(claim(), " ", preset="ci")
    measured = judged(claim(), Cell("a", values=REFUTED))
    with pytest.raises(ValueError, match="is said not to have run, but has 1 cells"):
        recompute({**measured, "verdict": "not run"})


def rows_with(p_values, **options):
    return [
        {**judged(claim(**options), Cell("a", values=HOLDS)), "id": f"D{i}", "p": p} for i, p in enumerate(p_values)
    ]


def test_holm_over_the_rows_of_a_paper_on_the_check_value():
    adjusted = adjust(rows_with([0.001, 0.012, 0.02, 0.04, 0.30]))
    assert [row["adjusted_p"] for row in adjusted] == pytest.approx([0.005, 0.048, 0.06, 0.08, 0.30])
    assert [row["verdict"] for row in adjusted] == ["holds", "holds", *["inconclusive"] * 3]
    assert adjusted[2]["verdict_alone"] == "holds"
    assert adjusted[2]["reason"].startswith("holds alone (p = 0.02), not after Holm over 5 rows (p = 0.06)")


def test_the_family_of_a_paper_does_not_depend_on_what_was_run():
    left_out = not_run(claim(), "needs weights", preset="ci")
    adjusted = adjust([*rows_with([0.02]), left_out, left_out])
    assert adjusted[0]["adjusted_p"] == pytest.approx(0.06)
    assert (adjusted[0]["verdict"], adjusted[1]["verdict"]) == ("inconclusive", "not run")


def test_secondary_and_deterministic_rows_are_outside_the_family():
    exact = judged(claim(test="deterministic"), Cell("a", values=[0.5], error=0))
    adjusted = adjust([*rows_with([0.04]), *rows_with([0.04], primary=False), exact])
    assert [row["adjusted_p"] for row in adjusted] == [0.04, None, None]
    assert {row["verdict"] for row in adjusted} == {"holds"}


def test_a_refuted_row_is_corrected_by_the_p_value_of_its_refutation():
    refuted = judged(claim(), Cell("a", values=REFUTED))
    adjusted = adjust([refuted, *rows_with([0.3, 0.4])])
    assert adjusted[0]["adjusted_p"] == pytest.approx(3 * 0.0035685, rel=1e-4)
    assert adjusted[0]["verdict"] == "refuted"
    many = adjust([refuted, *rows_with([0.3] * 15)])
    assert many[0]["verdict"] == "inconclusive"


def test_only_a_decided_row_contradicts_what_was_expected():
    against = {"expected": "refuted", "expected_reason": "section 3"}
    assert contradicts(judged(claim(**against), Cell("a", values=HOLDS)))
    assert contradicts(judged(claim(), Cell("a", values=REFUTED)))
    assert not contradicts(judged(claim(**against), Cell("a", values=REFUTED)))
    assert not contradicts(judged(claim(), Cell("a", values=OPEN)))
    assert not contradicts(not_run(claim(), "needs weights", preset="ci"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("verdict"), "row 'D4' lacks the key 'verdict'"),
        (
            lambda row: row.update(verdict="fine"),
            "verdict must be one of holds, refuted, inconclusive, not run, got 'fine'",
        ),
        (lambda row: row.update(preset="big"), "preset must be one of"),
        (lambda row: row.update(cells={}), "cells has the wrong type, dict"),
        (lambda row: row.update(seeds=True), "seeds has the wrong type, bool"),
        (lambda row: row.update(cells=[{"values": [1]}]), "has a cell without a name"),
    ],
)
def test_a_malformed_row_is_named_with_file_and_line(change, message, tmp_path):
    rows = [judged(claim(), Cell("a", values=HOLDS)) for _ in range(2)]
    change(rows[1])
    text = json.dumps(rows, indent=1)
    (tmp_path / "claims.json").write_text(text)
    line = next(n for n, t in enumerate(text.splitlines(), 1) if n > 2 and t == " {")
    with pytest.raises(ValueError) as caught:
        read_rows(tmp_path / "claims.json")
    assert str(caught.value).startswith(f"{tmp_path}/claims.json:{line}: ")
    assert message in str(caught.value)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=2, max_size=6))
def test_no_numbers_make_a_row_that_json_cannot_hold(values):
    row = judged(claim(), Cell("a", values=values))
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert all(v is None or math.isfinite(v) for v in row["cells"][0]["values"])
