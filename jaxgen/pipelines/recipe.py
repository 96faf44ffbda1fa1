"""How a small denoising network is trained."""

import dataclasses

import numpy as np

from jaxgen.pipelines.optimisation import AdamW, Hyperparameters
from jaxgen.pipelines.ranges import check_least, check_not_negative, check_parts, check_positive, check_share


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
        check_least(self, 1, "steps", "batch_size", "accumulate")
        check_least(self, 0, "warmup_steps")
        check_parts(self)
        check_positive(self, "learning_rate", "ema_half_life")
        check_not_negative(self, "weight_decay", "largest_shift")
        check_share(self, "label_dropout", "second_moment_decay")

    def hyperparameters(self) -> Hyperparameters:
        """Return the numbers that the compiled update takes as arguments, as float32 scalars."""
        return Hyperparameters(*(np.asarray(getattr(self, name), np.float32) for name in Hyperparameters._fields))

    def optimisation(self) -> AdamW:
        """Return the optimiser and the average."""
        return AdamW(self.ema_half_life)
