"""The powered law p(x | c)^scale p(x)^(1 - scale) by weighted particles, against quadrature and closed forms."""

import itertools
import math

import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_recursions import Gaussian
from programs import assert_portable

from jaxgen.diffusion import (
    Cosine,
    ExactLaw,
    Prediction,
    ddpm,
    denoiser,
    feynman_kac_particles,
    gaussian_mixture,
    guide,
    karras_grid,
    mixture_law,
    posterior_std,
    powered_particles,
    predict_exactly,
    prior,
    reverse_std,
    sample,
    sigma_grid,
    systematic_ancestors,
    uniform_grid,
)

RUNS, PARTICLES = 16, 2000

# Weights given c, weights, means and variances of three components; the scale; a standard deviation for the proposals.
# Variances 1 and 2: the first problem of Bradley & Nakkiran (2024), c ~ N(0, 1) and x | c ~ N(c, 1), at c = 0.
FIRST = [((1, 0, 0), (0, 1, 0), (0, 0, 0), (1, 2, 1), scale, 1.0) for scale in (0.5, 2.0, 5.0)]
# Two clusters N(-m, 1) and N(m, 1), and the second as condition.
CLUSTERS = [
    ((0, 1, 0), (0.5, 0.5, 0), (-centre, centre, 0), (1, 1, 1), scale, 1.5)
    for centre, scale in ((1, 2.0), (1, 3.0), (2, 3.0), (2, 5.0))
]
# Three clusters.
THREE = [((0.05, 0.15, 0.8), (1 / 3, 1 / 3, 1 / 3), (-3, 0, 3), (1, 1, 1), scale, 2.0) for scale in (2.0, 3.0)]
CASES = FIRST + CLUSTERS + THREE
# Mean and variance of the powered laws of two clusters, from quadrature in high precision.
CLUSTER_MOMENTS = [
    (1.289989272, 0.744280678),
    (1.439531796, 0.644152483),
    (2.102291048, 0.834442433),
    (2.139363051, 0.790163272),
]
# Masses below -1.5, between, and above 1.5, of three.
THREE_MASSES = [(0.005373, 0.066003, 0.928625), (0.000455, 0.023928, 0.975617)]


def numbers(x, weights):
    """Mean, variance, and the masses below -1.5 and above 1.5; over the last axis."""
    mean = np.sum(weights * x, -1)
    variance = np.sum(weights * (x - mean[..., None]) ** 2, -1)
    return np.stack([mean, variance, np.sum(weights * (x < -1.5), -1), np.sum(weights * (x > 1.5), -1)], -1)


def by_quadrature(case):
    """The same numbers of the normalised powered law, and the logarithm of its integral."""
    given, free, means, variances, scale, _ = case
    # Cells of equal width whose edges include +-1.5: the midpoint rule is exact to rounding for smooth, fast decay.
    step = 1e-3
    x = (np.arange(-14_000, 14_000) + 0.5) * step
    peaks = np.exp(-((x[:, None] - means) ** 2) / (2 * np.array(variances))) / np.sqrt(2 * np.pi * np.array(variances))
    density = (peaks @ given) ** scale * (peaks @ free) ** (1 - scale)
    return numbers(x, density / density.sum()), np.log(density.sum() * step)


def exact(given, free, means, variances):
    """The two mixtures of a case, in the float type of the moment."""
    covariances, means = np.reshape(variances, (3, 1, 1)), np.reshape(means, (3, 1))
    return tuple(gaussian_mixture(np.array(weights), means, covariances) for weights in (given, free))


@pytest.fixture(scope="module")
def stacked():
    """All cases as operands of one program, with a leading axis, and the numbers of each."""
    operands = [(*exact(*case[:4]), *case[4:]) for case in CASES]
    laws = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *operands)
    moments, log_normalizers = zip(*map(by_quadrature, CASES), strict=True)
    return laws, np.array(moments), np.array(log_normalizers)


TRACES = []


