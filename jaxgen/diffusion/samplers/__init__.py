"""Samplers: kernels between two noise levels, their compositions, and the loop that runs them."""

from jaxgen.diffusion.samplers.base import Markov, Sampler, advance, sample, trajectory
from jaxgen.diffusion.samplers.ddim import ddim, ddim_inversion
from jaxgen.diffusion.samplers.ddpm import ddpm
from jaxgen.diffusion.samplers.euler import euler
from jaxgen.diffusion.samplers.langevin import LangevinInfo, langevin, path_step_size
from jaxgen.diffusion.samplers.many import draw_block, prior, sample_many
from jaxgen.diffusion.samplers.predictor_corrector import Pair, PairInfo, pcg, predictor_corrector

__all__ = [
    "LangevinInfo",
    "Markov",
    "Pair",
    "PairInfo",
    "Sampler",
    "advance",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "draw_block",
    "euler",
    "langevin",
    "path_step_size",
    "pcg",
    "predictor_corrector",
    "prior",
    "sample",
    "sample_many",
    "trajectory",
]
