"""Samplers on mixtures converge at their order, against references that share no code with them.

The deterministic ones: the probability-flow ODE solved by scipy. The random ones: the density of the sample itself,
carried from level to level by quadrature, so that no draw blurs the error.
"""

import itertools

import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxgen.diffusion import (
    EDM,
    Cosine,
    Level,
    RectifiedFlow,
    VariancePreservingLinear,
    ddim,
    ddim_inversion,
    ddpm,
    denoiser,
    dpm_solver_pp_2m,
    euler,
    gaussian_mixture,
    heun,
    heun_flow,
    karras_grid,
    pcg,
    predict_exactly,
    sample,
    sigma_grid,
    uniform_grid,
)

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.7, 0.5])


def mixture():
    return gaussian_mixture(WEIGHTS, MEANS[:, None], STDS[:, None, None] ** 2)


def score_with_noise(x, rho):
    """The score of the mixture with noise of standard deviation rho added."""
    variances = STDS**2 + rho**2
    logs = np.log(WEIGHTS) - 0.5 * (x - MEANS) ** 2 / variances - 0.5 * np.log(variances)
    shares = np.exp(logs - logs.max())
    return shares @ ((MEANS - x) / variances) / shares.sum()


def flow(x, start, stop):
    """The probability-flow ODE d(x / alpha) / d rho = -rho score, between two levels."""
    first, last = start.sigma / start.alpha, stop.sigma / stop.alpha
    slope = lambda rho, x: [-rho * score_with_noise(x[0], rho)]  # noqa: E731
    solved = solve_ivp(slope, (first, last), [x / start.alpha], method="DOP853", rtol=1e-12, atol=1e-13)
    return stop.alpha * solved.y[0, -1]


def level_of(grid, n):
    return Level(*(float(leaf[n]) for leaf in grid))


# The error at one start may vanish at some step size, and its logarithm is no line there: the norm is over several.
DETERMINISTIC = {
    "ddim, karras": (ddim, karras_grid),
    "ddim, linear": (ddim, lambda n: uniform_grid(VariancePreservingLinear(), n)),
    "ddim, flow": (ddim, lambda n: uniform_grid(RectifiedFlow(), n, start=0.98)),
    "euler, linear": (
        lambda model: euler(model, VariancePreservingLinear()),
        lambda n: uniform_grid(VariancePreservingLinear(), n),
    ),
    "euler, cosine": (lambda model: euler(model, Cosine()), lambda n: uniform_grid(Cosine(), n, start=0.98)),
    "euler, edm": (lambda model: euler(model, EDM(8.0)), lambda n: uniform_grid(EDM(8.0), n)),
    "inversion, flow": (ddim_inversion, lambda n: uniform_grid(RectifiedFlow(), n, start=0.0, stop=0.9)),
}
SECOND_ORDER = {
    "heun, karras": (heun, karras_grid),
    # Down to a level and not to the data: sigma is no smooth function of this path's time there.
    "heun, linear": (heun, lambda n: uniform_grid(VariancePreservingLinear(), n, stop=0.05)),
    "heun in time, cosine": (lambda model: heun_flow(model, Cosine()), lambda n: uniform_grid(Cosine(), n, start=0.98)),
    "heun in time, flow": (heun_flow, lambda n: uniform_grid(RectifiedFlow(), n, start=0.98)),
    "2m, karras": (dpm_solver_pp_2m, karras_grid),
    "2m, linear": (dpm_solver_pp_2m, lambda n: uniform_grid(VariancePreservingLinear(), n, stop=0.05)),
}
STARTS = np.linspace(-2.0, 2.0, 9)


def errors_on_the_flow(build, grid_of, counts):
    """The root mean square over the starts of the distance from the flow, for each number of steps."""
    grids = [grid_of(int(count)) for count in counts]
    first, last = level_of(grids[0], 0), level_of(grids[0], -1)
    starts = STARTS * max(first.sigma, 1.0)
    with jax.enable_x64(True):
        model = denoiser(lambda x, level: predict_exactly(mixture(), x, level))
        run = jax.vmap(lambda x, grid: sample(build(model), jax.random.key(0), x, grid), in_axes=(0, None))
        ends = jax.jit(lambda x, grids: [run(x, grid) for grid in grids])(jnp.array(starts[:, None]), grids)
        ends = np.array(ends)[:, :, 0]
    truth = [flow(start, first, last) for start in starts]
    return np.sqrt(np.mean((ends - truth) ** 2, axis=1))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_flow_at_first_order(name):
    counts = np.array([80, 160, 320, 640])
    runs.assert_first_order(counts, errors_on_the_flow(*DETERMINISTIC[name], counts))


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_samplers_with_two_slopes_follow_the_flow_at_second_order(name):
    counts = np.array([80, 160, 320, 640])
    runs.assert_order(counts, errors_on_the_flow(*SECOND_ORDER[name], counts), 2.0, 0.15)


