"""Euler-Maruyama of the reverse SDE against its recursion, its limit, and the samplers that it is not."""

import gaussian_recursions as oracle
import gaussian_runs as runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    RectifiedFlow,
    VariancePreservingLinear,
    ddpm,
    denoiser,
    euler_maruyama,
    from_score,
    sample,
    uniform_grid,
)

LINEAR = VariancePreservingLinear()
# f and g^2 in closed form: -beta / 2 and beta; -1 / (1 - t) and 2 t - 2 f t^2.
PATHS = {
    "linear": (LINEAR, lambda t: (-0.5 * (0.1 + 19.9 * t), 0.1 + 19.9 * t)),
    "flow from .98": (RectifiedFlow(), lambda t: (-1 / (1 - t), 2 * t / (1 - t))),
}


@pytest.mark.parametrize("name", PATHS)
def test_euler_maruyama_meets_its_recursion_on_gaussian_data(name):
    schedule, coefficients = PATHS[name]
    runs.assert_recursion(
        build=lambda conditional, guided: euler_maruyama(guided, schedule),
        step=lambda conditional, guided, now, next: oracle.euler_maruyama_step(guided, now, next, coefficients),
        draws=runs.one_draw,
        names=(name,),
        counts=(1, 2, 10),
    )


def beta(time):
    return 0.1 + 19.9 * time


def test_it_reaches_the_law_of_the_data_at_first_order_from_above_and_ancestral_sampling_from_below():
    # Bradley & Nakkiran's first problem: N(0, 1), N(0, 2) without the condition; their guided law at scale 2.
    given, without = (oracle.Gaussian(np.zeros(1), np.array([[variance]])) for variance in (1.0, 2.0))
    law, limit = oracle.mixed(given, without, 2.0), 0.583333333799599  # of this path, which starts at alpha > 0

    def variance(step, count):
        maps = oracle.walk(lambda now, next: step(law, now, next), uniform_grid(LINEAR, int(count)))
        return oracle.moments(maps, np.zeros(1), np.eye(1))[1].item()

    def maruyama(law, now, next):
        return oracle.euler_maruyama_step(law, now, next, PATHS["linear"][1])

    counts = np.array([200, 400, 800, 1600])
    errors = np.array([variance(maruyama, count) for count in counts]) - limit
    assert min(errors) > 0
    runs.assert_first_order(counts, errors)
    assert variance(oracle.ddpm_step, 50) < limit < variance(maruyama, 50)
    assert variance(maruyama, 50) - variance(oracle.ddpm_step, 50) == pytest.approx(0.12, abs=0.005)


def guided_score(scale, x, alpha):
    """Of N(+-1, 1) under the condition +1, on a variance-preserving path."""
    return alpha * (scale - (scale - 1) * np.tanh(alpha * x)) - x


def test_with_guidance_it_meets_pcg_at_strong_order_one_under_the_same_noise():
    # Bradley & Nakkiran's theorem 3 on two clusters: Euler-Maruyama at scale 3 by the library, its own noise included,
    # and PCG at scale 5 in numpy, with beta at the old or at the new time in the corrector.
    counts, particles = np.array([50, 100, 200, 400]), 4000
    key, gaps = jax.random.key(0), {"old": [], "new": [], "ancestral": []}
    with jax.enable_x64(True):
        tilt = lambda x, level: 3.0 - 2.0 * jnp.tanh(level.alpha * x)  # noqa: E731
        model = denoiser(lambda x, level: from_score(x, level, level.alpha * tilt(x, level) - x))
        x0 = jax.random.normal(jax.random.key(1), (particles,), jnp.float64)
        run = jax.jit(lambda x, grid: sample(euler_maruyama(model, LINEAR), key, x, grid))
        ancestral = jax.jit(lambda x, grid: sample(ddpm(model), key, x, grid))
        draw = jax.jit(lambda key: jax.random.normal(key, x0.shape, x0.dtype))
        noise = [np.asarray(draw(k)) for k in runs.step_keys(key, counts[-1])]
        for count in counts:
            grid = uniform_grid(LINEAR, int(count))
            measured = np.asarray(run(x0, grid))
            gaps["ancestral"].append(measured - np.asarray(ancestral(x0, grid)))
            for time in ("old", "new"):
                x = np.asarray(x0)
                for n in range(count):
                    old, new = (beta(grid.time[k]) / count for k in (n, n + 1))
                    x = x + old / 2 * (x + guided_score(1.0, x, grid.alpha[n]))
                    size = old if time == "old" else new
                    x = x + size / 2 * guided_score(5.0, x, grid.alpha[n + 1]) + np.sqrt(size) * noise[n]
                gaps[time].append(measured - x)
    rms = {name: np.sqrt(np.mean(np.square(found), axis=1)) for name, found in gaps.items()}
    # Known from 20,000 particles, with 2 % between seeds; twice that here.
    np.testing.assert_allclose(rms["old"], [9.57e-3, 4.64e-3, 2.29e-3, 1.138e-3], rtol=0.05)
    assert rms["new"][0] == pytest.approx(0.085, rel=0.05)
    runs.assert_first_order(counts, rms["old"])
    runs.assert_first_order(counts, rms["new"])
    # Ancestral sampling is another discretisation, with the same limit: it differs by far more than PCG does.
    assert rms["ancestral"][0] > 10 * rms["old"][0]
