"""Inversion by fixed points: DDIM on the reversed grid comes back to where it started."""

import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxgen.diffusion import (
    Denoiser,
    RectifiedFlow,
    VariancePreservingLinear,
    ddim,
    ddim_inversion,
    ddim_inversion_fixed_point,
    denoiser,
    gaussian_mixture,
    predict_exactly,
    sample,
    uniform_grid,
)

# Both ends of the straight path, and a variance-preserving one.
GRIDS = [uniform_grid(RectifiedFlow(), 20, start=0.0, stop=1.0)]
GRIDS += [uniform_grid(VariancePreservingLinear(), 20, start=0.0, stop=1.0)]
STARTS = np.array([[-1.7], [-0.4], [0.3], [1.1], [2.4]])


def mixture():
    return gaussian_mixture([0.3, 0.7], [[-1.0], [1.5]], [[[0.49]], [[0.25]]])


def errors_of_a_round_trip(build):
    """The largest error over the starts of encoding and then sampling by DDIM, for each grid, in float64."""
    with jax.enable_x64(True):
        model, key = denoiser(runs.predictor_of(mixture())), jax.random.key(0)

        def there_and_back(x, grid):
            encoded = sample(build(model), key, x, grid)
            return sample(ddim(model), key, encoded, jax.tree.map(lambda leaf: leaf[::-1], grid))

        run = jax.jit(jax.vmap(there_and_back, in_axes=(0, None)))
        return np.array([np.abs(run(jnp.asarray(STARTS), grid) - STARTS).max() for grid in GRIDS])


def test_the_error_of_a_round_trip_shrinks_by_a_factor_with_every_iteration():
    plain, *errors = (
        errors_of_a_round_trip(lambda model, count=count: ddim_inversion_fixed_point(model, count))
        for count in (0, 3, 6, 24)
    )
    assert (plain > 0.2).all()
    # In twenty steps between clean data and pure noise, an iteration leaves .34 of the error at most.
    for before, after in zip([plain, *errors[:1]], errors[:2], strict=True):
        assert (after < 0.4**3 * before).all()
    assert (errors[1] > 1e-7).all()  # and it is not there at once
    assert (errors[2] < 1e-9).all()


def test_without_iterations_it_is_plain_inversion_to_the_bit():
    model, key = denoiser(runs.predictor_of(mixture())), jax.random.key(0)
    plain, zero, one = (
        jax.jit(jax.vmap(lambda x, grid, sampler=sampler: sample(sampler, key, x, grid), in_axes=(0, None)))(
            jnp.float32(STARTS), GRIDS[0]
        )
        for sampler in (
            ddim_inversion(model),
            ddim_inversion_fixed_point(model, 0),
            ddim_inversion_fixed_point(model, 1),
        )
    )
    np.testing.assert_array_equal(zero, plain)
    assert np.abs(one - plain).max() > 1e-2


def test_memory_advances_at_the_first_evaluation_of_a_step_alone():
    law = mixture()
    model = Denoiser(lambda x: jnp.int32(0), lambda memory, x, level: (predict_exactly(law, x, level), memory + 1))
    sampler, grid = ddim_inversion_fixed_point(model, 3), jax.tree.map(jnp.float32, GRIDS[0])
    now, next = (jax.tree.map(lambda leaf, n=n: leaf[n], grid) for n in (5, 6))
    state, _ = sampler.step(jax.random.key(0), sampler.init(jnp.ones(1)), now, next)
    assert state.memory == 1


@pytest.fixture
def unchecked_types():
    """Lift the type checks that only the tests have, which would hide what a user sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("count", [-1, 1.0, True])
def test_a_number_of_iterations_that_is_none_is_refused(count):
    with pytest.raises(ValueError) as caught:
        ddim_inversion_fixed_point(denoiser(lambda x, level: None), count)
    assert str(caught.value) == f"iterations of an inversion must be an integer of at least 0, got {count!r}"
