"""The benchmarks of the sampling loops: time a step, memory, compilations."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from experiments import compilation_cache
from experiments.benchmarks import figures, loops
from experiments.benchmarks.processes import in_process
from experiments.benchmarks.timing import Timing, compare
from experiments.claims import Cell
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.diffusion import ddim, dpm_solver_pp_2m


class Contest(NamedTuple):
    """One comparison.

    Attributes:
        cpu_claim: id of the claim that it decides on a CPU; empty where it is only reported.
        gpu_claim: that on a GPU.
        name: what of jaxgen runs.
        against: what it runs against.
        sides: sets both up from sizes and a seed.
        steps: the field of the sizes that says how many steps a call takes.
        remark: what a reader should know of the ratio.
    """

    cpu_claim: str
    gpu_claim: str
    name: str
    against: str
    sides: Callable[[Any, int], loops.Sides]
    steps: str = "steps"
    remark: str = ""


CONTESTS = (
    Contest(
        "P1",
        "P1-gpu",
        "DDIM",
        "diffusers in torch",
        lambda sizes, seed: loops.against_diffusers(ddim, "DDIMScheduler", sizes, seed, clip_sample=False),
    ),
    Contest(
        "P1",
        "P1-gpu",
        "DPM-Solver++ 2M",
        "diffusers in torch",
        lambda sizes, seed: loops.against_diffusers(dpm_solver_pp_2m, "DPMSolverMultistepScheduler", sizes, seed),
    ),
    Contest("P2", "P2-gpu", "DDIM", "k-diffusion's loop in jax", loops.against_python_loop),
    Contest(
        "P3",
        "P3-gpu",
        "DDIM",
        "hackable_diffusion, restated",
        lambda sizes, seed: loops.against_hackable(sizes, seed, stochastic=False),
    ),
    Contest(
        "P8",
        "P8-gpu",
        "DDIM, eta 1",
        "hackable_diffusion, restated",
        lambda sizes, seed: loops.against_hackable(sizes, seed, stochastic=True),
        remark="Both draw noise. A key for each sample costs one block of Threefry more than the 64 that draw its 64 "
        "numbers, 1.6 %, and on a GPU a kernel of its own; the peer has one key for the batch.",
    ),
    Contest(
        "P5",
        "P5-gpu",
        "DDIM, digits network",
        "a scan of its network calls",
        loops.against_bare_network,
        "digits_steps",
    ),
    Contest("", "P7", "guidance in one call", "guidance in two calls", loops.guidance_in_one_call, "digits_steps"),
)
_T = TypeVar("_T")
_COSTS = "P5", "P5-gpu"  # claims of the time of jaxgen over that of the peer
_PROTOCOL = (
    "Both sides of a comparison run in one process and take turns, after two calls to compile and to warm up; each "
    "call ends when its result is on the host. One ratio is that of the medians over the rounds. {units} Ratios are "
    "the peer's time over jaxgen's: above 1, jaxgen is faster. jax may use every core; torch has one thread, with "
    "which a CPU runs the small network fastest, since with more it waits for them."
)
_UNITS = {
    True: "Each ratio is measured in a process of its own, and these are the units of the test: they say how much "
    "this machine varied, not how much machines differ.",
    False: "All ratios are measured in one process and are the units of the test: they say how much this process "
    "varied, and another can differ by more.",
}


def measure(config: Any, run: RunDirectory) -> None:
    """Measure and record every claim of this group: on the first device at `gpu`, else on the CPU.

    Raises:
        Interrupted: a signal came; a resumed run measures anew.
    """
    facts = _call(config, run, _count)
    _memory(config.samplers, run, facts)
    cells = [Cell(f"another {name}", values=[count]) for name, count in facts.compilations.items()]
    run.record("P6", cells, seconds=facts.compilation_seconds)
    _times(config, run)


def _call(config: Any, run: RunDirectory, work: Callable[[Any, str, int], _T]) -> _T:
    # This process leaves the device alone where others measure on it: jax would hold three quarters of its memory.
    if config.isolated:
        return in_process(run.stop, work, config, run.preset, run.seed)
    return work(config, run.preset, run.seed)


def _device(preset: str) -> Any:
    return jax.devices()[0] if preset == "gpu" else jax.devices("cpu")[0]


class Facts(NamedTuple):
    """What compiling tells: bytes of each program for each number of steps, and how often a sweep was traced."""

    memory: dict[str, list[int]]
    memory_seconds: float
    compilations: dict[str, int]
    compilation_seconds: float


def _count(config: Any, preset: str, seed: int) -> Facts:
    sizes, began = config.samplers, time.perf_counter()
    memory: dict[str, list[int]] = {}
    with jax.default_device(_device(preset)):
        for steps in _memory_steps(sizes):
            for name, size in loops.memory_of(steps, sizes).items():
                memory.setdefault(name, []).append(size)
        between = time.perf_counter()
        compilations = loops.count_compilations(seed, sizes.steps)
    return Facts(memory, between - began, compilations, time.perf_counter() - between)


def _memory_steps(sizes: Any) -> list[int]:
    return sorted(set(sizes.memory_steps))


def _memory(sizes: Any, run: RunDirectory, facts: Facts) -> None:
    counts, found = _memory_steps(sizes), facts.memory
    ratio = found["jaxgen"][-1] / found["trajectory"][-1]
    cell = Cell(f"{counts[-1]} steps, batch of {sizes.free_batch_size}", values=[ratio], error=0.0)
    without = found["jaxgen"][-1] / found["no trajectory"][-1]
    told = (
        f"Without its trajectory (store_trajectory=False) the peer needs {1 / without:.3g} times the memory of jaxgen."
    )
    scale = "full" if counts[-1] == 1000 else "reduced"
    run.record("P4", [cell], seconds=facts.memory_seconds, scale=scale, reason=told)
    run.arrays(memory_steps=counts, **{f"memory_{name.replace(' ', '_')}": sizes for name, sizes in found.items()})
    figures.memory(run, counts, found, sizes.free_batch_size)


class Timed(NamedTuple):
    """What came of a contest: its times and what measuring them took, or why there are none."""

    timing: Timing | None
    seconds: float
    missing: str = ""


def time_contests(
    config: Any, preset: str, seed: int, *, repetitions: int, on_contest: Callable[[int], None] = lambda count: None
) -> list[Timed]:
    """Time every contest in this process.

    Args:
        config: `Config`.
        preset: decides the device.
        seed: of networks and noise.
        repetitions: ratios of each contest.
        on_contest: called with the number of finished contests after each; may raise.
    """
    found = []
    for contest in CONTESTS:
        found.append(_time(contest, config, preset, seed, repetitions))
        on_contest(len(found))
    return found


def _time(contest: Contest, config: Any, preset: str, seed: int, repetitions: int) -> Timed:
    began = time.perf_counter()
    with jax.default_device(_device(preset)):
        try:
            sides = contest.sides(config.samplers, seed)
        except ImportError as error:
            return Timed(None, 0.0, str(error))
        timing = compare(*sides, repetitions=repetitions, seconds=config.seconds)
    return Timed(timing, time.perf_counter() - began)


def _time_once(config: Any, preset: str, seed: int) -> list[Timed]:
    compilation_cache.enable()
    return time_contests(config, preset, seed, repetitions=1)


def _times(config: Any, run: RunDirectory) -> None:
    run.note(_PROTOCOL.format(units=_UNITS[config.isolated]))
    if config.isolated:
        with run.progress(config.repetitions, "timing, processes") as progress:
            once = []
            for number in range(1, config.repetitions + 1):
                once.append(in_process(run.stop, _time_once, config, run.preset, run.seed))
                progress.update(number)
        timed = [_join(of) for of in zip(*once, strict=True)]
    else:
        with run.progress(len(CONTESTS), "timing") as progress:

            def on_contest(count: int) -> None:
                progress.update(count)
                _stop_here(run)

            timed = time_contests(config, run.preset, run.seed, repetitions=config.repetitions, on_contest=on_contest)
    _record(config.samplers, run, timed)
    _tell(config.samplers, run, timed)


def _join(once: Sequence[Timed]) -> Timed:
    """Make one of what several processes measured of a contest; nothing where one of them could not."""
    for of in once:
        if of.timing is None:
            return of
    sides = zip(*(of.timing for of in once if of.timing), strict=True)
    return Timed(Timing(*map(np.concatenate, sides)), sum(of.seconds for of in once))


def _claim(contest: Contest, preset: str) -> str:
    return contest.gpu_claim if preset == "gpu" else contest.cpu_claim


def _told(sizes: Any, contest: Contest, timing: Timing) -> str:
    ours, theirs = (1e6 / getattr(sizes, contest.steps) * float(np.median(side)) for side in timing)
    return (
        f"{contest.name} against {contest.against}: {ours:.3g} against {theirs:.3g} microseconds a step, medians of "
        f"calls of {getattr(sizes, contest.steps)} steps."
    )


def _record(sizes: Any, run: RunDirectory, timed: Sequence[Timed]) -> None:
    claims: dict[str, list[tuple[Contest, Timed]]] = {}
    for contest, of in zip(CONTESTS, timed, strict=True):
        claims.setdefault(_claim(contest, run.preset), []).append((contest, of))
    claims.pop("", None)
    for claim, found in claims.items():
        missing = [of.missing for _, of in found if of.missing]
        # What the claim calls a cost is ours over theirs.
        ratios = {
            contest.name: of.timing.speedup if claim not in _COSTS else 1.0 / of.timing.speedup
            for contest, of in found
            if of.timing
        }
        if missing:
            run.not_run(claim, missing[0])
        else:
            cells = [Cell(name, values=values) for name, values in ratios.items()]
            told = " ".join(_told(sizes, contest, of.timing) for contest, of in found if of.timing)
            run.record(claim, cells, seconds=sum(of.seconds for _, of in found), reason=told)


def _tell(sizes: Any, run: RunDirectory, timed: Sequence[Timed]) -> None:
    """Write every time into the report and the arrays, and draw the ratios."""
    found = {contest: of.timing for contest, of in zip(CONTESTS, timed, strict=True) if of.timing}
    for contest, timing in found.items():
        ratio = f"Ratio ({_claim(contest, run.preset) or 'no claim'}): {timing.speedup.mean():.3g} +- "
        ratio += f"{timing.speedup.std(ddof=1):.2g}."
        run.note(" ".join(filter(None, (_told(sizes, contest, timing), ratio, contest.remark))))
    run.arrays(
        contests=[f"{_claim(of, run.preset)} {of.name} / {of.against}".strip() for of in found],
        seconds_ours=[timing.ours for timing in found.values()],
        seconds_theirs=[timing.theirs for timing in found.values()],
    )
    rows = {f"{contest.name}\nagainst {contest.against}": timing.speedup for contest, timing in found.items()}
    figures.ratios(run, rows)


def _stop_here(run: RunDirectory) -> None:
    if run.stop():
        raise Interrupted
