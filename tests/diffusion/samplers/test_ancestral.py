"""Euler's ancestral sampler against the formulas of k-diffusion, of which it is DDIM by another name."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import numpy as np
import pytest

from jaxgen.diffusion import denoiser, euler_ancestral, gaussian_mixture, karras_grid


def test_euler_ancestral_meets_the_recursion_of_k_diffusion_on_gaussian_data():
    runs.assert_recursion(
        build=lambda conditional, guided: euler_ancestral(guided, 0.5),
        step=lambda conditional, guided, now, next: oracle.ancestral_step(guided, now, next, 0.5),
        draws=runs.one_draw,
        names=("linear", "cosine from .98", "karras"),
        counts=(1, 2, 10),
    )


@pytest.mark.parametrize("name", ["linear", "karras", "flow from .98"])
def test_at_eta_one_the_formulas_are_those_of_ddpm(name):
    # That DDIM at eta = 1 is DDPM in the library is shown in `test_ddim`.
    law, grid = oracle.mixed(runs.CONDITIONAL, runs.UNCONDITIONAL, 2.5), runs.GRIDS[name](10)
    for now, next in oracle.levels(grid):
        ancestral, posterior = oracle.ancestral_step(law, now, next), oracle.ddpm_step(law, now, next)
        for one, other in zip(jax.tree.leaves(ancestral), jax.tree.leaves(posterior), strict=True):
            # In units of the sample: 80 to 1 on the second grid.
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12 * max(now[2], 1.0))


def test_ten_steps_of_the_karras_grid_have_the_known_end():
    # .3 N(-1, .7^2) + .7 N(1.5, .5^2), from 24, z_n = (-1)^n; by an independent program.
    with jax.enable_x64(True):
        law = gaussian_mixture([0.3, 0.7], [[-1.0], [1.5]], [[[0.49]], [[0.25]]])
        sampler = euler_ancestral(denoiser(runs.predictor_of(law)))
        end = runs.with_alternating_noise(sampler, np.array([[24.0]]), karras_grid(10))
    assert end.item() == pytest.approx(1.2378939327015919, rel=1e-11)


def test_eta_outside_its_range_is_refused():
    with pytest.raises(ValueError) as caught:
        euler_ancestral(denoiser(lambda x, level: None), 1.5)
    assert str(caught.value) == "eta must lie in [0, 1], got 1.5; 0 is the ODE, 1 ancestral sampling"
