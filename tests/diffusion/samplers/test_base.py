"""The loop that runs a sampler: segments, trajectories, keys, shapes and grids, and slopes through whole runs."""

from functools import partial

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    EDM,
    Denoiser,
    Level,
    Markov,
    Prediction,
    RectifiedFlow,
    Sampler,
    advance,
    ddim,
    ddim_inversion,
    ddpm,
    denoiser,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    euler,
    euler_ancestral,
    euler_maruyama,
    fixed_step_size,
    heun,
    karras_grid,
    langevin,
    pcg,
    predict_exactly,
    predictor_corrector,
    record,
    repeat,
    sample,
    sigma_grid,
    signal_to_noise,
    trajectory,
    tutorial_ddpm,
    uniform_grid,
)


def remembering(law):
    """A denoiser whose memory is part of the run: the average of what it predicted, which it mixes in."""

    def apply(memory, x, level):
        predicted = predict_exactly(law, x, level)
        memory = 0.5 * memory + 0.5 * predicted.x0
        return Prediction(memory, predicted.noise), memory

    return Denoiser(jnp.zeros_like, apply)


SAMPLERS = {
    "ddpm": ddpm,
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "dpm_solver_pp_2m_sde": dpm_solver_pp_2m_sde,
    "heun": heun,
    "ddim": ddim,
    "ddim, eta .5": lambda model: ddim(model, 0.5),
    "euler": lambda model: euler(model, EDM(80.0)),
    "predictor_corrector": lambda model: predictor_corrector(ddpm(model), langevin(model, 2)),
    "pcg": lambda model: pcg(model, model),
}
FALLING = karras_grid(10)
# Run again from step 0, they only differ where they look back beyond the cut.
DETERMINISTIC = ("ddim", "dpm_solver_pp_2m", "euler", "heun")


def segment(grid, start, stop):
    return jax.tree.map(lambda leaf: leaf[start : stop + 1], grid)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_in_segments_is_the_whole_run_to_the_bit_and_a_trajectory_ends_where_the_sample_is(name):
    law, key, x = runs.exact(runs.CONDITIONAL), jax.random.key(4), jnp.array([70.0, -30.0])
    sampler = SAMPLERS[name](remembering(law))

    @jax.jit
    def whole(x, grid):
        # The grid is an operand here too: folded into the program as a constant, it may be rounded otherwise.
        return sample(sampler, key, x, grid), *trajectory(sampler, key, x, grid)

    # One program for every segment of this length: the number of the first step is an operand.
    run = jax.jit(lambda state, grid, first: advance(sampler, key, state, grid, first))
    end, xs, infos = whole(x, FALLING)
    state, ends = sampler.init(x), [x]
    for first in (0, 5):
        state = run(state, segment(FALLING, first, first + 5), first)
        ends.append(state.x)
    np.testing.assert_array_equal(end, state.x)
    np.testing.assert_array_equal(xs[-1], end)
    np.testing.assert_array_equal(xs[::5], np.stack(ends))
    assert xs.shape == (11, 2)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(infos)} == {10}
    # Told to start at 0 again, a random sampler would repeat its noise.
    again = run(run(sampler.init(x), segment(FALLING, 0, 5), 0), segment(FALLING, 5, 10), 0)
    assert np.array_equal(again.x, end) == (name in DETERMINISTIC)


def test_step_n_is_given_the_key_folded_with_n_and_the_levels_around_it():
    def step(key, state, now, next):
        return Markov(state.x, ()), (jax.random.key_data(key), now, next)

    grid, key = uniform_grid(EDM(), 4), jax.random.key(9)
    xs, (keys, now, next) = trajectory(Sampler(lambda x: Markov(x, ()), step), key, jnp.ones(2), grid)
    np.testing.assert_array_equal(keys, [jax.random.key_data(k) for k in runs.step_keys(key, 4)])
    for k, leaf in enumerate(grid):
        # float64 on the host, float32 as the sample is.
        np.testing.assert_array_equal(now[k], np.float32(leaf[:-1]))
        np.testing.assert_array_equal(next[k], np.float32(leaf[1:]))
    np.testing.assert_array_equal(xs, 1.0)


