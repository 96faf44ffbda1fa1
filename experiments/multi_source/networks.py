"""The autoregressive and the energy-based model as networks, on laws whose similarity is a knob.

Laws are networks too. Of similarity s they have the logits (or energies) sqrt(s) f(., e_k) + sqrt(1 - s) g_k: at 1 the
sources differ only in the condition embedding e_k, as the multi-source model assumes, and at 0 they were drawn one by
one. Both kinds live on a support that can be summed over, so that total variation is exact.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.multi_source.network_kinds import Kind, is_specific
from jaxgen.statistics.source_params import (
    SourceParams,
    apply_sources,
    init_multi,
    init_single,
    of_each_source,
    separate,
)
from jaxgen.statistics.total_variation import tv_enumerated
from jaxgen.typing import PRNGKey, PRNGKeys, Scalar

LEARNING_RATE = 0.02
POINTS = 10
"""Looks at the error along the training, at most."""
_BATCH = {"cpu": 1}
"""Runs that are trained at once: an accelerator needs several to be busy, a processor loses time with more than one."""
_SMALL = 0.1  # of the last layer at the start


class Problems(NamedTuple):
    """Sources and samples of them, one problem for each run.

    Attributes:
        log_law: true log probabilities of all states, one row a source.
        drawn: states, as many of each source.
        start: where the training of both arms begins.
    """

    log_law: Float[Array, "*runs sources states"]
    drawn: Int[Array, "*runs sources samples"]
    start: SourceParams

    def of(self, num_sources: int, samples: int) -> "Problems":
        """Return the problems of the first sources alone, with this many samples of each."""
        specific = jax.tree.map(lambda leaf: leaf[:, :num_sources], self.start.specific)
        return Problems(
            self.log_law[:, :num_sources],
            self.drawn[:, :num_sources, :samples],
            self.start._replace(specific=specific),
        )


def draw_law(key: PRNGKey, kind: Kind, num_sources: int, similarity: Scalar) -> Float[Array, "sources states"]:
    """Draw the true log probabilities of all sources.

    Args:
        key: typed key, consumed.
        kind: of network.
        num_sources: K.
        similarity: s in [0, 1].
    """
    common_key, own_key = jax.random.split(key)
    common = of_each_source(init_multi(common_key, kind.init, is_specific, num_sources))
    own = init_single(own_key, kind.init, num_sources).specific
    # One scale for all sources: as a network, it belongs to what they share.
    common, own = (_standardised(jax.vmap(kind.field)(of)) for of in (common, own))
    field = jnp.sqrt(similarity) * common + jnp.sqrt(1 - similarity) * own
    return jax.vmap(kind.log_prob)(field)


def _standardised(field: Array) -> Array:
    # A constant of a source is seen in no law, and must not count as spread.
    centred = field - field.mean(axis=tuple(range(1, field.ndim)), keepdims=True)
    return centred / centred.std()


@partial(jax.jit, static_argnames=("kind", "num_sources", "samples"))
def draw_problems(keys: PRNGKeys, kind: Kind, num_sources: int, samples: int, similarity: Scalar) -> Problems:
    """Draw laws, samples and starts, one for each key.

    Problems of one key differ between similarities only in how much of the common part their laws have.

    Args:
        keys: typed keys, consumed.
        kind: of network.
        num_sources: K.
        samples: of each source.
        similarity: s in [0, 1].
    """

    def draw(key: PRNGKey) -> Problems:
        law_key, data_key, start_key = jax.random.split(key, 3)
        log_law = draw_law(law_key, kind, num_sources, similarity)
        cumulative = jnp.cumsum(jnp.exp(log_law), axis=1)
        levels = jax.random.uniform(data_key, (num_sources, samples)) * cumulative[:, -1:]
        drawn = jax.vmap(partial(jnp.searchsorted, side="right"))(cumulative, levels)
        start = init_multi(start_key, kind.init, is_specific, num_sources)
        last = max(name for name in start.shared if name.startswith("dense_"))
        # Training begins near the uniform law.
        shrunk = jax.tree.map(lambda leaf: _SMALL * leaf, start.shared[last])
        return Problems(log_law, drawn, start._replace(shared={**start.shared, last: shrunk}))

    return jax.lax.map(draw, keys)


class Curves(NamedTuple):
    """How training went.

    Attributes:
        steps: at which it was looked at; the last is its end.
        tv: total variation averaged over the sources, after each of them.
        loss: negative log-likelihood over n, before each of them.
        log_prob: at the end, of all states of each source.
    """

    steps: np.ndarray
    tv: Float[np.ndarray, "runs points"]
    loss: Float[np.ndarray, "runs points"]
    log_prob: Float[np.ndarray, "runs sources states"]


def train(kind: Kind, problems: Problems, steps: int, *, shared: bool) -> Curves:
    """Train one model of all sources, or one each, by full-batch Adam on the likelihood of the same samples.

    Both arms start from the same laws and take the same steps; separate models begin as copies.

    Args:
        kind: of network.
        problems: one for each run.
        steps: of training.
        shared: whether one model of all sources is trained.
    """
    looks = np.unique(np.geomspace(1, steps, min(POINTS, steps)).round().astype(int))
    found = _train(kind, problems, tuple(looks.tolist()), shared)
    return Curves(looks, *(np.asarray(of) for of in found))


@partial(jax.jit, static_argnames=("kind", "looks", "shared"))
def _train(kind: Kind, problems: Problems, looks: tuple[int, ...], shared: bool) -> tuple[Array, ...]:
    optimiser = optax.adam(LEARNING_RATE)
    looked_at = np.zeros(looks[-1], bool)
    looked_at[np.array(looks) - 1] = True

    def one(problem: Problems) -> tuple[Array, ...]:
        data = jax.vmap(kind.data)(problem.drawn)

        def loss(params: SourceParams, number: Array) -> Array:
            likelihood = lambda params, data: kind.log_likelihood(params, data, number)  # noqa: E731
            return -jnp.sum(apply_sources(likelihood, params, data)) / problem.drawn.size

        def laws(params: SourceParams) -> Array:
            return apply_sources(lambda of_one: kind.log_prob(kind.field(of_one)), params)

        def error(params: SourceParams) -> Array:
            return jnp.mean(tv_enumerated(laws(params), problem.log_law))

        def step(state: Any, inputs: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
            (params, opt_state), (number, look) = state, inputs
            value, gradient = jax.value_and_grad(loss)(params, number)
            change, opt_state = optimiser.update(gradient, opt_state, params)
            params = optax.apply_updates(params, change)
            # Summing over the support costs as much as some steps, so that it is done at a few of them.
            tv = jax.lax.cond(look, error, lambda _: jnp.full((), jnp.nan), params)
            return (params, opt_state), (tv, value)

        start = problem.start if shared else separate(problem.start)
        inputs = jnp.arange(looks[-1]), jnp.asarray(looked_at)
        (params, _), (tv, value) = jax.lax.scan(step, (start, optimiser.init(start)), inputs)
        at = np.array(looks) - 1
        return tv[at], value[at], laws(params)

    return jax.lax.map(one, problems, batch_size=_BATCH.get(jax.default_backend(), 16))
