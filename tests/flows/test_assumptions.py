"""Which start laws meet what the paper assumes, and the moments it is written in."""

import itertools

import jax
import numpy as np
import pytest

from jaxgen.flows import (
    check_assumptions,
    check_symmetry,
    gamma_start,
    gaussian_start,
    kappas,
    laplace_start,
    moment_table_start,
    one_hot_start,
    poisson_start,
    rademacher_start,
    skewed_start,
    spiked_start,
    start_moments,
    uniform_start,
)
from jaxgen.flows.start_laws import Ones

TILTED = gaussian_start(np.array([1.0, 0.5, 2.0]))
# As printed, all odd moments vanish, coordinates alike, recovers.
VERDICTS = {
    "gaussian": (gaussian_start(0.3), (True, True, True, False)),
    "uniform": (uniform_start(1.7), (True, True, True, False)),
    "laplace": (laplace_start(0.3), (True, True, True, False)),
    "poisson": (poisson_start(), (True, True, True, False)),
    "gamma": (gamma_start(), (True, True, True, False)),
    "raw poisson": (poisson_start(symmetrised=False), (False, False, True, False)),
    "raw gamma": (gamma_start(symmetrised=False), (False, False, True, False)),
    "rademacher": (rademacher_start(0.3), (True, True, True, True)),
    "spiked": (spiked_start(0.2, 3.0), (True, True, True, True)),
    "one-hot": (one_hot_start(0.7), (True, True, True, True)),
    "ones": (Ones(), (False, False, True, True)),
    "skewed": (skewed_start(), (True, False, True, False)),
    "anisotropic": (TILTED, (True, True, False, False)),
    # E x = 0, but the odd moments above it are not.
    "skewed table": (moment_table_start([0.0, 1.0, 0.01, 3.0, 0.0, 15.0]), (True, False, True, False)),
}


@pytest.mark.parametrize(("law", "expected"), VERDICTS.values(), ids=VERDICTS.keys())
@pytest.mark.parametrize("precise", [True, False], ids=["float64", "float32"])
def test_the_laws_meet_the_assumptions_they_should(law, expected, precise):
    with jax.enable_x64(precise):
        assert check_assumptions(law, 3) == expected


def test_the_assumption_as_printed_is_too_weak_from_two_coordinates_on():
    # E[x_r^3 x_s^3] needs two; a third moment alone is in no gradient, yet odd.
    assert check_assumptions(skewed_start(), 2)[:2] == (True, False)
    with pytest.raises(ValueError, match=r"Assumption 4\.1 violated: a moment with an odd exponent does not vanish"):
        check_symmetry(skewed_start(), 2)
    check_symmetry(gaussian_start(), 2)
    check_symmetry(TILTED, 3)


def test_the_assumptions_do_not_depend_on_the_unit():
    for scale in (1e-3, 0.7, 30.0):
        assert check_assumptions(rademacher_start(scale), 3) == (True, True, True, True)
        assert check_assumptions(skewed_start(scale), 3) == (True, False, True, False)


@pytest.mark.parametrize("dimension", [5, 60])
def test_coordinates_are_alike_in_single_precision(dimension):
    for law in (gaussian_start(0.3), laplace_start(0.7), uniform_start(1.3)):
        second, fourth, sixth = (law.scale**n * law.coordinate.moment(n) for n in (2, 4, 6))
        expected = second, fourth, sixth, (dimension - 1) * second * fourth
        np.testing.assert_allclose(kappas(law, dimension), expected, rtol=3e-6)  # sums of 60 rounded numbers


def test_the_kappas_are_those_of_the_definitions():
    with jax.enable_x64(True):
        for law, expected in [
            (gaussian_start(2.0), (4.0, 48.0, 960.0, 4 * 192.0)),
            (rademacher_start(2.0), (4.0, 16.0, 64.0, 4 * 64.0)),
            (Ones(), (1.0, 1.0, 1.0, 4.0)),
            (one_hot_start(2.0), (4 / 5, 16 / 5, 64 / 5, 0.0)),
            (laplace_start(), (2.0, 24.0, 720.0, 4 * 48.0)),
            (skewed_start(), (2.0, 6.0, 22.0, 4 * 12.0)),
        ]:
            np.testing.assert_allclose(kappas(law, 5), expected, rtol=1e-14)


def test_the_moments_of_unlike_coordinates_keep_both_sums():
    scale = np.array([1.0, 0.5, 2.0])
    with jax.enable_x64(True):
        found = start_moments(TILTED, 3)
    np.testing.assert_allclose(found.second, scale**2)
    np.testing.assert_allclose(found.fourth, 3 * scale**4)
    np.testing.assert_allclose(found.sixth, 15 * scale**6)
    for j, r in itertools.product(range(3), repeat=2):
        assert float(found.cross[j, r]) == pytest.approx((3 if j != r else 15) * scale[j] ** 2 * scale[r] ** 4)


def test_what_has_no_kappas_is_refused():
    with pytest.raises(ValueError, match=r"coordinates must be alike, got the fourth moments \[3.0, 0.1875, 48.0\]"):
        kappas(TILTED, 3)
    with pytest.raises(ValueError, match=r"kappa_2 = E\[x\^6\] must be above 0, got 0.0"):
        kappas(moment_table_start([0.0] * 6), 3)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"dimension must be an integer of at least 1, got {bad}"):
            kappas(gaussian_start(), bad)
        with pytest.raises(ValueError, match=f"dimension must be an integer of at least 1, got {bad}"):
            start_moments(gaussian_start(), bad)
        with pytest.raises(ValueError, match=f"dimension must be an integer of at least 1, got {bad}"):
            check_assumptions(gaussian_start(), bad)
