"""Samplers on discrete noise against the schedulers of diffusers: the same samples where these are right.

What diffusers gets wrong, or what a user has to know of it, is shown with both values.
"""

import diffusers_runs as runs
import numpy as np
import pytest
from diffusers import schedulers as peers

from jaxgen.diffusion import (
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    euler_ancestral,
    forward_std,
    heun,
    leading_timesteps,
    linspace_timesteps,
    trailing_timesteps,
)

# The schedulers hold alpha-bar in float32, and those that work in x / alpha also x, of up to 40 here: over ten steps
# this leaves at most 1e-6 of samples that are of order 1.
CLOSE = {"rtol": 0.0, "atol": 2e-6}
VP, VE = runs.noise_network, runs.scaled_noise_network
LEVELS = runs.levels_of(runs.TRAILING)
LARGE = 1.18522695687725  # with 40 digits, from the formulas of Ho et al. (2020)
pytestmark = pytest.mark.filterwarnings(
    # Inside diffusers, which converts a torch tensor with numpy's older protocol.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def ancestral(model):
    return ddim(model, 1.0)


def large(model):
    return ddpm(model, std=forward_std)


def scheduler(kind, spacing="trailing", steps=runs.STEPS, **options):
    """A scheduler for ten steps on Stable Diffusion's noise."""
    made = kind(**{**runs.TRAINING, **options}, timestep_spacing=spacing)
    made.set_timesteps(steps)
    return made


def multistep(order, algorithm="dpmsolver++", **options):
    fixed = {"solver_type": "midpoint", "lower_order_final": True, "final_sigmas_type": "zero"}
    return scheduler(
        peers.DPMSolverMultistepScheduler, solver_order=order, algorithm_type=algorithm, **fixed, **options
    )


@pytest.mark.parametrize(
    ("build", "made", "options", "published"),
    [
        (ddim, lambda: scheduler(peers.DDIMScheduler, clip_sample=False), {}, 1.391921478891217),
        (ancestral, lambda: scheduler(peers.DDIMScheduler, clip_sample=False), {"eta": 1.0}, 1.450913298932478),
        (ddpm, lambda: scheduler(peers.DDPMScheduler, clip_sample=False), {}, 1.450913298932478),
        (large, lambda: scheduler(peers.DDPMScheduler, clip_sample=False, variance_type="fixed_large"), {}, LARGE),
        (ddim, lambda: multistep(1), {}, 1.391921478891217),
        (ddpm, lambda: multistep(1, "sde-dpmsolver++"), {}, 1.450913298932478),
        (dpm_solver_pp_2m, lambda: multistep(2), {}, 1.4297235),
        (dpm_solver_pp_2m_sde, lambda: multistep(2, "sde-dpmsolver++"), {}, 1.4776074),
    ],
    ids=["ddim", "ddim-eta-1", "ddpm-small", "ddpm-large", "dpm-1", "sde-dpm-1", "dpm-2m", "sde-dpm-2m"],
)
def test_the_same_noise_gives_the_samples_of_the_scheduler(build, made, options, published):
    measured = runs.through(build, runs.STARTS, LEVELS)
    np.testing.assert_allclose(runs.follow(made(), runs.STARTS, VP, **options), measured, **CLOSE)
    # Given with at least seven digits. Of the two variances of DDPM, only the large one adds noise in the step to the
    # data, as the scheduler does at the last of the trailing timesteps, 99.
    np.testing.assert_allclose(measured[runs.PUBLISHED], published, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (ddim, peers.EulerDiscreteScheduler),
        (euler_ancestral, peers.EulerAncestralDiscreteScheduler),
        (heun, peers.HeunDiscreteScheduler),
    ],
)
def test_schedulers_that_work_in_x_over_alpha_give_the_same_samples(build, kind):
    starts = runs.STARTS / LEVELS.alpha[0]
    found = runs.follow(scheduler(kind), starts, VE)
    np.testing.assert_allclose(found, runs.through(build, runs.STARTS, LEVELS), **CLOSE)


@pytest.mark.parametrize(
    ("spacing", "options", "timesteps", "final", "published"),
    [
        ("leading", {}, np.arange(900, -1, -100), 1.0, 1.3651311309502152),
        (
            "leading",
            {"steps_offset": 1, "set_alpha_to_one": False},
            np.arange(901, 0, -100),
            runs.ALPHA_BAR[0],
            1.3627472542021275,
        ),
        ("leading", runs.LINEAR, np.arange(900, -1, -100), 1.0, 1.395835132237814),
        ("trailing", runs.LINEAR, runs.TRAILING, 1.0, 1.4012166092547613),
    ],
    ids=["leading", "leading-offset-1", "leading-linear", "trailing-linear"],
)
def test_ddim_agrees_on_other_spacings_and_betas(spacing, options, timesteps, final, published):
    made = scheduler(peers.DDIMScheduler, spacing, clip_sample=False, **options)
    np.testing.assert_array_equal(made.timesteps.numpy(), timesteps)
    measured = runs.through(ddim, runs.STARTS, runs.levels_of(timesteps, final, made.config.beta_schedule))
    np.testing.assert_allclose(runs.follow(made, runs.STARTS, VP), measured, **CLOSE)
    np.testing.assert_allclose(measured[runs.PUBLISHED], published, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 10, 30, 1000])
