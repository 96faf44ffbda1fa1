"""The loss of a linear attention layer as a quartic polynomial of its parameters, over a population or over samples.

Once the correlations of the features are known, a gradient costs the same for any number of sequences and any length,
and full-batch gradient descent on samples is exact without looking at a sample again.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.flows.correlations import Correlations
from jaxgen.typing import Params, Scalar


def quartic_loss(params: Params, correlations: Correlations) -> Float[Array, ""]:
    """Return sum over t of E|y_t - x_{t+1}|^2 / 2 (Zheng et al. 2024, equation 2).

    Args:
        params: `{"kq": [n, n], "pv": [d, n]}`: n = 2d with all blocks, or n = d, where kq is W32 and pv is W12.
        correlations: of the features for this n.

    Raises:
        ValueError: the parameters have another number of features.
    """
    weights = feature_weights(params)
    if weights.shape[-1] != correlations.gram.shape[-1]:
        raise ValueError(
            f"params of {weights.shape[-1]} features do not fit correlations of {correlations.gram.shape[-1]}: "
            "both must be of all blocks, or of W32 and W12"
        )
    gram = jnp.dot(weights, correlations.gram, precision="highest")
    return correlations.constant + (weights * (0.5 * gram - correlations.cross)).sum()


def feature_weights(params: Params) -> Float[Array, "dim features"]:
    """Return B_jk A_mn, the weight of feature (k, m, n) in coordinate j of the prediction."""
    kq, pv = params["kq"], params["pv"]
    return (pv[:, :, None, None] * kq[None, None]).reshape(len(pv), -1)


def sector_of(params: Params) -> Params:
    """Cut W32 and W12 out of the parameters with all blocks."""
    d = len(params["pv"])
    return {"kq": params["kq"][d:, :d], "pv": params["pv"][:, :d]}


def rescaled(correlations: Correlations, scale: Scalar) -> Correlations:
    """Return the correlations of the sequences with every token multiplied by `scale`."""
    gram, cross, constant = correlations
    return Correlations(gram * scale**6, cross * scale**4, constant * scale**2)


def start_at(a: Scalar, b: Scalar, dimension: int) -> Params:
    """Return W32 = a I and W12 = b I, `{"kq": [d, d], "pv": [d, d]}`, without the other blocks."""
    return {"kq": a * jnp.eye(dimension), "pv": b * jnp.eye(dimension)}
