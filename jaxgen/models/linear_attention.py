"""One layer of linear causal self-attention, which reads a sequence and predicts its next token.

The layer of Zheng et al. 2024, "On Mesa-Optimization in Autoregressively Trained Transformers", section 3.2. Its tokens
are e_i = (x_i, x_{i-1}) with x_0 = 0, and at t = 2, ..., T-1 it predicts x_{t+1} by

    yhat_t = W^PV (1 / rho_t) sum_{i <= t} e_i e_i^* W^KQ e_t,    rho_t = t - 1,

with real parameters and the conjugate transpose. The paper's tokens carry d zeros in front, which its first block of
outputs fills; they and the residual add nothing to one layer and are left out (`stacked_attention` has them).

Parameters are `{"kq": [2 d, 2 d], "pv": [d, 2 d]}`: kq = [[W22, W23], [W32, W33]] of W^KQ, whose rows meet the keys e_i
and whose columns meet the query e_t, and pv = [W12, W13] of W^PV.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from jaxgen.typing import ArrayLike, Params, PRNGKey, Scalar

Attend: TypeAlias = Callable[[Params, Any], Array]
"""From parameters and sequences `[..., T, d]` to predictions `[..., T-2, d]`."""

# Accelerators would round the factors to bfloat16 or TF32, and the laws of training are compared to many digits.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def check_sequences(x: ArrayLike) -> None:
    """Raise a `ValueError` unless x is `[..., T, d]` with T >= 3 and d >= 1."""
    if x.ndim < 2:
        raise ValueError(f"x must have the shape [..., T, d], got {x.shape}")
    check_dimension(x.shape[-1])
    if x.shape[-2] < 3:
        raise ValueError(f"T must be at least 3, got {x.shape[-2]}; the first token to be predicted is x_3")


def check_dimension(d: int) -> None:
    """Raise a `ValueError` unless a token has at least one coordinate."""
    if d < 1:
        raise ValueError(f"d must be at least 1, got {d}")


def check_std(std: Scalar) -> None:
    """Raise a `ValueError` for a standard deviation out of range; one that is traced is not looked at."""
    if not isinstance(std, Tracer) and not 0 <= std < math.inf:
        raise ValueError(f"std must be at least 0 and finite, got {std}")


def check_shapes(params: Params, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a `ValueError` unless params are a dict of exactly these names and shapes."""
    found = {name: jnp.shape(leaf) for name, leaf in dict(params).items()}
    if found != dict(expected):
        raise ValueError(f"params must have the shapes {dict(expected)}, got {found}")


def autoregressive_tokens(x: Inexact[ArrayLike, "*lead T d"]) -> Inexact[Array, "*lead T 2*d"]:
    """Pair every token with the one before it: e_i = (x_i, x_{i-1}), where x_0 = 0.

    >>> autoregressive_tokens(jnp.array([[1.0], [2.0], [3.0]])).tolist()
    [[1.0, 0.0], [2.0, 1.0], [3.0, 2.0]]
    """
    x = jnp.asarray(x)
    before = jnp.concatenate([jnp.zeros_like(x[..., :1, :]), x[..., :-1, :]], axis=-2)
    return jnp.concatenate([x, before], axis=-1)


def causal_layer(
    kq: Float[ArrayLike, "n n"], pv: Float[ArrayLike, "out n"], tokens: Inexact[ArrayLike, "T n"]
) -> Inexact[Array, "T out"]:
    """Compute W^PV (1 / rho_t) sum_{i <= t} e_i e_i^* W^KQ e_t for t = 1, ..., T, with rho_t = max(t - 1, 1).

    Args:
        kq: W^KQ, rows for the keys.
        pv: W^PV.
        tokens: e_1, ..., e_T, real or complex.
    """
    tokens, kq, pv = jnp.asarray(tokens), jnp.asarray(kq), jnp.asarray(pv)
    scores = jnp.tril(_matmul(_matmul(tokens, kq.T), tokens.conj().T))  # row t, column i: e_i^* W^KQ e_t
    return _matmul(scores, _matmul(tokens, pv.T)) / _rho(tokens)


