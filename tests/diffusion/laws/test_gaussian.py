"""The closed forms of guided Gaussians: published and derived numbers, and the moments' own differential equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.special import hyp2f1

from jaxgen.diffusion import laws

# Scale; variances of the powered law, DDPM and DDIM; their means for a condition of 1. From S^2 = 2 s^2 = 2.
TABLE = [
    (1, 1, 1, 1, 1, 1, 1),
    (1.5, 0.8, 0.75, 0.7071067811865476, 1.2, 1.2928932188134525, 1.3493488248172132),
    (2, 0.6666666666666667, 0.5833333333333333, 0.5, 1.3333333333333333, 1.5, 1.6232252401402307),
    (3, 0.5, 0.3875, 0.25, 1.5, 1.75, 2),
    (5, 0.3333333333333333, 0.22178819444444445, 0.0625, 1.6666666666666667, 1.9375, 2.3333333333333333),
    (7.5, 0.23529411764705882, 0.14284842354910715, 0.011048543456039806, 1.7647058823529411, 1.98895145654396, None),
]


def numbers(functions):
    """Evaluate in float64, once."""
    with jax.enable_x64(True):
        return [float(value) for value in functions()]


@pytest.mark.parametrize(("scale", "powered", "ddpm", "ddim", "powered_mean", "ddpm_mean", "ddim_mean"), TABLE)
def test_the_laws_of_the_papers_problem(scale, powered, ddpm, ddim, powered_mean, ddpm_mean, ddim_mean):
    scale = float(scale)
    expected = (powered, ddpm, ddim, powered_mean, ddpm_mean, ddim_mean or 2.397926981882073)
    found = numbers(
        lambda: (
            laws.powered_variance(scale),
            laws.ddpm_variance(scale),
            laws.ddim_variance(scale),
            laws.powered_mean(scale, 1.0),
            laws.ddpm_mean(scale, 1.0),
            laws.ddim_mean(scale, 1.0),
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_numbers_at_a_scale_of_one_half_at_finite_noise_and_in_an_interval():
    finite = {"noise_variance": 100.0}
    own = {**finite, "start_variance": 100.0}
    found = numbers(
        lambda: (
            laws.ddpm_variance(0.5),
            laws.ddim_variance(3.0, **finite),
            laws.ddpm_variance(3.0, **finite),
            laws.ddim_variance(3.0, **own),
            laws.ddpm_variance(3.0, **own),
            laws.ddim_interval_variance(5.0, 0.5, 2.0),
            laws.ddpm_interval_variance(5.0, 0.5, 2.0),
            laws.ddpm_variance(2.0, noise_variance=23154.786845395425),
            laws.ddim_variance(2.0, noise_variance=23154.786845395425, start_variance=23155.786845395425),
        )
    )
    expected = [2 * np.log(2), 0.2549750024507401, 0.38751249815475, 0.2524504974759803, 0.3875061250293824]
    expected += [0.19753086419753083, 0.4026012294873746]
    np.testing.assert_allclose(found[:7], expected, rtol=1e-12)
    # The variance-preserving path from .1 to 20 in units of x / alpha: its noise at t = 1, and a start of variance 1.
    np.testing.assert_allclose(found[7:], [0.583333333799599, 0.5000215928745302], rtol=1e-9)


@pytest.mark.parametrize(
    ("scale", "count", "value"),
    [
        (3, 0, 1.0),
        (3, 1, 0.5833333333333333),
        (3, 2, 0.5375),
        (3, 5, 0.5134861882908759),
        (3, 10, 0.5064909436723848),
        (3, 100, 0.5006273505668883),
        (5, 1, 0.3875),
        (5, 2, 0.3556423611111111),
        (5, 5, 0.3412761151712088),
        (5, 10, 0.3371654893570702),
    ],
)
def test_any_number_of_corrections(scale, count, value):
    assert numbers(lambda: [laws.pcg_variance(float(scale), count)]) == [pytest.approx(value, rel=1e-12)]


def test_corrections_of_any_real_number_and_ratio_are_a_hypergeometric_function():
    # K int z^(K-1) ((1 + d) / (1 + d z))^a dz = (1 + d)^a 2F1(a, K; K + 1; -d) with a = K (1 - scale), d = S^2/s^2 - 1.
    # Small K and unlike variances, where the integrand varies over the very first part of its range; and the last
    # two grow without bound in K.
    cases = [(-0.93, 0.114, 9.28, 0.101), (4.4, 0.0121, 8.77, 0.372), (3.5, 0.0358, 0.2, 9.0), (-3.0, 7.5, 0.5, 1.0)]
    cases += [(2.0, 2.5, 0.1, 9.0), (0.3, 1e-3, 1.0, 50.0), (-2.0, 3.0, 1.0, 1.5), (3.0, 12.0, 2.0, 1.0)]
    scale, count, variance, unconditional = np.array(cases).T
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(laws.pcg_variance))(*jnp.asarray(cases).T)
    a, d = count * (1 - scale), unconditional / variance - 1
    np.testing.assert_allclose(found, variance * (1 + d) ** a * hyp2f1(a, count, count + 1, -d), rtol=1e-11)


def moments_by_ode(scale, count, variances, means, noise, start):
    """The variance and mean of predictor and corrector in falling noise, by scipy: count None is DDIM, "DDPM" DDPM."""
    s2, u2 = variances

    def slopes(tau, y):
        precision = np.array([1 / (s2 + tau), 1 / (u2 + tau)])
        guided = np.array([scale, 1 - scale]) * precision
        one = np.array([1.0, 0.0]) * precision
        if count is None:
            pull, fresh = 0.5 * guided, 0.0
        elif count == "DDPM":
            pull, fresh = guided, 1.0
        else:
            pull, fresh = 0.5 * one + 0.5 * count * guided, float(count)
        # In rising noise: d mean / d tau = pull . (mean - m), d variance / d tau = 2 sum(pull) variance - fresh.
        return [2 * pull.sum() * y[0] - fresh, pull @ (y[1] - np.array(means))]

    end = solve_ivp(slopes, (noise, 0.0), [start, means[0]], method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    return end


POSITIVE = st.floats(0.2, 5.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    scale=st.floats(-1.0, 6.0),
    variance=POSITIVE,
    unconditional=POSITIVE,
    noise=st.floats(0.5, 200.0),
    count=st.one_of(st.integers(0, 4), st.floats(0.05, 4.0)),
    widened=st.floats(0.5, 2.0),
)
def test_the_laws_solve_the_equations_of_their_moments(scale, variance, unconditional, noise, count, widened):
    means, spreads = (1.3, -0.4), (variance, unconditional)
    start = widened * (variance + noise)
    options = {"noise_variance": noise, "start_variance": start}
    found = numbers(
        lambda: (
            laws.ddim_variance(scale, *spreads, **options),
            laws.ddpm_variance(scale, *spreads, **options),
            laws.pcg_variance(scale, count, *spreads, **options),
            laws.ddim_mean(scale, *means, *spreads, noise_variance=noise),
            laws.ddpm_mean(scale, *means, *spreads, noise_variance=noise),
            laws.pcg_mean(scale, means[0], count, means[1], *spreads, noise_variance=noise),
        )
    )
    ddim, ddpm, pcg = (moments_by_ode(scale, of, spreads, means, noise, start) for of in (None, "DDPM", count))
    np.testing.assert_allclose(found, [ddim[0], ddpm[0], pcg[0], ddim[1], ddpm[1], pcg[1]], rtol=1e-7, atol=1e-9)


def test_equal_variances_leave_nothing_to_guide_and_are_no_exception():
    found = numbers(
        lambda: (
            laws.ddim_variance(4.0, 1.5, 1.5),
            laws.ddpm_variance(4.0, 1.5, 1.5),
            laws.powered_variance(4.0, 1.5, 1.5),
            laws.pcg_variance(4.0, 3, 1.5, 1.5),
            laws.ddpm_variance(4.0, 1.5, 1.5 + 1e-7),
        )
    )
    np.testing.assert_allclose(found, 1.5, rtol=1e-6)


def test_more_corrections_tend_to_the_powered_law_and_one_is_ddpm_at_the_mean_scale():
    with jax.enable_x64(True):
        scales = jnp.array([0.5, 2.0, 6.0])
        spreads = (0.7, 1.9)
        many = jax.vmap(lambda g: laws.pcg_variance(g, 1e5, *spreads))(scales)
        powered = [float(laws.powered_variance(g, *spreads)) for g in (0.5, 2.0, 6.0)]
        np.testing.assert_allclose(many, powered, rtol=1e-4)
        one = jax.vmap(lambda g: laws.pcg_variance(g, 1, *spreads))(scales)
        ddpm = jax.vmap(lambda g: laws.ddpm_variance((1 + g) / 2, *spreads))(scales)
        np.testing.assert_allclose(one, ddpm, rtol=1e-11)
        # The same of the means, with a condition of 1 and an unconditional mean of -.6.
        shifts, spreads = (1.0, -0.6), (0.7, 1.9)
        means = jax.vmap(lambda g: [laws.pcg_mean(g, 1.0, k, -0.6, *spreads) for k in (0, 1, 1e5)])(scales)
        np.testing.assert_allclose(means[0], 1.0, rtol=1e-12)
        np.testing.assert_allclose(means[1], jax.vmap(lambda g: laws.ddpm_mean((1 + g) / 2, *shifts, *spreads))(scales))
        np.testing.assert_allclose(
            means[2], [float(laws.powered_mean(g, *shifts, *spreads)) for g in scales], rtol=1e-4
        )


def test_ddim_is_sharper_than_ddpm_by_a_factor_that_halves_with_every_unit_of_scale():
    with jax.enable_x64(True):
        scales = jnp.linspace(5.0, 10.0, 6)
        ratio = jax.vmap(lambda g: laws.ddim_variance(g) / laws.ddpm_variance(g) / (2 * g - 1))(scales)
        slopes = np.diff(np.log2(np.asarray(ratio)))
    # log2 of 2^(1 - gamma) (1 - 2^(1 - 2 gamma))^-1 / 2: the bracket is 1 to a thousandth at gamma = 5.
    np.testing.assert_allclose(slopes, -1.0, atol=3e-3)


def test_guidance_in_an_interval_solves_its_equation():
    scale, (low, high), (s2, u2) = 3.5, (0.4, 1.7), (0.6, 2.3)

    def slopes(tau, y, gain):
        guided = scale / (s2 + tau) + (1 - scale) / (u2 + tau) if low**2 < tau <= high**2 else 1 / (s2 + tau)
        return [gain * guided * y[0] - (gain - 1)]

    for law, gain in ((laws.ddim_interval_variance, 1.0), (laws.ddpm_interval_variance, 2.0)):
        y = [s2 + 9.0]
        for ends in ((9.0, high**2), (high**2, low**2), (low**2, 0.0)):
            # Just inside the ends, so that the solver meets no jump.
            inside = np.array(ends) + np.array([-1e-12, 1e-12])
            y = solve_ivp(slopes, inside, y, args=(gain,), method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
        assert numbers(lambda law=law: [law(scale, low, high, s2, u2)]) == [pytest.approx(y[0], rel=1e-8)]


def test_the_powered_law_exists_on_one_side_of_a_scale():
    with jax.enable_x64(True):
        scales = jnp.array([-1.5, -0.99, 1.0, 1.99, 2.5])
        exists = jax.vmap(laws.normalisable)(scales)
        np.testing.assert_array_equal(exists, [False, True, True, True, True])
        exists = jax.vmap(lambda g: laws.normalisable(g, 2.0, 1.0))(scales)
        np.testing.assert_array_equal(exists, [True, True, True, True, False])
        traced = jax.vmap(laws.powered_variance)(scales)
    assert np.isnan(traced[0])
    np.testing.assert_allclose(traced[1:], 2.0 / (1.0 + np.array(scales[1:])), rtol=1e-12)


def test_the_laws_map_over_and_differentiate_in_the_variances():
    variances, step = np.array([0.5, 2.0, 3.0]), 1e-5
    with jax.enable_x64(True):
        for law in (laws.ddim_variance, laws.ddpm_variance, laws.pcg_variance, laws.powered_variance):
            at = lambda s2, u2, law=law: law(1.4, variance=s2, unconditional_variance=u2)  # noqa: E731
            mapped = jax.jit(jax.vmap(jax.value_and_grad(at, (0, 1)), in_axes=(0, None)))
            # 2.0 is the unconditional variance: delta = 0 is no exception.
            values, slopes = mapped(variances, 2.0)
            differences = (
                (mapped(variances + step, 2.0)[0] - mapped(variances - step, 2.0)[0]) / (2 * step),
                (mapped(variances, 2.0 + step)[0] - mapped(variances, 2.0 - step)[0]) / (2 * step),
            )
            np.testing.assert_allclose(slopes, differences, rtol=1e-7, atol=1e-9)
            assert float(values[1]) == pytest.approx(2.0, rel=1e-12)


def test_the_laws_differentiate_where_they_are_no_quotients():
    with jax.enable_x64(True):
        for law in (laws.ddim_variance, laws.ddpm_variance, laws.pcg_variance):
            at = {laws.ddim_variance: -np.log(2), laws.ddpm_variance: None, laws.pcg_variance: None}[law]
            for scale in (0.5, 1.0):
                slope = float(jax.grad(law)(scale))
                step = (float(law(scale + 1e-5)) - float(law(scale - 1e-5))) / 2e-5
                assert slope == pytest.approx(step, rel=1e-7)
            if at is not None:
                assert float(jax.grad(law)(1.0)) == pytest.approx(at, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: laws.ddim_variance(float("nan")), "the guidance scale must be finite, got nan"),
        (lambda: laws.ddpm_variance(2.0, 0.0), "variance must be positive and finite, got 0.0"),
        (lambda: laws.ddpm_variance(2.0, 1.0, -1.0), "unconditional_variance must be positive and finite, got -1.0"),
        (lambda: laws.ddim_variance(2.0, start_variance=1.0), "a start_variance needs the noise_variance"),
        (lambda: laws.pcg_variance(2.0, -1), "num_steps must be at least 0 and finite, got -1"),
        (lambda: laws.powered_variance(-1.0), "has no integral at scale -1.0; it needs a scale above -1"),
        (lambda: laws.powered_variance(2.0, 2.0, 1.0), "has no integral at scale 2.0; it needs a scale below 2"),
        (lambda: laws.ddim_interval_variance(2.0, 2.0, 2.0), "0 <= low < high, both finite, got 2.0 and 2.0"),
    ],
)
def test_arguments_without_a_law_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