@pytest.mark.parametrize(
    ("spacing", "timesteps"),
    [("leading", leading_timesteps), ("linspace", linspace_timesteps), ("trailing", trailing_timesteps)],
)
def test_timesteps_are_those_of_the_scheduler(spacing, timesteps, steps):
    made = scheduler(peers.DDIMScheduler, spacing, steps)
    np.testing.assert_array_equal(timesteps(1000, steps), made.timesteps.numpy())


@pytest.mark.parametrize(
    ("betas", "last"), [("scaled_linear", 4.660098513077e-3), ("linear", 4.035829765376e-5)], ids=["scaled", "linear"]
)
def test_the_levels_are_those_of_the_scheduler(betas, last):
    options = runs.LINEAR if betas == "linear" else {}
    alpha_bar = scheduler(peers.DDIMScheduler, **options).alphas_cumprod.numpy()
    grid = runs.levels_of(np.arange(999, -1, -1), betas=betas)
    # A float32 product of 1,000 factors.
    np.testing.assert_allclose(grid.alpha[:-1] ** 2, alpha_bar[::-1], rtol=2e-5)
    np.testing.assert_allclose(1.0 - grid.sigma[:-1] ** 2, alpha_bar[::-1], rtol=2e-5)
    np.testing.assert_allclose(grid.alpha[0] ** 2, last, rtol=1e-12)
    np.testing.assert_allclose(grid.alpha[:-1] ** 2, runs.ALPHA_BARS[betas][::-1], rtol=1e-12)


# What diffusers gets wrong, or does by default.


def test_ddim_of_diffusers_steps_to_the_wrong_level_on_linspace():
    # It takes t - 1000 // 10 for the timestep before t, but linspace is 111 apart: diffusers, issue 11347.
    timesteps = np.linspace(999, 0, 10).round().astype(int)
    made = scheduler(peers.DDIMScheduler, "linspace", clip_sample=False)
    np.testing.assert_array_equal(made.timesteps.numpy(), timesteps)
    right = runs.through(ddim, runs.STARTS, runs.levels_of(timesteps))
    np.testing.assert_allclose(right[runs.PUBLISHED], 1.3861257284195752, rtol=1e-12)
    np.testing.assert_allclose(runs.follow(made, runs.STARTS, VP)[runs.PUBLISHED], 1.3039346841288344, **CLOSE)
    # Its own DDPM and Euler take the levels in turn.
    euler = runs.follow(
        scheduler(peers.EulerDiscreteScheduler, "linspace"), runs.STARTS / np.sqrt(runs.ALPHA_BAR[999]), VE
    )
    np.testing.assert_allclose(euler, right, **CLOSE)
    found = runs.follow(scheduler(peers.DDPMScheduler, "linspace", clip_sample=False), runs.STARTS, VP)
    np.testing.assert_allclose(found, runs.through(ddpm, runs.STARTS, runs.levels_of(timesteps)), **CLOSE)


@pytest.mark.parametrize("kind", [peers.DDIMScheduler, peers.DDPMScheduler])
def test_diffusers_clips_what_it_predicts_unless_told_otherwise(kind):
    clipped = runs.follow(scheduler(kind), runs.STARTS, VP, noise=lambda n: 0.0)
    assert np.abs(clipped).max() <= 1.0 + 1e-6
    free = runs.through(ddim if kind is peers.DDIMScheduler else ddpm, runs.STARTS, LEVELS, noise=lambda n: 0.0)
    assert free[runs.PUBLISHED] > 1.3


def test_dpm_solver_of_diffusers_has_other_timesteps_on_two_spacings():
    def timesteps(kind, spacing):
        return scheduler(kind, spacing).timesteps.numpy().round().astype(int).tolist()

    others = [peers.DDIMScheduler, peers.DDPMScheduler, peers.EulerDiscreteScheduler]
    others.append(peers.EulerAncestralDiscreteScheduler)
    for kind in others:
        assert timesteps(kind, "leading") == list(range(900, -1, -100))
        assert timesteps(kind, "linspace") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
        assert timesteps(kind, "trailing") == runs.TRAILING.tolist()
    solver = peers.DPMSolverMultistepScheduler
    assert timesteps(solver, "leading") == list(range(900, 0, -90))
    assert timesteps(solver, "linspace") == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
    assert timesteps(solver, "trailing") == runs.TRAILING.tolist()
