"""Which law guided sampling reaches in the limit of small steps: closed forms, and the formulas next to them.

The first problem of Bradley & Nakkiran (2024): c ~ N(0, 1) and x | c ~ N(c, 1), at c = 0, with noise of variance rho^2
added. The recursions here are those of the variance, vectorised over the steps; that the library takes these steps is
shown in `test_ddim`, `test_ddpm` and `test_predictor_corrector`.
"""

import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxgen.diffusion import (
    VariancePreservingLinear,
    denoiser,
    euler,
    from_score,
    langevin,
    level_at,
    predictor_corrector,
    sample,
    uniform_grid,
)

LARGEST = 1e8  # the variance rho^2 at the start: what is left of the start is of the order of its inverse


def noise_levels(steps):
    """Levels from sqrt(LARGEST) to 0, as a smooth function of n / steps, so that errors have an expansion in it."""
    return np.sinh(np.linspace(np.arcsinh(np.sqrt(LARGEST)), 0.0, steps + 1))


def precision(scale, rho):
    """The guided score is -precision * x."""
    return scale / (1 + rho**2) + (1 - scale) / (2 + rho**2)


def accumulated(factors, variances, start):
    """The end of v <- factor^2 v + variance."""
    remaining = np.append(np.cumprod(factors[::-1] ** 2)[::-1], 1.0)
    return start * remaining[0] + variances @ remaining[1:]


def ddim_variance(scale, rho):
    now, next = rho[:-1], rho[1:]
    return accumulated(1 - now * (now - next) * precision(scale, now), 0 * now, 1 + rho[0] ** 2)


def ddpm_variance(scale, rho):
    now, next = rho[:-1], rho[1:]
    r2 = (next / now) ** 2
    return accumulated(1 - (1 - r2) * now**2 * precision(scale, now), next**2 * (1 - r2), 1 + rho[0] ** 2)


def pcg_variance(scale, rho, count=1, predictor_scale=1.0, drift=0.5, corrector_time="new"):
    """A DDIM step, then x <- x + drift epsilon score + sqrt(epsilon) z `count` times; clean data are corrected too."""
    now, next = rho[:-1], rho[1:]
    epsilon = now**2 - next**2
    moved = 1 - now * (now - next) * precision(predictor_scale, now)
    factor = 1 - drift * epsilon * precision(scale, next if corrector_time == "new" else now)
    fresh = epsilon * sum(factor ** (2 * k) for k in range(count))
    return accumulated(moved * factor**count, fresh, 1 + rho[0] ** 2)


def limit(variance, steps=4000):
    """Richardson's extrapolation over three numbers of steps: h and h^2 are removed."""
    coarse, middle, fine = (variance(noise_levels(steps * factor)) for factor in (1, 2, 4))
    return (8 * fine - 6 * middle + coarse) / 3


# Scale, and the variances of: the powered law p(x | c)^scale p(x)^(1 - scale), DDPM and DDIM under guidance.
TABLE = [
    (1.0, 1.0, 1.0, 1.0),
    (1.5, 0.8, 0.75, 0.7071067811865476),
    (2.0, 0.6666666666666667, 0.5833333333333333, 0.5),
    (3.0, 0.5, 0.3875, 0.25),
    (5.0, 0.3333333333333333, 0.22178819444444445, 0.0625),
]


@pytest.mark.parametrize(("scale", "powered", "ddpm", "ddim"), TABLE)
def test_guided_ddim_and_ddpm_reach_their_closed_forms(scale, powered, ddpm, ddim):
    odd = 2 * scale - 1
    assert ddim == pytest.approx(2 ** (1 - scale))
    assert ddpm == pytest.approx((2 - 2 ** (1 - odd)) / odd)
    assert powered == pytest.approx(1 / precision(scale, 0.0))
    # The start is forgotten like 1 / LARGEST. What is left is the extrapolation's: the error of DDPM has a term in
    # h^2 log h, from the steps next to the data, where its noise is not smooth in rho.
    assert limit(lambda rho: ddim_variance(scale, rho)) == pytest.approx(ddim, abs=1e-7)
    assert limit(lambda rho: ddpm_variance(scale, rho)) == pytest.approx(ddpm, abs=5e-6)


# K corrections at scale gamma, and the values of another program.
CORRECTIONS = [
    (1, 3.0, 0.5833333333333333),
    (2, 3.0, 0.5375),
    (5, 3.0, 0.5134861882908759),
    (10, 3.0, 0.5064909436723848),
    (1, 5.0, 0.3875),
    (2, 5.0, 0.3556423611111111),
    (5, 5.0, 0.3412761151712088),
]


@pytest.mark.parametrize(("count", "scale", "value"), CORRECTIONS)
def test_pcg_reaches_its_closed_form_for_any_number_of_corrections(count, scale, value):
    # Var(K, gamma) = K int_0^1 z^(K - 1) ((1 + z) / 2)^(K (gamma - 1)) dz, which is 2 / (gamma + 1) at K = infinity.
    closed = quad(lambda z: count * z ** (count - 1) * ((1 + z) / 2) ** (count * (scale - 1)), 0, 1, epsabs=1e-13)[0]
    assert closed == pytest.approx(value, rel=1e-11)
    # The error's expansion is in steps * count, which are stiffer the more corrections there are.
    assert limit(lambda rho: pcg_variance(scale, rho, count), 16000) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_pcg_with_one_correction_is_guided_ddpm_at_the_mean_of_its_scale_and_one(scale):
    assert limit(lambda rho: pcg_variance(scale, rho)) == pytest.approx(
        limit(lambda rho: ddpm_variance((1 + scale) / 2, rho)), abs=5e-6
    )