@jax.jit
def program(key, laws, options, grid):
    """Particles [case, run, particle] of every case."""
    TRACES.append(1)

    def one(key, case, options):
        conditional, unconditional, scale, data_std = case
        laws = mixture_law(conditional), mixture_law(unconditional)
        return powered_particles(key, *laws, scale, (PARTICLES, 1), grid, data_std=data_std, **options)

    over_runs = jax.vmap(one, in_axes=(0, None, None))
    return jax.vmap(over_runs, in_axes=(None, 0, 0))(jax.random.split(key, RUNS), laws, options)


def draw(seed, laws, grid, *, resample_below, proposal_scale=None):
    proposal_scale = jnp.minimum(laws[2], 1.0) if proposal_scale is None else proposal_scale
    options = {"resample_below": resample_below, "proposal_scale": proposal_scale}
    options = {name: jnp.broadcast_to(jnp.float32(value), len(CASES)) for name, value in options.items()}
    grid = jax.tree.map(jnp.float32, grid)
    return jax.tree.map(np.asarray, program(jax.random.key(seed), laws, options, grid))


def mean_and_error(values, axis=1):
    return values.mean(axis), values.std(axis, ddof=1) / math.sqrt(values.shape[axis])


def test_quadrature_meets_the_published_numbers(stacked):
    _, moments, log_normalizers = stacked
    np.testing.assert_allclose(moments[3:7, :2], CLUSTER_MOMENTS, atol=6e-10)
    low, high = moments[7:, 2], moments[7:, 3]
    np.testing.assert_allclose(np.stack([low, 1 - low - high, high], 1), THREE_MASSES, atol=6e-7)
    for n, scale in enumerate((0.5, 2.0, 5.0)):
        # The Gaussian of precision scale / 1 + (1 - scale) / 2, and the integral of the two powers.
        assert moments[n, 1] == pytest.approx(2 / (scale + 1), rel=1e-12)
        assert log_normalizers[n] == pytest.approx(math.log(2 ** ((scale - 1) / 2) * math.sqrt(2 / (scale + 1))))


GRIDS = {steps: karras_grid(steps, sigma_min=0.3, sigma_max=20.0) for steps in (4, 12)}


@pytest.mark.parametrize("steps", GRIDS)
def test_particles_meet_the_powered_law_at_any_number_of_steps(stacked, steps):
    laws, moments, log_normalizers = stacked
    drawn = draw(steps, laws, GRIDS[steps], resample_below=0.5)
    found, error = mean_and_error(numbers(drawn.x[..., 0], np.exp(drawn.log_weights)))
    # Errors are estimated from 16 runs: of 36 numbers, one in 200 draws has one beyond 5 of them.
    assert np.all(np.abs(found - moments) < 5 * error + 1e-5)  # a mass of 1e-7 is met by no particle at all
    assert np.all(error[:, :2] < 0.03)
    found, error = mean_and_error(drawn.log_normalizer)
    assert np.all(np.abs(found - log_normalizers) < 5 * error)
    assert np.all(error < 0.02)
    assert drawn.effective_sizes.shape == (len(CASES), RUNS, steps)
    assert drawn.effective_sizes.min() > PARTICLES / 4


def test_the_law_is_the_same_whatever_the_resampling_and_the_proposals(stacked):
    laws, moments, _ = stacked
    for options in ({"resample_below": 0.0}, {"resample_below": 1.0}, {"resample_below": 0.8, "proposal_scale": 1.5}):
        drawn = draw(1, laws, GRIDS[12], **options)
        found, error = mean_and_error(numbers(drawn.x[..., 0], np.exp(drawn.log_weights)))
        assert np.all(np.abs(found - moments)[:, :2] < 5 * error[:, :2])
        assert np.all(error[:, :2] < 0.03)
    assert len(TRACES) == 2  # one for each number of steps: all else is an operand


def test_particles_without_their_weights_are_of_another_law(stacked):
    # Guided DDPM itself: too narrow at scale 5, and too far out where the law is not centred.
    laws, moments, _ = stacked
    drawn = draw(1, laws, GRIDS[12], resample_below=0.0, proposal_scale=laws[2])
    found, error = mean_and_error(numbers(drawn.x[..., 0], np.full(PARTICLES, 1 / PARTICLES)))
    off = np.abs(found - moments) > 10 * error
    assert off[2, 1]
    assert np.all(off[3:7, 0])


