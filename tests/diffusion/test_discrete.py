"""Discrete schedules and the timesteps that are sampled on: published formulas, and numbers of independent programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    RectifiedFlow,
    cosine_betas,
    ddim,
    ddpm,
    denoiser,
    diagonal_mixture,
    discrete,
    euler,
    leading_timesteps,
    level_at,
    linear_betas,
    linspace_timesteps,
    predict_exactly,
    rates,
    scaled_linear_betas,
    timestep,
    timestep_grid,
    trailing_timesteps,
    uniform_grid,
)

SCALED, LINEAR = discrete(scaled_linear_betas()), discrete(linear_betas())
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.7, 0.5])


def alternating(monkeypatch):
    """Replace every draw by z_i = (-1)^i, where i counts the steps of an unrolled loop."""
    drawn = []

    def normal(key, shape=(), dtype=jnp.float32):
        drawn.append(key)
        return jnp.full(shape, (-1.0) ** (len(drawn) - 1), dtype)

    monkeypatch.setattr(jax.random, "normal", normal)


def end_of(build, grid, x=0.3):
    """Run a sampler step by step, as a Python loop over the levels, on the mixture in float64."""
    with jax.enable_x64(True):
        law = diagonal_mixture(WEIGHTS, MEANS[:, None], STDS[:, None] ** 2)
        sampler = build(denoiser(lambda x, level: predict_exactly(law, x, level)))
        state, levels = (
            sampler.init(jnp.array([x])),
            [jax.tree.map(lambda v, n=n: v[n], grid) for n in range(len(grid.time))],
        )
        for now, next in itertools.pairwise(levels):
            state, _ = sampler.step(jax.random.key(0), state, now, next)
        return float(state.x[0])


# DDIM with 10 steps from x = .3, by a program that shares no code with this one.
DETERMINISTIC = {
    "scaled, leading": (SCALED, leading_timesteps(1000, 10), 1.0, 1.3651311309502152),
    "scaled, leading + 1": (
        SCALED,
        leading_timesteps(1000, 10, offset=1),
        float(np.exp(SCALED.log_alpha_bars[0])),
        1.3627472542021275,
    ),
    "scaled, trailing": (SCALED, trailing_timesteps(1000, 10), 1.0, 1.391921478891217),
    "scaled, linspace": (SCALED, linspace_timesteps(1000, 10), 1.0, 1.3861257284195752),
    "linear, leading": (LINEAR, leading_timesteps(1000, 10), 1.0, 1.395835132237814),
    "linear, trailing": (LINEAR, trailing_timesteps(1000, 10), 1.0, 1.4012166092547613),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_ddim_on_discrete_timesteps_has_the_known_ends(name):
    schedule, timesteps, final, value = DETERMINISTIC[name]
    assert end_of(ddim, timestep_grid(schedule, timesteps, final_alpha_bar=final)) == pytest.approx(value, rel=1e-11)


def test_the_next_level_is_that_of_the_next_timestep_and_not_of_a_stride():
    # With timesteps 999, 888, ..., 0 the stride of 100 that DDIM in diffusers takes lands beside them.
    timesteps = linspace_timesteps(1000, 10)
    x = 0.3
    with jax.enable_x64(True):
        law = diagonal_mixture(WEIGHTS, MEANS[:, None], STDS[:, None] ** 2)
        sampler = ddim(denoiser(lambda x, level: predict_exactly(law, x, level)))
        for now in timesteps:
            before = now - 1000 // 10
            grid = timestep_grid(SCALED, [now, before] if before >= 0 else [now])
            levels = [jax.tree.map(lambda v, n=n: v[n], grid) for n in range(2)]
            x = sampler.step(jax.random.key(0), sampler.init(jnp.array([x])), *levels)[0].x[0]
    assert float(x) == pytest.approx(1.3039346841288344, rel=1e-11)
    assert abs(float(x) - end_of(ddim, timestep_grid(SCALED, timesteps))) > 0.08


def test_ancestral_sampling_and_rectified_flow_have_the_known_ends(monkeypatch):
    alternating(monkeypatch)
    trailing = timestep_grid(SCALED, trailing_timesteps(1000, 10))
    assert end_of(ddpm, trailing) == pytest.approx(1.450913298932478, rel=1e-11)
    assert end_of(euler, uniform_grid(RectifiedFlow(), 10)) == pytest.approx(1.4007372344003783, rel=1e-11)


def test_timesteps_are_the_published_ones():
    assert leading_timesteps(1000, 10).tolist() == list(range(900, -1, -100))
    assert leading_timesteps(1000, 10, offset=1).tolist() == list(range(901, 0, -100))
    assert trailing_timesteps(1000, 10).tolist() == list(range(999, 0, -100))
    assert linspace_timesteps(1000, 10).tolist() == list(range(999, -1, -111))
    # Where steps do not divide the count: 1000 // 30 = 33, and multiples of 1000 / 30 from the top.
    assert leading_timesteps(1000, 30)[:2].tolist() == [957, 924]
    assert trailing_timesteps(1000, 30)[:3].tolist() == [999, 966, 932]
    for build in (leading_timesteps, trailing_timesteps, linspace_timesteps):
        assert build(1000, 1000).tolist() == list(range(999, -1, -1))
    assert linspace_timesteps(1000, 1).tolist() == [0]


def test_running_products_have_their_known_ends():
    assert np.exp(SCALED.log_alpha_bars[-1]) == pytest.approx(4.660098513077e-3, rel=1e-11)
    assert np.exp(LINEAR.log_alpha_bars[-1]) == pytest.approx(4.035829765376e-5, rel=1e-11)
    np.testing.assert_allclose(np.exp(LINEAR.log_alpha_bars), np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-12)


def test_cosine_betas_are_cut_and_telescope():
    betas = cosine_betas()
    bar = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    product = np.cumprod(1 - betas)
    np.testing.assert_allclose(product[:-1], bar(np.arange(1, 1000) / 1000) / bar(0.0), rtol=1e-9)
    assert betas[-1] == 0.999
    assert (betas[:-1] < 0.999).all()


def test_levels_of_whole_timesteps_are_exact_and_between_them_log_alpha_bar_is_linear():
    grid = timestep_grid(SCALED, [999, 500, 0])
    assert np.asarray(timestep(grid.time, 1000))[:3] == pytest.approx([999, 500, 0])
    np.testing.assert_allclose(grid.alpha[:3] ** 2, np.exp(SCALED.log_alpha_bars[[999, 500, 0]]), rtol=1e-14)
    at = level_at(SCALED, grid.time[:3])
    np.testing.assert_allclose([at.alpha, at.sigma], [grid.alpha[:3], grid.sigma[:3]], rtol=1e-11)
    middle = level_at(SCALED, np.array([500.5 / 999]))
    bars = SCALED.log_alpha_bars
    assert np.log(middle.alpha[0] ** 2) == pytest.approx((bars[500] + bars[501]) / 2, rel=1e-11)
    with jax.enable_x64(True):
        slope = rates(SCALED, jnp.float64(500.5 / 999))[0]
    assert float(slope) == pytest.approx(middle.alpha[0] * (bars[501] - bars[500]) / 2 * 999, rel=1e-9)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: linear_betas(start=0.0), "betas must satisfy 0 < start <= stop < 1, got 0.0 and 0.02"),
        (lambda: scaled_linear_betas(stop=1.0), "got 0.00085 and 1.0"),
        (lambda: cosine_betas(most=1.0), "the largest beta in \\(0, 1\\), got 0.008 and 1.0"),
        (lambda: discrete([0.1]), "at least 2 numbers in \\(0, 1\\)"),
        (lambda: discrete([0.1, 1.0]), "at least 2 numbers in \\(0, 1\\)"),
        (lambda: leading_timesteps(1000, 1001), "steps must be at most the 1000 timesteps there are, got 1001"),
        (lambda: trailing_timesteps(1000, 0), "steps must be an integer of at least 1, got 0"),
        (lambda: leading_timesteps(1000, 1000, offset=1), "an offset of 1 leaves the timesteps 0 to 999"),
        (lambda: timestep_grid(SCALED, [1000, 1]), "timesteps must lie in 0 to 999, got 1000"),
        (
            lambda: timestep_grid(SCALED, [5.0]),
            "timesteps must be a row of whole numbers, got shape \\(1,\\) of float64",
        ),
        (lambda: timestep_grid(SCALED, [1, 5]), "strictly monotone"),
        (lambda: timestep_grid(SCALED, [5, 1], final_alpha_bar=0.0), "the final alpha-bar must lie in \\(0, 1\\]"),
    ],
)
def test_bad_arguments_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
