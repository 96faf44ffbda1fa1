"""The references, in plain Python, against numbers that were derived elsewhere."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.special

from experiments.mesa_optimization import references

GAUSSIAN, SPARSE = references.LAWS["Gaussian"], references.LAWS["one-hot"]


@pytest.mark.parametrize(
    ("dimension", "length", "limit"),
    [
        (1, 7, Fraction(1, 5)),
        (2, 5, Fraction(18, 101)),
        (3, 5, Fraction(9, 56)),
        (5, 3, Fraction(1, 9)),
        (5, 5, Fraction(9, 67)),
        (10, 5, Fraction(2, 21)),
        (20, 5, Fraction(18, 299)),
        (5, 10, Fraction(560, 3561)),
        (10, 10, Fraction(2240, 18049)),
    ],
)
def test_limit_is_that_of_the_theorem_in_fractions(dimension, length, limit):
    assert GAUSSIAN.limit(dimension, length) == pytest.approx(float(limit), rel=1e-14)
    assert GAUSSIAN.limit(dimension, length, 2.0) == pytest.approx(float(limit) / 4, rel=1e-14)


@pytest.mark.parametrize(
    ("law", "scale", "step", "epochs", "values"),
    [
        (GAUSSIAN, 0.5, 1e-3, 200, (0.732560553, 0.767620284, 0.767951118)),
        (GAUSSIAN, 1.0, 1e-4, 200, (0.191883294, 0.191905089, 0.191905844)),
        (GAUSSIAN, 2.0, 2e-6, 200, (0.0441419256, 0.0479762721, 0.0488089035)),
        (SPARSE, 0.5, 3e-2, 200, (3.99947182, 3.99999810, 4.0)),
        (SPARSE, 1.0, 1e-3, 200, (0.963199722, 0.999996816, 1.00024151)),
        (SPARSE, 2.0, 1e-4, 120, (0.247076296, None, None)),
    ],
)
def test_descent_ends_where_the_tables_say(law, scale, step, epochs, values):
    rates = law.rates(5, 100, scale)
    for start, value in zip(references.STARTS, values, strict=True):
        if value is not None:
            found = references.descend(start, rates, step, epochs)
            assert len(found) == epochs + 1
            assert found[-1] == pytest.approx(value, abs=6e-10 if value < 1 else 6e-9)


@pytest.mark.parametrize(
    ("name", "at_infinity", "at_100"),
    [
        ("Gaussian", 0.6, 0.5757152656),
        ("Rademacher", 1.0, 0.8258257206),
        ("uniform", 0.84, 0.7647317971),
        ("Laplace", 0.4, 0.3944537373),
        ("signed Poisson", 225 / 406, 0.5374359301),
        ("signed Gamma", 10 / 21, 0.4622625552),
        ("spiked", 1.0, 0.9595254426),
        ("one-hot", 1.0, 1.0),
    ],
)
def test_capability_of_each_law(name, at_infinity, at_100):
    law = references.LAWS[name]
    assert law.explained_at_infinity == pytest.approx(at_infinity, rel=1e-14)
    assert law.explained(5, 100) == pytest.approx(at_100, abs=6e-11)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_best_steps_are_the_least_squares_polynomial(steps):
    # minimise E[s p(s)^2] over p(s) = 1 + s q(s) with s = x^2 and x ~ N(0, 1), as a linear system of moments
    moment = [float(math.prod(range(2 * k - 1, 0, -2))) for k in range(2 * steps + 2)]  # E s^k
    matrix = [[moment[i + j + 3] for j in range(steps)] for i in range(steps)]
    right = [-moment[i + 2] for i in range(steps)]
    q = np.linalg.solve(matrix, right)
    least = moment[1] + float(q @ [moment[i + 2] for i in range(steps)])
    assert references.steps_explain(steps) == pytest.approx(1.0 - least, rel=1e-9)
    ratio = -float(q @ [moment[i + 1] for i in range(steps)])
    assert references.steps_ratio(steps) == pytest.approx(ratio, rel=1e-8)


def test_nine_tenths_of_the_target_take_175_steps():
    assert references.steps_to_ratio(0.9) == 175
    shares = [1.0 - (k + 1) / scipy.special.binom(k + 1.5, k) for k in (174, 175)]
    assert shares[0] < 0.9 <= shares[1]