def test_weights_stay_equal_where_the_proposals_are_exact():
    # One Gaussian, whatever its power: p(x' | x) is the proposal, so no particle is worth more than another.
    with jax.enable_x64(True):
        law = mixture_law(gaussian_mixture([1.0], [[0.0, 0.0]], [[[0.49, 0.0], [0.0, 4.0]]]))
        options = {"data_std": np.array([0.7, 2.0]), "dtype": jnp.float64}
        run = jax.jit(lambda key, grid: powered_particles(key, law, law, 2.5, (50, 2), grid, **options))
        for grid in (uniform_grid(Cosine(), 3), sigma_grid(np.array([9.0, 3.0, 0.5, 0.0]))):
            drawn = run(jax.random.key(0), grid)
            np.testing.assert_allclose(drawn.log_weights, -math.log(50), atol=1e-12)
            np.testing.assert_allclose(drawn.effective_sizes, 50, rtol=1e-12)
            np.testing.assert_allclose(drawn.log_normalizer, 0.0, atol=1e-12)


def test_correlated_gaussians_are_met_on_a_variance_preserving_path_that_stops_before_the_data():
    scale, grid = 2.5, uniform_grid(Cosine(), 12, stop=0.2)  # from alpha = 0
    c, u = (
        Gaussian(grid.alpha[-1] * law.mean, grid.alpha[-1] ** 2 * law.covariance + grid.sigma[-1] ** 2 * np.eye(2))
        for law in (runs.CONDITIONAL, runs.UNCONDITIONAL)
    )
    precisions = scale * np.linalg.inv(c.covariance), (1 - scale) * np.linalg.inv(u.covariance)
    covariance = np.linalg.inv(sum(precisions))
    mean = covariance @ (precisions[0] @ c.mean + precisions[1] @ u.mean)
    # log of the integral: powers of both normalisers, the Gaussian integral, and what completing the square leaves.
    square = mean @ np.linalg.inv(covariance) @ mean - c.mean @ precisions[0] @ c.mean - u.mean @ precisions[1] @ u.mean
    halves = [np.linalg.slogdet(matrix)[1] / 2 for matrix in (covariance, c.covariance, u.covariance)]
    log_normalizer = halves[0] - scale * halves[1] - (1 - scale) * halves[2] + square / 2

    @jax.jit
    def many(keys, scale):
        laws = [mixture_law(runs.exact(law)) for law in (runs.CONDITIONAL, runs.UNCONDITIONAL)]
        draw = lambda key: powered_particles(key, *laws, scale, (2000, 2), grid, data_std=1.5)  # noqa: E731
        return jax.vmap(draw)(keys)

    drawn = jax.tree.map(np.asarray, many(jax.random.split(jax.random.key(2), RUNS), scale))
    weights = np.exp(drawn.log_weights)
    means = np.einsum("rn,rnd->rd", weights, drawn.x)
    products = np.einsum("rn,rnd,rne->rde", weights, drawn.x, drawn.x)
    for values, target in (
        (means, mean),
        (products, covariance + np.outer(mean, mean)),
        (drawn.log_normalizer, log_normalizer),
    ):
        found, error = mean_and_error(values, axis=0)
        assert np.all(np.abs(found - target) < 4 * error), (found, target, error)
        assert np.all(error < 0.02)


def test_reverse_std_is_bayes_rule_and_joins_both_fixed_variances():
    now, next = (jax.tree.map(lambda leaf, n=n: float(leaf[n]), uniform_grid(Cosine(), 4)) for n in (1, 2))
    # x' ~ N(0, b) and x | x' ~ N(a x', v): the posterior's precision is 1 / b + a^2 / v.
    a = now.alpha / next.alpha
    v = now.sigma**2 - (a * next.sigma) ** 2
    for data_std in (0.3, 2.0):
        b = (next.alpha * data_std) ** 2 + next.sigma**2
        np.testing.assert_allclose(reverse_std(data_std)(now, next), (1 / b + a**2 / v) ** -0.5, rtol=1e-6)
    np.testing.assert_allclose(reverse_std(0.0)(now, next), posterior_std(now, next), rtol=1e-6)
    np.testing.assert_allclose(reverse_std(1e6)(now, next), math.sqrt(v) / a, rtol=1e-6)


