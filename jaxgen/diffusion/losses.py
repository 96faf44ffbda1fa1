"""Training losses, for one sample; `jax.vmap` them over a batch."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxgen.diffusion.levels import Level, corrupt, noise_ratio
from jaxgen.diffusion.predictions import Predict, Prediction, Target, noise_target
from jaxgen.diffusion.schedules import Schedule, level_at
from jaxgen.typing import PRNGKey, Sample, Scalar

Weight: TypeAlias = Callable[[Level], Scalar]


def unit_weight(level: Level) -> Scalar:
    """Weigh every level equally."""
    return jnp.ones_like(level.sigma)


def snr_weight(level: Level) -> Scalar:
    """Weigh by alpha^2 / sigma^2, which turns an x0 loss into a noise loss of weight 1."""
    return noise_ratio(level) ** -2


def edm_weight(data_std: float) -> Weight:
    """Build the weight of an x0 loss under which a preconditioned network sees targets of unit variance.

    (r^2 + d^2) / (r d)^2 with r = sigma / alpha and d = `data_std` (Karras et al. 2022, section 5).
    """
    return lambda level: noise_ratio(level) ** -2 + data_std**-2


def denoising_loss(
    predict: Predict,
    key: PRNGKey,
    x0: Sample,
    level: Level,
    *,
    target: Target = noise_target,
    weight: Weight = unit_weight,
) -> Scalar:
    """Compute the weighted mean squared error of a prediction from noise drawn at `level`.

    Args:
        predict: the network, `predict(x, level) -> Prediction`.
        key: consumed for the noise.
        x0: one clean sample of any shape.
        level: scalars.
        target: the quantity that is compared (`noise_target`, `x0_target`, `v_target`, `velocity_target(schedule)`).
        weight: a function of the level.

    Returns:
        The loss, a scalar: weight * mean over the sample's entries of (predicted - true)^2.

    Source: Step-by-Step Diffusion, pseudocodes 1, 4 and 6; Karras et al. 2022, eq. 8.
    """
    noise = jax.random.normal(key, x0.shape, x0.dtype)
    predicted = predict(corrupt(x0, noise, level), level)
    error = target(predicted, level) - target(Prediction(x0, noise), level)
    return weight(level) * jnp.mean(error**2)


def uncertain_loss(loss: Scalar, log_variance: Scalar) -> Scalar:
    """Weigh a loss by the learned uncertainty of its noise level: loss / e^u + u (Karras et al. 2024, eq. 21).

    Its minimum over u is 1 + ln(loss), reached at e^u = the expected loss: every level then pulls on the network with
    a gradient of one size (Kendall et al. 2018).

    Args:
        loss: the loss of a sample, a mean over its entries.
        log_variance: u, what the network says of that level.
    """
    return loss * jnp.exp(-log_variance) + log_variance


def draw_log_normal_level(key: PRNGKey, mean: Scalar, std: Scalar, sigma_max: float) -> Level:
    """Draw a variance-exploding level: ln sigma ~ N(mean, std^2), cut at `sigma_max` (Karras et al. 2022, table 1)."""
    sigma = jnp.minimum(jnp.exp(mean + std * jax.random.normal(key)), sigma_max)
    return Level(sigma / sigma_max, jnp.ones_like(sigma), sigma)


def draw_uniform_level(key: PRNGKey, schedule: Schedule, *, low: float = 0.0, high: float = 1.0) -> Level:
    """Draw a level of `schedule` with its time uniform in [low, high]."""
    return level_at(schedule, jax.random.uniform(key, minval=low, maxval=high))


def draw_logit_normal_level(key: PRNGKey, schedule: Schedule, *, mean: Scalar = 0.0, std: Scalar = 1.0) -> Level:
    """Draw a level of `schedule` with logit(time) ~ N(mean, std^2) (Esser et al. 2024, section 3.1)."""
    return level_at(schedule, jax.nn.sigmoid(mean + std * jax.random.normal(key)))
