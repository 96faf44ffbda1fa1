"""A closed-form experiment: everything that a command does, on a law that is known."""

import dataclasses
import io
import time
from collections.abc import Mapping

from experiments.claims import Cell, Claim
from experiments.files import write_whole
from experiments.run_directory import Interrupted, RunDirectory

_LAW = "the variance of a sum of independent steps is the sum of their variances"


@dataclasses.dataclass(frozen=True)
class Config:
    """Random walks with Gaussian steps against the closed form of their spread."""

    lengths: tuple[int, ...] = (4, 16, 64)
    """Numbers of steps, at least two different ones."""
    step_size: float = 0.5
    """Standard deviation of one step, in units of length."""
    walks: int = 4096
    """Walks of each length drawn in a block."""
    blocks: int = 8
    """Blocks of walks for each seed."""
    seeds: int = 8
    """Independent seeds."""
    pause: float = 0.0
    """Seconds to wait after each block."""


PRESETS: Mapping[str, Config] = {"ci": Config(walks=1024, blocks=2), "default": Config()}
PRESET_NOTES = {"ci": "1 s on one CPU core", "default": "2 s on one CPU core"}

CLAIMS = (
    Claim(
        "W1",
        "the mean squared distance after n steps of variance s^2 is n s^2",
        source="Einstein 1905",
        rule="equal",
        reference=1.0,
        margin=0.05,
        margin_reason="4 standard errors of one seed at ci, sqrt(2 / 2048) each",
    ),
    Claim("W2", "longer walks end farther away", source="Einstein 1905", rule="order", reference=0.0),
    Claim(
        "W3",
        "the mean squared distance grows in proportion to n",
        source="Einstein 1905",
        rule="slope",
        reference=1.0,
        margin=0.05,
        margin_reason="a tenth of the distance to the exponent of W4",
    ),
    Claim(
        "W4",
        "the root mean squared distance grows in proportion to n",
        source="the law of walks that keep their direction",
        rule="slope",
        reference=1.0,
        margin=0.05,
        margin_reason="as for W3",
        expected="refuted",
        expected_reason=f"its exponent is 1/2: {_LAW}",
    ),
    Claim(
        "W5",
        "the fourth moment of the distance is three times the square of the second",
        source="moments of a Gaussian",
        rule="equal",
        reference=3.0,
        margin=0.15,
        margin_reason="5 % of the law",
        not_run={"ci": "needs 16 times the walks of ci, 10 s"},
    ),
)


def check(config: Config, run: RunDirectory) -> None:
    """Refuse settings that measure nothing."""
    del run
    if config.step_size <= 0:
        raise ValueError(f"--step-size must be positive, got {config.step_size}")
    if len(set(config.lengths)) < 2 or min(config.lengths) < 1:
        raise ValueError(f"--lengths takes at least two different positive lengths, got {config.lengths}")


def run(config: Config, run: RunDirectory) -> None:
    """Draw the walks block by block, then compare their moments with the law."""
    import numpy as np

    began = time.perf_counter()
    second, fourth = _moments(config, run)
    seconds = time.perf_counter() - began
    lengths = np.array(config.lengths)
    law = lengths * config.step_size**2
    longest = np.argmax(lengths)
    run.record("W1", [Cell(f"n = {n}", values=second[:, i] / law[i]) for i, n in enumerate(lengths)], seconds=seconds)
    run.record(
        "W2",
        [Cell("longest against shortest", values=second[:, longest], control=second[:, np.argmin(lengths)])],
        seconds=seconds,
    )
    run.record("W3", [Cell("exponent", values=second, x=lengths)], seconds=seconds)
    run.record("W4", [Cell("exponent", values=np.sqrt(second), x=lengths)], seconds=seconds, reason=_LAW)
    if run.preset != "ci":
        kurtosis = fourth[:, longest] / second[:, longest] ** 2
        run.record("W5", [Cell(f"n = {lengths[longest]}", values=kurtosis)], seconds=seconds)
    run.arrays(lengths=lengths, second_moment=second, fourth_moment=fourth)
    run.note("The spread of the walks follows the square root of their length.")
    _draw(run, lengths, second, law)


def _moments(config: Config, run: RunDirectory):
    """Average the second and fourth powers of the end points, [seeds, lengths] each, resuming from what was saved."""
    import numpy as np

    total, first = np.zeros((2, config.seeds, len(config.lengths))), 0
    state = run.checkpoints / "moments.npz"
    if run.resumed and state.exists():
        with np.load(state, allow_pickle=False) as stored:
            total, first = stored["total"], int(stored["blocks"])
    if run.resumed:
        run.resume_metrics(first)
    with run.progress(config.blocks, "walks") as progress:
        for block in range(first, config.blocks):
            if run.stop():
                data = io.BytesIO()
                np.savez(data, total=total, blocks=block)
                write_whole(state, data.getvalue())
                raise Interrupted
            total = total + _block(config, run.seed, block)
            spread = float(total[0].mean() / (block + 1))
            run.metrics(block + 1, second_moment=spread)
            progress.update(block + 1, second_moment=spread)
            time.sleep(config.pause)
    return total / config.blocks


def _block(config: Config, seed: int, block: int):
    import numpy as np

    moments = np.zeros((2, config.seeds, len(config.lengths)))
    for one in range(config.seeds):
        random = np.random.default_rng((seed, one, block))
        for i, length in enumerate(config.lengths):
            ends = random.normal(scale=config.step_size, size=(config.walks, length)).sum(axis=1)
            moments[:, one, i] = (ends**2).mean(), (ends**4).mean()
    return moments


def _draw(run: RunDirectory, lengths, second, law) -> None:
    from matplotlib.figure import Figure

    from experiments import plots

    with plots.style():
        figure = Figure(figsize=(5.0, 3.2))
        axes = figure.subplots()
        axes.loglog(lengths, law, label="law")
        axes.loglog(lengths, second.mean(axis=0), "o", label="measured")
        axes.set(xlabel="steps", ylabel="mean squared distance")
        axes.legend()
        run.figure("spread", figure, "Mean squared distance against the number of steps.")
