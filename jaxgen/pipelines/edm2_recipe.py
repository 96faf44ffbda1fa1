"""How EDM2 is trained (Karras et al. 2024): Adam under a law of images seen, and averages of several widths."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxgen.pipelines.ranges import check_least, check_not_negative, check_parts, check_positive, check_share
from jaxgen.training import Ema, inverse_root_rate, of_images, power_ema, width_to_exponent, zero_nonfinite
from jaxgen.training.learning_rates import OfImages
from jaxgen.typing import Params, Scalar

RateLaw: TypeAlias = Callable[..., OfImages]
"""`law(peak, reference_images=..., ramp_images=...)` returns a learning rate as a function of images seen. It is part
of the key of the compilation cache: `inverse_root_rate`, `stepped_inverse_root_rate`, or a function of a module."""


class EDM2Hyperparameters(NamedTuple):
    """The numbers of an `EDM2Recipe` that the compiled update takes as arguments: changing them compiles nothing."""

    learning_rate: Scalar
    reference_images: Scalar
    ramp_images: Scalar
    batch_size: Scalar
    second_moment_decay: Scalar
    label_dropout: Scalar
    largest_shift: Scalar


@dataclasses.dataclass(frozen=True)
class EDM2Adam:
    """Adam without weight decay, its gradients mended, and power-function averages.

    Attributes:
        law: the learning rate as a function of the images seen before an update.
        widths: of the averages, relative to the length of the training.
    """

    law: RateLaw
    widths: tuple[float, ...]

    def optimiser(self, constants: EDM2Hyperparameters) -> optax.GradientTransformation:
        """Build Adam; its state counts the updates and holds the hyperparameters of the last one."""
        law = self.law(
            constants.learning_rate,
            reference_images=constants.reference_images,
            ramp_images=constants.ramp_images,
        )
        return optax.inject_hyperparams(optax.adam)(
            learning_rate=of_images(law, constants.batch_size),
            b2=lambda _: jnp.asarray(constants.second_moment_decay),
        )

    def average(self) -> Ema:
        """Build the averages."""
        return power_ema(self.widths)

    def mend(self, gradient: Params) -> tuple[Params, dict[str, Array]]:
        """Set the entries that are not finite to 0, and count them."""
        mended, count = zero_nonfinite(gradient)
        return mended, {"nonfinite_gradients": count}


@dataclasses.dataclass(frozen=True)
class EDM2Recipe:
    """How to train EDM2; the defaults are those of its small size on ImageNet at 64 x 64 pixels.

    Source: Karras et al. 2024, table 6.
    """

    steps: int = 524_288
    """Updates."""
    batch_size: int = 2048
    """Images in an update, drawn without replacement within an epoch."""
    learning_rate: float = 0.010
    """Learning rate before it decays."""
    reference_batches: float = 35_000.0
    """Updates after which it decays with the root of the images seen."""
    ramp_images: float = 10e6
    """Images over which it rises linearly from 0; the published 10 million leave a small run untrained."""
    law: RateLaw = inverse_root_rate
    """The law of the learning rate."""
    second_moment_decay: float = 0.99
    """Adam's b2."""
    ema_widths: tuple[float, ...] = (0.05, 0.10)
    """Widths of the averages of the parameters, as shares of the training; samples are drawn with the first."""
    label_dropout: float = 0.0
    """Share of labels replaced by the null class; above 0 one network serves guidance too."""
    mirror: bool = False
    """Whether half of the images are mirrored, left for right, which the network is not told."""
    accumulate: int = 1
    """Parts that the gradient of a batch is computed in, one after the other: less memory, the same numbers."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        check_least(self, 1, "steps", "batch_size", "accumulate")
        check_parts(self)
        check_positive(self, "learning_rate", "reference_batches")
        check_not_negative(self, "ramp_images")
        check_share(self, "label_dropout", "second_moment_decay")
        if not self.ema_widths:
            raise ValueError("ema_widths must name at least one width, got none")
        for width in self.ema_widths:
            width_to_exponent(width)

    @property
    def largest_shift(self) -> float:
        """Return 0: EDM2 is trained without shifts."""
        return 0.0

    def hyperparameters(self) -> EDM2Hyperparameters:
        """Return the numbers that the compiled update takes as arguments, as float32 scalars."""
        numbers: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "reference_images": self.reference_batches * self.batch_size,
            "ramp_images": self.ramp_images,
            "batch_size": self.batch_size,
            "second_moment_decay": self.second_moment_decay,
            "label_dropout": self.label_dropout,
            "largest_shift": 0.0,
        }
        return EDM2Hyperparameters(**{name: np.asarray(number, np.float32) for name, number in numbers.items()})

    def optimisation(self) -> EDM2Adam:
        """Return the optimiser and the averages."""
        return EDM2Adam(self.law, self.ema_widths)
