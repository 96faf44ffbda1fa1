"""The samplers of this experiment by name, and how a run draws with them."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.digits import data
from experiments.digits.networks import Networks, Trained
from jaxgen.pipelines import (
    Film,
    Method,
    PredictorCorrectorGuidance,
    film_images,
    generate_images,
    guided_ddim,
    guided_ddpm,
    guided_euler,
    guided_heun,
)
from jaxgen.typing import PRNGKey

METHODS: dict[str, Callable[[int], Method]] = {
    "ddim": lambda corrector_steps: guided_ddim,
    "ddpm": lambda corrector_steps: guided_ddpm,
    "heun": lambda corrector_steps: guided_heun,
    "pcg": PredictorCorrectorGuidance,
}
"""How to sample a denoiser by each name, given the corrector steps of a level."""
TITLES = {"ddim": "DDIM", "ddpm": "DDPM", "flow": "flow matching", "pcg": "PCG"}
# Images drawn at once, few or many, so that a sampler compiles once; it divides over 2, 4 and 8 devices.
_BLOCK = 200


def sampling_key(seed: int) -> PRNGKey:
    """Return the key of all sampling: every sampler starts from the same noise."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def seed_labels(digits: data.Digits, seeds: int, seed: int) -> Int[np.ndarray, "seeds count"]:
    """Return the digits to ask for: those of a subset of the training images for each sampling seed."""
    return np.stack([digits.train_labels[data.subset(digits, 1000 * seed + index)] for index in range(seeds)])


def draw(
    networks: Networks,
    sampler: str,
    labels: Int[np.ndarray, "*batch"],
    key: PRNGKey,
    *,
    scale: float,
    steps: int,
    corrector_steps: int,
    on_block: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "*batch 64"]:
    """Draw an image of 64 pixels for each label with the sampler of that name."""
    network, method = _choose(networks, sampler, corrector_steps)
    images = generate_images(
        *network,
        labels.reshape(-1),
        key,
        method=method,
        scale=scale,
        steps=steps,
        block_size=_BLOCK,
        mesh=networks.mesh,
        on_block=on_block,
    )
    return images.reshape(*labels.shape, data.SIDE**2)


def film(
    networks: Networks,
    sampler: str,
    labels: Int[np.ndarray, " count"],
    key: PRNGKey,
    *,
    scale: float,
    steps: int,
    corrector_steps: int,
) -> Film:
    """Draw images as `draw` does, and keep how they emerged."""
    network, method = _choose(networks, sampler, corrector_steps)
    return film_images(
        *network,
        labels,
        key,
        method=method,
        scale=scale,
        steps=steps,
        block_size=len(labels),
        mesh=networks.mesh,
    )


def _choose(networks: Networks, sampler: str, corrector_steps: int) -> tuple[Trained, Method]:
    if sampler == "flow":
        return networks.flow, guided_euler
    return networks.denoiser, METHODS[sampler](corrector_steps)
