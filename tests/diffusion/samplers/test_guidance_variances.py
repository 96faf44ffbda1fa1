"""The variances that finite numbers of steps leave on the first problem of Bradley & Nakkiran (2024)."""

from functools import partial

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Level,
    VariancePreservingLinear,
    ddim,
    euler,
    euler_maruyama,
    karras_grid,
    pcg,
    sample,
    score,
    uniform_grid,
)

# The first problem of the guidance paper: N(0, 1) given the condition, N(0, 2) without; the guidance scale is 3.
GIVEN, WITHOUT = (oracle.Gaussian(np.zeros(1), np.array([[variance]])) for variance in (1.0, 2.0))
CONDITIONAL_LAW, GUIDED_LAW = [(1.0, GIVEN)], oracle.mixed(GIVEN, WITHOUT, 3.0)


def first_problem():
    """The conditional and the guided denoiser, and the guided score of clean data."""
    conditional, guided = runs.denoisers(runs.exact(GIVEN), runs.exact(WITHOUT), 3.0)
    clean = Level(0.0, 1.0, 0.0)

    def clean_score(x):
        return 3.0 * score(runs.exact(GIVEN), x, clean) - 2.0 * score(runs.exact(WITHOUT), x, clean)

    return conditional, guided, clean_score


def assert_replayed(sampler, maps, grid, draws):
    """The library takes these very steps, start at 2 and noise included, in float64."""
    key = jax.random.key(5)
    measured = jax.jit(lambda x, grid: sample(sampler, key, x, grid))(jnp.array([2.0]), grid)
    noise = [draws(k, jnp.float64) for k in runs.step_keys(key, len(maps))]
    expected = oracle.replay(maps, np.array([2.0]), noise)
    np.testing.assert_allclose(measured, expected, rtol=1e-10)


one_number = partial(runs.normal, shape=(1,))


def one_draw(key, dtype):
    return (one_number(key, dtype),)


def one_correction(key, dtype):
    return (one_number(jax.random.fold_in(jax.random.split(key)[1], 0), dtype),)


def pcg_step(conditional, guided, now, next, count=1, **options):
    """A DDIM step of the conditional law, then Langevin steps of the guided one at the new level."""
    return oracle.then(
        oracle.ddim_step(conditional, now, next), oracle.langevin_step(guided, now, next, count, **options)
    )


KARRAS = {10: 12.631, 20: 0.6248016584521586, 40: 0.5820938911646834, 160: 0.5797962423240218, 640: 0.5822649412162992}


@pytest.mark.parametrize("steps", KARRAS)
def test_pcg_on_the_karras_grid_has_the_known_variances(steps):
    # Corrected at sigma = 0 too, from N(0, 6401). At 10 steps epsilon is 6.4 times what the curvature allows.
    grid = karras_grid(steps)
    maps = oracle.walk(lambda now, next: pcg_step(CONDITIONAL_LAW, GUIDED_LAW, now, next, clean=True), grid)
    law = oracle.moments(maps, np.zeros(1), np.array([[6401.0]]))[1]
    assert law.item() == pytest.approx(KARRAS[steps], rel=1e-4 if steps == 10 else 1e-12)
    with jax.enable_x64(True):
        conditional, guided, clean_score = first_problem()
        assert_replayed(pcg(conditional, guided, clean_score=clean_score), maps, grid, one_correction)


def test_pcg_on_the_karras_grid_has_the_known_limit_from_below():
    counts = np.array([160, 320, 640, 1280])  # it overshoots before
    errors = []
    for count in counts:
        step = partial(pcg_step, CONDITIONAL_LAW, GUIDED_LAW, clean=True)
        law = oracle.moments(oracle.walk(step, karras_grid(int(count))), np.zeros(1), np.array([[6401.0]]))[1]
        errors.append(law.item() - 0.5833333394355776)
    assert max(errors) < 0
    # The order still rises to 1, from .85.
    assert runs.fitted_order(counts[2:], errors[2:])[0] == pytest.approx(1.0, abs=0.06)


def beta(time):
    return 0.1 + 19.9 * time


LINEAR = VariancePreservingLinear()


def linear_rates(t):
    """alpha' = -beta alpha / 2 and sigma' = beta alpha^2 / (2 sigma)."""
    alpha, sigma = float(LINEAR.alpha(t)), float(LINEAR.sigma(t))
    return -0.5 * beta(t) * alpha, 0.5 * beta(t) * alpha**2 / sigma


def papers_epsilon(now, next):
    return beta(next[0]) * (now[0] - next[0])


def papers_size(now, next):
    return beta(next.time) * (now.time - next.time)


def corrected(count):
    """Langevin steps of the guided law with epsilon = beta dt at the new time, clean data included."""
    return partial(oracle.langevin_step, GUIDED_LAW, count=count, clean=True, epsilon=papers_epsilon)


def euler_pcg(now, next, count=1):
    return oracle.then(oracle.euler_step(CONDITIONAL_LAW, now, next, linear_rates), corrected(count)(now, next))


