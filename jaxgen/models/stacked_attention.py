"""Stacked and looped layers of linear causal self-attention on full tokens.

The deeper form of `linear_attention`: tokens are e_i = (0, x_i, x_{i-1}) of 3 d coordinates (Zheng et al. 2024, section
3.2), every layer has full real 3 d by 3 d matrices and adds its output to the tokens,

    e_t <- e_t + W^PV (1 / rho_t) sum_{i <= t} e_i e_i^* W^KQ e_t,    rho_t = max(t - 1, 1),

and the prediction of x_{t+1} is the first block of e_t after the last layer. With W^PV mapping into that block alone
one layer is the one of the paper; a layer that also writes into the other blocks prepares the tokens for the next.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from jaxgen.models.linear_attention import (
    autoregressive_tokens,
    blocks,
    causal_layer,
    check_dimension,
    check_sequences,
    check_shapes,
    check_std,
)
from jaxgen.typing import ArrayLike, Params, PRNGKey, Scalar


def stacked_attention(params: Params, x: Inexact[ArrayLike, "*lead T d"]) -> Inexact[Array, "*lead T-2 d"]:
    """Predict the next token at t = 2, ..., T-1 by K layers, each with its own matrices.

    Args:
        params: `{"kq": [K, 3 d, 3 d], "pv": [K, 3 d, 3 d]}`, real.
        x: sequences x_1, ..., x_T, complex or real.

    Returns:
        The predictions of x_3, ..., x_T.

    Raises:
        ValueError: if T < 3 or d < 1, or if the parameters do not fit d.

    >>> from jaxgen.models import attend_by_scores, diagonal_params
    >>> x, layer = jnp.array([[1.0], [-1.0], [1.0]]), diagonal_params(1.0, 0.5, 1)
    >>> stacked_attention(full_params(layer), x).tolist() == attend_by_scores(layer, x).tolist()
    True
    """
    check_sequences(x)
    width = 3 * x.shape[-1]
    layers = jnp.shape(params["kq"])[0]
    check_shapes(params, dict.fromkeys(("kq", "pv"), (layers, width, width)))
    return _run(params, None, x)


def looped_attention(params: Params, x: Inexact[ArrayLike, "*lead T d"], loops: int) -> Inexact[Array, "*lead T-2 d"]:
    """Predict as `stacked_attention` does, by one layer that is applied over and over.

    Args:
        params: `{"kq": [3 d, 3 d], "pv": [3 d, 3 d]}`, real.
        x: sequences x_1, ..., x_T, complex or real.
        loops: how often the layer is applied, static.

    Raises:
        ValueError: as `stacked_attention`, or if loops < 1.
    """
    if loops < 1:
        raise ValueError(f"loops must be at least 1, got {loops}")
    check_sequences(x)
    width = 3 * x.shape[-1]
    check_shapes(params, dict.fromkeys(("kq", "pv"), (width, width)))
    return _run(params, loops, x)


def stacked_gaussian_params(key: PRNGKey, layers: int, d: int, std: Scalar) -> dict[str, Float[Array, "layers n n"]]:
    """Draw the matrices of `stacked_attention`, every entry from N(0, std^2).

    Args:
        key: typed key, consumed.
        layers: number K of layers.
        d: coordinates of a token.
        std: standard deviation of an entry; it may be traced.

    Raises:
        ValueError: if layers < 1, d < 1, or std is negative or not finite.

    >>> stacked_gaussian_params(jax.random.key(0), 4, 2, 0.01)["kq"].shape
    (4, 6, 6)
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    check_dimension(d)
    check_std(std)
    draws = jnp.asarray(std) * jax.random.normal(key, (2, layers, 3 * d, 3 * d))
    return {"kq": draws[0], "pv": draws[1]}


def full_params(params: Params) -> dict[str, Float[Array, "1 n n"]]:
    """Return the parameters of `linear_attention` as a stack of one layer on full tokens, zero where those had none.

    Args:
        params: `{"kq": [2 d, 2 d], "pv": [d, 2 d]}`.

    Raises:
        ValueError: if the shapes of the parameters do not belong together.
    """
    d = len(blocks(params)["W12"])  # which checks the shapes
    return {
        "kq": jnp.pad(params["kq"], ((d, 0), (d, 0)))[None],
        "pv": jnp.pad(params["pv"], ((0, 2 * d), (d, 0)))[None],
    }


def _run(params: Params, loops: int | None, x: ArrayLike) -> Array:
    d = x.shape[-1]

    def layer(tokens, of):
        of = params if of is None else of
        return tokens + causal_layer(of["kq"], of["pv"], tokens), None

    def predict(x):
        pairs = autoregressive_tokens(x[:-1])  # the last token is a target only
        tokens = jnp.pad(pairs, ((0, 0), (d, 0)))
        tokens = tokens.astype(jnp.result_type(tokens, params["kq"], params["pv"]))  # what a layer returns
        return jax.lax.scan(layer, tokens, None if loops else params, length=loops)[0][1:, :d]

    return jnp.vectorize(predict, signature="(t,d)->(s,d)")(jnp.asarray(x))
