"""Predictor-corrector sampling and PCG against their recursions, and what each kernel of a pair remembers."""

import itertools

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxgen.diffusion import (
    Denoiser,
    at_now,
    ddim,
    ddpm,
    denoiser,
    from_x0,
    guide,
    karras_grid,
    langevin,
    pcg,
    predict_exactly,
    predictor_corrector,
    sample,
    sigma_grid,
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
