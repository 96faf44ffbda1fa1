"""Grids of noise levels, built in float64 on the host and passed to samplers as an argument."""

import numpy as np
from jax.core import Tracer

from jaxgen.diffusion.levels import Level
from jaxgen.diffusion.schedules import Schedule, level_at
from jaxgen.typing import ArrayLike


def check_steps(steps: int) -> None:
    """Refuse a number of steps that is not a positive integer.

    Raises:
        ValueError: names the value.
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")


def _check_times(times: np.ndarray) -> None:
    outside = times[(times < 0) | (times > 1)]
    if outside.size:
        raise ValueError(f"times must lie in [0, 1], got {outside[0]:g}; rescale the schedule's time to this range")


def uniform_grid(schedule: Schedule, steps: int, *, start: float = 1.0, stop: float = 0.0, shift: float = 1.0) -> Level:
    """Build a grid of equal time steps from `start` to `stop`: leaves `[steps + 1]`, float64.

    `start < stop` gives a rising grid, for inversion. `shift` puts every time through `shift_times`.

    Raises:
        ValueError: if `steps` is below 1, a time lies outside [0, 1], `shift` is not positive, or the grid is not
            strictly monotone.

    >>> from jaxgen.diffusion import Cosine
    >>> uniform_grid(Cosine(), 2).sigma.round(4).tolist()
    [1.0, 0.7071, 0.0]
    """
    check_steps(steps)
    return time_grid(schedule, shift_times(np.linspace(start, stop, steps + 1), shift))


def shift_times(times: ArrayLike | list | float, shift: float) -> np.ndarray:
    """Move times towards the noise: k t / (1 + (k - 1) t) (Esser et al. 2024, eq. 23), float64 of the same shape.

    A grid is shifted, and not its path: the network goes on being told the time at which it was trained.

    Args:
        times: in [0, 1].
        shift: k; 1 moves nothing, above 1 spends more steps on noise. On a rectified flow sigma / alpha grows by k.

    Raises:
        ValueError: if `shift` is not positive and finite.
    """
    if not 0.0 < shift < np.inf:
        raise ValueError(f"a shift of times must be positive and finite, got {shift}; 1 moves nothing")
    times = np.asarray(times, np.float64)
    return shift * times / (1.0 + (shift - 1.0) * times)


def time_at_ratio(schedule: Schedule, ratios: ArrayLike | list) -> np.ndarray:
    """Find the times at which sigma / alpha has the given values, by bisection: float64 of the same shape.

    Args:
        schedule: a path whose sigma / alpha rises with time.
        ratios: non-negative; infinity is where alpha = 0.

    Raises:
        ValueError: if a ratio lies outside the path's.
    """
    wanted = np.asarray(ratios, np.float64)
    ends = level_at(schedule, np.array([0.0, 1.0]))
    with np.errstate(divide="ignore"):
        lowest, highest = np.divide(ends.sigma, ends.alpha)
    outside = wanted[~((wanted >= lowest) & (wanted <= highest))]
    if outside.size:
        raise ValueError(
            f"sigma / alpha of this path lies between {lowest:g} and {highest:g}, got {outside.flat[0]:g}; "
            "choose ratios inside"
        )
    # sigma >= ratio * alpha, divided by a large ratio: neither 0 * infinity nor a loss of digits far from the data.
    of_sigma, of_alpha = 1.0 / np.maximum(wanted, 1.0), np.minimum(wanted, 1.0)
    low, high = np.zeros_like(wanted), np.ones_like(wanted)
    # Bits of a time of 1e-10 are found as surely as those of one near 1.
    for _ in range(120):
        middle = 0.5 * (low + high)
        above = of_sigma * schedule.sigma(middle) >= of_alpha * schedule.alpha(middle)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(wanted <= lowest, 0.0, high)


def ratio_grid(schedule: Schedule, ratios: ArrayLike | list) -> Level:
    """Build the grid of `schedule` whose levels have the given sigma / alpha, `[steps + 1]`, float64.

    Grids of several paths at the same ratios are one for every sampler that works on x / alpha.

    Raises:
        ValueError: if a ratio lies outside the path's, or the grid is not strictly monotone.

    >>> from jaxgen.diffusion import RectifiedFlow
    >>> ratio_grid(RectifiedFlow(), [1.0, 0.25, 0.0]).time.round(4).tolist()
    [0.5, 0.2, 0.0]
    """
    return time_grid(schedule, time_at_ratio(schedule, ratios))


def log_snr_grid(schedule: Schedule, steps: int, *, ratio_min: float = 0.002, ratio_max: float = 80.0) -> Level:
    """Build a grid of `steps` levels with equal steps in ln(alpha / sigma), then clean data; leaves `[steps + 1]`.

    Args:
        schedule: a path that reaches sigma = 0.
        steps: number of steps; one step goes from `ratio_max` to 0.
        ratio_min: smallest sigma / alpha above 0.
        ratio_max: largest sigma / alpha.

    Raises:
        ValueError: if `steps` is below 1, 0 < ratio_min < ratio_max does not hold, or the path does not reach these.
    """
    check_steps(steps)
    if not 0.0 < ratio_min < ratio_max < np.inf:
        raise ValueError(f"ratios must satisfy 0 < ratio_min < ratio_max, got {ratio_min} and {ratio_max}")
    return ratio_grid(schedule, np.append(np.geomspace(ratio_max, ratio_min, steps), 0.0))


def time_grid(schedule: Schedule, times: ArrayLike) -> Level:
    """Build the grid of `schedule` at the given times, `[steps + 1]`, float64.

    Raises:
        ValueError: if a time lies outside [0, 1] or the grid is not strictly monotone.
    """
    times = np.asarray(times, np.float64)
    # Before the schedule sees them: outside its range it may have no value at all.
    _check_times(times)
    grid = level_at(schedule, times)
    check_grid(grid)
    return grid


def karras_grid(steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Level:
    """Build the variance-exploding grid of Karras et al. (2022, eq. 5): `steps` sigmas, then 0; leaves `[steps + 1]`.

    The times are those of `EDM(sigma_max)`. With `steps = 1` the one step goes from `sigma_max` to 0.

    Raises:
        ValueError: if `steps` is below 1, `rho` is not positive, or 0 < sigma_min < sigma_max does not hold.
    """
    check_steps(steps)
    if not 0.0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f"sigmas must satisfy 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if not 0.0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho}")
    ramp = np.arange(steps) / max(steps - 1, 1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return sigma_grid(np.append(sigmas, 0.0))


def sigma_grid(sigmas: ArrayLike) -> Level:
    """Build a variance-exploding grid (alpha = 1) from its sigmas, `[steps + 1]`; time is sigma over the largest.

    Raises:
        ValueError: if the sigmas are not strictly monotone, finite and non-negative.
    """
    sigma = np.asarray(sigmas, np.float64)
    largest = np.max(sigma, initial=0.0)
    grid = Level(sigma / largest if 0 < largest < np.inf else sigma, np.ones_like(sigma), sigma)
    check_grid(grid)
    return grid


def check_grid(grid: Level, *, divides_by_alpha: bool = False) -> None:
    """Refuse a grid that no sampler can follow; traced grids pass, since their values are not known.

    Args:
        grid: levels `[steps + 1]`.
        divides_by_alpha: the network predicts the noise (or the score), from which x0 follows by a division by alpha.

    Raises:
        ValueError: if the grid has no step, is not finite, has times outside [0, 1], is not strictly monotone in
            sigma / alpha, or reaches alpha = 0 although the network divides by it.
    """
    if any(isinstance(leaf, Tracer) for leaf in grid):
        return
    time, alpha, sigma = (np.asarray(leaf, np.float64) for leaf in grid)
    if time.ndim != 1 or len(time) < 2 or not time.shape == alpha.shape == sigma.shape:
        raise ValueError(
            f"a grid needs time, alpha and sigma of one common length of at least 2, got shapes {time.shape}, "
            f"{alpha.shape} and {sigma.shape}"
        )
    if not all(np.isfinite(leaf).all() for leaf in (time, alpha, sigma)) or min(alpha.min(), sigma.min()) < 0:
        raise ValueError("a grid needs finite times and finite, non-negative alpha and sigma; one of them is not")
    _check_times(time)
    # The angle of (alpha, sigma) orders levels as sigma / alpha does, and is finite at alpha = 0.
    moves = np.diff(np.arctan2(sigma, alpha))
    if not ((moves < 0).all() or (moves > 0).all()):
        at = int(np.argmax(moves >= 0 if moves[0] < 0 else moves <= 0))
        raise ValueError(
            f"a grid must be strictly monotone in sigma / alpha, but between entries {at} and {at + 1} sigma goes from "
            f"{sigma[at]:g} to {sigma[at + 1]:g} at alpha {alpha[at]:g} to {alpha[at + 1]:g}; sort it, drop repeats"
        )
    if divides_by_alpha and alpha.min() == 0:
        raise ValueError(
            "a network that predicts the noise says nothing about x0 at alpha = 0, which this grid contains; "
            "start below t = 1 or predict x0, v or the velocity"
        )


def check_falling(grid: Level) -> None:
    """Refuse a grid that rises, for kernels that add noise on their way down; traced grids pass.

    Raises:
        ValueError: if sigma / alpha rises, as far as its first two levels are known.
    """
    if any(isinstance(leaf, Tracer) for leaf in grid):
        return
    alpha, sigma = (np.asarray(leaf, np.float64)[:2] for leaf in (grid.alpha, grid.sigma))
    if np.diff(np.arctan2(sigma, alpha)) > 0:
        raise ValueError(
            f"a sampler that draws noise needs a grid whose sigma / alpha falls, but it rises, at first from sigma "
            f"{sigma[0]:g} to {sigma[1]:g}; turn it round, or encode by `ddim` or `ddim_inversion`"
        )


def check_signal(grid: Level) -> None:
    """Refuse a grid that steps from alpha = 0, for kernels whose step has no size there; traced grids pass.

    Raises:
        ValueError: if a level but the last has alpha = 0.
    """
    if any(isinstance(leaf, Tracer) for leaf in grid):
        return
    if np.min(np.asarray(grid.alpha)[:-1]) == 0:
        raise ValueError(
            "this sampler's step is infinite at alpha = 0, where this grid starts; start it below t = 1, for example "
            "by uniform_grid(..., start=0.999)"
        )
