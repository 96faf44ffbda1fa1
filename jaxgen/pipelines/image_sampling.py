"""Sample a class-conditional denoising network: many images over every device, by any sampler of the library."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxgen.diffusion import (
    Denoiser,
    Level,
    Prediction,
    Sampler,
    check_scale,
    classifier_free,
    ddim,
    ddpm,
    denoiser,
    euler,
    heun,
    pcg,
    prior,
    sample,
    sample_many,
    trajectory,
)
from jaxgen.models import ImageNetwork, check_labels
from jaxgen.pipelines.denoising_update import predict_given
from jaxgen.pipelines.objectives import Objective
from jaxgen.typing import ArrayLike, Params, PRNGKey, Sample, Scalar

Method: TypeAlias = Callable[[Denoiser, Denoiser], Sampler]
"""Builds a sampler from the conditional and the guided denoiser. It is part of the key of the compilation cache: pass
a module-level function or a frozen dataclass."""


def guided_ddim(conditional: Denoiser, guided: Denoiser) -> Sampler:
    """Sample by DDIM under guidance."""
    del conditional
    return ddim(guided)


def guided_ddpm(conditional: Denoiser, guided: Denoiser) -> Sampler:
    """Sample by DDPM under guidance."""
    del conditional
    return ddpm(guided)


def guided_heun(conditional: Denoiser, guided: Denoiser) -> Sampler:
    """Sample by Heun's method under guidance: two evaluations a step but for the last one (Karras et al. 2022)."""
    del conditional
    return heun(guided)


def guided_euler(conditional: Denoiser, guided: Denoiser) -> Sampler:
    """Sample by Euler steps along the guided velocity of a rectified flow."""
    del conditional
    return euler(guided)


@dataclasses.dataclass(frozen=True)
class PredictorCorrectorGuidance:
    """Sample by DDIM on the conditional law and Langevin steps on the guided one (Bradley & Nakkiran 2024)."""

    corrector_steps: int = 1
    """Langevin steps at each level."""

    def __call__(self, conditional: Denoiser, guided: Denoiser) -> Sampler:
        """Build the sampler."""
        return pcg(conditional, guided, self.corrector_steps)


class Weights(NamedTuple):
    """What a network is evaluated with: its parameters and its other collections."""

    params: Params
    variables: PyTree = ()


class Film(NamedTuple):
    """How an image emerges: `x` at every level of the grid, and the `x0` predicted in every step.

    Attributes:
        x: `[count, steps + 1, ...]`, divided by sqrt(alpha^2 + sigma^2) so that every frame has one scale.
        x0: `[count, steps, ...]`.
    """

    x: Any
    x0: Any


@dataclasses.dataclass(frozen=True)
class DrawImage:
    """What `sample_many` runs for each image; equal ones share a compiled program."""

    model: ImageNetwork
    objective: Objective
    method: Method

    def __call__(self, key: PRNGKey, label: Int[Array, ""], weights: Weights, scale: Scalar, grid: Level) -> Sample:
        """Draw one image of class `label`; the key is consumed."""
        sampler, sampler_key, start = self.begin(key, label, weights, scale, grid)
        return sample(sampler, sampler_key, start, grid)

    def begin(
        self, key: PRNGKey, label: Int[Array, ""], weights: Weights, scale: Scalar, grid: Level
    ) -> tuple[Sampler, PRNGKey, Sample]:
        """Build the sampler, and draw where it starts: the same noise for every method."""
        start_key, sampler_key = jax.random.split(key)
        first = jax.tree.map(lambda leaf: leaf[0], grid)
        start = prior(start_key, self.model.config.image_shape, first)

        def predict(x: Sample, level: Level, label: Int[Array, ""]) -> Prediction:
            return predict_given(
                self.model, self.objective, weights.params, x, level, label, variables=weights.variables
            )

        null = jnp.asarray(self.model.config.null_label, label.dtype)
        guided = denoiser(classifier_free(predict, label, null, scale))
        conditional = denoiser(lambda x, level: predict(x, level, label))
        return self.method(conditional, guided), sampler_key, start


@dataclasses.dataclass(frozen=True)
class DrawFilm(DrawImage):
    """`DrawImage` that keeps every step."""

    def __call__(self, key: PRNGKey, label: Int[Array, ""], weights: Weights, scale: Scalar, grid: Level) -> Film:
        """Draw one image and how it emerged; the key is consumed."""
        sampler, sampler_key, start = self.begin(key, label, weights, scale, grid)
        xs, info = trajectory(sampler, sampler_key, start, grid)
        predicted = getattr(info, "predictor", info)
        size = jnp.sqrt(grid.alpha**2 + grid.sigma**2).astype(xs.dtype)
        return Film(xs / size.reshape(-1, *(1,) * (xs.ndim - 1)), predicted.x0)


def generate_images(
    model: ImageNetwork,
    objective: Objective,
    params: Params,
    labels: Int[ArrayLike, " count"],
    key: PRNGKey,
    *,
    method: Method = guided_ddim,
    scale: float = 1.0,
    steps: int = 100,
    block_size: int = 64,
    mesh: Mesh | None = None,
    on_block: Callable[[int], None] | None = None,
    variables: PyTree = (),
) -> Float[np.ndarray, "count ..."]:
    """Draw one image for each label; image i depends on (key, i) and its label alone.

    Args:
        model: the network.
        objective: what it was trained to predict.
        params: its parameters, for example `averaged_params(state.ema)`.
        labels: classes in [0, num_classes]; `num_classes` asks for no class in particular.
        key: typed key; the same key gives every method the same noise to start from.
        method: builds the sampler.
        scale: guidance scale, 0 unconditional, 1 conditional, above 1 extrapolates.
        steps: steps of the objective's grid.
        block_size: images in one call of the compiled program; rounded up to a multiple of the mesh's data axis.
        mesh: devices that share each block; None uses one.
        on_block: called with the number of finished images after each block.
        variables: the network's other collections, `state.variables`; none for most networks.

    Returns:
        Images `[count, ...]`, not clipped.

    Raises:
        ValueError: for labels, a scale or a number of steps out of range, before anything is compiled.
    """
    draw = DrawImage(model, objective, method)
    return _run(draw, Weights(params, variables), labels, key, scale, steps, block_size, mesh, on_block)


def film_images(
    model: ImageNetwork,
    objective: Objective,
    params: Params,
    labels: Int[ArrayLike, " count"],
    key: PRNGKey,
    *,
    method: Method = guided_ddim,
    scale: float = 1.0,
    steps: int = 100,
    block_size: int = 8,
    mesh: Mesh | None = None,
    variables: PyTree = (),
) -> Film:
    """Draw the images of `generate_images` and keep how they emerged; arguments and errors as there.

    Returns:
        A `Film` of arrays `[count, frames, ...]`: its memory grows with steps and images.
    """
    draw = DrawFilm(model, objective, method)
    return _run(draw, Weights(params, variables), labels, key, scale, steps, block_size, mesh, None)


def _run(draw: DrawImage, weights: Weights, labels, key, scale, steps, block_size, mesh, on_block) -> Any:
    labels = np.asarray(labels)
    check_labels(labels, draw.model.config.num_classes)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels must be a list of at least one class, got shape {labels.shape}")
    check_scale(scale)
    grid = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), draw.objective.grid(steps))
    shares = mesh.shape.get("data", 1) if mesh is not None else 1
    return sample_many(
        draw,
        key,
        len(labels),
        weights,
        np.float32(scale),
        grid,
        conditions=labels.astype(np.int32),
        block_size=-(-block_size // shares) * shares,
        mesh=mesh,
        on_block=on_block,
    )
