"""What a denoising network is trained to predict, at which noise levels, and the grid on which it is sampled."""

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Protocol, TypeAlias, runtime_checkable

from jaxgen.diffusion import (
    Level,
    Prediction,
    RectifiedFlow,
    denoising_loss,
    draw_log_normal_level,
    draw_logit_normal_level,
    edm_condition,
    edm_preconditioned,
    edm_weight,
    from_velocity,
    karras_grid,
    uniform_grid,
    velocity_target,
    x0_target,
)
from jaxgen.diffusion.levels import Coefficient
from jaxgen.diffusion.predictions import Predict
from jaxgen.typing import PRNGKey, Sample, Scalar

Network: TypeAlias = Callable[[Sample, Scalar], Sample]
"""Maps an input (the shape of a sample) and a scalar noise condition to an output of the shape of the sample."""


@runtime_checkable
class Objective(Protocol):
    """How a network is trained and read; hashable by value, so that equal ones share one compiled program."""

    def predict(self, network: Network, x: Sample, level: Level) -> Prediction:
        """Read the network's output at `x`, of any shape, as a prediction."""
        ...

    def condition(self, level: Level) -> Coefficient:
        """Return what the network is told about the noise at `level`."""
        ...

    def draw_level(self, key: PRNGKey) -> Level:
        """Draw the noise level of one training example; the key is consumed."""
        ...

    def loss(self, predict: Predict, key: PRNGKey, x0: Sample, level: Level) -> Scalar:
        """Compute the loss of one clean sample at one level; the key is consumed for the noise."""
        ...

    def grid(self, steps: int) -> Level:
        """Build the falling grid for sampling in `steps` steps: leaves `[steps + 1]`, float64."""
        ...


@dataclasses.dataclass(frozen=True)
class EDMObjective:
    """Predict the clean sample through a preconditioned network on the variance-exploding path (Karras et al. 2022).

    Any sampler may run on it: every prediction follows from the clean sample's. The grid is Karras et al., equation 5.
    """

    data_std: float = 0.5
    """Standard deviation of the data, in their units."""
    log_sigma_mean: float = -1.2
    """Mean of ln sigma in training."""
    log_sigma_std: float = 1.2
    """Standard deviation of ln sigma in training."""
    sigma_min: float = 0.002
    """Smallest sigma of a grid above 0."""
    sigma_max: float = 80.0
    """Largest sigma, where sampling starts."""

    def __post_init__(self) -> None:
        """Refuse values that no loss can be computed with."""
        for name in ("data_std", "log_sigma_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigmas must satisfy 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )

    def predict(self, network: Network, x: Sample, level: Level) -> Prediction:
        """Read the network through the preconditioning of Karras et al. (2022, section 5)."""
        return edm_preconditioned(network, x, level, self.data_std)

    def condition(self, level: Level) -> Coefficient:
        """Return ln(sigma) / 4."""
        return edm_condition(level)

    def level_edges(self, count: int) -> tuple[float, ...]:
        """Return the `count - 1` values of ln sigma that cut the training law into equally likely parts."""
        law = NormalDist(self.log_sigma_mean, self.log_sigma_std)
        return tuple(law.inv_cdf(part / count) for part in range(1, count))

    def draw_level(self, key: PRNGKey) -> Level:
        """Draw ln sigma from a Gaussian, cut at `sigma_max`."""
        return draw_log_normal_level(key, self.log_sigma_mean, self.log_sigma_std, self.sigma_max)

    def loss(self, predict: Predict, key: PRNGKey, x0: Sample, level: Level) -> Scalar:
        """Compute the squared error of the clean sample, weighted to unit variance at every level."""
        return denoising_loss(predict, key, x0, level, target=x0_target, weight=edm_weight(self.data_std))

    def grid(self, steps: int) -> Level:
        """Build the grid of Karras et al. (2022, equation 5), from `sigma_max` to 0."""
        return karras_grid(steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max)


@dataclasses.dataclass(frozen=True)
class FlowObjective:
    """Predict the velocity of straight paths: flow matching (Lipman et al. 2023; Step-by-Step Diffusion, section 4)."""

    logit_mean: float = 0.0
    """Mean of logit(t) in training; above 0 favours noise."""
    logit_std: float = 1.0
    """Standard deviation of logit(t) in training."""

    def __post_init__(self) -> None:
        """Refuse values that no loss can be computed with."""
        if not (math.isfinite(self.logit_mean) and 0 < self.logit_std < math.inf):
            raise ValueError(f"logit(t) needs a finite mean and a positive std: {self.logit_mean}, {self.logit_std}")

    def predict(self, network: Network, x: Sample, level: Level) -> Prediction:
        """Read the network's output as the velocity noise - x0; it is told the time."""
        return from_velocity(x, level, network(x, self.condition(level)), RectifiedFlow())

    def condition(self, level: Level) -> Coefficient:
        """Return the time."""
        return level.time

    def draw_level(self, key: PRNGKey) -> Level:
        """Draw logit(t) from a Gaussian (Esser et al. 2024, section 3.1)."""
        return draw_logit_normal_level(key, RectifiedFlow(), mean=self.logit_mean, std=self.logit_std)

    def loss(self, predict: Predict, key: PRNGKey, x0: Sample, level: Level) -> Scalar:
        """Compute the squared error of the velocity."""
        return denoising_loss(predict, key, x0, level, target=velocity_target(RectifiedFlow()))

    def grid(self, steps: int) -> Level:
        """Build equal steps of time from 1 to 0."""
        return uniform_grid(RectifiedFlow(), steps)
