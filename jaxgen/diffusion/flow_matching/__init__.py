"""Flow matching: pointwise flows, couplings of base and data, marginal flows, the loss, and running a flow.

The convention is that of Nakkiran et al. 2024, section 4: time falls from 1 (base) to 0 (data), and a velocity v moves
x against time, dx/dt = -v. `velocity_target` of `jaxgen.diffusion` is dx/dt itself, -v.
"""

from jaxgen.diffusion.flow_matching.couplings import (
    diffusion_coupling,
    independent_coupling,
    minibatch_optimal_transport,
)
from jaxgen.diffusion.flow_matching.marginal import (
    diffusion_marginal_flow,
    linear_diffusion_marginal_flow,
    linear_marginal_flow,
    marginal_velocity,
)
from jaxgen.diffusion.flow_matching.pointwise import PointwiseFlow, ddim_flow, flow_matching_loss, linear_flow
from jaxgen.diffusion.flow_matching.running import run_flow, trace_flow

__all__ = [
    "PointwiseFlow",
    "ddim_flow",
    "diffusion_coupling",
    "diffusion_marginal_flow",
    "flow_matching_loss",
    "independent_coupling",
    "linear_diffusion_marginal_flow",
    "linear_flow",
    "linear_marginal_flow",
    "marginal_velocity",
    "minibatch_optimal_transport",
    "run_flow",
    "trace_flow",
]
