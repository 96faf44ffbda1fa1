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
    ddim,
    ddpm,
    denoiser,
    euler,
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


def one_correction(key, dtype):
    return (one_number(jax.random.fold_in(jax.random.split(key)[1], 0), dtype),)


@pytest.mark.parametrize(
    ("steps", "variance"), [(10, 12.631), (20, 0.6248016584521586), (40, 0.5820938911646834), (160, 0.5797962423240218)]
)
def test_pcg_on_the_karras_grid_has_the_known_variances(steps, variance):
    # Corrected at sigma = 0 too, from N(0, 6401). At 10 steps epsilon is 6.4 times what the curvature allows.
    grid = karras_grid(steps)
    maps = oracle.walk(lambda now, next: pcg_step(CONDITIONAL_LAW, GUIDED_LAW, now, next, clean=True), grid)
    law = oracle.moments(maps, np.zeros(1), np.array([[6401.0]]))[1]
    assert law.item() == pytest.approx(variance, rel=1e-4 if steps == 10 else 1e-12)
    with jax.enable_x64(True):
        conditional, guided, clean_score = first_problem()
        assert_replayed(pcg(conditional, guided, clean_score=clean_score), maps, grid, one_correction)


def beta(time):
    return 0.1 + 19.9 * time


@pytest.mark.parametrize(("steps", "variance"), [(10, 0.6945785366004353), (100, 0.5922893128484671)])
def test_the_papers_own_discretisation_has_the_known_variances(steps, variance):
    # An Euler predictor, and epsilon = beta dt at the new time, on the linear path; from N(0, 1).
    schedule = VariancePreservingLinear()
    grid = uniform_grid(schedule, steps)

    def rates(t):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return -0.5 * beta(t) * alpha, 0.5 * beta(t) * alpha**2 / sigma

    def step(now, next):
        corrected = oracle.langevin_step(
            GUIDED_LAW, now, next, clean=True, epsilon=lambda now, next: beta(next[0]) * (now[0] - next[0])
        )
        return oracle.then(oracle.euler_step(CONDITIONAL_LAW, now, next, rates), corrected)

    maps = oracle.walk(step, grid)
    assert oracle.moments(maps, np.zeros(1), np.eye(1))[1].item() == pytest.approx(variance, rel=1e-10)
    with jax.enable_x64(True):
        conditional, guided, clean_score = first_problem()
        size = lambda now, next: beta(next.time) * (now.time - next.time)  # noqa: E731
        corrector = langevin(guided, step_size=size, clean_score=clean_score)
        sampler = predictor_corrector(euler(conditional, schedule), corrector)
        assert_replayed(sampler, maps, grid, one_correction)


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
