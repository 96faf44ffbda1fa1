"""Guidance in an interval of noise levels: where it acts, and the law that it reaches on the first problem of
Bradley & Nakkiran (2024): p(x | c) = N(0, 1), p(x) = N(0, 2).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Level,
    Prediction,
    classifier_free,
    combine,
    ddim,
    denoiser,
    diagonal_mixture,
    guide,
    interval_scale,
    predict_exactly,
)

SCALE, LOW, HIGH = 5.0, 0.5, 2.0
STEPS = (8, 16, 32, 64, 128)  # between a noise level and its half
OCTAVES = 20  # from 8 to 8 / 2^20, whose square is 6e-11


def levels_of(ratios, path):
    """The levels of these sigma / alpha, on the variance-exploding (0) or on the variance-preserving path (1)."""
    alpha = 1.0 / np.sqrt(1.0 + path * ratios**2)
    return Level(ratios, alpha, ratios * alpha)


def steps_of(path):
    """All steps of all refinements, as one pair of levels: two of them have their ends exactly at .5 and 2."""
    grids = [np.append(8.0 * 2.0 ** (-np.arange(OCTAVES * steps + 1) / steps), 0.0) for steps in STEPS]
    return tuple(levels_of(np.concatenate([grid[a:b] for grid in grids]), path) for a, b in ((None, -1), (1, None)))


@pytest.fixture(scope="module")
def multipliers():
    """Each step of ddim(0) and of ddim(1) as x' = a x + b z: [path, (a, a, b), step], read off the library's step."""

    @jax.jit
    def program(laws, interval, key, now, next):
        conditional, unconditional = (lambda x, level, law=law: predict_exactly(law, x, level) for law in laws)
        model = denoiser(guide(conditional, unconditional, interval_scale(*interval)))

        def of_step(now, next):
            def moved(eta, x):
                sampler = ddim(model, eta)
                return sampler.step(key, sampler.init(x), now, next)[0].x

            zero, one = jnp.zeros(1), jnp.ones(1)
            noise = moved(1.0, zero) / jax.random.normal(key, (1,), zero.dtype)
            return jnp.concatenate([moved(0.0, one), moved(1.0, one) - moved(1.0, zero), noise])

        return jax.vmap(of_step)(now, next)

    with jax.enable_x64(True):
        laws = [diagonal_mixture([1.0], [[0.0]], [[variance]]) for variance in (1.0, 2.0)]
        interval = tuple(map(jnp.asarray, (SCALE, LOW, HIGH)))
        return [np.asarray(program(laws, interval, jax.random.key(0), *steps_of(path))).T for path in (0, 1)]


def final_variances(factors, noises):
    """The variances at the end of each refinement, from the exact conditional one at sigma = 8, in units of alpha."""
    starts = np.cumsum([0] + [OCTAVES * steps + 1 for steps in STEPS])
    results = []
    for first, last in itertools.pairwise(starts):
        variance = 65.0
        for factor, noise in zip(factors[first:last], noises[first:last], strict=True):
            variance = factor**2 * variance + noise**2
        results.append(variance)
    return np.array(results)


def refined(values):
    """Remove the first four powers of the step size (Richardson)."""
    for power in range(1, len(STEPS)):
        values = (2**power * values[1:] - values[:-1]) / (2**power - 1)
    return values[0]


@pytest.mark.parametrize(
    ("eta", "variance"),
    [
        # s^2 [(s^2 + t1)(S^2 + t2) / ((s^2 + t2)(S^2 + t1))]^(scale - 1) for the ODE, with variances t1, t2 of noise.
        (0, (1.25 * 6 / (5 * 2.25)) ** 4),
        (0, 0.19753086419753083),
        # -dV / dt = 1 - 2 p V with the guided score -p x, solved part by part from V = 1 + t.
        (1, 0.4026012294873746),
    ],
)
def test_small_steps_reach_the_law_of_the_interval(multipliers, eta, variance):
    now, next = steps_of(1)
    ve, vp = (run[[1, 2]] if eta else np.stack([run[0], 0 * run[0]]) for run in multipliers)
    vp = vp * np.stack([now.alpha / next.alpha, 1.0 / next.alpha])
    for factors, noises in (ve, vp):
        values = final_variances(factors, noises)
        assert abs(values[-1] - variance) > 1e-4  # the steps alone are not what agrees
        assert refined(values) == pytest.approx(variance, rel=1e-8)  # the powers of h that are left, and 6e-11


def network(x, level, label):
    phase = 0.7 * label + level.time
    return Prediction(jnp.sin(x + phase), level.sigma * jnp.cos(2 * x - phase))


X = jnp.asarray(np.random.default_rng(0).standard_normal(5), jnp.float32)
ABOVE = np.nextafter(np.float32(2.0), np.float32(3.0))


@pytest.mark.parametrize(
    ("alpha", "sigma", "inside"),
    [
        (1.0, 0.5, False),
        (1.0, 0.51, True),
        (1.0, 2.0, True),
        (1.0, ABOVE, False),
        (0.25, 0.5, True),
        (0.25, 2.0, False),
        (1.0, 0.0, False),
        (0.0, 1.0, False),
    ],
)
def test_outside_the_interval_the_conditional_comes_back_to_the_bit(alpha, sigma, inside):
    level = Level(jnp.float32(0.3), jnp.float32(alpha), jnp.float32(sigma))
    guided = classifier_free(network, 1, 4, interval_scale(3.0, 0.5, 2.0))(X, level)
    # The same batch of two, at scale 1.
    conditional = classifier_free(network, 1, 4, 1.0)(X, level)
    inner = combine(conditional, classifier_free(network, 1, 4, 0.0)(X, level), 3.0)
    jax.tree.map(np.testing.assert_array_equal, guided, inner if inside else conditional)
    assert np.abs(inner.x0 - conditional.x0).max() > 0.1


@pytest.mark.parametrize(("high", "scale"), [(np.inf, 3.0), (80.0, 1.0)])
@pytest.mark.parametrize("low", [-np.inf, 0.0, 1.0])
def test_pure_noise_is_inside_of_an_interval_without_an_end(low, high, scale):
    for alpha, sigma in ((0.0, 1.0), (np.float32(0.0), np.float32(1.0))):
        assert interval_scale(3.0, low, high)(Level(1.0, alpha, sigma)) == scale
        traced = jax.jit(lambda low, high, level: interval_scale(3.0, low, high)(level))
        assert traced(low, high, Level(1.0, alpha, sigma)) == scale


@pytest.mark.parametrize(("low", "high"), [(2.0, 2.0), (2.0, 0.5), (np.nan, 1.0), (0.0, np.nan)])
def test_intervals_that_are_empty_are_refused(low, high):
    with pytest.raises(ValueError) as caught:
        interval_scale(3.0, low, high)
    assert str(caught.value) == f"a guidance interval needs low < high, got {low} and {high}"


def test_scales_of_intervals_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="the guidance scale must be finite, got nan"):
        interval_scale(np.nan, 0.0, 1.0)
