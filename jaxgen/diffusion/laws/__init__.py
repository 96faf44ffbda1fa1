"""The laws that guided sampling reaches in the limit of small steps, known without sampling.

For Gaussians they are closed forms; for mixtures of equal isotropic components the flow of DDIM has no singularity in
its canonical variables, and the laws of DDPM and PCG solve a Fokker-Planck equation. `translate` finds the scale at
which one sampler does what another does at its own.
"""

from jaxgen.diffusion.laws.canonical import (
    CanonicalProblem,
    canonical_drift,
    canonical_problem,
    powered_law,
    powered_moments,
    three_clusters,
    two_clusters,
)
from jaxgen.diffusion.laws.corrected import pcg_mean, pcg_variance
from jaxgen.diffusion.laws.ddim_flow import ddim_inverse, ddim_law, ddim_log_density, ddim_map, ddim_moments
from jaxgen.diffusion.laws.density import Density, Moments, shares, weighted_moments
from jaxgen.diffusion.laws.fokker_planck import ddpm_law, ddpm_moments, pcg_law, pcg_moments
from jaxgen.diffusion.laws.gaussian import (
    ddim_interval_variance,
    ddim_mean,
    ddim_variance,
    ddpm_interval_variance,
    ddpm_mean,
    ddpm_variance,
    normalisable,
    powered_mean,
    powered_variance,
)
from jaxgen.diffusion.laws.translation import ddpm_scale_of_pcg, pcg_scale_of_ddpm, translate

__all__ = [
    "CanonicalProblem",
    "Density",
    "Moments",
    "canonical_drift",
    "canonical_problem",
    "ddim_interval_variance",
    "ddim_inverse",
    "ddim_law",
    "ddim_log_density",
    "ddim_map",
    "ddim_mean",
    "ddim_moments",
    "ddim_variance",
    "ddpm_interval_variance",
    "ddpm_law",
    "ddpm_mean",
    "ddpm_moments",
    "ddpm_scale_of_pcg",
    "ddpm_variance",
    "normalisable",
    "pcg_law",
    "pcg_mean",
    "pcg_moments",
    "pcg_scale_of_ddpm",
    "pcg_variance",
    "powered_law",
    "powered_mean",
    "powered_moments",
    "powered_variance",
    "shares",
    "three_clusters",
    "translate",
    "two_clusters",
    "weighted_moments",
]
