"""Noise schedules: alpha(t) and sigma(t) on t in [0, 1], with t = 0 the data and t = 1 the noise.

The methods follow their argument: numpy in, float64 numpy out (grids are built so, on the host); jax in, jax out.
"""

import dataclasses
from types import ModuleType
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxgen.diffusion.levels import Coefficient, Level
from jaxgen.pytrees import register_dataclass
from jaxgen.typing import ArrayLike

Times = Float[ArrayLike, "*grid"] | float


@runtime_checkable
class Schedule(Protocol):
    """A path x = alpha(t) * x0 + sigma(t) * noise; both methods keep the shape of `t`."""

    def alpha(self, t: Times) -> Times:
        """Return the scale of the data at time `t`."""
        ...

    def sigma(self, t: Times) -> Times:
        """Return the standard deviation of the noise at time `t`."""
        ...


@runtime_checkable
class _Smooth(Protocol):
    """A path whose sigma has an infinite slope somewhere, and which says sigma^2, whose slope is finite there."""

    def variance(self, t: Times) -> Times:
        """Return sigma^2 at time `t`."""
        ...


def _namespace(*values: object) -> ModuleType:
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VariancePreservingLinear:
    """The variance-preserving path with beta(t) linear in t (Song et al. 2021, appendix C).

    Attributes:
        beta_min: beta at t = 0, per unit of time.
        beta_max: beta at t = 1, per unit of time.
    """

    beta_min: Coefficient = 0.1
    beta_max: Coefficient = 20.0

    def beta(self, t: Times) -> Times:
        """Return the rate of the forward process at time `t`."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _log_alpha(self, t: Times) -> Times:
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t)

    def alpha(self, t: Times) -> Times:
        """Return exp(-1/2 times the integral of beta up to `t`)."""
        log_alpha = self._log_alpha(t)
        return _namespace(log_alpha).exp(log_alpha)

    def variance(self, t: Times) -> Times:
        """Return 1 - alpha^2, accurate where alpha is close to 1."""
        log_alpha = self._log_alpha(t)
        return -_namespace(log_alpha).expm1(2.0 * log_alpha)

    def sigma(self, t: Times) -> Times:
        """Return sqrt(1 - alpha^2), of infinite slope at t = 0."""
        variance = self.variance(t)
        return _namespace(variance).sqrt(variance)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VariancePreservingScaledLinear:
    """The variance-preserving path whose root of beta(t) is linear in t (Rombach et al. 2022), in continuous time.

    The defaults are the 1,000 betas from .00085 to .012 of latent diffusion, per unit of time.

    Attributes:
        beta_min: beta at t = 0, per unit of time.
        beta_max: beta at t = 1, per unit of time.
    """

    beta_min: Coefficient = 0.85
    beta_max: Coefficient = 12.0

    def _roots(self) -> tuple[Coefficient, Coefficient]:
        xp = _namespace(self.beta_min, self.beta_max)
        low = xp.sqrt(self.beta_min)
        return low, xp.sqrt(self.beta_max) - low

    def beta(self, t: Times) -> Times:
        """Return the rate of the forward process at time `t`."""
        low, slope = self._roots()
        return (low + slope * t) ** 2

    def _log_alpha(self, t: Times) -> Times:
        low, slope = self._roots()
        return -0.5 * t * (low**2 + t * (low * slope + t * slope**2 / 3.0))

    def alpha(self, t: Times) -> Times:
        """Return exp(-1/2 times the integral of beta up to `t`)."""
        log_alpha = self._log_alpha(t)
        return _namespace(log_alpha).exp(log_alpha)

    def variance(self, t: Times) -> Times:
        """Return 1 - alpha^2, accurate where alpha is close to 1."""
        log_alpha = self._log_alpha(t)
        return -_namespace(log_alpha).expm1(2.0 * log_alpha)

    def sigma(self, t: Times) -> Times:
        """Return sqrt(1 - alpha^2), of infinite slope at t = 0."""
        variance = self.variance(t)
        return _namespace(variance).sqrt(variance)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OffsetCosine:
    """The cosine path with the offset that keeps noise at t = 0 from being too small (Nichol & Dhariwal 2021, eq. 17).

    alpha(t) = cos(A) / cos(B) with A = pi/2 (t + s) / (1 + s) and B = pi/2 s / (1 + s); `cosine_betas` is its discrete
    form, with betas cut at .999.

    Attributes:
        offset: s, positive.
    """

    offset: Coefficient = 0.008

    def alpha(self, t: Times) -> Times:
        """Return cos(A) / cos(B), exactly 0 at t = 1."""
        xp, scale = _namespace(t, self.offset), 0.5 * np.pi / (1.0 + self.offset)
        return xp.sin(scale * (1.0 - t)) / xp.cos(scale * self.offset)

    def variance(self, t: Times) -> Times:
        """Return 1 - alpha^2 as sin(A + B) sin(A - B) / cos(B)^2, accurate where alpha is close to 1."""
        xp, scale = _namespace(t, self.offset), 0.5 * np.pi / (1.0 + self.offset)
        return xp.sin(scale * (t + 2.0 * self.offset)) * xp.sin(scale * t) / xp.cos(scale * self.offset) ** 2

    def sigma(self, t: Times) -> Times:
        """Return sqrt(1 - alpha^2), of infinite slope at t = 0."""
        variance = self.variance(t)
        return _namespace(variance).sqrt(variance)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosine:
    """The variance-preserving path alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Nichol & Dhariwal 2021, s = 0)."""

    def alpha(self, t: Times) -> Times:
        """Return cos(pi t / 2), exactly 0 at t = 1."""
        # sin of the complement: cos(pi / 2) is -4e-8 in float32, and the log-SNR at t = 1 would be NaN.
        return _namespace(t).sin(0.5 * np.pi * (1.0 - t))

    def sigma(self, t: Times) -> Times:
        """Return sin(pi t / 2)."""
        return _namespace(t).sin(0.5 * np.pi * t)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EDM:
    """The variance-exploding path alpha = 1, sigma = sigma_max * t (Karras et al. 2022, table 1, time rescaled).

    Attributes:
        sigma_max: standard deviation of the noise at t = 1, in units of the data.
    """

    sigma_max: Coefficient = 80.0

    def alpha(self, t: Times) -> Times:
        """Return 1."""
        return _namespace(t).ones_like(t)

    def sigma(self, t: Times) -> Times:
        """Return sigma_max * t."""
        return self.sigma_max * t


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VarianceExploding:
    """The variance-exploding path alpha = 1 with ln sigma linear in t (Song et al. 2021, appendix C).

    At t = 0 it is at `sigma_min`, not at clean data; `sigma_grid` builds the grid of any sigmas that go on to 0.

    Attributes:
        sigma_min: standard deviation of the noise at t = 0, in units of the data, positive.
        sigma_max: standard deviation of the noise at t = 1, in units of the data.
    """

    sigma_min: Coefficient = 0.01
    sigma_max: Coefficient = 50.0

    def alpha(self, t: Times) -> Times:
        """Return 1."""
        return _namespace(t).ones_like(t)

    def sigma(self, t: Times) -> Times:
        """Return sigma_min (sigma_max / sigma_min)^t."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Tutorial:
    """The path of Step-by-Step Diffusion (Nakkiran et al. 2024, section 1.2): alpha = 1, sigma = sigma_q sqrt(t).

    Attributes:
        sigma_q: standard deviation of the noise at t = 1, in units of the data; the paper's listings call it a
            variance.
    """

    sigma_q: Coefficient = 5.0

    def alpha(self, t: Times) -> Times:
        """Return 1."""
        return _namespace(t).ones_like(t)

    def variance(self, t: Times) -> Times:
        """Return sigma_q^2 t."""
        return self.sigma_q**2 * t

    def sigma(self, t: Times) -> Times:
        """Return sigma_q sqrt(t), of infinite slope at t = 0."""
        return self.sigma_q * _namespace(t).sqrt(t)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The straight path alpha = 1 - t, sigma = t (Liu et al. 2023; Lipman et al. 2023)."""

    def alpha(self, t: Times) -> Times:
        """Return 1 - t."""
        return 1.0 - t

    def sigma(self, t: Times) -> Times:
        """Return t."""
        return 1.0 * t


def level_at(schedule: Schedule, t: Times) -> Level:
    """Return the level of `schedule` at time `t`, of the shape of `t`."""
    return Level(t, schedule.alpha(t), schedule.sigma(t))


def rates(schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """Return (d alpha / dt, d sigma / dt) at time `t`, each of the shape of `t`.

    Infinite where the path is: a variance-preserving sigma has no finite slope at t = 0.
    """
    t = jnp.asarray(t)
    return jax.jvp(lambda t: (schedule.alpha(t), schedule.sigma(t)), (t,), (jnp.ones_like(t),))[1]


def drift_and_diffusion(schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """Return f = alpha' / alpha and g^2 = d sigma^2 / dt - 2 f sigma^2 of dx = f x dt + g dw, of the shape of `t`.

    Finite at t = 0 also where sigma has an infinite slope, on a path with a method `variance(t)` for sigma^2, as those
    of this module. Infinite at alpha = 0.

    Source: Song et al. 2021, eq. 5; Karras et al. 2022, appendix B.
    """
    t = jnp.asarray(t)
    variance = schedule.variance if isinstance(schedule, _Smooth) else lambda t: schedule.sigma(t) ** 2
    (alpha, spread), (alpha_rate, spread_rate) = jax.jvp(
        lambda t: (schedule.alpha(t), variance(t)), (t,), (jnp.ones_like(t),)
    )
    drift = alpha_rate / alpha
    return drift, spread_rate - 2.0 * drift * spread
