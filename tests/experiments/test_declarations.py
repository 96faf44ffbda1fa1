"""What a claim and a cell accept, and the one sentence with which they refuse the rest."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.declarations import Cell, Claim

GOOD = {"source": "a paper, eq. 1", "rule": "equal", "reference": 0.5, "margin": 0.05, "margin_reason": "1 %"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "1A"}, "the id must be a letter followed by"),
        ({"statement": " "}, "statement must not be empty"),
        ({"source": ""}, "source must not be empty"),
        ({"rule": "equals"}, "rule must be one of equal, less, greater, order, slope, exact, got 'equals'"),
        ({"test": "z"}, "test of the rule 'equal' must be one of t, binomial,"),
        ({"rule": "order", "test": "binomial"}, "test of the rule 'order' must be one of t, bootstrap"),
        ({"rule": "exact"}, "test of the rule 'exact' must be one of deterministic, got 't'"),
        ({"reference": float("nan")}, "reference must be finite, got nan"),
        ({"margin": -0.1}, "margin must be finite and at least 0, got -0.1"),
        ({"margin": 0.0}, "the rule 'equal' needs a margin above 0"),
        ({"margin_reason": ""}, "the margin 0.05 needs a margin_reason"),
        ({"seeds": 0}, "seeds must be an integer of at least 1, got 0"),
        ({"expected": "not run"}, "expected must be one of holds, refuted, inconclusive, got 'not run'"),
        ({"expected": "refuted"}, "expecting 'refuted' needs an expected_reason"),
        ({"not_run": {"large": "12 h"}}, "preset in not_run must be one of ci, default, gpu, paper, got 'large'"),
        ({"not_run": {"default": ""}}, "not_run at 'default' needs a reason"),
    ],
)
def test_a_claim_that_could_not_be_judged_is_refused_when_declared(change, message):
    with pytest.raises(ValueError) as caught:
        Claim(**{"id": "D4", "statement": "a sentence", **GOOD, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "the name must be a string that is not empty"),
        ({"values": []}, "values must be a row of numbers that is not empty"),
        ({"values": "123"}, "values must be a row of numbers"),
        ({"values": ["a"]}, "values must hold numbers, got 'a'"),
        ({"successes": 1.5}, "successes must be an integer of at least 0, got 1.5"),
        ({"trials": True}, "trials must be an integer of at least 0, got True"),
        ({"error": -1}, "error must be finite and at least 0, got -1"),
        ({"margin": float("inf")}, "margin must be finite and at least 0, got inf"),
        ({"test": "z"}, "test must be one of t, binomial,"),
        ({"draws": 10}, "draws must be an integer of at least 199, got 10"),
    ],
)
def test_a_cell_that_no_test_reads_is_refused(change, message):
    with pytest.raises(ValueError) as caught:
        Cell(**{"name": "x", "values": [1.0, 2.0], **change})
    assert message in str(caught.value)


def test_a_cell_takes_arrays_of_any_library_and_keeps_plain_numbers():
    for values in (np.array([1, 2.5]), jnp.array([1, 2.5]), [np.float32(1), jnp.float32(2.5)], (1, 2.5)):
        assert Cell("a", values=values).values == (1.0, 2.5)
    assert Cell("a", values=jnp.array([[1.0, np.nan], [np.inf, 2.0]])).values == ((1.0, None), (None, 2.0))
    assert type(Cell("a", successes=np.int64(3), trials=4).successes) is int


@pytest.mark.parametrize(
    ("rule", "cell", "missing"),
    [
        ("equal", Cell("a", successes=1, trials=2), "values"),
        ("equal", Cell("a", values=[1.0], test="binomial"), "successes"),
        ("less", Cell("a", values=[1.0, 2.0], test="fisher_z"), "x"),
        ("less", Cell("a", values=[1.0], test="deterministic"), "error"),
        ("order", Cell("a", values=[1.0, 2.0]), "control"),
        ("slope", Cell("a", values=[1.0, 2.0]), "x"),
    ],
)
def test_a_cell_without_the_data_of_its_test_is_refused(rule, cell, missing):
    claim = Claim("D4", "a sentence", **{**GOOD, "rule": rule})
    with pytest.raises(ValueError, match=f"claim 'D4', cell 'a': the rule .* needs {missing}$"):
        cell.of(claim)


@pytest.mark.parametrize(
    ("rule", "cell", "unread"),
    [
        ("slope", Cell("a", values=[1.0, 2.0], x=[1.0, 2.0], control=[1.0, 2.0]), "control"),
        ("equal", Cell("a", values=[1.0, 2.0], x=[1.0, 2.0]), "x"),
        ("equal", Cell("a", values=[1.0, 2.0], error=0.1), "error"),
        ("equal", Cell("a", values=[1.0, 2.0], successes=1, trials=2, test="binomial"), "values"),
        ("equal", Cell("a", values=[1.0, 2.0], rtol=0.1), "rtol"),
    ],
)
def test_data_that_no_test_reads_are_refused_rather_than_ignored(rule, cell, unread):
    with pytest.raises(ValueError, match=f"does not read {unread}$"):
        cell.of(Claim("D4", "a sentence", **{**GOOD, "rule": rule}))


def test_a_cell_inherits_what_it_does_not_say():
    claim = Claim("D4", "a sentence", **GOOD)
    own = Cell("a", values=[1.0, 2.0], reference=2.0, test="bootstrap").of(claim)
    assert (own.reference, own.margin, own.margin_reason, own.test) == (2.0, 0.05, "1 %", "bootstrap")
    assert Cell("a", values=[1.0, 2.0]).of(claim).reference == 0.5


def test_claims_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Claim("D4", "a sentence", **GOOD).margin = 1.0


def test_declaring_claims_imports_neither_jax_nor_numpy():
    code = "import sys, experiments.claims; sys.exit(bool({'jax', 'numpy', 'scipy', 'jaxgen'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
