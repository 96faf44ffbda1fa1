"""Predictor-corrector sampling and PCG against their recursions, and what each kernel of a pair remembers."""

import itertools
from functools import partial

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxgen.diffusion import (
    Denoiser,
    Level,
    VariancePreservingLinear,
    at_now,
    ddim,
    ddpm,
    denoiser,
    euler,
    euler_maruyama,
    from_x0,
    guide,
    karras_grid,
    langevin,
    pcg,
    predict_exactly,
    predictor_corrector,
    sample,
    score,
    sigma_grid,
    uniform_grid,
)


def test_a_predictor_and_two_corrections_meet_their_recursion():
    runs.assert_recursion(
        build=lambda conditional, guided: predictor_corrector(ddpm(guided), langevin(guided, 2)),
        step=lambda conditional, guided, now, next: oracle.then(
            oracle.ddpm_step(guided, now, next), oracle.langevin_step(guided, now, next, 2)
        ),
        draws=runs.pair_draws(runs.one_draw, runs.langevin_draws(2)),
        names=runs.WITH_DATA,
    )


def pcg_step(conditional, guided, now, next, count=1, **options):
    """A DDIM step of the conditional law, then Langevin steps of the guided one at the new level."""
    return oracle.then(
        oracle.ddim_step(conditional, now, next), oracle.langevin_step(guided, now, next, count, **options)
    )


def test_pcg_meets_its_recursion_on_gaussian_data():
    runs.assert_recursion(
        build=pcg, step=pcg_step, draws=runs.pair_draws(runs.no_draws, runs.langevin_draws(1)), names=runs.WITH_DATA
    )