def test_the_limit_of_pcg_at_scale_three_is_none_of_its_neighbours():
    found = limit(lambda rho: pcg_variance(3.0, rho))
    assert found == pytest.approx(7 / 12, abs=1e-6)
    neighbours = {
        "the powered law at 3": 0.5,
        "the powered law at 2": 2 / 3,
        "guided DDIM at 3": 0.25,
        "guided DDIM at 2": 0.5,
        "guided DDPM at 3": 0.3875,
        "the conditional law": 1.0,
        "corrected at 2 gamma = 4": limit(lambda rho: pcg_variance(4.0, rho)),
        "corrected at gamma = 2": limit(lambda rho: pcg_variance(2.0, rho)),
        "corrected twice": limit(lambda rho: pcg_variance(3.0, rho, 2)),
        "corrected without the half": limit(lambda rho: pcg_variance(3.0, rho, drift=1.0)),
        "corrected by the conditional": limit(lambda rho: pcg_variance(1.0, rho)),
        "predicted by the guided law too": limit(lambda rho: pcg_variance(3.0, rho, predictor_scale=3.0)),
        "predicted by the unconditional": limit(lambda rho: pcg_variance(3.0, rho, predictor_scale=0.0)),
    }
    # The nearest lies .046 away, two hundred times what a run of 200,000 samples and 1,000 steps is uncertain by.
    assert {name: value for name, value in neighbours.items() if abs(value - found) < 0.04} == {}
    assert neighbours["corrected at 2 gamma = 4"] == pytest.approx(15 / 32, abs=1e-6)
    assert neighbours["predicted by the guided law too"] == pytest.approx(0.3875, abs=1e-6)
    # A corrector at the old time has the same limit; at finite steps it is another sampler.
    old = lambda rho: pcg_variance(3.0, rho, corrector_time="old")  # noqa: E731
    assert limit(old) == pytest.approx(found, abs=1e-6)
    rho = noise_levels(100)
    assert abs(old(rho) - pcg_variance(3.0, rho)) > 0.04


def test_variances_are_met_at_first_order():
    counts = np.array([2000, 4000, 8000, 16000])
    for variance, target in (
        (lambda rho: ddim_variance(3.0, rho), 0.25),
        (lambda rho: ddpm_variance(1.0, rho), 1.0),
        (lambda rho: ddpm_variance(3.0, rho), 0.3875),
        (lambda rho: pcg_variance(3.0, rho), 7 / 12),
        (lambda rho: pcg_variance(3.0, rho, 2), 0.5375),
    ):
        runs.assert_first_order(counts, [variance(noise_levels(count)) - target for count in counts])


def beta(time):
    return 0.1 + 19.9 * time


def two_clusters(scale):
    """The guided score of N(+-1, 1) under the condition +1, on a variance-preserving path."""
    return lambda x, level: level.alpha * (scale - (scale - 1) * jnp.tanh(level.alpha * x)) - x


def test_pcg_is_guided_ddpm_at_strong_order_one_under_the_same_noise():
    # Theorem 3 on two clusters: PCG at scale 5 against Euler-Maruyama of the guided reverse SDE at (1 + 5) / 2, which
    # is written out in numpy, both with beta at the old time and with the same noise. PCG at 3 is no such pair.
    schedule, particles, counts = VariancePreservingLinear(), 20_000, np.array([50, 100, 200, 400, 800])
    model = lambda scale: denoiser(lambda x, level: from_score(x, level, two_clusters(scale)(x, level)))  # noqa: E731
    size = lambda now, next: beta(now.time) * (now.time - next.time)  # noqa: E731
    key, gaps = jax.random.key(0), {5.0: [], 3.0: []}

    @jax.jit
    def pcg(x, grid, scale):
        clean = lambda x: two_clusters(scale)(x, level_at(schedule, 0.0))  # noqa: E731
        corrector = langevin(model(scale), step_size=size, clean_score=clean)
        return sample(predictor_corrector(euler(model(1.0), schedule), corrector), key, x, grid)

    with jax.enable_x64(True):
        x0 = jax.random.normal(jax.random.key(1), (particles,), jnp.float64)
        draw = jax.jit(
            lambda key: jax.random.normal(jax.random.fold_in(jax.random.split(key)[1], 0), x0.shape, x0.dtype)
        )
        noise = [np.asarray(draw(k)) for k in runs.step_keys(key, counts[-1])]
        for count in counts:
            grid, x = uniform_grid(schedule, int(count)), np.asarray(x0)
            for n in range(count):
                step = beta(grid.time[n]) / count
                pull = grid.alpha[n] * (3.0 - 2.0 * np.tanh(grid.alpha[n] * x)) - x
                x = x + step * (x / 2 + pull) + np.sqrt(step) * noise[n]
            for scale, found in gaps.items():
                found.append(np.sqrt(np.mean((np.asarray(pcg(x0, grid, scale)) - x) ** 2)))
    # Another program's, from 20,000 particles too: 2 % between seeds.
    np.testing.assert_allclose(gaps[5.0], [9.57e-3, 4.64e-3, 2.29e-3, 1.138e-3, 5.66e-4], rtol=0.02)
    runs.assert_first_order(counts, gaps[5.0])
    np.testing.assert_allclose(gaps[3.0], 0.285, rtol=0.02)
