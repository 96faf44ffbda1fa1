"""How a training moves the parameters: what every recipe says of it, and AdamW with one average."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxgen.training import Ema, EmaState, PowerEmaState, ema
from jaxgen.typing import Params, Scalar


@runtime_checkable
class Optimisation(Protocol):
    """The optimiser and the averages of a recipe, without its numbers; hashable by value.

    The numbers are a NamedTuple of scalars that the compiled update takes as an argument. It has the fields
    `label_dropout` and `largest_shift`, and whatever the optimiser wants.
    """

    def optimiser(self, constants: Any) -> optax.GradientTransformation:
        """Build the optimiser, whose state has `hyperparams["learning_rate"]`."""
        ...

    def average(self) -> Ema:
        """Build the average, or the averages, of the parameters."""
        ...

    def mend(self, gradient: Params) -> tuple[Params, dict[str, Array]]:
        """Mend a gradient before it is used, and return what to tell of it."""
        ...


@runtime_checkable
class TrainingRecipe(Protocol):
    """What `train_diffusion` wants to know: `Recipe`, or `EDM2Recipe`."""

    @property
    def steps(self) -> int:
        """Return the number of updates."""
        ...

    @property
    def batch_size(self) -> int:
        """Return the number of images in an update."""
        ...

    @property
    def accumulate(self) -> int:
        """Return the number of parts that a gradient is computed in."""
        ...

    @property
    def mirror(self) -> bool:
        """Return whether half of the images are mirrored."""
        ...

    @property
    def largest_shift(self) -> float:
        """Return the largest shift of the images, in pixels."""
        ...

    def hyperparameters(self) -> Any:
        """Return the numbers, as float32 scalars."""
        ...

    def optimisation(self) -> Optimisation:
        """Return the rest."""
        ...


class Hyperparameters(NamedTuple):
    """The numbers of a `Recipe` that the compiled update takes as arguments: changing them compiles nothing."""

    steps: Scalar
    learning_rate: Scalar
    warmup_steps: Scalar
    weight_decay: Scalar
    second_moment_decay: Scalar
    label_dropout: Scalar
    largest_shift: Scalar


def adamw(constants: Hyperparameters) -> optax.GradientTransformation:
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


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW whose learning rate rises linearly, then follows a cosine to 0, and an exponential moving average."""

    ema_half_life: float
    """Half-life of the average of the parameters, in updates."""

    def optimiser(self, constants: Hyperparameters) -> optax.GradientTransformation:
        """Build the optimiser, see `adamw`."""
        return adamw(constants)

    def average(self) -> Ema:
        """Build the average."""
        return ema(half_life=self.ema_half_life)

    def mend(self, gradient: Params) -> tuple[Params, dict[str, Array]]:
        """Leave a gradient as it is: one that is not finite ends the training."""
        return gradient, {}


def averaged_params(averages: PyTree) -> Params:
    """Return the parameters to sample with from `state.ema`: the average, or the one of the first width."""
    if isinstance(averages, PowerEmaState):
        return averages.averages[0]
    if isinstance(averages, EmaState):
        return averages.average
    raise TypeError(f"no average of parameters: {type(averages).__name__}")
