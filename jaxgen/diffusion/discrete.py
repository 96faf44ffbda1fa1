"""Discrete schedules: betas, the levels of their timesteps, and the subsets of timesteps that are sampled on.

`Level.time` of timestep i out of `count` is i / (count - 1), in [0, 1]; `timestep` gives i back, for networks that are
told it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.diffusion.grids import check_grid, check_steps
from jaxgen.diffusion.levels import Coefficient, Level
from jaxgen.diffusion.schedules import Times
from jaxgen.pytrees import register_dataclass
from jaxgen.typing import ArrayLike


def linear_betas(count: int = 1000, *, start: float = 1e-4, stop: float = 0.02) -> Float[np.ndarray, " count"]:
    """Return betas that are linear in the timestep (Ho et al. 2020, section 4)."""
    _check_betas(count, start, stop)
    return np.linspace(start, stop, count)


def scaled_linear_betas(
    count: int = 1000, *, start: float = 0.00085, stop: float = 0.012
) -> Float[np.ndarray, " count"]:
    """Return betas whose roots are linear in the timestep (Rombach et al. 2022; Stable Diffusion)."""
    _check_betas(count, start, stop)
    return np.linspace(start**0.5, stop**0.5, count) ** 2


def cosine_betas(count: int = 1000, *, offset: float = 0.008, most: float = 0.999) -> Float[np.ndarray, " count"]:
    """Return the betas of a cosine path, cut at `most` (Nichol & Dhariwal 2021, eq. 17)."""
    check_steps(count)
    if not 0.0 <= offset < np.inf or not 0.0 < most < 1.0:
        raise ValueError(f"the offset must be at least 0 and the largest beta in (0, 1), got {offset} and {most}")
    angles = 0.5 * np.pi * (np.arange(count + 1) / count + offset) / (1.0 + offset)
    return np.minimum(1.0 - (np.cos(angles[1:]) / np.cos(angles[:-1])) ** 2, most)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VariancePreservingDiscrete:
    """The path alpha = sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar) through the timesteps of betas; see `discrete`.

    Between timesteps ln alpha-bar is linear in time.

    Attributes:
        log_alpha_bars: ln of the running product of 1 - beta, for every timestep.
    """

    log_alpha_bars: Float[ArrayLike, " count"]

    def _log_alpha_bar(self, t: Times) -> Times:
        count = len(self.log_alpha_bars)
        if any(isinstance(value, jax.Array) for value in (t, self.log_alpha_bars)):
            bars = jnp.asarray(self.log_alpha_bars)
            return jnp.interp(jnp.asarray(t, bars.dtype) * (count - 1), jnp.arange(count, dtype=bars.dtype), bars)
        return np.interp(np.asarray(t) * (count - 1), np.arange(count), self.log_alpha_bars)

    def alpha(self, t: Times) -> Times:
        """Return sqrt(alpha-bar) at time `t`."""
        log_alpha_bar = self._log_alpha_bar(t)
        return (jnp if isinstance(log_alpha_bar, jax.Array) else np).exp(0.5 * log_alpha_bar)

    def variance(self, t: Times) -> Times:
        """Return 1 - alpha-bar at time `t`."""
        log_alpha_bar = self._log_alpha_bar(t)
        return -(jnp if isinstance(log_alpha_bar, jax.Array) else np).expm1(log_alpha_bar)

    def sigma(self, t: Times) -> Times:
        """Return sqrt(1 - alpha-bar) at time `t`; above 0 at t = 0, since the first beta is noise already."""
        variance = self.variance(t)
        return (jnp if isinstance(variance, jax.Array) else np).sqrt(variance)


def discrete(betas: ArrayLike | list) -> VariancePreservingDiscrete:
    """Build the path of betas `[count]`, float64.

    Raises:
        ValueError: if there are fewer than 2 betas, or one lies outside (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or not (0 < betas.min() <= betas.max() < 1):
        raise ValueError("betas must be a row of at least 2 numbers in (0, 1); one of them is not")
    return VariancePreservingDiscrete(np.cumsum(np.log1p(-betas)))


def timestep(time: Coefficient, count: int) -> Float[Array, "*grid"]:
    """Return the timestep of a `Level.time`, as the float that networks embed; a whole number on a `timestep_grid`."""
    exact = jnp.asarray(time) * (count - 1)
    whole = jnp.round(exact)
    # i / (count - 1) * (count - 1) is i but for rounding.
    return jnp.where(jnp.abs(exact - whole) <= 4 * jnp.finfo(exact.dtype).eps * count, whole, exact)


def leading_timesteps(count: int, steps: int, *, offset: int = 0) -> Int[np.ndarray, " steps"]:
    """Return multiples of count // steps, falling to `offset`: the last timesteps are left out.

    Stable Diffusion ships with offset 1, and with the level of timestep 0 as its final one. The multistep solver of
    diffusers takes `leading_timesteps(count, steps + 1)[:-1]`.

    Raises:
        ValueError: if `steps` does not lie in 1 to count, or `offset` leaves the timesteps.
    """
    _check_subset(count, steps)
    found = np.arange(steps)[::-1] * (count // steps) + offset
    if offset < 0 or found[0] >= count:
        raise ValueError(f"an offset of {offset} leaves the timesteps 0 to {count - 1}; choose a smaller one")
    return found


def trailing_timesteps(count: int, steps: int) -> Int[np.ndarray, " steps"]:
    """Return timesteps that fall from the last one in steps of count / steps (Lin et al. 2024, table 2).

    Raises:
        ValueError: if `steps` does not lie in 1 to count.
    """
    _check_subset(count, steps)
    # This very expression, since ties are broken by its rounding; for some numbers of steps it has one entry too many.
    return np.round(np.arange(count, 0, -count / steps)[:steps]).astype(np.int64) - 1


def linspace_timesteps(count: int, steps: int) -> Int[np.ndarray, " steps"]:
    """Return timesteps that fall from the last one to 0, both included, at equal distances; a single one is 0.

    The multistep solver of diffusers takes `linspace_timesteps(count, steps + 1)[:-1]`.

    Raises:
        ValueError: if `steps` does not lie in 1 to count.
    """
    _check_subset(count, steps)
    return np.round(np.linspace(0, count - 1, steps)).astype(np.int64)[::-1]


def timestep_grid(
    schedule: VariancePreservingDiscrete, timesteps: ArrayLike | list, *, final_alpha_bar: float = 1.0
) -> Level:
    """Build the grid through falling timesteps `[steps]`, then a final level: leaves `[steps + 1]`, float64.

    The next level is always that of the next timestep of the list, however they are spaced.

    Args:
        schedule: the path.
        timesteps: whole numbers in [0, count), falling.
        final_alpha_bar: of the level after the last timestep; 1 is clean data, and exp of `log_alpha_bars[0]` what
            Stable Diffusion's `set_alpha_to_one=False` means. Its time is 0.

    Raises:
        ValueError: if a timestep is not a whole number in [0, count), `final_alpha_bar` lies outside (0, 1], or the
            grid is not strictly falling.
    """
    chosen, count = np.asarray(timesteps), len(schedule.log_alpha_bars)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer) or not chosen.size:
        raise ValueError(f"timesteps must be a row of whole numbers, got shape {chosen.shape} of {chosen.dtype}")
    if chosen.min() < 0 or chosen.max() >= count:
        outside = chosen[(chosen < 0) | (chosen >= count)][0]
        raise ValueError(f"timesteps must lie in 0 to {count - 1}, got {outside}")
    if not 0.0 < final_alpha_bar <= 1.0:
        raise ValueError(f"the final alpha-bar must lie in (0, 1], got {final_alpha_bar}; 1 is clean data")
    log_bars = np.append(np.asarray(schedule.log_alpha_bars, np.float64)[chosen], np.log(final_alpha_bar))
    times = np.append(chosen / (count - 1), 0.0)
    grid = Level(times, np.exp(0.5 * log_bars), np.sqrt(-np.expm1(log_bars)))
    check_grid(grid)
    return grid


def _check_betas(count: int, start: float, stop: float) -> None:
    check_steps(count)
    if not 0.0 < start <= stop < 1.0:
        raise ValueError(f"betas must satisfy 0 < start <= stop < 1, got {start} and {stop}")


def _check_subset(count: int, steps: int) -> None:
    check_steps(steps)
    if steps > count:
        raise ValueError(f"steps must be at most the {count} timesteps there are, got {steps}")