def test_pcg_may_correct_at_the_level_that_was_left():
    # The size is that of the interval all the same. Nothing is left out in the step to sigma = 0: it starts from noise.
    def step(conditional, guided, now, next):
        corrected = oracle.langevin_step(guided, now, now, epsilon=lambda *_: oracle.path_epsilon(now, next))
        return oracle.then(oracle.ddim_step(conditional, now, next), corrected)

    runs.assert_recursion(
        build=lambda conditional, guided: pcg(conditional, guided, evaluate_at=at_now),
        step=step,
        draws=runs.pair_draws(runs.no_draws, runs.langevin_draws(1)),
        names=("linear", "karras"),
        counts=(1, 5),
        tolerances={"float64": 1e-10},
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


def test_without_corrections_pcg_is_ddim_of_the_conditional_to_the_bit():
    conditional, guided = runs.denoisers(runs.exact(runs.CONDITIONAL), runs.exact(runs.UNCONDITIONAL), 3.0)
    x, key, grid = jnp.array([40.0, -9.0]), jax.random.key(0), karras_grid(8)
    run = jax.jit(lambda count, x: sample(pcg(conditional, guided, count), key, x, grid), static_argnums=0)
    expected = jax.jit(lambda x: sample(ddim(conditional), key, x, grid))(x)
    np.testing.assert_array_equal(run(0, x), expected)
    assert np.abs(run(1, x) - expected).min() > 1e-2


def counting(law):
    """A denoiser that counts its first evaluations and keeps what it saw at the last of them."""

    def apply(memory, x, level):
        return predict_exactly(law, x, level), {"count": memory["count"] + 1, "seen": x}

    return Denoiser(lambda x: {"count": jnp.int32(0), "seen": jnp.zeros_like(x)}, apply)


def test_each_kernel_of_a_pair_keeps_its_own_memory_which_advances_once_a_step():
    law, grid = runs.exact(runs.CONDITIONAL), sigma_grid(np.array([4.0, 2.0, 1.0, 0.5, 0.0]))
    sampler = predictor_corrector(ddim(counting(law)), langevin(counting(law), 2))
    step, state = jax.jit(sampler.step), sampler.init(jnp.array([3.0, 1.0]))
    for n in range(4):
        now, next = (jax.tree.map(lambda leaf, at=at: jnp.float32(leaf[at]), grid) for at in (n, n + 1))
        before = state
        state, _ = step(jax.random.key(n), state, now, next)
        # The predictor starts from what the corrector left, the corrector from what the predictor did.
        assert state.predictor.memory["count"] == n + 1
        np.testing.assert_array_equal(state.predictor.memory["seen"], before.x)
        np.testing.assert_array_equal(state.x, state.corrector.x)
        # At sigma = 0 nothing is corrected, nor evaluated.
        assert state.corrector.memory["count"] == min(n + 1, 3)
        if n < 3:
            np.testing.assert_array_equal(state.corrector.memory["seen"], state.predictor.x)
            assert np.abs(state.x - state.predictor.x).min() > 1e-3


MOMENTUM, SCALE = -0.5, 3.0


def with_momentum(conditional, unconditional):
    """Guidance whose direction is an average over the steps, kept in the memory (adaptive projected guidance's)."""

    def apply(memory, x, level):
        x0, other = predict_exactly(conditional, x, level).x0, predict_exactly(unconditional, x, level).x0
        direction = x0 - other + MOMENTUM * memory
        return from_x0(x, level, x0 + (SCALE - 1) * direction), direction

    return Denoiser(jnp.zeros_like, apply)


def slow_pcg_with_momentum(x, grid, draws):
    """The same in numpy: of two corrections in a step, the first alone moves what is remembered."""
    memory, (c, u) = np.zeros(2), ([(1.0, runs.CONDITIONAL)], [(1.0, runs.UNCONDITIONAL)])
    levels = list(zip(*(np.asarray(leaf).tolist() for leaf in grid), strict=True))
    for n, (now, next) in enumerate(itertools.pairwise(levels)):
        moved = oracle.ddim_step(c, now, next)
        x = moved.matrix @ x + moved.shift
        (_, alpha, sigma), epsilon = next, oracle.path_epsilon(now, next)
        for k in range(2):
            given, other = (
                gain @ x + offset for gain, offset in (oracle.denoised(law, alpha, sigma) for law in (c, u))
            )
            direction = given - other + MOMENTUM * memory
            x0 = given + (SCALE - 1) * direction
            x = x + epsilon / 2 * (alpha * x0 - x) / sigma**2 + np.sqrt(epsilon) * draws[n][k]
            memory = direction if k == 0 else memory
    return x, memory


def test_guidance_with_momentum_composes_with_pcg():
    with jax.enable_x64(True):
        conditional, unconditional = runs.exact(runs.CONDITIONAL), runs.exact(runs.UNCONDITIONAL)
        sampler = pcg(denoiser(runs.predictor_of(conditional)), with_momentum(conditional, unconditional), 2)
        grid, key, x = sigma_grid(np.geomspace(8.0, 0.3, 13)), jax.random.key(2), jnp.array([5.0, -3.0])
        measured = jax.jit(lambda x: sample(sampler, key, x, grid))(x)
        pair = runs.pair_draws(runs.no_draws, runs.langevin_draws(2))
        draws = [pair(k, jnp.float64) for k in runs.step_keys(key, 12)]
        expected, _ = slow_pcg_with_momentum(np.array(x), grid, draws)
        np.testing.assert_allclose(measured, expected, rtol=1e-10)
        # The momentum matters.
        plain = pcg(*runs.denoisers(conditional, unconditional, SCALE), 2)
        assert np.abs(jax.jit(lambda x: sample(plain, key, x, grid))(x) - expected).min() > 0.05


@pytest.fixture
def unchecked_types():
    """Lift the type checks that only the tests have, which would hide what a user sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("count", [-1, 2.0])
def test_a_number_of_corrections_that_is_none_is_refused(count):
    model = denoiser(guide(lambda x, level: None, lambda x, level: None, 1.0))
    with pytest.raises(ValueError) as caught:
        pcg(model, model, count)
    assert str(caught.value) == f"num_steps of Langevin dynamics must be an integer of at least 0, got {count!r}"
