"""The convex families in both arms: fitted to many data sets, beside what the delta method predicts."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.multi_source.families import Family, is_own, sample_counts
from jaxgen.statistics.asymptotic_tv import asymptotic_expected_tv
from jaxgen.statistics.likelihood import fit_mle
from jaxgen.statistics.source_params import SourceParams, apply_sources, init_multi, separate
from jaxgen.statistics.total_variation import tv_quadrature
from jaxgen.typing import PRNGKey, PRNGKeys

TRUTHS = 8
"""Laws that are drawn for a family: the independent groups of the claims."""
_LARGEST_GRADIENT = 1e-6  # of a sum over thousands of samples: an error moves by far less than it scatters
_MOST_UNATTAINED = 0.005  # share of fits without a maximum; more would say that something else is wrong


class ConvexErrors(NamedTuple):
    """Total variation averaged over the sources, for each arm (separate models, then the shared one).

    Attributes:
        sources: numbers K of sources; those of a smaller K are the first of a larger one.
        measured: of every data set.
        predicted: its expectation by the delta method.
        gradient: the largest entry of the gradient where any other fit ended.
        unattained: fits that were cut, since no parameters attain the maximum: all samples of a source lie on the edge
            of what the features can tell, and the likelihood grows for ever along some direction, ever more slowly.
    """

    sources: tuple[int, ...]
    measured: Float[np.ndarray, "arms numbers truths replicates"]
    predicted: Float[np.ndarray, "arms numbers truths"]
    gradient: float
    unattained: int

    def ratio(self, number: int) -> Float[np.ndarray, " truths"]:
        """Return the mean error of the shared model over that of separate ones, for each truth."""
        separate_models, shared = self.measured[:, number].mean(axis=-1)
        return shared / separate_models


def simulate(key: PRNGKey, family: Family, sources: tuple[int, ...], replicates: int) -> ConvexErrors:
    """Fit both arms to the same data sets, and predict their errors, in float64.

    Args:
        key: typed key, consumed.
        family: of laws.
        sources: numbers K of sources.
        replicates: data sets for each K, rounded up so that every truth gets as many, and at least 2.
    """
    with jax.enable_x64(True):
        truth_key, data_key = jax.random.split(key)
        most, each = max(sources), max(2, -(-replicates // TRUTHS))
        truths = _draw_truths(jax.random.split(truth_key, TRUTHS), family, most)
        # One program serves every K: absent sources have probability 0, so that no sample is theirs.
        p_y = np.array([[1 / count if k < count else 0.0 for k in range(most)] for count in sources])
        keys = jax.random.split(data_key, (len(sources), TRUTHS, each))
        found = [_errors(family, shared, truths, p_y, keys) for shared in (False, True)]
        predicted = [_predictions(family, shared, truths, p_y) for shared in (False, True)]
        gradients = np.stack([of for _, of in found])
        cut = gradients > _LARGEST_GRADIENT
        if cut.mean() > _MOST_UNATTAINED:
            raise RuntimeError(
                f"{cut.sum()} of {cut.size} fits of convex {family.name} models ended with a gradient above "
                f"{_LARGEST_GRADIENT:g}, up to {gradients.max():.1g}"
            )
        tv = np.stack([tv for tv, _ in found])
        return ConvexErrors(sources, tv, np.stack(predicted), float(gradients[~cut].max()), int(cut.sum()))


@partial(jax.jit, static_argnames=("family", "num_sources"))
def _draw_truths(keys: PRNGKeys, family: Family, num_sources: int) -> SourceParams:
    return jax.vmap(partial(init_multi, init=family.draw, is_specific=is_own, num_sources=num_sources))(keys)


@partial(jax.jit, static_argnames=("family", "shared"))
def _errors(
    family: Family,
    shared: bool,
    truths: SourceParams,
    p_y: Float[Array, "numbers sources"],
    keys: Array,
) -> tuple[Float[Array, "numbers truths replicates"], Float[Array, "numbers truths replicates"]]:
    weights = jnp.asarray(family.weights)

    def of_truth(truth: SourceParams, p_y: Array, keys: Array) -> tuple[Array, Array]:
        log_law = apply_sources(family.log_prob, truth)
        mass = jnp.exp(log_law) * weights[None] * p_y[:, None]
        start = jax.tree.map(jnp.zeros_like, truth if shared else separate(truth))

        def one(key: PRNGKey) -> tuple[Array, Array]:
            counts = sample_counts(key, mass, family.samples)
            fit = fit_mle(lambda params, counts: counts @ family.log_prob(params), start, counts)
            return p_y @ tv_quadrature(apply_sources(family.log_prob, fit.params), log_law, weights), fit.gradient

        return jax.vmap(one)(keys)

    # One truth after the other: the Newton steps of a few dozen data sets fit into the cache.
    return _over_truths(of_truth, truths, p_y, keys)


@partial(jax.jit, static_argnames=("family", "shared"))
def _predictions(
    family: Family, shared: bool, truths: SourceParams, p_y: Float[Array, "numbers sources"]
) -> Float[Array, "numbers truths"]:
    def of_truth(truth: SourceParams, p_y: Array, _: Array) -> Array:
        params, weights = truth if shared else separate(truth), jnp.asarray(family.weights)
        return p_y @ asymptotic_expected_tv(family.log_prob, params, family.samples, p_y, weights=weights)

    return _over_truths(of_truth, truths, p_y, jnp.zeros((len(p_y), TRUTHS)))


def _over_truths(function, truths, p_y, more):
    """Call a function for every number of sources and every truth."""

    def of_number(inputs):
        p_y, more = inputs
        return jax.lax.map(lambda one: function(one[0], p_y, one[1]), (truths, more))

    return jax.lax.map(of_number, (jnp.asarray(p_y), more))
