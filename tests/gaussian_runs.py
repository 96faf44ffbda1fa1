"""Running the samplers of the library on Gaussian data, to be compared with `gaussian_recursions`."""

import functools
from contextlib import contextmanager
from functools import partial
from unittest import mock

import gaussian_recursions as oracle
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxgen.diffusion import (
    EDM,
    Cosine,
    RectifiedFlow,
    VariancePreservingLinear,
    denoiser,
    gaussian_mixture,
    guide,
    karras_grid,
    predict_exactly,
    sample,
    uniform_grid,
)

CONDITIONAL = oracle.Gaussian(np.array([1.3, -0.7]), np.array([[0.5, 0.2], [0.2, 0.3]]))
UNCONDITIONAL = oracle.Gaussian(np.array([-0.4, 0.9]), np.array([[1.5, -0.3], [-0.3, 0.8]]))
SCALES = (1.0, 2.5)
COUNTS = (1, 2, 10, 100)
START = np.array([0.9, -0.4])  # in units of the first level's noise
# The last time is not 1 where the step size divides by alpha, which is 0 there.
GRIDS = {
    "linear": partial(uniform_grid, VariancePreservingLinear()),
    "cosine": partial(uniform_grid, Cosine()),
    "cosine from .98": partial(uniform_grid, Cosine(), start=0.98),
    "edm": partial(uniform_grid, EDM(10.0)),
    "karras": karras_grid,
    "flow": partial(uniform_grid, RectifiedFlow()),
    "flow from .98": partial(uniform_grid, RectifiedFlow(), start=0.98),
}
FROM_NOISE = tuple(name for name in GRIDS if "from" not in name)
WITH_DATA = tuple(name for name in GRIDS if name not in ("cosine", "flow"))
# In units of the sample or of the data, whichever is larger: mean and spread of the laws above are about 1, and a
# result that happens to be near 0 keeps the rounding of the terms that cancel in it. 100 steps lose less than 1e-13
# of these in float64. In float32 the ratio r of two levels is rounded by 6e-8, and sqrt(1 - r^2) by 6e-8 / (1 - r).
DATA_SCALE = 1.0
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}


def exact(law):
    """The mixture of one component that is this Gaussian, in the float type of the moment."""
    return gaussian_mixture([1.0], law.mean[None], law.covariance[None])


def predictor_of(law):
    return lambda x, level: predict_exactly(law, x, level)


def denoisers(conditional, unconditional, scale):
    """The conditional and the guided denoiser of two mixtures."""
    conditional, unconditional = predictor_of(conditional), predictor_of(unconditional)
    return denoiser(conditional), denoiser(guide(conditional, unconditional, scale))


def step_keys(key, steps):
    return [jax.random.fold_in(key, n) for n in range(steps)]


def normal(key, dtype, shape=(2,)):
    return np.asarray(jax.random.normal(key, shape, dtype), np.float64)


def no_draws(key, dtype):
    return ()


def one_draw(key, dtype):
    """The noise of ddpm and ddim: drawn from the key of the step itself."""
    return (normal(key, dtype),)


def langevin_draws(count):
    """The noise of Langevin dynamics: draw k from fold_in(key of the step, k)."""
    return lambda key, dtype: tuple(normal(jax.random.fold_in(key, k), dtype) for k in range(count))


def pair_draws(first, second):
    """The noise of a predictor and a corrector: each from its half of the split key of the step."""

    def draws(key, dtype):
        predict_key, correct_key = jax.random.split(key)
        return first(predict_key, dtype) + second(correct_key, dtype)

    return draws


@functools.cache
def stacked_grids(names, counts=COUNTS):
    """For each number of steps, the grids of those names as one Level with a leading axis, and a start for each."""
    runs = []
    for count in counts:
        grids = [GRIDS[name](count) for name in names]
        grid = jax.tree.map(lambda *leaves: np.stack(leaves), *grids)
        runs.append((grid.sigma[:, :1] * START, grid))
    return tuple(runs)


