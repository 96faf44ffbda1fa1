"""The averages that a run keeps as it goes, from which those of any width follow when it is over."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxgen.training.checkpoints import Checkpoints, read_config, restore_each, written_steps
from jaxgen.training.fitting import CheckpointError, compare_configs
from jaxgen.training.posthoc_ema import combine, posthoc_coefficients, profile_error
from jaxgen.training.power_ema import PowerEmaState, width_to_exponent
from jaxgen.training.tree_paths import host_value
from jaxgen.typing import Params

# A profile that is farther from the wanted one than this share of its size is another average.
_FARTHEST = 0.2


class _Snapshot(NamedTuple):
    step: np.ndarray
    averages: tuple[PyTree, ...]


class Snapshots:
    """The snapshots of a run's averages in one folder, all of which stay, as a context manager that waits for them.

    A snapshot is a checkpoint (see `Checkpoints`) of the averages alone, the folder `PATH/STEP`: written while the
    device goes on, whole or not at all, and verified when it is read. Give a run a folder of its own for them.

    Args:
        path: the folder; made if it does not exist.
        widths: those of the `power_ema` whose averages are kept.
        config: settings (JSON) of the run; snapshots of another configuration are not added to.

    Raises:
        ValueError: if there is no width, one occurs twice or one is out of range.
        CheckpointError: if the folder cannot be made, or holds snapshots of other widths or another configuration.
    """

    def __init__(self, path: str | Path, *, widths: Sequence[float], config: Mapping[str, Any] | None = None):
        if not widths or len(set(widths)) < len(widths):
            raise ValueError(f"snapshots need at least one width and each once, got {list(widths)}")
        for width in widths:
            width_to_exponent(width)
        self.path, self.widths = Path(path).absolute(), tuple(float(width) for width in widths)
        settings = {"widths": list(self.widths), "run": json.loads(json.dumps(dict(config or {})))}
        self._checkpoints = Checkpoints(self.path, config=settings, keep=None)
        try:
            # One that is damaged says nothing; where it is needed again, `save` sets it aside.
            if good := next((step for step in reversed(self.steps) if self._checkpoints.holds(step)), None):
                compare_configs(self.path, read_config(self.path, step=good), settings)
        except CheckpointError:
            self._checkpoints.close()
            raise

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the steps of the snapshots that are completely written."""
        return written_steps(self.path)

    def save(self, step: int, state: PowerEmaState) -> None:
        """Begin to write the averages after a step; the state may be donated as soon as this returns.

        A step whose snapshot is there, undamaged, is skipped: a run that was killed and goes on from a checkpoint
        repeats its steps to the bit. A damaged one is set aside, with a warning, and written again.

        Args:
            step: number of updates done, at least 1.
            state: the state of a `power_ema`, which may be stacked over seeds.

        Raises:
            ValueError: if the averages are not of these widths, or were not updated once at every step.
            CheckpointError: if the snapshot before it could not be written, or this one cannot.
        """
        self.check(state)
        counts = np.unique(host_value(state.count)).tolist()
        if step < 1 or counts != [step]:
            raise ValueError(
                f"snapshots are of averages that are updated once at every step from the first, got {counts} updates "
                f"at step {step}"
            )
        if not self._checkpoints.holds(step):
            self._checkpoints.save(_Snapshot(np.asarray(step, np.int32), state.averages))

    def check(self, state: Any) -> None:
        """Refuse what is not a state of a `power_ema` with as many widths.

        Raises:
            ValueError: saying what it is.
        """
        if not isinstance(state, PowerEmaState):
            raise ValueError(
                f"snapshots are of the averages of power_ema, got {type(state).__name__}; keep its state in state.ema"
            )
        if len(state.averages) != len(self.widths):
            raise ValueError(f"the snapshots are of widths {self.widths}, but there are {len(state.averages)} averages")

    def wait(self) -> None:
        """Wait until the snapshot that is being written is complete.

        Raises:
            CheckpointError: if it could not be written; the ones before it are still there.
        """
        self._checkpoints.wait()

    def close(self) -> None:
        """Wait for the snapshot that is being written, and release orbax's threads."""
        self._checkpoints.close()