def test_the_state_after_advancing_is_handed_back_whole():
    sampler = ddim(remembering(runs.exact(runs.CONDITIONAL)))
    state = advance(sampler, jax.random.key(0), sampler.init(jnp.array([70.0, 3.0])), FALLING)
    assert isinstance(state, Markov)
    assert np.abs(state.memory).min() > 0.1


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0,)])
def test_a_sample_may_have_any_shape(shape):
    # Each coordinate N(0, 1) by itself: E[x0 | x] = a x / (a^2 + s^2) and E[noise | x] = s x / (a^2 + s^2).
    def predict(x, level):
        norm = level.alpha**2 + level.sigma**2
        return Prediction(level.alpha * x / norm, level.sigma * x / norm)

    x, grid = 5 * jnp.ones(shape), uniform_grid(EDM(5.0), 20)
    model, key = denoiser(predict), jax.random.key(0)
    run = lambda x: (sample(ddim(model), key, x, grid), sample(pcg(model, model), key, x, grid))  # noqa: E731
    deterministic, random = jax.jit(run)(x)
    expected = 5 * np.prod((1 + grid.sigma[:-1] * grid.sigma[1:]) / (1 + grid.sigma[:-1] ** 2))
    np.testing.assert_allclose(deterministic, np.full(shape, expected), rtol=1e-5)
    assert (deterministic.shape, deterministic.dtype) == (random.shape, random.dtype) == (shape, jnp.float32)
    # Each coordinate has noise of its own.
    assert len(set(np.asarray(random).ravel().tolist())) == np.prod(shape)


def test_the_steps_depend_on_the_noise_ratio_alone():
    # x / alpha is at noise sigma / alpha on every path: the same ratios on three paths, from the same x / alpha.
    ratio = np.array([30.0, 8.0, 3.0, 1.0, 0.3, 0.0])
    straight, preserving = 1 / (1 + ratio), 1 / np.sqrt(1 + ratio**2)
    grids = [Level(np.linspace(1, 0, 6), alpha, ratio * alpha) for alpha in (np.ones(6), straight, preserving)]
    with jax.enable_x64(True):
        model = denoiser(runs.predictor_of(runs.exact(runs.CONDITIONAL)))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grids)
        for name in ("ddim", "ddim, eta .5", "ddpm", "pcg", "heun", "dpm_solver_pp_2m", "dpm_solver_pp_2m_sde"):

            def run(build, grid):
                return sample(build(model), jax.random.key(0), grid.alpha[0] * jnp.array([20.0, -7.0]), grid)

            ends = jax.jit(jax.vmap(partial(run, SAMPLERS[name])))(stacked)
            np.testing.assert_allclose(ends[1], ends[0], rtol=1e-10)
            np.testing.assert_allclose(ends[2], ends[0], rtol=1e-10)


LAW = [(1.0, runs.CONDITIONAL)]


def pair_step(now, next):
    return oracle.then(oracle.ddim_step(LAW, now, next), oracle.langevin_step(LAW, now, next))


SLOPES = {
    "ddpm": (ddpm, lambda now, next: oracle.ddpm_step(LAW, now, next), karras_grid(6)),
    "ddim": (ddim, lambda now, next: oracle.ddim_step(LAW, now, next), karras_grid(6)),
    "ddim, eta 1": (
        lambda model: ddim(model, 1.0),
        lambda now, next: oracle.ddim_step(LAW, now, next, 1.0),
        karras_grid(6),
    ),
    "euler": (
        lambda model: euler(model),
        lambda now, next: oracle.euler_step(LAW, now, next, lambda t: (-1.0, 1.0)),
        uniform_grid(RectifiedFlow(), 6),
    ),
    "pcg": (lambda model: pcg(model, model), pair_step, sigma_grid(np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.0]))),
    "inversion": (
        ddim_inversion,
        lambda now, next: oracle.ddim_step(LAW, now, next),
        uniform_grid(RectifiedFlow(), 6, start=0.0, stop=1.0),
    ),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_through_a_whole_run_are_the_product_of_its_maps(name):
    # Both ends of the path are among the levels: 0 / 0 and roots of 0 are what could make them NaN.
    build, step, grid = SLOPES[name]
    model = denoiser(runs.predictor_of(runs.exact(runs.CONDITIONAL)))
    forward = lambda x: sample(build(model), jax.random.key(0), x, grid)  # noqa: E731
    expected = np.linalg.multi_dot([one.matrix for one in reversed(oracle.walk(step, grid))])
    for slopes in (jax.jacrev(forward), jax.jacfwd(forward)):
        measured = jax.jit(slopes)(jnp.array([0.3, 0.1]))
        assert np.abs(measured - expected).max() < 1e-5 * np.abs(expected).max()


NOISY = {
    "ddpm": ddpm,
    "ddim, eta 1": lambda model: ddim(model, 1.0),
    "euler_ancestral": euler_ancestral,
    "dpm_solver_pp_2m_sde": dpm_solver_pp_2m_sde,
    "euler_maruyama": lambda model: euler_maruyama(model, RectifiedFlow()),
    "langevin": langevin,
    "pcg": lambda model: pcg(model, model),
    "tutorial_ddpm": tutorial_ddpm,
}