def run_all(build, key, names, scales, counts=COUNTS):
    """Results [scale, grid, D] for each number of steps, in one compiled program, in the float type of the moment."""
    laws = exact(CONDITIONAL), exact(UNCONDITIONAL)

    @jax.jit
    def program(laws, key, scales, runs):
        def one(scale, x, grid):
            return sample(build(*denoisers(*laws, scale)), key, x, grid)

        over_grids = jax.vmap(one, in_axes=(None, 0, 0))
        return [jax.vmap(over_grids, in_axes=(0, None, None))(scales, x, grid) for x, grid in runs]

    runs = jax.tree.map(jnp.asarray, stacked_grids(names, counts))
    return [np.asarray(x, np.float64) for x in program(laws, key, jnp.array(scales), runs)]


def by_steps(step):
    """Follow a grid by a step that looks at two levels alone: step(conditional, guided, now, next) -> Affine."""
    return lambda conditional, guided, grid: oracle.walk(partial(step, conditional, guided), grid)


def assert_recursion(build, draws, names, step=None, walk=None, scales=SCALES, counts=COUNTS, tolerances=TOLERANCES):
    """Compare a sampler with its recursion, on every grid, scale, number of steps and in both float types.

    build(conditional, guided) -> Sampler; step(conditional, guided, now, next) -> Affine, or else
    walk(conditional, guided, grid) -> the maps of all steps, on x or on x and what follows it; draws(step key, dtype).
    """
    walk = walk or by_steps(step)
    walks = {}
    for count, (_, grids) in zip(counts, stacked_grids(names, counts), strict=True):
        for s, scale in enumerate(scales):
            bound = partial(walk, [(1.0, CONDITIONAL)], oracle.mixed(CONDITIONAL, UNCONDITIONAL, scale))
            for g in range(len(names)):
                walks[count, s, g] = bound(jax.tree.map(lambda leaf, g=g: leaf[g], grids))
    for dtype, tolerance in tolerances.items():
        with jax.enable_x64(dtype == "float64"):
            key = jax.random.key(3)
            measured = run_all(build, key, names, scales, counts)
            noise = [draws(k, jnp.dtype(dtype)) for k in step_keys(key, max(counts))]
        for (count, s, g), maps in walks.items():
            at = counts.index(count)
            start = stacked_grids(names, counts)[at][0][g]
            start = np.pad(start, (0, len(maps[0].shift) - len(start)))
            expected = oracle.replay(maps, start, noise)[: len(START)]
            error = np.abs(measured[at][s, g] - expected).max() / max(np.abs(expected).max(), DATA_SCALE)
            assert error < tolerance, f"{names[g]}, {count} steps, scale {scales[s]}, {dtype}: off by {error:.1e}"


def fitted_order(counts, errors):
    """The slope of log |error| against log step size, with its standard error."""
    fit = stats.linregress(-np.log(counts), np.log(np.abs(errors)))
    return fit.slope, fit.stderr


def assert_order(counts, errors, order, reach):
    """The 95 % interval of the fitted order lies inside order +- reach, and nothing is left to fit but rounding."""
    slope, stderr = fitted_order(counts, errors)
    half = stats.t.ppf(0.975, len(counts) - 2) * stderr
    assert slope - half > order - reach, f"order {slope:.3f} +- {half:.3f}"
    assert slope + half < order + reach, f"order {slope:.3f} +- {half:.3f}"


def assert_first_order(counts, errors):
    """As `assert_order`, of 1 +- .1."""
    assert_order(counts, errors, 1.0, 0.1)


@contextmanager
def forced_noise(noise):
    """Replace every normal draw that is traced inside by one number."""
    with mock.patch.object(jax.random, "normal", lambda key, shape, dtype: jnp.full(shape, noise, dtype)):
        yield


def with_alternating_noise(sampler, x, grid):
    """Run a sampler on x, `[batch, D]`, with z_n = (-1)^n for every draw of step n, as known values are; float64."""
    grid = jax.tree.map(jnp.asarray, grid)
    now, next = (jax.tree.map(lambda leaf, part=part: leaf[part], grid) for part in (slice(-1), slice(1, None)))
    signs = (-1.0) ** jnp.arange(len(now.sigma))

    def step(state, inputs):
        sign, now, next = inputs
        with forced_noise(sign):
            return sampler.step(jax.random.key(0), state, now, next)[0], None

    one = lambda x: jax.lax.scan(step, sampler.init(x), (signs, now, next))[0].x  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(x, jnp.float64)))
