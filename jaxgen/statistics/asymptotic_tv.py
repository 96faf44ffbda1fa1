r"""The expected total variation of maximum likelihood to leading order in the number of samples.

For any regular model of several sources, before a single sample is drawn. With many samples the estimated parameters
are normal around the true ones, with the inverse Fisher information as covariance. The density of source k then moves
at x by p_k(x) t_k(x)^T e_k, t_k its score and e_k the error of the parameters that it depends on, and the mean size of
a normal number is $\sqrt{2 / \pi}$ of its standard deviation, so that

    E TV_k = (2 pi)^(-1/2) E_{x ~ p_k} sqrt(t_k(x)^T V_k t_k(x)),

V_k the block of the shared and own parameters in the inverse of sum_k n p_k I_k.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from jaxgen.statistics.conditional_mle import check_sources
from jaxgen.statistics.source_params import SourceParams, check_per_source, num_sources
from jaxgen.statistics.source_vectors import flatten_sources
from jaxgen.typing import ArrayLike


def asymptotic_expected_tv(
    log_prob: Callable[..., Float[Array, " nodes"]],
    params: SourceParams,
    n: int | ArrayLike,
    p_y: Float[ArrayLike, " sources"],
    *per_source: PyTree,
    weights: Float[ArrayLike, " nodes"] | None = None,
) -> Float[Array, " sources"]:
    """Predict the expected total variation of every source by the delta method, for shared and separate parameters.

    The prediction is exact to leading order, 1 / sqrt(n). The average over sources is `p_y @ ` the result. For separate
    models give `separate(params)`: nothing else changes.

    Parameters that move no law (a common shift of all condition embeddings that the shared part can undo) make the
    information singular. Scores have no part along them, and on what is left all generalised inverses agree, so that
    the pseudo-inverse gives what any way of fixing the gauge would.

    Args:
        log_prob: called as `log_prob(params of one source, *arguments of that source)`; returns the logarithm of the
            normalised density at all nodes of a finite support or of a quadrature.
        params: the true parameters.
        n: number of samples of all sources together; it may be traced.
        p_y: probabilities of the sources; they may be traced.
        per_source: further arguments of `log_prob`, each with a leading axis of sources.
        weights: of the nodes in a sum over the sample space; 1 by default, for a finite support.

    Raises:
        ValueError: `n` is below 1, `p_y` does not fit the sources, is not positive or does not sum to 1, or `weights`
            does not fit the nodes.

    Source:
        Derived from the asymptotic normality of maximum likelihood (van der Vaart 1998, theorem 5.39).

    >>> logits = SourceParams({"logits": None}, {"logits": jnp.zeros((1, 2))})
    >>> tv = asymptotic_expected_tv(lambda p: jax.nn.log_softmax(p["logits"]), logits, 100, jnp.ones(1))
    >>> print(tv.round(4))  # a fair coin: sqrt(2 / pi) * 0.05
    [0.0399]
    """
    sources = num_sources(params)
    p_y = _check(n, p_y, sources)
    check_per_source("per_source", per_source, sources)
    flat = flatten_sources(params)
    size, dtype = flat.shared.size, flat.specific.dtype

    def score(specific: Array, *args: PyTree) -> tuple[Array, Array]:
        def at(vector: Array) -> tuple[Array, Array]:
            log_density = log_prob(flat.whole(vector), *args)
            return log_density, log_density

        scores, log_density = jax.jacfwd(at, has_aux=True)(jnp.concatenate([flat.shared, specific]))
        return scores, jnp.exp(log_density)

    scores, mass = jax.vmap(score)(flat.specific, *per_source)
    if weights is not None:
        if jnp.shape(weights) != mass.shape[1:]:
            raise ValueError(f"weights must hold one number for each of {mass.shape[1]} nodes, got {np.shape(weights)}")
        mass = mass * jnp.asarray(weights, dtype)[None]
    spread = _standard_deviations(scores, mass, jnp.asarray(n, dtype) * p_y.astype(dtype), size)
    return jnp.sum(mass * spread, axis=1) / np.sqrt(2 * np.pi).astype(dtype)


def _standard_deviations(
    scores: Float[Array, "sources nodes all"],
    mass: Float[Array, "sources nodes"],
    counts: Float[Array, " sources"],
    size: int,
) -> Float[Array, "sources nodes"]:
    """Return sqrt(t^T V t) of every node, by the efficient score.

    With I = [[A, B_k], [B_k^T, D_k]] for shared and own parameters, t^T V t is the own score's part over D_k, plus that
    of the shared score less its regression on the own one, over the Schur complement of all D_k.
    """
    product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    shared, own = scores[:, :, :size], scores[:, :, size:]
    weighted = mass * counts[:, None]
    blocks = product("kn,knc,knd->kcd", weighted, own, own)
    inverse = jax.vmap(_pseudo_inverse)(blocks, jnp.diagonal(blocks, axis1=1, axis2=2))
    variance = product("knc,kcd,knd->kn", own, inverse, own)
    if size:
        side = product("kn,kns,knc->ksc", weighted, shared, own)
        efficient = shared - product("ksc,kcd,knd->kns", side, inverse, own)
        schur = product("kn,kns,knt->st", weighted, efficient, efficient)
        inverse = _pseudo_inverse(schur, product("kn,kns->s", weighted, shared**2))
        variance = variance + product("kns,st,knt->kn", efficient, inverse, efficient)
    # Rounding leaves a state that no parameter moves slightly below 0, where the root has no derivative either.
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def _pseudo_inverse(matrix: Float[Array, "dim dim"], size: Float[Array, " dim"]) -> Float[Array, "dim dim"]:
    """Invert a positive semi-definite matrix on its range.

    Args:
        matrix: what is left of an information, perhaps nothing but rounding.
        size: the diagonal of the whole information, beside which rounding is told.
    """
    scale = jnp.sqrt(jnp.where(size > 0, size, 1.0))
    outer = scale[:, None] * scale[None, :]
    rounding = 10 * matrix.shape[0] * jnp.finfo(matrix.dtype).eps
    scaled = matrix / outer
    largest = jnp.max(jnp.abs(jnp.linalg.eigvalsh(jax.lax.stop_gradient(scaled))))
    # `pinv` cuts relative to the largest eigenvalue, which may itself be rounding.
    return jnp.linalg.pinv(scaled, rtol=rounding / jnp.maximum(largest, rounding), hermitian=True) / outer


def _check(n: int | ArrayLike, p_y: Float[ArrayLike, " sources"], sources: int) -> Array:
    check_sources(p_y, 1 if isinstance(n, Tracer) else int(n))
    if np.shape(p_y) != (sources,):
        raise ValueError(f"p_y must hold a probability for each of {sources} sources, got shape {np.shape(p_y)}")
    if not isinstance(p_y, Tracer) and not np.all(np.asarray(p_y) > 0):
        raise ValueError(f"p_y must be above 0, got {np.asarray(p_y).tolist()}: leave out a source that has no samples")
    return jnp.asarray(p_y)
