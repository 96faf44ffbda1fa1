"""What is compared computes the same: the peers, restated or their own, draw the samples of the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import SamplerSizes, loops, peers, samplers
from jaxgen.diffusion import Cosine, Prediction

SIZES = SamplerSizes(steps=8, width=16, batch_size=3, free_batch_size=4, digits_batch_size=2, guided_batch_size=2)
# Eight steps of float32 in another order of operations; the first of them divide by an alpha of .07.
CLOSE = 1e-4


def difference(sides):
    ours, theirs = sides.ours(), sides.theirs()
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(ours).max()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("contest", [of for of in samplers.CONTESTS if of.cpu_claim == "P1"], ids=lambda of: of.name)
def test_diffusers_draws_the_same_samples_with_the_same_weights(contest):
    assert difference(contest.sides(SIZES, 3)) < CLOSE


def test_a_torch_without_the_gpu_is_told():
    network = peers.small_network(0, 4, 4)
    with pytest.raises(ImportError, match=r"needs a torch that sees the GPU; .*, which is installed here, does not"):
        peers.diffusers_loop("DDIMScheduler", network, np.zeros((1, 4), np.float32), 2, device="cuda")


def test_the_restated_python_loop_draws_the_same_samples():
    assert difference(loops.against_python_loop(SIZES, 3)) < CLOSE


def test_the_restated_loop_of_hackable_diffusion_draws_the_same_samples():
    assert difference(loops.against_hackable(SIZES, 3, stochastic=False)) < CLOSE


def test_the_restated_loop_returns_its_trajectory_by_default():
    x = jnp.ones((4, 2))
    schedule, options = Cosine(), {"steps": 5, "stochasticity": 0.5}

    def run(**more):
        return peers.hackable_loop(
            predict_half, schedule.alpha, schedule.sigma, jax.random.key(0), x, **options, **more
        )

    end, steps = run()
    assert steps.x.shape == (6, 4, 2)
    assert steps.time.shape == (6, 4, 1)
    np.testing.assert_array_equal(steps.x[0], x)
    np.testing.assert_array_equal(steps.x[-1], end.x)
    np.testing.assert_allclose(steps.time[:, 0, 0], np.linspace(1 - 1e-6, 1e-6, 6), atol=1e-7)
    again, nothing = run(store_trajectory=False)
    assert nothing is None
    np.testing.assert_array_equal(again.x, end.x)


def predict_half(x, level):
    """The posterior mean of N(0, .25), of the shape of x."""
    variance = level.alpha**2 * 0.25 + level.sigma**2
    return Prediction(level.alpha * 0.25 / variance * x, level.sigma / variance * x)


def test_the_restated_loop_with_its_noise_keeps_the_law():
    # Of N(0, .25): the deterministic loop and the stochastic one both end at a standard deviation of one half.
    x = jax.random.normal(jax.random.key(1), (20_000, 1))
    schedule = Cosine()
    run = jax.jit(
        lambda key, x: (
            peers.hackable_loop(predict_half, schedule.alpha, schedule.sigma, key, x, steps=100, stochasticity=1.0)[0].x
        )
    )
    # Ancestral sampling of 100 steps is a few percent narrow, and the estimate has a standard error of 0.5 %.
    np.testing.assert_allclose(np.std(run(jax.random.key(2), x)), 0.5, rtol=0.05)


def test_guidance_in_one_call_is_guidance_in_two():
    assert difference(loops.guidance_in_one_call(SIZES, 3)) < CLOSE


def test_the_bare_scan_makes_as_many_calls_of_the_same_network():
    sides = loops.against_bare_network(SIZES, 3)
    assert sides.ours().shape == sides.theirs().shape == (2, 8, 8)
    assert np.isfinite(sides.theirs()).all()


def test_memory_of_the_trajectory_grows_with_the_steps_and_ours_does_not():
    few, many = (loops.memory_of(steps, SIZES) for steps in (10, 210))
    sample_bytes = 4 * SIZES.free_batch_size * loops.FEATURES
    # The grid grows by three numbers a step; a step of the trajectory is at least a sample.
    assert 0 <= many["jaxgen"] - few["jaxgen"] < 200 * 64
    assert many["trajectory"] - few["trajectory"] >= 200 * sample_bytes
    assert many["no trajectory"] < few["no trajectory"] + 200 * sample_bytes


def test_nothing_that_is_swept_compiles_anew():
    assert loops.count_compilations(0, 4) == dict.fromkeys(
        ("guidance scale", "eta", "guidance interval", "grid", "seed"), 1
    )
