"""Exact flows of the layer over a population of sequences, from many starts at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxgen.flows import Correlations, Flow, Status, describe, gradient_flow, quartic_loss
from jaxgen.typing import Params, Scalar

TIMES = np.linspace(0.0, 8.0, 33)
"""At which the way is kept."""
_BLOCK = 4


class Precision(NamedTuple):
    """How exactly a flow is followed: tolerances of a step, and the gradient at which it ends."""

    rtol: float
    atol: float
    stationary: float


WITH_ORBIT = Precision(1e-11, 1e-13, 1e-10)
"""Where the point of a flat valley counts in which the flow ends."""
LIMIT_ALONE = Precision(1e-9, 1e-11, 3e-9)
"""Where the product counts, which every flow into the valley is drawn to, whatever it did on its way."""


def follow(
    correlations: Correlations,
    starts: Params,
    unit: Scalar,
    mask: Params | None = None,
    *,
    end: Scalar = 200.0,
    precision: Precision = WITH_ORBIT,
) -> Flow:
    """Follow the flows from many starts, in the time s = tau times `unit`, until nothing moves any more.

    The parameters at `TIMES` are kept. Blocks of four, so that one program serves every number of starts, with or
    without a mask.
    """
    count = len(jax.tree.leaves(starts)[0])
    places = np.minimum(np.arange(-(-count // _BLOCK) * _BLOCK), count - 1).reshape(-1, _BLOCK)
    if mask is None:
        mask = jax.tree.map(lambda leaf: jnp.ones_like(leaf[0]), starts)
    ends = [
        _follow(
            correlations,
            jax.tree.map(lambda leaf, block=block: leaf[block], starts),
            unit,
            mask,
            end,
            precision,
        )
        for block in places
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *ends)


@jax.jit
def _follow(
    correlations: Correlations,
    starts: Params,
    unit: Scalar,
    mask: Params,
    end: Scalar,
    precision: Precision,
) -> Flow:
    def one(start: Params) -> Flow:
        loss = lambda params: quartic_loss(params, correlations) / unit  # noqa: E731
        flow = gradient_flow(loss, start, end, save_at=TIMES, mask=mask, **precision._asdict(), max_steps=20_000)
        return flow._replace(loss=flow.loss * unit)

    return jax.vmap(one)(starts)


gradient_at = jax.jit(jax.grad(quartic_loss))


def stacked_starts(starts: Sequence[tuple[float, float]], dimension: int, *, full: bool = True) -> Params:
    """Stack W32 = a I, W12 = b I of many (a, b)."""
    a, b = np.array(starts, float).T[:, :, None, None] * np.eye(dimension)
    if full:
        corner, right = ((0, 0), (dimension, 0), (0, dimension)), ((0, 0), (0, 0), (0, dimension))
        a, b = np.pad(a, corner), np.pad(b, right)
    return {"kq": jnp.asarray(a), "pv": jnp.asarray(b)}


def follow_to_minimum(*args: Any, **kwargs: Any) -> Flow:
    """Do what `follow` does, and refuse an end that is not a minimum.

    Raises:
        RuntimeError: a flow ended otherwise; says how.
    """
    flow = follow(*args, **kwargs)
    if (np.asarray(flow.status) != Status.MINIMUM).any():
        raise RuntimeError(f"flows that were to end in a minimum: {describe(flow)}")
    return flow


def sector_blocks(params: Params) -> dict[str, np.ndarray]:
    """Return W32 and W12 of stacked parameters, with all blocks or these alone; views of what is in numpy."""
    d = params["pv"].shape[1]
    kq, pv = np.asarray(params["kq"]), np.asarray(params["pv"])
    return {"kq": kq[:, d:, :d] if pv.shape[2] > d else kq, "pv": pv[:, :, :d]}


def diagonal_products(params: Params) -> Float[np.ndarray, "members dim"]:
    """Return (W32)_jj (W12)_jj of stacked parameters."""
    blocks = sector_blocks(params).values()
    return np.prod([np.diagonal(block, axis1=1, axis2=2) for block in blocks], axis=0)


def largest_other(params: Params) -> Float[np.ndarray, " members"]:
    """Return the largest parameter of each member but for the diagonals of W32 and W12."""
    rest = {field: np.array(block) for field, block in params.items()}
    for block in sector_blocks(rest).values():
        block[:, np.arange(len(block[0])), np.arange(len(block[0]))] = 0.0
    return np.max([np.abs(block).max(axis=(1, 2)) for block in rest.values()], axis=0)
