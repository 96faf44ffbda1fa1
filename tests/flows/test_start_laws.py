"""Start laws: moments against scipy and against samples, and laws made from their moments."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxgen.flows import (
    ORDER,
    Atoms,
    GammaSize,
    Independent,
    Normal,
    OneHot,
    PoissonCount,
    StartLaw,
    gamma_start,
    gaussian_start,
    laplace_start,
    moment_table_start,
    one_hot_start,
    poisson_start,
    rademacher_start,
    skewed_start,
    spiked_start,
    uniform_start,
)
from jaxgen.flows.start_laws import Ones

SCALES = np.array([0.5, 2.0])
LAWS = {
    "gaussian": gaussian_start(SCALES),
    "rademacher": rademacher_start(-1.5),
    "uniform": uniform_start(2.0),
    "laplace": laplace_start(0.5),
    "poisson": poisson_start(1.5),
    "raw gamma": gamma_start(1.5, symmetrised=False),
    "spiked": spiked_start(0.3, 1.5),
    "skewed": skewed_start(0.8),
    "one-hot": one_hot_start(-1.5),
    "ones": Ones(1.2),
    "moment table": moment_table_start([0.1, 1.0, 0.3, 2.5, 1.0, 9.0]),
}
# E[x^n], n = 1 ... 6.
TABLES = {
    "one atom": (1.5, 2.25, 3.375, 5.0625, 7.59375, 11.390625),
    "two atoms": (0, 1, 0, 1, 0, 1),
    "two atoms, skewed": (0, 2, 2, 6, 10, 22),
    "three atoms": (0, 0.2, 0, 0.2, 0, 0.2),
    "three atoms, large": (0, 20, 0, 2000, 0, 200000),
    "Gaussian": (0, 1, 0, 3, 0, 15),
    "small Gaussian": (0, 1e-4, 0, 3e-8, 0, 15e-12),
    "Gaussian of mean 1": (1, 2, 4, 10, 26, 76),
    "Poisson": (1, 2, 5, 15, 52, 203),
    "symmetrised Poisson": (0, 2, 0, 15, 0, 203),
    "Laplace": (0, 2, 0, 24, 0, 720),
    "nothing": (0, 0, 0, 0, 0, 0),
}
IMPOSSIBLE = {
    "negative variance": (1, 0.5, 1, 1, 1, 1),
    "negative second": (0, -1, 0, 1, 0, 1),
    "kurtosis below 1": (0, 1, 0, 0.9, 0, 1),
    "Hankel determinant below 0": (0, 1, 0, 2, 0, 3.9),
    "a mean without a square": (1, 0, 0, 0, 0, 0),
    "two atoms cannot have this sixth": (0, 1, 0, 1, 0, 1.1),
}


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def numbers(law, exponents):
    return np.asarray(law.moments(np.asarray(exponents)))


@pytest.mark.parametrize(
    ("law", "reference"),
    [
        (gaussian_start(1.3), stats.norm(scale=1.3)),
        (uniform_start(0.7), stats.uniform(-0.7, 1.4)),
        (laplace_start(1.1), stats.laplace(scale=1.1)),
        (poisson_start(1.5, symmetrised=False), stats.poisson(1.5)),
        (gamma_start(2.5, symmetrised=False), stats.gamma(2.5)),
        (skewed_start(), stats.rv_discrete(values=([-1, 2], [2 / 3, 1 / 3]))),
        (rademacher_start(1.0), stats.rv_discrete(values=([-1, 1], [0.5, 0.5]))),
        (spiked_start(0.2, 1.0), stats.rv_discrete(values=([-1, 0, 1], [0.1, 0.8, 0.1]))),
    ],
)
def test_the_moments_are_those_of_scipy(law, reference):
    orders = np.arange(ORDER + 1)
    expected = [reference.moment(order) if order else 1.0 for order in orders]
    # scipy integrates the Laplace density to 2e-9.
    np.testing.assert_allclose(numbers(law, orders[:, None]), expected, rtol=1e-8, atol=1e-9)
    # Independent coordinates: products.
    pairs = np.array([(i, j) for i in orders for j in orders if i + j <= ORDER])
    product = np.array(expected)[pairs].prod(axis=1)
    np.testing.assert_allclose(numbers(law, pairs), product, rtol=1e-8, atol=1e-9)


def test_a_fair_sign_keeps_even_moments_and_removes_odd_ones():
    for make in (poisson_start, gamma_start):
        raw, fair = (numbers(make(1.5, symmetrised=s), np.arange(ORDER + 1)[:, None]) for s in (False, True))
        np.testing.assert_allclose(fair[::2], raw[::2], rtol=1e-15)
        assert (fair[1::2] == 0).all()
        assert (raw > 0).all()


def test_the_standard_moments_are_integers():
    even = np.array([[2], [4], [6]])
    for law, expected in [
        (gaussian_start(), (1, 3, 15)),
        (laplace_start(), (2, 24, 720)),
        (poisson_start(), (2, 15, 203)),
        (gamma_start(), (6, 120, 5040)),
        (skewed_start(), (2, 6, 22)),
    ]:
        np.testing.assert_allclose(numbers(law, even), expected, rtol=1e-14)
    np.testing.assert_allclose(numbers(skewed_start(), [[1], [3], [5]]), (0, 2, 10), atol=1e-14)
    np.testing.assert_allclose(numbers(uniform_start(), even), (1 / 3, 1 / 5, 1 / 7), rtol=1e-15)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_samples_have_the_moments(law):
    # All moments of two coordinates of order 1 to 4, and those of order 6 that the flow asks for.
    exponents = np.array([(i, j) for i in range(5) for j in range(5) if 0 < i + j <= 4] + [(6, 0), (2, 4), (3, 3)])
    keys = jax.random.split(jax.random.key(5), 50_000)
    x = np.asarray(jax.jit(jax.vmap(lambda key: law.sample(key, 2)))(keys))
    assert x.shape == (50_000, 2)
    powers = (x[:, None] ** exponents).prod(axis=-1)
    errors = powers.std(axis=0) / np.sqrt(len(x))
    expected = numbers(law, exponents)
    # Sums of 5e4 numbers are rounded.
    assert (np.abs(powers.mean(axis=0) - expected) <= 5 * errors + 1e-11 * np.abs(expected)).all()


def test_one_hot_and_constant_tokens():
    exponents = np.array([(0, 0, 0), (2, 0, 0), (0, 4, 0), (0, 0, 6), (1, 0, 0), (3, 0, 0), (2, 2, 0), (2, 0, 4)])
    np.testing.assert_allclose(numbers(OneHot(-2.0), exponents), (1, 4 / 3, 16 / 3, 64 / 3, 0, 0, 0, 0))
    np.testing.assert_allclose(numbers(Ones(-2.0), exponents), (1, 4, 16, 64, -2, -8, 16, 64))
    x = jax.jit(jax.vmap(lambda key: OneHot(-2.0).sample(key, 3)))(jax.random.split(jax.random.key(0), 40))
    assert (jnp.sort(jnp.abs(x), axis=1) == jnp.array([[0.0, 0.0, 2.0]])).all()
    assert ((x > 0).any(axis=0) & (x < 0).any(axis=0)).all()
    assert Ones(0.5).sample(jax.random.key(0), 3).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_a_law_is_made_from_its_moments(table):
    law = moment_table_start(table)
    found = numbers(law, np.arange(1, ORDER + 1)[:, None])
    # Moments of order n are compared in their own unit.
    size = float(table[5]) ** (np.arange(1, ORDER + 1) / 6)
    assert (np.abs(found - np.array(table)) <= 1e-7 * size).all()
    assert len(law.coordinate.values) <= 4


def test_the_atoms_of_a_law_on_few_are_found():
    for table, values, probabilities in [
        (TABLES["two atoms"], (-1, 1), (0.5, 0.5)),
        (TABLES["two atoms, skewed"], (-1, 2), (2 / 3, 1 / 3)),
        (TABLES["three atoms"], (-1, 0, 1), (0.1, 0.8, 0.1)),
        (TABLES["nothing"], (0,), (1,)),
    ]:
        atoms = moment_table_start(table).coordinate
        np.testing.assert_allclose(atoms.values, values, atol=1e-9)
        np.testing.assert_allclose(atoms.probabilities, probabilities, atol=1e-9)


@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(1, 5), min_size=4, max_size=4),
    st.sampled_from([0.01, 0.25, 1.0, 3.0]),
)
@settings(max_examples=100, deadline=None)
def test_every_law_on_at_most_four_numbers_passes_through_its_table(places, weights, scale):
    weights = np.array(weights[: len(places)], float)
    true = Atoms(tuple(scale * np.array(places, float)), tuple(weights / weights.sum()))
    table = np.array([true.moment(order) for order in range(1, ORDER + 1)])
    found = numbers(moment_table_start(table.tolist()), np.arange(1, ORDER + 1)[:, None])
    # Moments fix an atom to about the root of their rounding.
    assert (np.abs(found - table) <= 1e-6 * table[5] ** (np.arange(1, ORDER + 1) / 6)).all()


@pytest.mark.parametrize("table", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_moments_that_no_law_has_are_refused(table):
    with pytest.raises(ValueError, match=re.escape(f"no law has the moments {tuple(map(float, table))}")):
        moment_table_start(table)


def test_a_moment_table_is_finite_and_holds_six_numbers():
    with pytest.raises(ValueError, match="holds the moments 1 to 6, got 4 numbers"):
        moment_table_start([0, 1, 0, 3])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="no law has the moments"):
            moment_table_start([0, 1, 0, bad, 0, 15])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_start(-1.0), "std must be above 0 and finite, got -1.0"),
        (lambda: gaussian_start(0.0), "std must be above 0"),
        (lambda: gaussian_start(np.array([1.0, -2.0])), "std must be above 0"),
        (lambda: gaussian_start(np.nan), "std must be above 0 and finite"),
        (lambda: uniform_start(-1.0), "half_width must be above 0"),
        (lambda: laplace_start(np.inf), "scale must be above 0 and finite"),
        (lambda: skewed_start(0.0), "scale must be above 0"),
        (lambda: rademacher_start(0.0), "value must be finite and not 0, got 0.0"),
        (lambda: one_hot_start(0.0), "value must be finite and not 0, got 0.0"),
        (lambda: spiked_start(0.2, 0.0), "value must be finite and not 0"),
        (lambda: spiked_start(0.0), r"probability must lie in \(0, 1\], got 0.0"),
        (lambda: spiked_start(1.5), r"probability must lie in \(0, 1\]"),
        (lambda: PoissonCount(-1.0), "rate must be above 0"),
        (lambda: GammaSize(0.0), "shape must be above 0"),
        (lambda: Atoms((1.0,), (0.5, 0.5)), "values and probabilities must be as many, got 1 and 2"),
        (lambda: Atoms((), ()), "must be as many"),
        (lambda: Atoms((1.0, 2.0), (0.5, 0.6)), "add up to 1"),
        (lambda: Atoms((1.0, 2.0), (-0.5, 1.5)), "at least 0"),
        (lambda: gaussian_start().moments(np.array([4, 3])), "exponents must be at least 0 and add up to at most 6"),
        (lambda: OneHot().moments(np.array([-1, 3])), "exponents must be at least 0"),
        (lambda: Ones().moments(np.array([7])), "at most 6"),
    ],
)
def test_bad_laws_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_law_is_a_pytree_of_what_may_be_swept():
    assert all(isinstance(law, StartLaw) for law in LAWS.values())
    sweep = jax.vmap(lambda std: gaussian_start(std).moments(np.array([2, 4])))(jnp.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(sweep, 3 * np.array([0.5, 1.0, 2.0]) ** 6, rtol=1e-14)
    slope = jax.grad(lambda c: one_hot_start(c).moments(np.array([4, 0])))(2.0)
    assert float(slope) == pytest.approx(4 * 2.0**3 / 2)
    law = Independent(Normal(), 2.0)
    assert jax.tree.leaves(law) == [2.0]
    # No moment of a swept law is a constant: the compiled function takes the scale as an argument.
    found = jax.jit(lambda law: law.moments(np.array([[6, 0]])))(law)
    np.testing.assert_allclose(found, [15 * 64.0])