# From 24 and from -40 in 10 steps, by an independent program; the errors from 24 in 80, 160 and 320 steps.
KNOWN = {
    "ddim": (ddim, 1.3260655231509506, 0.5234055644205369, (-1.108e-2, -5.473e-3, -2.720e-3)),
    "heun": (heun, 1.5285144568861788, 0.3272628605370552, (7.506e-4, 1.795e-4, 4.425e-5)),
    "2m": (dpm_solver_pp_2m, 1.5805245542093764, 0.3632545390291648, (1.019e-3, 2.399e-4, 5.859e-5)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_samplers_on_the_karras_grid_have_the_known_errors(name):
    build, above, below, errors = KNOWN[name]
    with jax.enable_x64(True):
        model = denoiser(lambda x, level: predict_exactly(mixture(), x, level))
        run = jax.vmap(lambda x, grid: sample(build(model), jax.random.key(0), x, grid)[0], in_axes=(0, None))
        grids = [karras_grid(count) for count in (10, 80, 160, 320)]
        ends = jax.jit(lambda x, grids: [run(x, grid) for grid in grids])(jnp.array([[24.0], [-40.0]]), grids)
        ends = np.array(ends)
    np.testing.assert_allclose(ends[0], [above, below], rtol=1e-11)
    truth = flow(24.0, Level(1.0, 1.0, 80.0), Level(0.0, 1.0, 0.0))
    np.testing.assert_allclose(ends[1:, 0] - truth, errors, rtol=1e-3)  # four digits


def test_the_flow_on_the_karras_grid_has_the_known_ends():
    first, last = Level(1.0, 1.0, 80.0), Level(0.0, 1.0, 0.0)
    assert flow(24.0, first, last) == pytest.approx(1.4360714670513066, rel=1e-10)
    assert flow(-40.0, first, last) == pytest.approx(0.43132414806306, rel=1e-10)


def lattice(level, points=450):
    """Points over +-7 standard deviations of a level, and their distance."""
    x = np.linspace(-7.0, 7.0, points) * np.hypot(1.4 * level.alpha, level.sigma)
    return x, x[1] - x[0]


def moments_at(level):
    """Mean and variance of the corrupted mixture."""
    mean = WEIGHTS @ MEANS
    variance = WEIGHTS @ (STDS**2 + MEANS**2) - mean**2
    return np.array([level.alpha * mean, level.alpha**2 * variance + level.sigma**2])


def carried_moments(step, grid):
    """Mean and variance at the end, from the exact density at the start; step(now, next, x) is mean(x), std.

    Integrals over x are rectangle rules, exact to rounding for smooth functions that vanish at both ends.
    """
    levels = [level_of(grid, n) for n in range(len(grid.sigma))]
    x, width = lattice(levels[0])
    stds = np.hypot(levels[0].alpha * STDS, levels[0].sigma)
    density = np.exp(-0.5 * ((x[:, None] - levels[0].alpha * MEANS) / stds) ** 2) @ (
        WEIGHTS / stds / np.sqrt(2 * np.pi)
    )
    for now, next in itertools.pairwise(levels):
        mean, std = step(now, next, x)
        mass = density * width
        x, width = lattice(next)
        density = np.exp(-0.5 * ((x[:, None] - mean) / std) ** 2) @ mass / (std * np.sqrt(2 * np.pi))
    assert mass.sum() == pytest.approx(1.0, abs=1e-9)
    return np.array([mass @ mean, mass @ mean**2 - (mass @ mean) ** 2 + std**2])


def affine_in_noise(sampler, drawn_by):
    """A step of the library as mean(x) and std: two keys, whose draws are known, tell them apart."""
    keys = jax.random.key(0), jax.random.key(1)
    z = [float(jax.random.normal(drawn_by(key), (1,), jnp.float64)[0]) for key in keys]

    @jax.jit
    def ends(x, now, next):
        one = lambda key, x: sampler.step(key, sampler.init(x), now, next)[0].x[0]  # noqa: E731
        return [jax.vmap(one, in_axes=(None, 0))(key, x[:, None]) for key in keys]

    def step(now, next, x):
        first, second = map(np.asarray, ends(jnp.asarray(x), now, next))
        stds = (first - second) / (z[0] - z[1])
        assert np.ptp(stds) < 1e-9 * stds[0]
        return first - stds[0] * z[0], stds[0]

    return step


@pytest.mark.parametrize(
    ("build", "drawn_by"),
    [
        (ddpm, lambda key: key),
        # Without guidance, PCG keeps the law of the data as well.
        (lambda model: pcg(model, model), lambda key: jax.random.fold_in(jax.random.split(key)[1], 0)),
    ],
    ids=["ddpm", "pcg"],
)
def test_random_samplers_carry_the_density_to_first_order(build, drawn_by):
    counts = np.array([80, 160, 320, 640])
    with jax.enable_x64(True):
        step = affine_in_noise(build(denoiser(lambda x, level: predict_exactly(mixture(), x, level))), drawn_by)
        # Down to a level whose steps a lattice resolves.
        grids = [sigma_grid(np.geomspace(8.0, 0.8, count + 1)) for count in counts]
        errors = np.array([carried_moments(step, grid) for grid in grids]) - moments_at(level_of(grids[0], -1))
    for error in errors.T:
        runs.assert_first_order(counts, error)