def test_systematic_resampling_keeps_each_particle_its_share_of_times():
    weights = np.array([0.0, 0.31, 0.0, 0.07, 0.25, 0.37, 0.0])
    with np.errstate(divide="ignore"):
        log_weights = jnp.log(jnp.asarray(weights)) + 3.0
    many = jax.jit(jax.vmap(lambda key: systematic_ancestors(key, log_weights)))
    ancestors = many(jax.random.split(jax.random.key(0), 2000))
    counts = (np.asarray(ancestors)[..., None] == np.arange(7)).sum(1)
    assert np.all(counts >= np.floor(7 * weights))
    assert np.all(counts <= np.ceil(7 * weights))
    # A count takes two neighbouring values: its standard deviation is at most 1 / 2.
    np.testing.assert_allclose(counts.mean(0), 7 * weights, atol=4 * 0.5 / math.sqrt(2000))


def corrected_recursion(scale, sigma, *, weighted=True):
    """The variance and the log of the mean weight of the corrector on Gaussians, for infinitely many particles.

    x | c ~ N(0, 1) and x ~ N(0, 2): a weight exp(k x^2) turns N(0, V) into N(0, 1 / (1 / V - 2 k)), and has the mean
    (1 - 2 k V)^(-1/2); a step of guided DDPM is affine.
    """
    variance, log_normalizer = sigma[0] ** 2, 0.0
    for now, next in itertools.pairwise(sigma):
        r2 = (next / now) ** 2
        gap = now / (1 + now**2) - now / (2 + now**2)
        k = scale * (scale - 1) / 2 * (1 - r2) * gap**2 * weighted
        log_normalizer -= math.log(1 - 2 * k * variance) / 2
        variance = variance / (1 - 2 * k * variance)
        gain = scale / (1 + now**2) + (1 - scale) * 2 / (2 + now**2)
        variance = (r2 + (1 - r2) * gain) ** 2 * variance + next**2 * (1 - r2)
    return variance, log_normalizer


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
def test_corrected_steps_reach_the_powered_law_at_first_order(scale):
    counts = np.array([2000, 4000, 8000, 16000])
    # Starting from noise alone leaves a part 1e-8 of the start.
    ends = [corrected_recursion(scale, np.sinh(np.linspace(np.arcsinh(1e4), 0, n + 1))) for n in counts]
    variances, log_normalizers = np.array(ends).T
    assert variances[-1] == pytest.approx(2 / (scale + 1), rel=0.02)
    runs.assert_first_order(counts, variances - 2 / (scale + 1))
    runs.assert_first_order(counts, log_normalizers - math.log(2 ** ((scale - 1) / 2) * math.sqrt(2 / (scale + 1))))


@jax.jit
def corrected(key, scale, grid):
    """Particles [run, particle] of the corrector on the first problem, from noise."""
    narrow, wide = (gaussian_mixture([1.0], [[0.0]], [[[variance]]]) for variance in (1.0, 2.0))
    predictors = [lambda x, level, law=law: predict_exactly(law, x, level) for law in (narrow, wide)]

    def one(key):
        start_key, key = jax.random.split(key)
        x = prior(start_key, (PARTICLES, 1), jax.tree.map(lambda leaf: leaf[0], grid))
        return feynman_kac_particles(key, *predictors, scale, x, grid)

    return jax.vmap(one)(jax.random.split(key, RUNS))