@pytest.mark.parametrize("name", NOISY)
def test_samplers_that_draw_noise_refuse_a_grid_that_rises(name):
    sampler = NOISY[name](denoiser(lambda x, level: Prediction(x, x)))
    rising = uniform_grid(RectifiedFlow(), 3, start=0.1, stop=0.9)
    for run in (sample, trajectory, lambda *of: record(*of, lambda x, info: x)):
        with pytest.raises(
            ValueError, match="needs a grid whose sigma / alpha falls, but it rises, at first from sigma"
        ):
            run(sampler, jax.random.key(0), jnp.ones(1), rising)
    falling = jax.tree.map(lambda leaf: leaf[::-1], rising)
    assert jnp.isfinite(sample(sampler, jax.random.key(0), jnp.ones(1), falling)).all()


@pytest.mark.parametrize("name", ["euler_maruyama", "langevin", "pcg"])
def test_samplers_whose_step_is_infinite_in_pure_noise_refuse_to_start_there(name):
    sampler = NOISY[name](denoiser(lambda x, level: Prediction(x, x)))
    with pytest.raises(ValueError, match="this sampler's step is infinite at alpha = 0, where this grid starts"):
        sample(sampler, jax.random.key(0), jnp.ones(1), uniform_grid(RectifiedFlow(), 4))


def test_steps_of_a_size_of_their_own_follow_any_grid():
    model = denoiser(lambda x, level: Prediction(x, x))
    rising = uniform_grid(RectifiedFlow(), 3, start=0.1, stop=0.9)
    for sampler in (
        langevin(model, step_size=fixed_step_size(0.1)),
        langevin(model, 0),
        langevin(model, adapt=signal_to_noise()),
    ):
        assert jnp.isfinite(sample(sampler, jax.random.key(0), jnp.ones(1), rising)).all()


def test_a_record_keeps_what_it_is_asked_for_and_ends_as_the_run_does():
    model = denoiser(runs.predictor_of(runs.exact(runs.CONDITIONAL)))
    key, x, grid = jax.random.key(3), jnp.array([0.3, 0.1]), karras_grid(7)
    end, kept = record(ddpm(model), key, x, grid, lambda x, info: {"norm": jnp.linalg.norm(x), "x0": info.x0[0]})
    xs, infos = trajectory(ddpm(model), key, x, grid)
    np.testing.assert_array_equal(end, sample(ddpm(model), key, x, grid))
    np.testing.assert_array_equal(end, xs[-1])
    np.testing.assert_allclose(kept["norm"], jnp.linalg.norm(xs[1:], axis=1), rtol=1e-6)
    np.testing.assert_array_equal(kept["x0"], infos.x0[:, 0])


def test_a_repeated_kernel_is_its_steps_one_by_one():
    counted = Denoiser(
        lambda x: jnp.int32(0), lambda memory, x, level: (Prediction(0.5 * x, x / level.sigma), memory + 1)
    )
    kernel = langevin(counted, step_size=fixed_step_size(0.1))
    now, next = (Level(*(jnp.float32(leaf) for leaf in level)) for level in ((0.5, 1.0, 2.0), (0.25, 1.0, 1.0)))
    key, expected = jax.random.key(0), kernel.init(jnp.ones(2))
    for k in range(3):
        expected, info = kernel.step(jax.random.fold_in(key, k), expected, now, next)
    found, last = jax.jit(repeat(kernel, 3).step)(key, kernel.init(jnp.ones(2)), now, next)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-6)
    assert found.memory == expected.memory == 3
    np.testing.assert_allclose(last.step_size, info.step_size)
    for times in (0, -1, True):
        with pytest.raises(ValueError, match=f"times must be an integer of at least 1, got {times!r}"):
            repeat(kernel, times)


@pytest.mark.parametrize("run", [sample, trajectory])
def test_a_grid_that_no_sampler_can_follow_is_refused_where_it_is_known(run):
    sampler, key, x = ddim(denoiser(lambda x, level: Prediction(x, x))), jax.random.key(0), jnp.ones(1)
    one, repeated = np.ones(3), np.array([2.0, 1.0, 1.0])
    grid = Level(np.array([1.0, 0.5, 0.0]), one, repeated)
    with pytest.raises(ValueError) as caught:
        run(sampler, key, x, grid)
    assert str(caught.value) == (
        "a grid must be strictly monotone in sigma / alpha, but between entries 1 and 2 sigma goes from "
        "1 to 1 at alpha 1 to 1; sort it, drop repeats"
    )
    with pytest.raises(ValueError) as caught:
        run(sampler, key, x, Level(*(leaf[:1] for leaf in grid)))
    assert str(caught.value) == (
        "a grid needs time, alpha and sigma of one common length of at least 2, got shapes (1,), (1,) and (1,)"
    )
    # Its values are not known inside a compiled function.
    jax.eval_shape(lambda grid: run(sampler, key, x, grid), grid)
