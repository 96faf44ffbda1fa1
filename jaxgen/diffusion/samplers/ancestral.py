"""Ancestral sampling by its other name."""

from jaxgen.diffusion.denoisers import Denoiser
from jaxgen.diffusion.samplers.base import Sampler
from jaxgen.diffusion.samplers.ddim import ddim
from jaxgen.typing import Scalar


def euler_ancestral(model: Denoiser, eta: Scalar = 1.0) -> Sampler:
    """Take an Euler step of x / alpha down to rho_down, then add noise up to rho' (k-diffusion's Euler ancestral).

    With rho = sigma / alpha, rho_up = eta rho' sqrt(rho^2 - rho'^2) / rho and rho_down^2 = rho'^2 - rho_up^2: this is
    DDIM with the same `eta`, and DDPM at eta = 1.

    Args:
        model: the denoiser; one evaluation a step.
        eta: share of the posterior's standard deviation that is fresh noise. May be traced.

    Raises:
        ValueError: if `eta` is known and lies outside [0, 1].
    """
    return ddim(model, eta)
