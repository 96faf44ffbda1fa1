"""How a small denoising network is trained."""

import dataclasses
import math

import numpy as np

from jaxgen.pipelines.optimisation import AdamW, Hyperparameters


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

    def hyperparameters(self) -> Hyperparameters:
        """Return the numbers that the compiled update takes as arguments, as float32 scalars."""
        return Hyperparameters(*(np.asarray(getattr(self, name), np.float32) for name in Hyperparameters._fields))

    def optimisation(self) -> AdamW:
        """Return the optimiser and the average."""
        return AdamW(self.ema_half_life)