def variance_on_the_linear_path(step, steps):
    """The variance at the end of uniform steps from N(0, 1), and the maps."""
    maps = oracle.walk(step, uniform_grid(LINEAR, steps))
    return oracle.moments(maps, np.zeros(1), np.eye(1))[1].item(), maps


def corrections(count):
    return lambda key, dtype: tuple(
        one_number(jax.random.fold_in(jax.random.split(key)[1], k), dtype) for k in range(count)
    )


def papers_pcg(count):
    """PCG of the library with the Euler predictor and the step size of the paper's theory."""
    conditional, guided, clean_score = first_problem()
    predictor = partial(euler, schedule=LINEAR)
    return pcg(conditional, guided, count, predictor=predictor, step_size=papers_size, clean_score=clean_score)


# Steps, corrections K, variance: at K = 1 from 7/12 at infinitely many; K at 1,000 steps.
PAPERS = [
    (10, 1, 0.6945785366004353),
    (100, 1, 0.5922893128484671),
    (800, 1, 0.5844346684012359),
    (1000, 0, 1.0),
    (1000, 1, 0.5842139992432113),
    (1000, 2, 0.5381528326612369),
    (1000, 10, 0.5067960667246934),
]


@pytest.mark.parametrize(("steps", "count", "variance"), PAPERS)
def test_the_papers_own_discretisation_has_the_known_variances(steps, count, variance):
    step = partial(euler_pcg, count=count)
    assert variance_on_the_linear_path(step, steps)[0] == pytest.approx(variance, rel=1e-10)
    # What the recursion says of many steps, the library does: shown on a few.
    steps = min(steps, 20)
    with jax.enable_x64(True):
        maps = variance_on_the_linear_path(step, steps)[1]
        assert_replayed(papers_pcg(count), maps, uniform_grid(LINEAR, steps), corrections(count))


def test_the_papers_own_discretisation_has_the_known_errors_of_first_order():
    counts = np.array([100, 200, 400, 800])
    limit = 0.583333333799599  # of this path, whose alpha is not quite 0 at its start
    errors = [variance_on_the_linear_path(euler_pcg, int(count))[0] - limit for count in counts]
    np.testing.assert_allclose(errors[:3], [8.956e-3, 4.436e-3, 2.208e-3], rtol=1e-3)
    runs.assert_first_order(counts, errors)


def maruyama_step(now, next):
    law = oracle.mixed(GIVEN, WITHOUT, 2.0)
    return oracle.euler_maruyama_step(law, now, next, lambda t: (-0.5 * beta(t), beta(t)))


def guided_ddim_step(eta):
    return lambda now, next: oracle.ddim_step(oracle.mixed(GIVEN, WITHOUT, 2.0), now, next, eta)


def ddim_pcg(now, next):
    return oracle.then(oracle.ddim_step(CONDITIONAL_LAW, now, next), corrected(1)(now, next))


# Guidance at scale 2 and PCG at 3, at 10, 100 and 800 steps.
OTHERS = {
    "euler_maruyama": (maruyama_step, (0.6984782654315742, 0.5924737475421646, 0.5844557748177478)),
    "ddim, eta 1": (guided_ddim_step(1.0), (0.2748099612665362, 0.5254013884898494, 0.574906120504079)),
    "ddim": (guided_ddim_step(0.0), (0.309908878246442, 0.4772855643911233, 0.4970910976467293)),
    "pcg by ddim": (ddim_pcg, (0.5709349963, 0.5806310604, 0.5829497286)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_samplers_on_the_same_grids_have_the_known_variances(name):
    step, variances = OTHERS[name]
    walks = {steps: variance_on_the_linear_path(step, steps) for steps in (10, 100, 800)}
    np.testing.assert_allclose([found for found, _ in walks.values()], variances, rtol=1e-9)
    with jax.enable_x64(True):
        conditional, _, clean_score = first_problem()
        guided = {scale: runs.denoisers(runs.exact(GIVEN), runs.exact(WITHOUT), scale)[1] for scale in (2.0, 3.0)}
        sampler, draws = {
            "euler_maruyama": (euler_maruyama(guided[2.0], LINEAR), one_draw),
            "ddim, eta 1": (ddim(guided[2.0], 1.0), one_draw),
            "ddim": (ddim(guided[2.0]), runs.no_draws),
            "pcg by ddim": (
                pcg(conditional, guided[3.0], step_size=papers_size, clean_score=clean_score),
                one_correction,
            ),
        }[name]
        assert_replayed(sampler, walks[10][1], uniform_grid(LINEAR, 10), draws)


def test_guided_ddim_has_the_known_limit_on_this_path():
    # d ln V / d tau = 2 / (1 + tau) - 1 / (2 + tau) for the variance V of x / alpha and tau = (sigma / alpha)^2, from
    # V = 1 + T = alpha^-2 at tau = T: V = (2 + T) / (2 + 2 T) at 0.
    limit = 0.5 * (1.0 + float(LINEAR.alpha(1.0)) ** 2)
    assert limit == pytest.approx(0.5000215928745302, rel=1e-14)
    counts = np.array([400, 800, 1600, 3200])
    errors = [variance_on_the_linear_path(guided_ddim_step(0.0), int(count))[0] - limit for count in counts]
    runs.assert_first_order(counts, errors)
