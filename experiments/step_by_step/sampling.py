"""How a run draws from its networks: every sample is one of each of them, from one noise."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.step_by_step.networks import Networks, regression
from jaxgen.diffusion import (
    Denoiser,
    Level,
    Sampler,
    denoiser,
    flow_matching,
    from_x0,
    predict_from_points,
    prior,
    sample,
    sample_many,
    trajectory,
)
from jaxgen.models import MLP
from jaxgen.typing import Params, PRNGKey, Sample

_FAR = 1e3  # where the entries of a padded training set are put: no noise makes them likely


@dataclasses.dataclass(frozen=True)
class _Denoised:
    """Draw one sample by every denoiser, `[networks, 2]`, or its way, `[networks, levels, 2]`."""

    model: MLP | None  # None: the exact denoisers of the training sets
    kernel: Callable[[Denoiser], Sampler]
    whole_way: bool

    def __call__(self, key: PRNGKey, start: Float[Array, " 2"] | None, params: Params, grid: Level) -> Sample:
        start_key, run_key = jax.random.split(key)
        x = prior(start_key, (2,), jax.tree.map(lambda leaf: leaf[0], grid)) if start is None else start

        def one(params: Params) -> Sample:
            sampler = self.kernel(denoiser(partial(self._predict, params)))
            if self.whole_way:
                return trajectory(sampler, run_key, x, grid)[0]
            return sample(sampler, run_key, x, grid)

        return jax.vmap(one)(params)

    def _predict(self, params: Params, x: Sample, level: Level):
        if self.model is None:
            return predict_from_points(params, jnp.asarray(x), level)
        return from_x0(x, level, regression(self.model, params)(x, level.time))


@dataclasses.dataclass(frozen=True)
class _Flown:
    """Follow every flow from one point of the base and keep the way, `[networks, times, 2]`."""

    model: MLP

    def __call__(
        self, key: PRNGKey, start: Float[Array, " 2"], params: Params, times: Float[Array, " times"]
    ) -> Sample:
        del key

        def one(params: Params) -> Sample:
            return flow_matching.trace_flow(regression(self.model, params), start, times)

        return jax.vmap(one)(params)


def draw(
    networks: Networks,
    kernel: Callable[[Denoiser], Sampler],
    key: PRNGKey,
    count: int,
    *,
    grid: Level,
    block_size: int,
    starts: Float[np.ndarray, "count 2"] | None = None,
    whole_way: bool = False,
    memorised: bool = False,
) -> np.ndarray:
    """Sample from every denoiser.

    Args:
        networks: what was trained.
        kernel: the sampler of a denoiser.
        key: sample i of every network starts from the noise of `fold_in(key, i)`.
        count: samples of each.
        grid: float64 levels of the steps.
        block_size: samples in one call of the program.
        starts: where to start instead.
        whole_way: keep the ways.
        memorised: draw from the exact denoisers of the training sets, which remember all and know nothing else.

    Returns:
        `[count, networks, 2]`, or `[count, networks, levels, 2]` of the ways.
    """
    drawing = _Denoised(None if memorised else networks.model, kernel, whole_way)
    params = padded_sets(networks) if memorised else networks.denoisers
    options = {"conditions": starts, "block_size": block_size, "mesh": networks.mesh}
    return sample_many(drawing, key, count, params, jax.tree.map(np.float32, grid), **options)


def flow(
    networks: Networks, starts: Float[np.ndarray, "count 2"], *, steps: int, block_size: int
) -> Float[np.ndarray, "count networks times 2"]:
    """Follow every flow from each start by Euler steps of equal length (pseudocode 5)."""
    times = np.linspace(1.0, 0.0, steps + 1, dtype=np.float32)
    return sample_many(
        _Flown(networks.model),
        jax.random.key(0),
        len(starts),
        networks.flows,
        times,
        conditions=starts,
        block_size=block_size,
        mesh=networks.mesh,
    )


def padded_sets(networks: Networks) -> Float[np.ndarray, "networks largest 2"]:
    """Return the training set of each denoiser, its unused entries far away."""
    sets = networks.points.reshape(-1, *networks.points.shape[2:])
    used = np.arange(sets.shape[1])[None] < networks.counts.reshape(-1, 1)
    return np.where(used[..., None], sets, np.float32(_FAR))