def attend_by_scores(params: Params, x: Inexact[ArrayLike, "*lead T d"]) -> Inexact[Array, "*lead T-2 d"]:
    """Predict the next token at t = 2, ..., T-1 from masked scores, of which there are T^2 a sequence.

    Two batched matrix products, the form for accelerators.

    Args:
        params: `{"kq": [2 d, 2 d], "pv": [d, 2 d]}`, real.
        x: sequences x_1, ..., x_T, complex; real ones are taken as they are and give real predictions.

    Returns:
        The predictions of x_3, ..., x_T (Zheng et al. 2024, section 3.2).

    Raises:
        ValueError: if T < 3 or d < 1, or if the parameters do not fit d.

    >>> x = jnp.array([[1.0], [1.0j], [-1.0], [-1.0j]])  # a rotation by a quarter turn
    >>> attend_by_scores(diagonal_params(2.0, 0.5, 1), x).tolist()
    [[(-1+0j)], [-1j]]
    """
    return _for_each_sequence(lambda e: causal_layer(params["kq"], params["pv"], e)[1:], params, x)


def attend_by_prefix_sums(params: Params, x: Inexact[ArrayLike, "*lead T d"]) -> Inexact[Array, "*lead T-2 d"]:
    """Predict as `attend_by_scores` does, from the running sums of e_i e_i^*.

    It holds T (2 d)^2 numbers a sequence, fewer than the T^2 scores once T is above (2 d)^2.
    """

    def attend(e):
        sums = jnp.cumsum(e[:, :, None] * e.conj()[:, None, :], axis=0)
        queries = _matmul(e, jnp.asarray(params["kq"]).T)
        read = _matmul(sums, queries[:, :, None])[:, :, 0]
        return (_matmul(read, jnp.asarray(params["pv"]).T) / _rho(e))[1:]

    return _for_each_sequence(attend, params, x)


def attend_real(
    params: Params, re: Float[ArrayLike, "*lead T d"], im: Float[ArrayLike, "*lead T d"]
) -> tuple[Float[Array, "*lead T-2 d"], Float[Array, "*lead T-2 d"]]:
    """Predict as `attend_by_scores` does without a complex number in the program, for TPUs, whose support is poor.

    Args:
        params: `{"kq": [2 d, 2 d], "pv": [d, 2 d]}`, real.
        re: real parts of the sequences.
        im: imaginary parts of the sequences.

    Returns:
        Real and imaginary parts of the predictions.

    Raises:
        ValueError: as `attend_by_scores`, or if the two parts differ in shape.
    """
    if re.shape != im.shape:
        raise ValueError(f"re and im must have one shape, got {re.shape} and {im.shape}")
    check_sequences(re)
    _check_layer(params, re.shape[-1])
    kq, pv = jnp.asarray(params["kq"]), jnp.asarray(params["pv"])

    def attend(re, im):
        tokens = tuple(autoregressive_tokens(part[:-1]) for part in (re, im))
        queries, values = ([_matmul(part, matrix.T) for part in tokens] for matrix in (kq, pv))
        # (e - i e')(q + i q'), where the minus is the conjugate.
        score = lambda q, e: _matmul(queries[q], tokens[e].T)  # noqa: E731
        scores = (jnp.tril(score(0, 0) + score(1, 1)), jnp.tril(score(1, 0) - score(0, 1)))
        real = _matmul(scores[0], values[0]) - _matmul(scores[1], values[1])
        imaginary = _matmul(scores[0], values[1]) + _matmul(scores[1], values[0])
        return tuple((part / _rho(tokens[0]))[1:] for part in (real, imaginary))

    return jnp.vectorize(attend, signature="(t,d),(t,d)->(s,d),(s,d)")(jnp.asarray(re), jnp.asarray(im))


