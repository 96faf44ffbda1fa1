import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.diffusion import Denoiser, Level, Prediction, ddim, denoiser, karras_grid, predict_exactly, sample
from jaxgen.diffusion import gaussian_mixture as mixture


def predict(x, level):
    return Prediction(x / (1 + level.sigma), jnp.tanh(x))


def test_a_lifted_function_is_the_function_and_remembers_nothing():
    model, x, level = denoiser(predict), jnp.array([1.0, -2.0]), Level(0.5, 1.0, 3.0)
    memory = model.init(x)
    assert jax.tree.leaves(memory) == []
    prediction, after = model.apply(memory, x, level)
    jax.tree.map(np.testing.assert_array_equal, prediction, predict(x, level))
    assert jax.tree.structure(after) == jax.tree.structure(memory)


def test_a_memory_advances_once_a_step_through_a_sampler():
    law = mixture([1.0], [[2.0]], [[[1.0]]])

    def apply(memory, x, level):
        return predict_exactly(law, x, level), {"calls": memory["calls"] + 1, "last": x}

    remembering = Denoiser(lambda x: {"calls": 0, "last": jnp.zeros_like(x)}, apply)
    sampler, x, grid = ddim(remembering), jnp.array([3.0]), karras_grid(5)
    state = sampler.init(x)
    for n in range(5):
        now, next = (jax.tree.map(lambda leaf, at=at: jnp.float32(leaf[at]), grid) for at in (n, n + 1))
        before = state.x
        state, _ = sampler.step(jax.random.key(n), state, now, next)
        assert state.memory["calls"] == n + 1
        np.testing.assert_array_equal(state.memory["last"], before)
    plain = sample(ddim(denoiser(lambda x, level: predict_exactly(law, x, level))), jax.random.key(0), x, grid)
    np.testing.assert_allclose(state.x, plain, rtol=1e-5)  # the scan fuses, op by op does not
