"""The diagonal model in closed form: published and derived numbers, an ODE solver, and its invariants."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from jaxgen.flows import (
    Kappas,
    descend_scalars,
    explained,
    explained_at_infinity,
    flow_product,
    flow_scalars,
    gamma_start,
    gaussian_start,
    harmonic_sum,
    kappas,
    laplace_start,
    limit_product,
    limit_scalars,
    moment_table_start,
    one_hot_start,
    poisson_start,
    population_loss,
    rademacher_start,
    rates,
    skewed_start,
    spiked_start,
    time_to,
    uniform_start,
)
from jaxgen.flows.start_laws import Ones
from jaxgen.flows.two_scalars import scalars_of

# Limits of ab on N(0, 1).
GAUSSIAN = [
    (1, 7, 1 / 5),
    (2, 5, 18 / 101),
    (3, 5, 9 / 56),
    (3, 12, 0.17902558929256476),
    (5, 3, 1 / 9),
    (5, 5, 9 / 67),
    (10, 5, 2 / 21),
    (20, 5, 18 / 299),
    (5, 10, 560 / 3561),
    (10, 10, 2240 / 18049),
    (5, 20, 0.17310949377334672),
    (5, 100, 0.19190508852558863),
    (20, 100, 0.16661615656984669),
    (5, 1000, 0.19880739945357417),
]
# Limits with the mask, and of other laws.
OTHERS = [
    (rademacher_start(), 2, 5, 18 / 29),
    (rademacher_start(), 5, 5, 9 / 31),
    (rademacher_start(), 10, 5, 2 / 13),
    (rademacher_start(), 2, 100, 0.9499136094073296),
    (rademacher_start(), 5, 100, 0.8258257205973869),
    (rademacher_start(), 10, 100, 0.6781749328087807),
    (uniform_start(), 3, 10, 3360 / 3161),
    (uniform_start(), 5, 100, 1.2745529952397117),
    (laplace_start(), 5, 100, 0.0328711447777256),
    (one_hot_start(0.5), 5, 100, 4.0),
    (one_hot_start(2.0), 4, 7, 0.25),
]
# By another program: a0, b0, c1, c2, tau, and ab.
FLOWS = [
    (0.5, 1.5, 2.0, 3.0, 0.3, 1.3791168863946),
    (0.1, 0.1, 2.0, 3.0, 0.5, 0.1781838111823),
    (-1.0, 0.2, 2.0, 3.0, 0.4, 0.9119390620376),
    (2.0, 0.5, 1.0, 0.5, 1.0, 0.5095563239176),
]
# Derived: law, step size, c1, c2, ab after 200 epochs from three starts, and further (start, epoch, ab).
STARTS = ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))
DESCENTS = {
    "gaussian 0.5": (gaussian_start(0.5), 1e-3, 23.9376143, 18.375, (0.732560553, 0.767620284, 0.767951118), ()),
    "gaussian 1": (
        gaussian_start(),
        1e-4,
        1532.00732,
        294.0,
        (0.191883294, 0.191905089, 0.191905844),
        ((0, 150, 0.191455065), (2, 150, 0.191920728)),
    ),
    "gaussian 2": (gaussian_start(2.0), 2e-6, 98048.4684, 4704.0, (0.0441419256, 0.0479762721, 0.0488089035), ()),
    "sparse 0.5": (one_hot_start(0.5), 3e-2, 0.30625, 1.225, (3.99947182, 3.99999810, 4.0), ()),
    "sparse 1": (one_hot_start(), 1e-3, 19.6, 19.6, (0.963199722, 0.999996816, 1.00024151), ()),
    "sparse 2": (
        one_hot_start(2.0),
        1e-4,
        1254.4,
        313.6,
        (0.249983373, 0.25, 0.250000453),
        ((0, 120, 0.247076296),),
    ),
}
# Derived: R^2 at infinity, R^2 and E-ratio u m2 at d = 5, T = 100, share of x != 0 where it is not 1.
CAPABILITIES = {
    "gaussian": (gaussian_start(), 0.6, 0.5757152656, 0.1919050885),
    "rademacher": (rademacher_start(), 1.0, 0.8258257206, 0.8258257206),
    "uniform": (uniform_start(), 0.84, 0.7647317971, 0.4248509984),
    "laplace": (laplace_start(), 0.4, 0.3944537373, 0.0657422896),
    "poisson": (poisson_start(), 225 / 406, 0.5374359301, 0.1433162480),
    "gamma": (gamma_start(), 10 / 21, 0.4622625552, 0.1386787666),
    "spiked": (spiked_start(), 1.0, 0.9595254426, 0.1919050885),
}
# Compiled once.
product_at, scalars_at = jax.jit(flow_product), jax.jit(flow_scalars)
SIDES = st.floats(-2.0, 2.0)
RATES = st.floats(0.2, 5.0)


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def test_harmonic_sums_are_those_of_fractions():
    for length in (3, 5, 10, 37):
        exact = sum(Fraction(1, t - 1) for t in range(2, length))
        assert harmonic_sum(length) == pytest.approx(float(exact), rel=1e-15)
    assert harmonic_sum(5) == pytest.approx(11 / 6, rel=1e-15)
    assert harmonic_sum(10) == pytest.approx(761 / 280, rel=1e-15)
    assert harmonic_sum(100) == pytest.approx(5.1672765075386105, rel=1e-15)


@pytest.mark.parametrize(("dimension", "length", "expected"), GAUSSIAN)
def test_the_limits_of_gaussian_tokens(dimension, length, expected):
    # Of many coordinates there are many moments to look at.
    assert float(limit_product(gaussian_start(), length, dimension, check=dimension in (2, 5))) == pytest.approx(
        expected, rel=1e-13
    )
    for std in (0.5, 2.0):
        scaled = limit_product(gaussian_start(std), length, dimension, check=False)
        assert float(scaled) == pytest.approx(expected / std**2, rel=1e-13)


@pytest.mark.parametrize(("law", "dimension", "length", "expected"), OTHERS)
def test_the_limits_of_other_tokens(law, dimension, length, expected):
    assert float(limit_product(law, length, dimension, check=dimension in (2, 5))) == pytest.approx(expected, rel=1e-13)


def test_constant_tokens_have_the_limit_of_random_signs_once_masked():
    with pytest.raises(ValueError, match=r"Assumption 4.1 violated.*pass check=False"):
        limit_product(Ones(), 100, 5)
    assert float(limit_product(Ones(), 100, 5, check=False)) == pytest.approx(0.825825720597, rel=1e-12)
    assert float(limit_product(Ones(2.0), 5, 2, check=False)) == pytest.approx(18 / 29 / 4, rel=1e-14)


@pytest.mark.parametrize(
    "law", [skewed_start(), poisson_start(symmetrised=False), gamma_start(symmetrised=False)], ids=str
)
def test_laws_with_odd_moments_are_refused_unless_told_otherwise(law):
    with pytest.raises(ValueError, match=r"Assumption 4\.1 violated: a moment with an odd exponent does not vanish"):
        limit_product(law, 5, 5)
    assert float(limit_product(law, 5, 5, check=False)) > 0
    # The theorem's value for the skewed law.
    assert float(limit_product(skewed_start(), 5, 5, check=False)) == pytest.approx(9 / 77, rel=1e-14)
    assert float(limit_product(skewed_start(), 100, 5, check=False)) == pytest.approx(0.2445893678, abs=5e-11)


def test_sizes_and_laws_out_of_range_are_refused():
    with pytest.raises(ValueError, match="length must be an integer of at least 3 tokens, got 2"):
        limit_product(gaussian_start(), 2, 3)
    with pytest.raises(ValueError, match="length must be an integer of at least 3 tokens, got 0"):
        harmonic_sum(0)
    with pytest.raises(ValueError, match="dimension must be an integer of at least 1, got 0"):
        limit_product(gaussian_start(), 5, 0)
    with pytest.raises(ValueError, match=r"kappa_2 = E\[x\^6\] must be above 0"):
        limit_product(moment_table_start([0.0] * 6), 5, 3)
    with pytest.raises(ValueError, match="coordinates must be alike"):
        limit_product(gaussian_start(np.array([1.0, 0.5])), 5, 2)


@pytest.mark.parametrize(("a0", "b0", "c1", "c2", "tau", "expected"), FLOWS)
def test_the_flow_has_the_known_products(a0, b0, c1, c2, tau, expected):
    assert float(product_at(a0, b0, c1, c2, tau)) == pytest.approx(expected, abs=1e-13)


def test_the_flow_has_the_known_scalars_and_those_of_training():
    np.testing.assert_allclose(scalars_at(0.5, 1.5, 2.0, 3.0, 0.3), (0.83875802, 1.64423691), atol=5e-9)
    np.testing.assert_allclose(scalars_at(-1.0, 0.2, 2.0, 3.0, 0.4), (-1.22904426, -0.74199042), atol=5e-9)
    c1, c2 = (float(rate) for rate in rates(kappas(gaussian_start(), 5), 100))
    for a0, b0, time, expected in (
        (0.1, 0.1, 1.0, 0.0554347764504594),
        (0.1, 0.1, 2.0, 0.1439463643903172),
        (0.5, 1.5, 0.1, 0.36398942676142454),
    ):
        assert float(product_at(a0, b0, c1, c2, time / c2)) == pytest.approx(expected, rel=1e-13)
    c1, c2 = (float(rate) for rate in rates(kappas(one_hot_start(0.5), 5), 100))
    assert float(product_at(0.1, 0.1, c1, c2, 2 / c2)) == pytest.approx(0.48146713146122644, rel=1e-13)


@given(SIDES, SIDES, RATES, RATES, st.floats(0.0, 1.5))
@example(0.7, -0.7 + 1e-4, 1.0, 2.0, 1.0)
@example(-0.7, 0.7 + 1e-8, 1.0, 2.0, 1.5)
@example(0.7, -0.7, 1.0, 2.0, 1.5)
@example(0.5, 0.5 + 1e-9, 1.0, 2.0, 1.0)
@example(-0.5, -0.5 - 1e-14, 3.0, 1.0, 0.5)
@example(0.0, 0.3, 3.0, 1.0, 0.5)
@example(-1.5, 0.0, 3.0, 1.0, 0.5)
@example(1e-5, -2e-5, 1.0, 3.0, 1.5)
@example(0.0, 0.0, 1.0, 3.0, 1.5)
@example(8.9e-140, 8.9e-140, 1.0, 1.0, 0.0)
@example(1e-155, 1e-155, 1.0, 1.0, 1.5)
@example(1e-155, 2e-155, 1.0, 1.0, 1.5)
@settings(max_examples=40, deadline=None)
def test_the_flow_is_that_of_an_ode_solver(a0, b0, c1, c2, tau):
    def velocity(_, y):
        pull = c2 - c1 * y[0] * y[1]
        return [y[1] * pull, y[0] * pull]

    expected = solve_ivp(velocity, (0, tau), (a0, b0), method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    a, b = (float(value) for value in scalars_at(a0, b0, c1, c2, tau))
    # The solver's steps add up, and starts near a0 = -b0 amplify them.
    np.testing.assert_allclose((a, b), expected, rtol=1e-9, atol=1e-10)
    assert float(product_at(a0, b0, c1, c2, tau)) == pytest.approx(expected[0] * expected[1], rel=1e-9, abs=1e-10)
    # What the flow conserves: a^2 - b^2 and the sign of a + b.
    assert a**2 - b**2 == pytest.approx(a0**2 - b0**2, rel=1e-12, abs=1e-14)
    assert (a + b) * (a0 + b0) >= 0


def test_the_flow_is_closed_over_the_plane_without_overflow():
    # Long times, stiff constants, tiny starts and sums of opposite numbers.
    u = 4704 / 98048.4684
    for a0, b0 in ((2.0, 2.0), (0.5, 1.5), (1e-12, 1e-12), (-3.0, 1e-9), (1.0, -1.0 + 1e-12)):
        for tau in (20.0, 1e6):
            assert float(product_at(a0, b0, 98048.4684, 4704.0, tau)) == pytest.approx(u, rel=1e-12)
    assert float(product_at(0.7, -0.7, 98048.4684, 4704.0, 1e6)) == 0.0
    assert float(product_at(0.0, 0.0, 2.0, 3.0, 5.0)) == 0.0
    assert float(product_at(0.3, -0.8, 2.0, 3.0, 0.0)) == pytest.approx(-0.24, rel=1e-14)
    assert np.isfinite(jax.grad(lambda a: flow_product(a, 0.1, 2.0, 3.0, 0.5))(0.1))


def test_flows_are_one_family_in_their_own_units():
    # (a, b) / sqrt(u*) against c2 tau.
    a0, b0, times = 0.3, -0.8, np.linspace(0.0, 3.0, 7)
    over_times = jax.vmap(flow_product, in_axes=(None, None, None, None, 0))
    expected = over_times(a0, b0, 1.0, 1.0, times)
    for c1, c2 in ((1532.0, 294.0), (0.3, 1.2)):
        root = np.sqrt(c2 / c1)
        np.testing.assert_allclose(over_times(a0 * root, b0 * root, c1, c2, times / c2) / root**2, expected, rtol=1e-12)


def test_limits_lie_on_the_orbit_of_the_start():
    for a0, b0 in ((0.5, 1.5), (-1.0, 0.2), (0.2, -1.0), (2.0, -0.1), (-0.1, -0.1), (0.0, 0.4)):
        a, b = (float(value) for value in limit_scalars(a0, b0, 1.5))
        delta = a0**2 - b0**2
        size = np.sqrt(delta**2 + 4 * 1.5**2)
        sign = np.sign(a0 + b0)
        np.testing.assert_allclose((a, b), (sign * np.sqrt((size + delta) / 2), sign * np.sqrt((size - delta) / 2)))
        np.testing.assert_allclose(scalars_at(a0, b0, 2.0, 3.0, 50.0), (a, b), rtol=1e-12)
        np.testing.assert_allclose(scalars_of(a0 * b0, a0, b0), (a0, b0), atol=1e-15)
    for a0 in (0.7, -0.7, 0.0):
        assert [float(value) for value in limit_scalars(a0, -a0, 1.5)] == [0.0, 0.0]
        a, b = scalars_at(a0, -a0, 2.0, 3.0, 0.2)
        assert float(a) == pytest.approx(-float(b), rel=1e-15)
        assert float(a) * a0 >= 0


def test_the_time_to_a_fraction_of_the_limit():
    # 243 epochs at 1e-3; from 30 digits.
    c1, c2 = (float(rate) for rate in rates(kappas(gaussian_start(0.5), 5), 100))
    time = float(time_to(0.99, 0.1, c2 / c1))
    assert time == pytest.approx(4.461358582603446, rel=1e-14)
    assert np.ceil(time / c2 / 1e-3) == 243
    assert float(product_at(0.1, 0.1, c1, c2, time / c2)) == pytest.approx(0.99 * c2 / c1, rel=1e-13)


@pytest.mark.parametrize(("law", "step_size", "c1", "c2", "products", "others"), DESCENTS.values(), ids=DESCENTS)
def test_gradient_descent_is_where_the_tables_have_it(law, step_size, c1, c2, products, others):
    found = rates(kappas(law, 5), 100)
    np.testing.assert_allclose(found, (c1, c2), rtol=5e-9)
    runs = [np.asarray(descend_scalars(*start, *found, step_size, 200)).prod(axis=1) for start in STARTS]
    assert all(run.shape == (201,) for run in runs)
    assert [run[0] for run in runs] == pytest.approx([0.01, 0.75, 4.0])
    # Nine digits are given.
    np.testing.assert_allclose([run[200] for run in runs], products, rtol=5e-9)
    for start, epoch, expected in others:
        assert runs[start][epoch] == pytest.approx(expected, rel=5e-9)


def test_the_losses_of_the_tables():
    for std, loss in ((0.5, 25.98744), (1.0, 103.949760), (2.0, 415.79904)):
        moments = kappas(gaussian_start(std), 5)
        u = limit_product(gaussian_start(std), 100, 5)
        assert float(population_loss(1.0, u, moments, 100, 5)) == pytest.approx(loss, rel=5e-8)
        share = population_loss(1.0, u, moments, 100, 5) / population_loss(0.0, 0.0, moments, 100, 5)
        assert float(share) == pytest.approx(0.424285, abs=5e-7)
    for value, step_size, epoch, loss in (
        (0.5, 3e-2, 200, 2.136e-7),
        (1.0, 1e-3, 200, 0.0663588),
        (2.0, 1e-4, 120, 0.0268067),
        (2.0, 1e-4, 200, 8.67e-7),
    ):
        moments = kappas(one_hot_start(value), 5)
        a, b = descend_scalars(0.1, 0.1, *rates(moments, 100), step_size, 200)[epoch]
        found = float(population_loss(a, b, moments, 100, 5))
        assert found == pytest.approx(loss, rel=2e-3 if loss < 1e-5 else 2e-6)
    assert float(population_loss(0.0, 3.0, kappas(Ones(), 5), 100, 5)) == 245.0
    u = limit_product(Ones(), 100, 5, check=False)
    assert float(population_loss(1.0, u, kappas(Ones(), 5), 100, 5)) == pytest.approx(42.6726985, abs=5e-8)


def test_gradient_descent_shrinks_the_difference_by_its_exact_law():
    c1, c2 = (float(rate) for rate in rates(kappas(gaussian_start(), 5), 100))
    a, b = np.asarray(descend_scalars(0.5, 1.5, c1, c2, 1e-4, 200)).T
    delta, pull = a**2 - b**2, c2 - c1 * a * b
    assert delta[200] == pytest.approx(-1.97513, abs=5e-6)
    np.testing.assert_allclose(delta[1:], delta[:-1] * (1 - (1e-4 * pull[:-1]) ** 2), rtol=1e-12)
    # It follows the flow to first order in the step.
    errors = []
    for steps in (200, 400, 800):
        last = descend_scalars(0.5, 1.5, 2.0, 3.0, 0.3 / steps, steps)[-1]
        errors.append(abs(float(last.prod()) - 1.3791168863946))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.02)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.01)


def test_the_loss_of_one_coordinate_obeys_the_identities_of_lemmas_5_3_and_5_4():
    moments, length = kappas(gaussian_start(0.8), 5), 12
    c1, c2 = (float(rate) for rate in rates(moments, length))

    def loss(point):
        return population_loss(point[0], point[1], moments, length, 1)

    least = float(loss(jnp.array([1.0, c2 / c1])))
    points = jnp.stack(jnp.meshgrid(jnp.linspace(-2, 2, 9), jnp.linspace(-1.5, 2.5, 9)), axis=-1).reshape(-1, 2)
    values, gradients, hessians = (jax.jit(jax.vmap(f))(points) for f in (loss, jax.grad(loss), jax.hessian(loss)))
    a, b = np.asarray(points).T
    u = a * b
    np.testing.assert_allclose(values - least, (c2 - c1 * u) ** 2 / (2 * c1), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(gradients, np.stack([b, a], axis=1) * (c1 * u - c2)[:, None], rtol=1e-12, atol=1e-11)
    # The PL inequality is an equality.
    np.testing.assert_allclose((gradients**2).sum(axis=1), 2 * c1 * (a**2 + b**2) * (values - least), atol=1e-9)
    determinants = np.linalg.det(hessians)
    expected = (c2 - c1 * u) * (3 * c1 * u - c2)
    np.testing.assert_allclose(determinants, expected, rtol=1e-10, atol=1e-8)
    assert ((determinants < 0) == ((u < c2 / (3 * c1)) | (u > c2 / c1))).all()
    assert (determinants > 0).any()


@pytest.mark.parametrize(("law", "at_infinity", "at_100", "ratio"), CAPABILITIES.values(), ids=CAPABILITIES)
def test_the_capability_of_the_trained_layer(law, at_infinity, at_100, ratio):
    moments = kappas(law, 5)
    assert float(explained_at_infinity(moments)) == pytest.approx(at_infinity, rel=1e-13)
    assert float(explained(moments, 100)) == pytest.approx(at_100, abs=5e-11)
    u = limit_product(law, 100, 5)
    assert float(u * moments.second) == pytest.approx(ratio, abs=5e-11)
    # What R^2 is: 1 - L* / L(0); it grows to its limit with the length.
    lost = population_loss(1.0, u, moments, 100, 5) / population_loss(0.0, 0.0, moments, 100, 5)
    assert float(explained(moments, 100)) == pytest.approx(1 - float(lost), abs=1e-13)
    assert float(explained(moments, 10**6)) == pytest.approx(at_infinity, rel=2e-4)


def test_the_ratio_over_targets_that_are_not_zero():
    # Divided by P(x != 0) = 1 - 1/e and 0.2.
    for law, present, expected in (
        (poisson_start(), 1 - np.exp(-1), 0.2267229661),
        (spiked_start(), 0.2, 0.9595254426),
    ):
        ratio = limit_product(law, 100, 5) * kappas(law, 5).second / present
        assert float(ratio) == pytest.approx(expected, abs=5e-11)


def test_the_one_hot_law_is_recovered_at_every_length():
    for length in (3, 10, 100):
        assert float(explained(kappas(one_hot_start(1.7), 4), length)) == pytest.approx(1.0, rel=1e-14)


def test_nothing_here_needs_double_numbers():
    with jax.enable_x64(False):
        for a0, b0, c1, c2, tau, expected in FLOWS:
            found = product_at(a0, b0, c1, c2, tau)
            assert found.dtype == jnp.float32
            assert float(found) == pytest.approx(expected, rel=3e-6)
        moments = Kappas(*(jnp.float32(value) for value in kappas(gaussian_start(), 5)))
        assert float(explained(moments, 100)) == pytest.approx(0.5757152656, rel=1e-6)
