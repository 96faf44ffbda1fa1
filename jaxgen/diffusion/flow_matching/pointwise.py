"""Flows between a fixed point of the base and a fixed point of the data, and the loss that learns their mean."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp

from jaxgen.typing import Sample, Scalar

Velocity: TypeAlias = Callable[[Sample, Scalar], Sample]
"""Maps (x, t) to v, of the shape of x, with dx/dt = -v."""


class PointwiseFlow(NamedTuple):
    """A path from x1 at t = 1 to x0 at t = 0 and its velocity, each a function of (x1, x0, t) (section 4.1)."""

    position: Callable[[Sample, Sample, Scalar], Sample]
    velocity: Callable[[Sample, Sample, Scalar], Sample]


linear_flow = PointwiseFlow(lambda x1, x0, t: t * x1 + (1.0 - t) * x0, lambda x1, x0, t: x0 - x1)
"""The straight path at constant speed (section 4.3)."""

ddim_flow = PointwiseFlow(
    lambda x1, x0, t: x0 + jnp.sqrt(t) * (x1 - x0), lambda x1, x0, t: (x0 - x1) / (2.0 * jnp.sqrt(t))
)
"""The path of DDIM: as straight, with v = (x0 - x_t) / (2 t), infinite at t = 0 (claim 4)."""


def flow_matching_loss(predict: Velocity, flow: PointwiseFlow, x1: Sample, x0: Sample, t: Scalar) -> Scalar:
    """Compute the squared error of the velocity at one time of one pair (pseudocode 4), a mean over its entries.

    Args:
        predict: the network, given (x_t, t).
        flow: the pointwise flow.
        x1: a point of the base.
        x0: the point of the data that the coupling gives it.
        t: in [0, 1], uniform in the listing.
    """
    return jnp.mean((predict(flow.position(x1, x0, t), t) - flow.velocity(x1, x0, t)) ** 2)
