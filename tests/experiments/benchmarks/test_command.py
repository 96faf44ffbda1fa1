"""What the command does with the benchmarks: it refuses what is wrong, and a run leaves what it promises."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from commands import assert_refused, finish

from experiments.benchmarks import CLAIMS, PARTS, PRESETS, Config, FlowSizes, SamplerSizes, SimulationSizes, samplers
from experiments.benchmarks.peers import MISSING
from experiments.benchmarks.processes import in_process
from experiments.benchmarks.timing import Timing
from experiments.configuration import Settings
from experiments.run_directory import RunDirectory

# The smallest run that measures everything.
SIZES = SamplerSizes(
    steps=3,
    width=4,
    batch_size=2,
    free_batch_size=2,
    digits_batch_size=2,
    digits_steps=2,
    guided_batch_size=2,
    memory_steps=(4,),
)
FLOWS = FlowSizes(sequences=8, timed_sequences=4, length=4, dimension=1, epochs=2, block=2, threads=(1,))
SIMULATIONS = SimulationSizes(replicates=25, points=10, timed_points=4)
TINY = ["--repetitions", "8", "--no-isolated", "--seconds", "0.001", "--flows.no-check"]
for group, sizes in (("samplers", SIZES), ("flows", FLOWS), ("simulations", SIMULATIONS)):
    for name, value in dataclasses.asdict(sizes).items():
        if not isinstance(value, bool):
            TINY += [f"--{group}.{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
ON_GPU = ["P7", "P1-gpu", "P2-gpu", "P3-gpu", "P5-gpu", "P8-gpu"]
ON_CPU = ["P1", "P2", "P3", "P5", "P8"]
TRAINING_AND_SIMULATION = ["P9", "P10", "P11"]
FIGURES = ("sampler_memory", "sampler_ratios", "flow_ratios")
pytestmark = pytest.mark.filterwarnings(
    # Inside diffusers, which converts a torch tensor with numpy's older protocol.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def tiny_run(path):
    """Run the command, and return its rows."""
    finish(path, "benchmarks", *TINY)
    return {row["id"]: row for row in json.loads((path / "claims.json").read_text())}


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--repetitions 7", "--repetitions must lie between 8 and 1000, got 7"),
        ("--seconds 0", "--seconds must lie in (0, 60], got 0"),
        ("--seconds nan", "--seconds must be finite, got nan"),
        ("--samplers.steps 1", "--samplers.steps must lie between 2 and 100000, got 1"),
        ("--samplers.memory-steps", "--samplers.memory-steps must lie between 2 and 100000, got ()"),
        ("--samplers.memory-steps 0 10", "--samplers.memory-steps must lie between 2 and 100000, got (0, 10)"),
        ("--samplers.width 0", "--samplers.width must lie between 1 and 100000, got 0"),
        ("--preset gpu", "the preset gpu measures a GPU, and jax sees a cpu here; use --preset default"),
        ("--flows.length 2", "--flows.length must lie between 3 and 100000, got 2"),
        ("--flows.dimension 7", "--flows.dimension must lie between 1 and 6, got 7"),
        ("--flows.threads", "--flows.threads must lie between 1 and 1024, got ()"),
        (
            "--flows.timed-sequences 150",
            "--flows.timed-sequences must be a multiple of --flows.block, which is 100, got 150",
        ),
        ("--simulations.points 1", "--simulations.points must lie between 2 and 100000, got 1"),
        ("--simulations.replicates 30", "--simulations.replicates must be a multiple of 25, got 30"),
        (
            "--part sampler",
            "benchmarks has the parts samplers, flows, total_variation; got 'sampler'; the nearest is 'samplers'",
        ),
    ],
)
def test_bad_arguments_exit_2_with_one_sentence_and_write_nothing(command, folder, argv, error):
    assert_refused(command("benchmarks", *argv.split()), folder, error)


def test_the_help_names_the_peers_the_parts_and_the_sizes(command):
    code, out, err = command("benchmarks", "--help")
    assert (code, err) == (0, "")
    for word in (
        "diffusers",
        "hackable_diffusion",
        "MesaOpt",
        "Multi-Souce-GM",
        "--samplers.memory-steps",
        "--flows.block",
        "--simulations.timed-points",
        *PARTS,
        *PRESETS,
    ):
        assert word in out


def test_claims_are_declared_for_every_comparison():
    claims = {claim.id: claim for claim in CLAIMS}
    pairs = [(contest.cpu_claim, contest.gpu_claim) for contest in samplers.CONTESTS]
    assert sorted(set(pairs)) == [("", "P7"), *((name, f"{name}-gpu") for name in ON_CPU)]
    assert [name for name, claim in claims.items() if set(claim.not_run) == {"ci", "default"}] == ON_GPU
    assert [name for name, claim in claims.items() if set(claim.not_run) == {"gpu"}] == [
        *ON_CPU,
        *TRAINING_AND_SIMULATION,
    ]
    assert [name for name, claim in claims.items() if not claim.not_run] == ["P4", "P6"]


def test_the_targets_beside_a_gpu_are_those_of_the_cpu():
    claims = {claim.id: claim for claim in CLAIMS}
    for name in ON_CPU:
        cpu, gpu = claims[name], claims[f"{name}-gpu"]
        assert (cpu.rule, cpu.reference, cpu.margin) == (gpu.rule, gpu.reference, gpu.margin)
        assert cpu.statement.replace("on a CPU", "on a GPU") == gpu.statement


def test_a_run_leaves_every_file_and_a_row_of_every_claim(folder):
    rows = tiny_run(folder / "run")
    assert list(rows) == [claim.id for claim in CLAIMS]
    assert [name for name, row in rows.items() if row["verdict"] == "not run"] == ON_GPU
    assert rows["P6"]["verdict"] == "holds"
    assert rows["P4"]["scale"] == "reduced"
    assert {rows[name]["scale"] for name in TRAINING_AND_SIMULATION} == {"reduced"}
    for name in [*ON_CPU, *TRAINING_AND_SIMULATION]:
        for cell in rows[name]["cells"]:
            assert len(cell["values"]) == 8
            assert min(cell["values"]) > 0
    assert {str(path.relative_to(folder / "run")) for path in (folder / "run").rglob("*") if path.is_file()} == {
        *("config.json", "environment.json", "claims.json", "notes.json", "arrays.npz", "report.html"),
        *(f"figures/{name}.{ending}" for name in FIGURES for ending in ("png", "svg")),
    }
    with np.load(folder / "run" / "arrays.npz", allow_pickle=False) as arrays:
        ours, theirs = arrays["seconds_ours"], arrays["seconds_theirs"]
    assert ours.shape == theirs.shape == (len(samplers.CONTESTS), 8)
    np.testing.assert_allclose(rows["P2"]["cells"][0]["values"], (theirs / ours)[_row("P2")])
    np.testing.assert_allclose(rows["P5"]["cells"][0]["values"], (ours / theirs)[_row("P5")])
    notes = json.loads((folder / "run" / "notes.json").read_text())["notes"]
    assert len(notes) == 1 + len(samplers.CONTESTS) + 2 + 2
    assert "measured in one process" in notes[0]


def test_a_missing_peer_leaves_its_row_unmeasured_and_names_the_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    monkeypatch.setattr(samplers, "CONTESTS", [of for of in samplers.CONTESTS if of.cpu_claim in ("P1", "P2")])
    rows = measured(folder, "ci", isolated=False)
    assert (rows["P1"]["verdict"], rows["P1"]["reason"]) == ("not run", MISSING)
    assert "pip install" in MISSING
    assert len(rows["P2"]["cells"][0]["values"]) == 8


def test_a_ratio_of_each_process_is_a_unit(folder, monkeypatch):
    calls = []

    def here(stop, work, *arguments):
        del stop
        calls.append(work(*arguments))
        return calls[-1]

    monkeypatch.setattr(samplers, "in_process", here)
    monkeypatch.setattr(samplers.compilation_cache, "enable", lambda: None)
    monkeypatch.setattr(samplers, "CONTESTS", [of for of in samplers.CONTESTS if of.cpu_claim in ("P2", "P3")])
    rows = measured(folder, "default", isolated=True)
    assert len(calls) == 1 + 8  # the first one counts bytes and compilations
    for index, claim in enumerate(("P2", "P3")):
        found = [call[index].timing.speedup.item() for call in calls[1:]]
        assert rows[claim]["cells"][0]["values"] == found
        assert rows[claim]["seconds"] == pytest.approx(sum(call[index].seconds for call in calls[1:]))


def test_a_process_of_its_own_times_every_contest(monkeypatch):
    monkeypatch.setenv("JAXGEN_COMPILATION_CACHE", "off")
    config = Config(seconds=0.001, samplers=SIZES)
    found = in_process(lambda: False, samplers._time_once, config, "default", 0)
    assert len(found) == len(samplers.CONTESTS)
    for timed in found:
        assert timed.timing.ours.shape == timed.timing.theirs.shape == (1,)


def test_a_contest_that_one_process_could_not_time_has_no_ratio(folder, monkeypatch):
    monkeypatch.setattr(samplers, "CONTESTS", samplers.CONTESTS[:1])
    rounds = [[samplers.Timed(Timing(*np.ones((2, 1))), 1.0)] for _ in range(7)]
    rounds.append([samplers.Timed(None, 0.0, "gone")])
    joined = [samplers._join(of) for of in zip(*rounds, strict=True)]
    run = RunDirectory(folder / "run", Settings("benchmarks", "default", 0, Config()), CLAIMS)
    run.open()
    samplers._record(SIZES, run, joined)
    run.close()
    assert [(row["id"], row["verdict"], row["reason"]) for row in run.rows()] == [("P1", "not run", "gone")]


def test_on_a_gpu_each_time_decides_the_claim_of_a_gpu_and_a_cost_is_ours_over_theirs(folder):
    timed = [samplers.Timed(Timing(np.full(8, 1.0), np.full(8, 2.0 + n)), 1.0) for n in range(len(samplers.CONTESTS))]
    run = RunDirectory(folder / "run", Settings("benchmarks", "gpu", 0, Config()), CLAIMS)
    run.open()
    samplers._record(SIZES, run, timed)
    run.close()
    rows = {row["id"]: row for row in run.rows()}
    assert sorted(rows) == sorted(ON_GPU)
    measured = {name: [cell["values"][0] for cell in row["cells"]] for name, row in rows.items()}
    assert measured == {
        **{"P1-gpu": [2, 3], "P2-gpu": [4], "P3-gpu": [5], "P8-gpu": [6], "P7": [8]},
        "P5-gpu": [pytest.approx(1 / 7)],
    }
    assert rows["P3-gpu"]["reason"].endswith(
        "DDIM against hackable_diffusion, restated: 3.33e+05 against 1.67e+06 microseconds a step, medians of calls of "
        "3 steps."
    )


def measured(folder, preset, *, isolated):
    """Measure without the command, and return the rows."""
    config = Config(repetitions=8, isolated=isolated, seconds=0.001, samplers=SIZES)
    run = RunDirectory(folder / "run", Settings("benchmarks", preset, 0, config), CLAIMS)
    run.open()
    samplers.measure(config, run)
    run.close()
    return {row["id"]: row for row in run.rows()}


def _row(claim):
    return [contest.cpu_claim for contest in samplers.CONTESTS].index(claim)
