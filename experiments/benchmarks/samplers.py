"""The benchmarks of the sampling loops: time a step, memory, compilations."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import figures, loops, peers
from experiments.benchmarks.timing import Timing, compare
from experiments.claims import Cell
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.diffusion import ddim, dpm_solver_pp_2m


class Contest(NamedTuple):
    """One comparison.

    Attributes:
        claim: id of the claim that it decides; empty where it is only reported.
        name: what of jaxgen runs.
        against: what it runs against.
        sides: sets both up from sizes and a seed.
        steps: the field of the sizes that says how many steps a call takes.
        remark: what a reader should know of the ratio.
        repetitions: the field of the config that says how many ratios are measured.
    """

    claim: str
    name: str
    against: str
    sides: Callable[[Any, int], loops.Sides]
    steps: str = "steps"
    remark: str = ""
    repetitions: str = "repetitions"


CONTESTS = (
    Contest(
        "P1",
        "DDIM",
        "diffusers, torch on the CPU",
        lambda sizes, seed: loops.against_diffusers(ddim, "DDIMScheduler", sizes, seed, clip_sample=False),
    ),
    Contest(
        "P1",
        "DPM-Solver++ 2M",
        "diffusers, torch on the CPU",
        lambda sizes, seed: loops.against_diffusers(dpm_solver_pp_2m, "DPMSolverMultistepScheduler", sizes, seed),
    ),
    Contest("P2", "DDIM", "k-diffusion's loop in jax", loops.against_python_loop),
    Contest(
        "P3",
        "DDIM",
        "hackable_diffusion, restated",
        lambda sizes, seed: loops.against_hackable(sizes, seed, stochastic=False),
    ),
    Contest(
        "P8",
        "DDIM, eta 1",
        "hackable_diffusion, restated",
        lambda sizes, seed: loops.against_hackable(sizes, seed, stochastic=True),
        remark="Both draw noise, which is what takes the time. A key for each sample costs one block of Threefry more "
        "than the 64 that draw its 64 numbers, 1.6 %; the peer has one key for the batch.",
        repetitions="close_repetitions",
    ),
    Contest("P5", "DDIM, digits network", "a scan of its network calls", loops.against_bare_network, "digits_steps"),
    Contest("P7", "guidance in one call", "guidance in two calls", loops.guidance_in_one_call, "digits_steps"),
)
_PROTOCOL = (
    "Both sides of a comparison run in this process and take turns, after two calls to compile and to warm up; each "
    "call ends when its result is on the host. One ratio is that of the medians over the rounds of a repetition, and "
    "the repetitions are the units of the test: they say how much this machine varied, not how much machines differ. "
    "Ratios are the peer's time over jaxgen's: above 1, jaxgen is faster. jax may use every core; torch has one "
    "thread, with which it runs the small network fastest, since with more it waits for them."
)


def measure(config: Any, run: RunDirectory) -> None:
    """Measure and record every claim of this group.

    Raises:
        Interrupted: a signal came; a resumed run measures anew.
    """
    _memory(config.samplers, run)
    began = time.perf_counter()
    compiled = loops.count_compilations(run.seed, config.samplers.steps)
    cells = [Cell(f"another {name}", values=[count]) for name, count in compiled.items()]
    run.record("P6", cells, seconds=time.perf_counter() - began)
    _times(config, run)


def _memory(sizes: Any, run: RunDirectory) -> None:
    began = time.perf_counter()
    counts = sorted(set(sizes.memory_steps))
    found: dict[str, list[int]] = {}
    with run.progress(len(counts), "memory") as progress:
        for number, steps in enumerate(counts, start=1):
            for name, size in loops.memory_of(steps, sizes).items():
                found.setdefault(name, []).append(size)
            progress.update(number)
            _stop_here(run)
    ratio = found["jaxgen"][-1] / found["trajectory"][-1]
    cell = Cell(f"{counts[-1]} steps, batch of {sizes.free_batch_size}", values=[ratio], error=0.0)
    without = found["jaxgen"][-1] / found["no trajectory"][-1]
    told = (
        f"Without its trajectory (store_trajectory=False) the peer needs {1 / without:.3g} times the memory of jaxgen."
    )
    scale = "full" if counts[-1] == 1000 else "reduced"
    run.record("P4", [cell], seconds=time.perf_counter() - began, scale=scale, reason=told)
    run.arrays(memory_steps=counts, **{f"memory_{name.replace(' ', '_')}": sizes for name, sizes in found.items()})
    figures.memory(run, counts, found, sizes.free_batch_size)


def _times(config: Any, run: RunDirectory) -> None:
    run.note(_PROTOCOL)
    timed: dict[Contest, Timing] = {}
    seconds: dict[str, float] = {}
    missing: dict[str, str] = {}
    counts = [getattr(config, contest.repetitions) for contest in CONTESTS]
    with run.progress(sum(counts), "timing") as progress:
        for number, contest in enumerate(CONTESTS):
            began = time.perf_counter()
            try:
                sides = contest.sides(config.samplers, run.seed)
            except ImportError:
                missing[contest.claim] = peers.MISSING
                continue
            done = sum(counts[:number])
            timed[contest] = compare(
                *sides,
                repetitions=counts[number],
                seconds=config.seconds,
                on_repetition=lambda count, done=done: progress.update(done + count),
            )
            seconds[contest.claim] = seconds.get(contest.claim, 0.0) + time.perf_counter() - began
            _stop_here(run)
    _record(config, run, timed, seconds, missing)
    _tell(config.samplers, run, timed)


def _record(
    config: Any,
    run: RunDirectory,
    timed: Mapping[Contest, Timing],
    seconds: Mapping[str, float],
    missing: Mapping[str, str],
) -> None:
    for claim in dict.fromkeys(contest.claim for contest in CONTESTS if contest.claim):
        found = {contest: timing for contest, timing in timed.items() if contest.claim == claim}
        if claim in missing:
            run.not_run(claim, missing[claim])
        elif claim == "P7" and jax.default_backend() == "cpu":
            ratio = np.median(next(iter(found.values())).speedup)
            run.not_run(claim, f"needs a GPU, of which the claim speaks; on this CPU the ratio is {ratio:.2f}")
        else:
            # What the claim calls a cost is ours over theirs.
            values = {of.name: t.speedup if claim != "P5" else 1.0 / t.speedup for of, t in found.items()}
            cells = [Cell(name, values=ratios) for name, ratios in values.items()]
            run.record(claim, cells, seconds=seconds[claim])


def _tell(sizes: Any, run: RunDirectory, timed: Mapping[Contest, Timing]) -> None:
    """Write every time into the report and the arrays, and draw the ratios."""
    for contest, timing in timed.items():
        steps = getattr(sizes, contest.steps)
        ours, theirs = (1e6 / steps * float(np.median(side)) for side in timing)
        told = (
            f"{contest.name} against {contest.against} ({contest.claim or 'no claim'}): {ours:.3g} against "
            f"{theirs:.3g} microseconds a step, medians; ratio {timing.speedup.mean():.3g} +- "
            f"{timing.speedup.std(ddof=1):.2g}."
        )
        run.note(" ".join(filter(None, (told, contest.remark))))
    most = max(len(timing.ours) for timing in timed.values())
    # Not a number where a contest has fewer repetitions than another.
    padded = lambda times: np.pad(times, (0, most - len(times)), constant_values=np.nan)  # noqa: E731
    run.arrays(
        contests=[f"{contest.claim} {contest.name} / {contest.against}".strip() for contest in timed],
        seconds_ours=[padded(timing.ours) for timing in timed.values()],
        seconds_theirs=[padded(timing.theirs) for timing in timed.values()],
    )
    rows = {f"{contest.name}\nagainst {contest.against}": timing.speedup for contest, timing in timed.items()}
    figures.ratios(run, rows)


def _stop_here(run: RunDirectory) -> None:
    if run.stop():
        raise Interrupted
