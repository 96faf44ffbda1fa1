"""DDPM against its recursion on Gaussian data, and the closed form of the variance that it leaves."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import numpy as np
import pytest

from jaxgen.diffusion import ddpm, karras_grid, sigma_grid


def test_ddpm_meets_its_recursion_on_gaussian_data():
    runs.assert_recursion(
        build=lambda conditional, guided: ddpm(guided),
        step=lambda conditional, guided, now, next: oracle.ddpm_step(guided, now, next),
        draws=runs.one_draw,
        names=runs.FROM_NOISE,
    )


def law_left(grid, start):
    """The recursion's variance on N(0, 1.7), at the end of a variance-exploding grid."""
    law = [(1.0, oracle.Gaussian(np.zeros(1), np.array([[1.7]])))]
    maps = oracle.walk(lambda now, next: oracle.ddpm_step(law, now, next), grid)
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