def next_token_loss(
    predictions: Inexact[ArrayLike, "*lead steps d"], x: Inexact[ArrayLike, "*lead T d"]
) -> Float[Array, ""]:
    """Return sum_{t=2}^{T-1} 1/2 ||yhat_t - x_{t+1}||^2, averaged over sequences alone (Zheng et al. 2024, eq. 2).

    Args:
        predictions: yhat_2, ..., yhat_{T-1}.
        x: the sequences, of which x_3, ..., x_T are the targets.

    Raises:
        ValueError: if T < 3 or d < 1, or if the predictions are not those of x.
    """
    check_sequences(x)
    expected = (*x.shape[:-2], x.shape[-2] - 2, x.shape[-1])
    if predictions.shape != expected:
        raise ValueError(f"predictions must have shape {expected} for x of shape {x.shape}, got {predictions.shape}")
    error = jnp.asarray(predictions) - jnp.asarray(x)[..., 2:, :]
    # Not jnp.abs: its derivative at 0 is undefined. A real error has no imaginary part to add.
    squares = error.real**2 + error.imag**2 if jnp.iscomplexobj(error) else error**2
    return 0.5 * jnp.mean(jnp.sum(squares, axis=(-2, -1)))


def autoregressive_loss(
    params: Params, x: Inexact[ArrayLike, "*lead T d"], *, attend: Attend = attend_by_scores
) -> Float[Array, ""]:
    """Return the `next_token_loss` of a layer on sequences, half a squared distance summed over t and coordinates.

    Args:
        params: what `attend` takes.
        x: sequences; the mean is over them alone.
        attend: how predictions are computed.
    """
    return next_token_loss(attend(params, x), x)


def autoregressive_loss_real(
    params: Params, re: Float[ArrayLike, "*lead T d"], im: Float[ArrayLike, "*lead T d"]
) -> Float[Array, ""]:
    """Return the `autoregressive_loss` of sequences given by real and imaginary parts, without complex numbers."""
    predictions = attend_real(params, re, im)
    # A squared distance is the sum over both parts.
    return next_token_loss(predictions[0], re) + next_token_loss(predictions[1], im)


def sector_params(w32: Float[ArrayLike, "d d"], w12: Float[ArrayLike, "d d"]) -> dict[str, Float[Array, "..."]]:
    """Place W32 of W^KQ and W12 of W^PV among zeros: the blocks that training from a diagonal start uses.

    Raises:
        ValueError: if the two are not square of one size.
    """
    w32, w12 = jnp.asarray(w32), jnp.asarray(w12)
    if w32.ndim != 2 or w32.shape[0] != w32.shape[1] or w12.shape != w32.shape:
        raise ValueError(f"w32 and w12 must be square of one size, got {w32.shape} and {w12.shape}")
    check_dimension(len(w32))
    zero = jnp.zeros_like(w32)
    return {"kq": jnp.block([[zero, zero], [w32, zero]]), "pv": jnp.block([w12, jnp.zeros_like(w12)])}


def diagonal_params(a: Scalar, b: Scalar, d: int) -> dict[str, Float[Array, "..."]]:
    """Return W32 = a I and W12 = b I with all else 0, the layer that takes one gradient step of size a b.

    Zheng et al. 2024, assumption 3.1 and corollary 4.1.

    Args:
        a: diagonal of W32; it may be traced.
        b: diagonal of W12; it may be traced.
        d: coordinates of a token.

    Raises:
        ValueError: if d < 1.

    >>> diagonal_params(2.0, 0.5, 1)["kq"].tolist()
    [[0.0, 0.0], [2.0, 0.0]]
    """
    check_dimension(d)
    return sector_params(a * jnp.eye(d), b * jnp.eye(d))