def snapshot_times(path: str | Path) -> tuple[int, ...]:
    """Return the steps of a run's snapshots, in order; empty if there are none."""
    return written_steps(path)


def check_reach(times: Sequence[int], widths: Sequence[float], target_time: int, target_width: float) -> np.ndarray:
    """Return the coefficients of a reconstruction, or refuse it where it would be of another average.

    Args:
        times: the steps of the snapshots, each of which holds an average of every width.
        widths: these widths.
        target_time: the step for which to reconstruct.
        target_width: the width to reconstruct.

    Returns:
        One for each snapshot and width, `[times, widths]`.

    Raises:
        ValueError: if the profile of the nearest combination is off by more than a fifth (see `profile_error`):
            between two snapshots, after few of them, and for widths too far from theirs. Also as
            `posthoc_coefficients`.
    """
    pairs = np.repeat(times, len(widths)), np.tile(widths, len(times))
    coefficients = posthoc_coefficients(*pairs, target_time, target_width)
    missing = profile_error(coefficients, *pairs, target_time, target_width)
    if missing > _FARTHEST:
        raise ValueError(
            f"width {target_width:g} at step {target_time} is out of reach of {len(times)} snapshots of widths "
            f"{', '.join(f'{width:g}' for width in widths)}: the nearest average misses {missing:.0%} of it, at most "
            f"{_FARTHEST:.0%} are allowed; keep more snapshots, or ask for a nearer width at the step of one of them"
        )
    return coefficients.reshape(len(times), len(widths))


def reconstruct(path: str | Path, like: Params, width: float, *, step: int | None = None) -> Params:
    """Combine the snapshots of a run into the average of another width (Karras et al. 2024, section 3.2).

    The averages are read one at a time, and those whose coefficient is 0 are not: the host holds the sum, in float64,
    and one average. A width and a step that were stored are returned to the bit. See `posthoc_coefficients` for how
    near a reconstruction comes.

    Args:
        path: the folder of the snapshots; it is not changed.
        like: the structure of the parameters, as arrays or shapes, stacked over seeds if the averages are; shapes
            without a sharding go to the first device.
        width: the width of the average, in (0, 1/sqrt(12)).
        step: the step for which to reconstruct, from the first snapshot to the last; None is the last.

    Returns:
        The average, where `like` lies, in the dtypes of the parameters.

    Raises:
        ValueError: if `width` or `step` is out of range, or out of reach of the snapshots (see `check_reach`).
        CheckpointError: if there are no snapshots or they are of other parameters; `CheckpointDamagedError`, naming
            it, if one that is needed is damaged.
    """
    width_to_exponent(width)
    steps = written_steps(path)
    if not steps:
        raise CheckpointError(f"{Path(path).absolute()} holds no snapshots")
    target = steps[-1] if step is None else step
    if not steps[0] <= target <= steps[-1]:
        raise ValueError(f"step must lie in [{steps[0]}, {steps[-1]}], from the first snapshot to the last, got {step}")
    used = [time for time in steps if time <= target]
    widths = read_config(path, step=used[-1])["widths"]
    coefficients = check_reach(used, widths, target, width)
    table = dict(zip(used, coefficients, strict=True))
    return combine(coefficients[coefficients != 0], _averages(path, like, table))


def _averages(path: str | Path, like: Params, table: Mapping[int, np.ndarray]) -> Iterator[Params]:
    """Read the averages whose coefficients are not 0, in order."""
    for step, coefficients in table.items():
        fields = [f"averages.{index}" for index in np.flatnonzero(coefficients)]
        if fields:
            yield from restore_each(path, like, fields, step=step)
