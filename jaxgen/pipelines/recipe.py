"""How a denoising network is trained: the numbers, and the optimiser that they make."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from jaxgen.typing import Scalar


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train; the defaults suit a thousand small images."""

    steps: int = 8000
    """Updates."""
    batch_size: int = 256
    """Images in an update, drawn without replacement within an epoch."""
    learning_rate: float = 2e-3
    """Peak of the learning rate, which rises linearly, then falls to 0 along a cosine."""
    warmup_steps: int = 100
    """Updates over which the learning rate rises."""
    weight_decay: float = 1e-4
    """Decoupled weight decay (AdamW)."""
    second_moment_decay: float = 0.99
    """AdamW's b2."""
    ema_half_life: float = 200.0
    """Half-life of the average of the parameters, in updates."""
    label_dropout: float = 0.15
    """Share of labels replaced by the null class, so that the network is unconditional too."""
    largest_shift: float = 1.0
    """Most pixels that half of the images are shifted by, told to the network; 0 for no augmentation."""
    mirror: bool = False
    """Whether half of the images are mirrored, left for right, which the network is not told."""
    accumulate: int = 1
    """Parts that the gradient of a batch is computed in, one after the other: less memory, the same numbers."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide the batch of {self.batch_size}, got {self.accumulate}; choose a divisor"
            )
        for name in ("learning_rate", "ema_half_life"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("weight_decay", "largest_shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in ("label_dropout", "second_moment_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


class Hyperparameters(NamedTuple):
    """The numbers of a recipe that the compiled update takes as arguments: changing them compiles nothing."""

    steps: Scalar
    learning_rate: Scalar
    warmup_steps: Scalar
    weight_decay: Scalar
    second_moment_decay: Scalar
    label_dropout: Scalar
    largest_shift: Scalar


def hyperparameters(recipe: Recipe) -> Hyperparameters:
    """Turn the numbers of a recipe into float32 arrays."""
    return Hyperparameters(*(np.asarray(getattr(recipe, name), np.float32) for name in Hyperparameters._fields))


def optimiser(constants: Hyperparameters) -> optax.GradientTransformation:
    """Build AdamW whose learning rate rises linearly, then follows a cosine to 0.

    Its state counts the updates and holds the hyperparameters of the last one, the learning rate among them.
    """

    def rate(count: Int[Array, ""]) -> Scalar:
        warmup = jnp.minimum((count + 1.0) / jnp.maximum(constants.warmup_steps, 1.0), 1.0)
        return constants.learning_rate * warmup * 0.5 * (1.0 + jnp.cos(jnp.pi * count / constants.steps))

    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=rate,
        b2=lambda _: jnp.asarray(constants.second_moment_decay),
        weight_decay=lambda _: jnp.asarray(constants.weight_decay),
    )
