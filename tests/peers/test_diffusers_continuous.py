"""Samplers on Karras' sigmas and on straight paths against the schedulers of diffusers."""

import diffusers_runs as runs
import numpy as np
import pytest
from diffusers import schedulers as peers

from jaxgen.diffusion import (
    RectifiedFlow,
    ddim,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    euler,
    euler_ancestral,
    heun,
    heun_flow,
    karras_grid,
    time_grid,
    uniform_grid,
)

# The schedulers hold sigmas and samples in float32: a start of 40 is rounded by 2e-6, a sigma of 80 by 4e-6, and each
# of ten steps rounds anew. Results are of order 1.
CLOSE = {"rtol": 0.0, "atol": 1e-5}
STARTS = np.array([24.0, -40.0])
KARRAS = karras_grid(runs.STEPS)
pytestmark = pytest.mark.filterwarnings(
    # Inside diffusers, which converts a torch tensor with numpy's older protocol.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def preconditioned_network(scheduler, t, x):
    """The network F of Karras et al. (2022), of which the scheduler makes the denoiser; it sees x / sqrt(...)."""
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    sigma, std = float(scheduler.sigmas[scheduler.step_index]), scheduler.config.sigma_data
    x0, _ = runs.posterior_means(x, 1.0, sigma)
    return (x0 - std**2 / (sigma**2 + std**2) * x) * np.sqrt(sigma**2 + std**2) / (sigma * std)


def sigma_network(scheduler, t, x):
    """Predict the noise from x = x0 + sigma noise at the sigma where the scheduler says it is."""
    del t
    return runs.posterior_means(x, 1.0, float(scheduler.sigmas[scheduler.step_index]))[1]


def velocity_network(scheduler, t, x):
    """Predict noise - x0 from x = (1 - t) x0 + t noise."""
    time = float(t) / scheduler.config.num_train_timesteps
    x0, noise = runs.posterior_means(x, 1.0 - time, time)
    return noise - x0


def edm(kind, **options):
    made = kind(sigma_min=0.002, sigma_max=80.0, rho=7.0, **options)
    made.set_timesteps(runs.STEPS)
    return made


def edm_multistep(order, algorithm):
    fixed = {"solver_type": "midpoint", "lower_order_final": True, "final_sigmas_type": "zero"}
    return edm(peers.EDMDPMSolverMultistepScheduler, solver_order=order, algorithm_type=algorithm, **fixed)


@pytest.mark.parametrize(
    ("build", "made"),
    [
        (ddim, lambda: edm(peers.EDMEulerScheduler)),
        (ddim, lambda: edm_multistep(1, "dpmsolver++")),
        (dpm_solver_pp_2m, lambda: edm_multistep(2, "dpmsolver++")),
        (euler_ancestral, lambda: edm_multistep(1, "sde-dpmsolver++")),
        (dpm_solver_pp_2m_sde, lambda: edm_multistep(2, "sde-dpmsolver++")),
    ],
    ids=["euler", "dpm-1", "dpm-2m", "sde-dpm-1", "sde-dpm-2m"],
)
def test_edm_schedulers_give_the_same_samples(build, made):
    measured = runs.through(build, STARTS, KARRAS)
    np.testing.assert_allclose(runs.follow(made(), STARTS, preconditioned_network), measured, **CLOSE)


@pytest.mark.parametrize(
    ("build", "derived"),
    [
        (ddim, (1.3260655231509506, 0.5234055644205369)),
        (heun, (1.5285144568861788, 0.3272628605370556)),
        (dpm_solver_pp_2m, (1.5805245542093764, 0.3632545390291648)),
    ],
)
def test_ten_steps_of_karras_end_where_derived(build, derived):
    # Derived by other code; those of Heun again with 40 digits.
    np.testing.assert_allclose(runs.through(build, STARTS, KARRAS), derived, rtol=1e-10)


def test_ten_ancestral_steps_of_karras_end_where_derived():
    measured = runs.through(euler_ancestral, STARTS[:1], KARRAS)
    np.testing.assert_allclose(measured, 1.2378939327015919, rtol=1e-10)


def test_sigmas_of_a_user_above_the_training_range_start_one_step_late_unless_told_where_to_begin():
    def made():
        scheduler = peers.EulerDiscreteScheduler(**runs.TRAINING)
        scheduler.set_timesteps(sigmas=KARRAS.sigma.tolist())
        return scheduler

    # 80 and the next sigmas all become timestep 999, of which the scheduler takes the second for the first.
    late = made()
    assert late.timesteps[:3].tolist() == [999.0, 999.0, 999.0]
    late._init_step_index(late.timesteps[0])
    assert late.step_index == 1
    with pytest.raises(IndexError):
        runs.follow(made(), STARTS, sigma_network)
    told = made()
    told.set_begin_index(0)
    np.testing.assert_allclose(runs.follow(told, STARTS, sigma_network), runs.through(ddim, STARTS, KARRAS), **CLOSE)


def flow_scheduler(**options):
    made = peers.FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(**options)
    return made


def test_flow_matching_gives_the_same_samples_on_equal_steps():
    grid = uniform_grid(RectifiedFlow(), runs.STEPS)
    made = flow_scheduler(sigmas=np.linspace(1.0, 1.0 / runs.STEPS, runs.STEPS).tolist())
    np.testing.assert_allclose(made.sigmas.numpy(), grid.sigma, rtol=0, atol=1e-7)
    measured = runs.through(euler, runs.STARTS, grid)
    np.testing.assert_allclose(measured[runs.PUBLISHED], 1.4007372344003783, rtol=1e-12)
    np.testing.assert_allclose(runs.follow(made, runs.STARTS, velocity_network), measured, **CLOSE)
    np.testing.assert_allclose(runs.through(ddim, runs.STARTS, grid), measured, rtol=1e-12)


def test_flow_matching_of_diffusers_has_unequal_steps_unless_told_otherwise():
    made = flow_scheduler(num_inference_steps=runs.STEPS)
    times = np.append(np.linspace(1.0, 0.001, runs.STEPS), 0.0)
    np.testing.assert_allclose(made.sigmas.numpy(), times, rtol=0, atol=1e-7)
    found = runs.follow(made, runs.STARTS, velocity_network)
    measured = runs.through(euler, runs.STARTS, time_grid(RectifiedFlow(), times))
    np.testing.assert_allclose(found, measured, **CLOSE)
    # Its last step is a hundredth of the others: nine steps for the price of ten.
    assert abs(found[runs.PUBLISHED] - 1.4007372344003783) > 4e-3


def test_heun_of_flow_matching_gives_the_same_samples_and_has_no_other_grid():
    made = peers.FlowMatchHeunDiscreteScheduler()
    made.set_timesteps(runs.STEPS)
    # The grid of the Euler scheduler, each time but the ends twice; a last step to 0 by Euler. It takes no sigmas.
    times = np.append(np.linspace(1.0, 0.001, runs.STEPS), 0.0)
    np.testing.assert_allclose(made.sigmas.numpy()[[0, *range(1, 20, 2)]], times, rtol=0, atol=1e-7)
    measured = runs.through(heun_flow, runs.STARTS, time_grid(RectifiedFlow(), times))
    np.testing.assert_allclose(runs.follow(made, runs.STARTS, velocity_network), measured, **CLOSE)
    with pytest.raises(TypeError, match="sigmas"):
        made.set_timesteps(sigmas=times[:-1].tolist())
