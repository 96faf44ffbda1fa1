"""Samplers: kernels between two noise levels, their compositions, and the loop that runs them."""

from jaxgen.diffusion.samplers.ancestral import euler_ancestral
from jaxgen.diffusion.samplers.base import Markov, Sampler, advance, record, sample, trajectory
from jaxgen.diffusion.samplers.ddim import ddim
from jaxgen.diffusion.samplers.ddpm import ddpm, forward_std, posterior_std, quiet_end
from jaxgen.diffusion.samplers.dpm_solver import Multistep, dpm_solver_pp_2m, dpm_solver_pp_2m_sde
from jaxgen.diffusion.samplers.euler import euler
from jaxgen.diffusion.samplers.euler_maruyama import euler_maruyama
from jaxgen.diffusion.samplers.heun import heun, heun_flow
from jaxgen.diffusion.samplers.inversion import ddim_inversion, ddim_inversion_fixed_point
from jaxgen.diffusion.samplers.langevin import (
    LangevinInfo,
    at_next,
    at_now,
    fixed_step_size,
    guided_curvature,
    langevin,
    path_step_size,
    signal_to_noise,
)
from jaxgen.diffusion.samplers.many import draw_block, prior, sample_many
from jaxgen.diffusion.samplers.predictor_corrector import Pair, PairInfo, pcg, predictor_corrector, repeat

__all__ = [
    "LangevinInfo",
    "Markov",
    "Multistep",
    "Pair",
    "PairInfo",
    "Sampler",
    "advance",
    "at_next",
    "at_now",
    "ddim",
    "ddim_inversion",
    "ddim_inversion_fixed_point",
    "ddpm",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_2m_sde",
    "draw_block",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "fixed_step_size",
    "forward_std",
    "guided_curvature",
    "heun",
    "heun_flow",
    "langevin",
    "path_step_size",
    "pcg",
    "posterior_std",
    "predictor_corrector",
    "prior",
    "quiet_end",
    "record",
    "repeat",
    "sample",
    "sample_many",
    "signal_to_noise",
    "trajectory",
]
