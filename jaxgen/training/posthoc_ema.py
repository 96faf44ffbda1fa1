"""Averages of any width after a run, as combinations of those that it kept."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float64, PyTree, Shaped

from jaxgen.training.power_ema import width_to_exponent

Numbers: TypeAlias = Sequence[float | int] | Shaped[np.ndarray, " pairs"]
Values: TypeAlias = float | int | Float64[np.ndarray, "..."]

# Rounding of float32 averages, 6e-8 of each, grows by this factor: beyond it little would be left of them.
_MOST_CANCELLATION = 1e4


def profile_product(time_a: Values, gamma_a: Values, time_b: Values, gamma_b: Values) -> Float64[np.ndarray, "..."]:
    """Integrate the product of two profiles, each proportional to t^gamma on [0, time] and of integral 1.

    With a the one that ends first, it is (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1)
    (time_a / time_b)^gamma_b / time_b (Karras et al. 2024, eq. 151). The arguments are broadcast.

    >>> float(profile_product(1.0, 0.0, 2.0, 0.0))  # heights 1 and 1/2, over [0, 1]
    0.5
    """
    first, last = np.minimum(time_a, time_b), np.maximum(time_a, time_b)
    exponent = np.where(np.less(time_a, time_b), gamma_b, gamma_a)
    scale = np.add(gamma_a, 1.0) * np.add(gamma_b, 1.0) / (np.add(gamma_a, gamma_b) + 1.0)
    return np.asarray(scale * (first / last) ** exponent / last, np.float64)


def posthoc_coefficients(
    times: Numbers, widths: Numbers, target_time: float | int, target_width: float
) -> Float64[np.ndarray, " pairs"]:
    """Return the coefficients with which stored averages combine into the average of another width.

    The profile of the combination is the nearest in L2 to that of the target (Karras et al. 2024, section 3.2 and
    algorithm 3); the coefficients are then divided by their sum. A stored average is returned as it is. Far from the
    stored widths the nearest profile is not near: from widths 0.05 and 0.10, eight times stored, a target of 0.15 is
    0.6 % off for parameters that oscillate through the run, one of 0.075 by 0.03 %.

    Args:
        times: when each average was stored, above 0, in any unit.
        widths: the width of each; what is later than the target has the coefficient 0.
        target_time: the time for which to combine, in the same unit.
        target_width: the width to combine to, in (0, 1/sqrt(12)).

    Returns:
        A coefficient for each average; their sum is 1.

    Raises:
        ValueError: if nothing is stored, a time or a width is out of range, an average occurs twice, all are later
            than the target, or the coefficients are so large that rounding would outweigh the averages.

    >>> [round(float(c), 4) for c in posthoc_coefficients([1, 1, 2, 2], [0.05, 0.1, 0.05, 0.1], 2, 0.075)]
    [0.0001, -0.0024, 0.343, 0.6593]
    """
    stored_times, stored_widths = np.asarray(times, np.float64), np.asarray(widths, np.float64)
    _check_stored(stored_times, stored_widths, target_time)
    target = width_to_exponent(target_width)
    early = stored_times <= target_time
    same = (stored_times == target_time) & (stored_widths == target_width)
    if same.any():
        return same.astype(np.float64)
    exponents = {width: width_to_exponent(width) for width in np.unique(stored_widths).tolist()}
    coefficients = np.zeros(len(stored_times))
    gammas = np.array([exponents[width] for width in stored_widths[early].tolist()])
    coefficients[early] = _solve(stored_times[early] / target_time, gammas, target)
    if not np.abs(coefficients).sum() < _MOST_CANCELLATION:
        raise ValueError(
            f"width {target_width} at time {target_time} cannot be combined from what is stored: the coefficients "
            f"reach {np.abs(coefficients).max():.1e} and would cancel; choose a width nearer to the stored ones, and "
            f"leave out averages that are almost the same"
        )
    return coefficients


def profile_error(
    coefficients: Float64[np.ndarray, " pairs"],
    times: Numbers,
    widths: Numbers,
    target_time: float | int,
    target_width: float,
) -> float:
    """Measure how far the profile of a combination is from the wanted one, in L2 and relative to the size of that.

    0 is the wanted average itself. About 1 is another average altogether: of another width, or of a time long before.

    Args:
        coefficients: as `posthoc_coefficients` returned them.
        times: see there, and so are all others.
        widths: see there.
        target_time: see there.
        target_width: see there.

    >>> stored = [1, 2, 3, 4], [0.1, 0.1, 0.1, 0.1]
    >>> [round(profile_error(posthoc_coefficients(*stored, 4, width), *stored, 4, width), 2) for width in (0.1, 0.2)]
    [0.0, 0.45]
    """
    used = np.flatnonzero(coefficients)
    kept, stored = coefficients[used], np.asarray(times, np.float64)[used] / target_time
    gammas = np.array([width_to_exponent(width) for width in np.asarray(widths, np.float64)[used].tolist()])
    target = width_to_exponent(target_width)
    products = profile_product(stored[:, None], gammas[:, None], stored[None], gammas[None])
    size = float(profile_product(1.0, target, 1.0, target))
    square = float(kept @ products @ kept - 2.0 * kept @ profile_product(stored, gammas, 1.0, target) + size)
    return float(np.sqrt(max(square, 0.0) / size))


def _solve(times: Float64[np.ndarray, " pairs"], gammas: Float64[np.ndarray, " pairs"], target: float) -> np.ndarray:
    """Solve the normal equations of the nearest profile, for times relative to the target's, and divide by the sum."""
    products = profile_product(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = profile_product(times, gammas, 1.0, target)
    # Profiles of length 1 instead of integral 1, so that the solve does not see how far apart the times are.
    length = np.sqrt(np.diag(products))
    try:
        solved = np.linalg.solve(products / np.outer(length, length), wanted / length) / length
    except np.linalg.LinAlgError:
        return np.full_like(times, np.inf)
    return solved / solved.sum()


def _check_stored(times: np.ndarray, widths: np.ndarray, target_time: float | int) -> None:
    if times.ndim != 1 or times.shape != widths.shape or not times.size:
        raise ValueError(
            f"averages need one time and one width each, and at least one of them: got {times.size} times and "
            f"{widths.size} widths"
        )
    for name, values in (("times", times), ("target_time", np.asarray(target_time, np.float64))):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be above 0 and finite, got {values.tolist()}")
    pairs, counts = np.unique(np.stack([times, widths], 1), axis=0, return_counts=True)
    if (counts > 1).any():
        time, width = pairs[counts > 1][0].tolist()
        raise ValueError(f"the average of width {width} at time {time} occurs more than once; give each once")
    if not (times <= target_time).any():
        raise ValueError(f"target_time must be at least {times.min()}, the first time stored, got {target_time}")


def combine(coefficients: Sequence[float | int] | Float64[np.ndarray, " trees"], trees: Iterable[PyTree]) -> PyTree:
    """Sum trees with coefficients, in float64 on the host, and return the dtypes of the trees.

    Args:
        coefficients: one a tree.
        trees: trees of one structure; each is dropped before the next is taken, so that a generator that reads them
            needs the memory of one besides the sum. Arrays may lie on a mesh, and be spread over several processes.

    Returns:
        The sum, where the arrays of the first tree lie; numpy arrays stay numpy arrays.

    Raises:
        ValueError: if there are no coefficients, or not one a tree.

    >>> combine([0.25, 0.75], [{"w": np.float32([0.0, 4.0])}, {"w": np.float32([4.0, 0.0])}])["w"]
    array([3., 1.], dtype=float32)
    """
    if not len(coefficients):
        raise ValueError("a combination needs at least one coefficient")
    source, total = iter(trees), None
    for number, coefficient in enumerate(coefficients):
        total = _add(total, float(coefficient), source, number, len(coefficients))
    if next(source, source) is not source:
        raise ValueError(f"there are {len(coefficients)} coefficients but more trees; give one a tree")
    return jax.tree.map(_Sum.result, total)


def _add(total: PyTree, coefficient: float, source: Iterator[PyTree], number: int, count: int) -> PyTree:
    """Add the next tree, which nothing but this call holds."""
    try:
        tree = next(source)
    except StopIteration:
        raise ValueError(f"there are {count} coefficients but {number} trees; give one a tree") from None
    total = jax.tree.map(_Sum, tree) if total is None else total
    jax.tree.map(lambda held, leaf: held.add(coefficient, leaf), total, tree)
    return total


class _Sum:
    """One array of a sum: the parts of it that this process holds, in float64 on the host."""

    def __init__(self, leaf: Any):
        self._dtype, self._sharding = leaf.dtype, getattr(leaf, "sharding", None)
        self._shape, self._parts = leaf.shape, {where: np.zeros(part.shape) for where, part in _parts(leaf).items()}

    def add(self, coefficient: float, leaf: Any) -> None:
        if leaf.shape != self._shape:
            raise ValueError(f"arrays of different shapes, {self._shape} and {leaf.shape}, cannot be combined")
        for where, part in _parts(leaf).items():
            self._parts[where] += coefficient * np.asarray(part).astype(np.float64)

    def result(self) -> Any:
        """Return the sum and give the memory of the parts back."""
        parts = {where: self._parts.pop(where).astype(self._dtype) for where in list(self._parts)}
        if self._sharding is None:
            return parts[""]
        return jax.make_array_from_callback(self._shape, self._sharding, lambda index: parts[str(index)])


def _parts(leaf: Any) -> dict[str, Any]:
    """Return what this process holds of an array, once where several of its devices hold the same."""
    if not isinstance(leaf, jax.Array):
        return {"": leaf}
    return {str(shard.index): shard.data for shard in leaf.addressable_shards}