def test_corrected_particles_follow_their_recursion():
    grid = jax.tree.map(jnp.float32, sigma_grid(np.sinh(np.linspace(np.arcsinh(40.0), 0, 16))))
    sigma = np.asarray(grid.sigma, np.float64)
    for scale in (0.5, 3.0):
        drawn = jax.tree.map(np.asarray, corrected(jax.random.key(4), scale, grid))
        variance, log_normalizer = corrected_recursion(scale, sigma)
        found, error = mean_and_error(np.sum(np.exp(drawn.log_weights) * drawn.x[..., 0] ** 2, 1), axis=0)
        assert abs(found - variance) < 4 * error
        assert scale < 1 or abs(found - corrected_recursion(scale, sigma, weighted=False)[0]) > 10 * error
        found, error = mean_and_error(drawn.log_normalizer, axis=0)
        assert abs(found - log_normalizer) < 4 * error
    for scale in (0.0, 1.0):  # unguided: every weight is 1 / particles to rounding, and nothing is resampled
        drawn = corrected(jax.random.key(4), scale, grid)
        np.testing.assert_allclose(drawn.log_weights, -math.log(PARTICLES), rtol=1e-6)
        np.testing.assert_allclose(drawn.log_normalizer, 0.0, atol=2e-5)


def test_corrector_and_guided_ddpm_take_the_same_step():
    predictors = [
        lambda x, level, law=law: predict_exactly(law, x, level)
        for law in exact((0, 1, 0), (0.5, 0.5, 0), (-1, 1, 0), (1, 1, 1))
    ]
    grid, x, key = sigma_grid(np.array([2.0, 1.0])), jnp.linspace(-3, 3, 9)[:, None], jax.random.key(0)
    quiet = {"std": lambda now, next: 0.0}
    guided = ddpm(denoiser(guide(*predictors, 3.0)), **quiet)

    @jax.jit
    def both(x):
        corrected = feynman_kac_particles(key, *predictors, 3.0, x, grid, **quiet)
        return corrected, jax.vmap(lambda x: sample(guided, key, x, grid))(x)

    moved, expected = both(x)
    np.testing.assert_allclose(moved.x, expected, rtol=1e-6)
    # 3 |e_c - e_u|^2 (1 - 1 / 4), with e = -sigma s and s_c - s_u = (1 - tanh(x / (1 + sigma^2))) / (1 + sigma^2).
    log_weights = 3 * 0.75 * (2 * (1 - np.tanh(np.linspace(-3, 3, 9) / 5)) / 5) ** 2
    np.testing.assert_allclose(moved.log_weights, log_weights - np.log(np.exp(log_weights).sum()), rtol=1e-5)
    np.testing.assert_allclose(moved.log_normalizer, np.log(np.exp(log_weights).mean()), rtol=1e-5)


def test_lowers_for_every_platform():
    def predict(x, level):
        return Prediction(x / (1 + level.sigma**2), level.sigma * x / (1 + level.sigma**2))

    law = ExactLaw(lambda x, level: -jnp.vdot(x, x) / (2 * (1 + level.sigma**2)), predict)

    def both(key, x, scale, grid):
        exact = powered_particles(key, law, law, scale, x.shape, grid, data_std=1.0)
        return exact, feynman_kac_particles(key, predict, predict, scale, x, grid)

    grid = jax.tree.map(jnp.float32, karras_grid(3))
    assert_portable(jax.jit(both), jax.random.key(0), jnp.zeros((8, 2)), 3.0, grid)


def test_bad_arguments_are_refused():
    law = mixture_law(gaussian_mixture([1.0], [[0.0]], [[[1.0]]]))
    grid, key = karras_grid(3), jax.random.key(0)
    with pytest.raises(ValueError, match=r"shape must be \[particles, ...\] with at least 1 particle, got \(0, 1\)"):
        powered_particles(key, law, law, 1.0, (0, 1), grid, data_std=1.0)
    with pytest.raises(ValueError, match="the guidance scale must be finite, got inf"):
        powered_particles(key, law, law, math.inf, (2, 1), grid, data_std=1.0)
    with pytest.raises(ValueError, match=r"data_std must be positive, got 0.0; take the standard deviation"):
        powered_particles(key, law, law, 1.0, (2, 1), grid, data_std=0.0)
    with pytest.raises(ValueError, match=r"resample_below must lie in \[0, 1\], got 1.5; 0 never resamples"):
        powered_particles(key, law, law, 1.0, (2, 1), grid, data_std=1.0, resample_below=1.5)
    with pytest.raises(ValueError, match="the grid must fall from noise to data"):
        feynman_kac_particles(key, law.predict, law.predict, 1.0, jnp.zeros((2, 1)), sigma_grid(np.array([0.1, 1.0])))
