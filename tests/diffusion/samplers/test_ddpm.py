"""DDPM against its recursion on Gaussian data, and the closed form of the variance that it leaves."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import numpy as np
import pytest

from jaxgen.diffusion import (
    Level,
    Tutorial,
    ddpm,
    denoiser,
    discrete,
    forward_std,
    gaussian_mixture,
    karras_grid,
    posterior_std,
    quiet_end,
    scaled_linear_betas,
    sigma_grid,
    timestep_grid,
    trailing_timesteps,
    uniform_grid,
)


def test_ddpm_meets_its_recursion_on_gaussian_data():
    runs.assert_recursion(
        build=lambda conditional, guided: ddpm(guided),
        step=lambda conditional, guided, now, next: oracle.ddpm_step(guided, now, next),
        draws=runs.one_draw,
        names=runs.FROM_NOISE,
    )


def large_step(conditional, guided, now, next):
    return oracle.ddpm_step(guided, now, next, large=True)


def test_ddpm_of_the_large_variance_meets_its_recursion_on_gaussian_data():
    runs.assert_recursion(
        build=lambda conditional, guided: ddpm(guided, std=forward_std),
        step=large_step,
        draws=runs.one_draw,
        names=("linear", "cosine", "karras"),
        counts=(1, 2, 10),
    )


def test_ten_trailing_steps_have_the_known_ends_of_both_variances():
    # .3 N(-1, .7^2) + .7 N(1.5, .5^2), the scaled-linear betas, timesteps 999, 899, ..., 99, from .3, z_n = (-1)^n. The
    # large variance is not 0 in the last step, from timestep 99 to clean data, unless it is told to be.
    grid = timestep_grid(discrete(scaled_linear_betas()), trailing_timesteps(1000, 10))
    with jax.enable_x64(True):
        law = gaussian_mixture([0.3, 0.7], [[-1.0], [1.5]], [[[0.49]], [[0.25]]])
        model = denoiser(runs.predictor_of(law))
        small, large, quiet = (
            runs.with_alternating_noise(ddpm(model, std=std), np.array([[0.3]]), grid).item()
            for std in (posterior_std, forward_std, quiet_end(forward_std))
        )
    assert small == pytest.approx(1.450913298932478, rel=1e-11)
    assert large == pytest.approx(1.185226, abs=1e-6)  # known cut after six decimals; with 40 digits:
    assert large == pytest.approx(1.185226956877249, rel=1e-11)
    # The last draw is -1, of standard deviation sigma.
    assert quiet - large == pytest.approx(grid.sigma[-2], rel=1e-9)


def test_the_large_variance_is_that_of_the_chain_and_the_small_one_that_of_its_posterior():
    # x = alpha / alpha' x' + N(0, large); given x0, x' has precision 1 / sigma'^2 + (alpha / alpha')^2 / large.
    grid = uniform_grid(Tutorial(3.0), 5)
    for path in (grid, timestep_grid(discrete(scaled_linear_betas()), trailing_timesteps(1000, 10))):
        for n in range(len(path.sigma) - 2):
            now, next = (Level(*(np.float64(leaf[k]) for leaf in path)) for k in (n, n + 1))
            scale = now.alpha / next.alpha
            large = now.sigma**2 - scale**2 * next.sigma**2
            small = 1.0 / (1.0 / next.sigma**2 + scale**2 / large)
            # Rounded to float32, of which 1 - r^2 magnifies it.
            np.testing.assert_allclose(forward_std(now, next), np.sqrt(large), rtol=1e-5)
            np.testing.assert_allclose(posterior_std(now, next), np.sqrt(small), rtol=1e-5)
    # On the path of the tutorial the large one is its sigma_q sqrt(dt) in every step, the last one too.
    stds = jax.vmap(forward_std)(*(jax.tree.map(lambda leaf, p=p: leaf[p], grid) for p in (slice(-1), slice(1, None))))
    np.testing.assert_allclose(stds, 3.0 * np.sqrt(0.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "start", "variance"),
    [(10, 25.0, 2.90675507629679), (10, 26.0, 2.9082343662376187), (1000, 25.0, 1.0111063666599)],
)
def test_the_large_variance_on_the_path_of_the_tutorial_leaves_its_noise(steps, start, variance):
    # Step-by-Step Diffusion, pseudocode 2, on N(0, 1) with sigma_q = 5: the noise of the last step stays in the end.
    assert law_left(uniform_grid(Tutorial(5.0), steps), start, 1.0, large=True) == pytest.approx(variance, rel=1e-11)


def law_left(grid, start, variance=1.7, large=False):
    """The recursion's variance on N(0, variance), at the end of a variance-exploding grid."""
    law = [(1.0, oracle.Gaussian(np.zeros(1), np.array([[variance]])))]
    maps = oracle.walk(lambda now, next: oracle.ddpm_step(law, now, next, large), grid)
    return oracle.moments(maps, np.zeros(1), np.array([[start]]))[1].item()


@pytest.mark.parametrize("count", [1, 2, 10, 100])
@pytest.mark.parametrize("start", [1.0, 30.0])
def test_the_variance_of_ddpm_telescopes(count, start):
    # With W = s^2 + sigma^2 a step multiplies by W' / W, so what enters at sigma' is shrunk by s^2 / W' in the end:
    # s^4 (V / W^2 at the start + the sum of sigma'^2 (1 - sigma'^2 / sigma^2) / W'^2).
    for grid in (karras_grid(count), sigma_grid(np.linspace(5.0, 0.0, count + 1))):
        now, next = grid.sigma[:-1], grid.sigma[1:]
        entering = next**2 * (1 - next**2 / now**2) / (1.7 + next**2) ** 2
        expected = 1.7**2 * (start / (1.7 + now[0] ** 2) ** 2 + entering.sum())
        assert law_left(grid, start) == pytest.approx(expected, rel=1e-11)


def test_the_variance_of_ddpm_is_that_of_the_data_to_first_order():
    counts = np.array([400, 800, 1600, 3200])
    errors = [law_left(sigma_grid(np.linspace(5.0, 0.0, count + 1)), 1.7 + 25.0) - 1.7 for count in counts]
    # From below: the posterior's variance is that of x' given x0, without that of x0 given x.
    assert max(errors) < 0
    runs.assert_first_order(counts, errors)