def gaussian_params(key: PRNGKey, d: int, std: Scalar, *, sector: bool = False) -> dict[str, Float[Array, "..."]]:
    """Draw every entry from N(0, std^2), the Gaussian start of Zheng et al. 2024, section 6.

    Args:
        key: typed key, consumed.
        d: coordinates of a token.
        std: standard deviation of an entry; it may be traced.
        sector: keep W32 and W12 of the draw and put zeros elsewhere.

    Raises:
        ValueError: if d < 1 or std is negative or not finite.
    """
    check_dimension(d)
    check_std(std)
    draw = jnp.asarray(std) * jax.random.normal(key, (3 * d, 2 * d))
    params = {"kq": draw[: 2 * d], "pv": draw[2 * d :]}
    if not sector:
        return params
    parts = blocks(params)
    return sector_params(parts["W32"], parts["W12"])


def blocks(params: Params) -> dict[str, Float[Array, "d d"]]:
    """Cut parameters into the six blocks of the paper: W22, W23, W32 and W33 of W^KQ, W12 and W13 of W^PV.

    Raises:
        ValueError: if the shapes of the parameters do not belong together.
    """
    d = jnp.shape(params["pv"])[0]
    _check_layer(params, d)
    kq, pv = (jnp.asarray(params[name]) for name in ("kq", "pv"))
    return {
        "W22": kq[:d, :d],
        "W23": kq[:d, d:],
        "W32": kq[d:, :d],
        "W33": kq[d:, d:],
        "W12": pv[:, :d],
        "W13": pv[:, d:],
    }


@dataclasses.dataclass(frozen=True)
class CausalLinearAttentionConfig:
    """Size and start of a `CausalLinearAttention`: `diagonal_params` plus `gaussian_params`.

    The defaults are the smallest diagonal start of Zheng et al. 2024, section 6.
    """

    dimension: int = 5
    """Coordinates d of a token."""
    a: float = 0.1
    """Initial diagonal of W32."""
    b: float = 0.1
    """Initial diagonal of W12."""
    std: float = 0.0
    """Standard deviation of what is added to every entry."""

    def __post_init__(self):
        if self.dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {self.dimension}")
        check_std(self.std)
        for name in ("a", "b"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")


class CausalLinearAttention(nn.Module):
    """The layer as a linen module, whose unboxed parameters are the dict that this file's functions take."""

    config: CausalLinearAttentionConfig
    attend: Attend = attend_by_scores

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the arguments of one call on the shortest sequence."""
        return (jnp.zeros((3, self.config.dimension), jnp.complex64),)

    @nn.compact
    def __call__(self, x: Inexact[ArrayLike, "*lead T d"]) -> Inexact[Array, "*lead T-2 d"]:
        """Predict x_3, ..., x_T; arguments, results and errors are those of `attend_by_scores`."""
        axes = {"kq": ("keys", "queries"), "pv": ("outputs", "values")}
        params = {
            name: self.param(name, nn.with_logical_partitioning(functools.partial(_start, self.config, name), names))
            for name, names in axes.items()
        }
        return self.attend(params, x)


def _start(config: CausalLinearAttentionConfig, name: str, key: PRNGKey) -> Array:
    # Each parameter has a key of its own and keeps its own part of the draw.
    return (
        diagonal_params(config.a, config.b, config.dimension)[name]
        + gaussian_params(key, config.dimension, config.std)[name]
    )


def _for_each_sequence(attend: Callable[[Array], Array], params: Params, x: ArrayLike) -> Array:
    check_sequences(x)
    _check_layer(params, x.shape[-1])
    # The last token is a target only.
    run = lambda x: attend(autoregressive_tokens(x[:-1]))  # noqa: E731
    return jnp.vectorize(run, signature="(t,d)->(s,d)")(jnp.asarray(x))


def _rho(tokens: Array) -> Array:
    # t - 1 at t = 2, 3, ...; the first token, whose own rho would be 0, is divided by 1 as the stacked layers need it.
    return jnp.maximum(jnp.arange(len(tokens), dtype=tokens.real.dtype), 1)[:, None]


def _check_layer(params: Params, d: int) -> None:
    check_shapes(params, {"kq": (2 * d, 2 * d), "pv": (d, 2 * d)})
