"""The sweeps that train an attention layer: both sides do the same work, and their times become ratios."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import hastily_compiled

from experiments.benchmarks import CLAIMS, Config, FlowSizes, flows
from experiments.benchmarks.peers import MISSING
from experiments.configuration import Settings
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.flows import gaussian_start, sample_sequences

SIZES = FlowSizes(sequences=8, timed_sequences=4, check=False, length=5, dimension=2, epochs=3, block=2, threads=(1,))


def opened(folder, config, preset="default", **options):
    run = RunDirectory(folder / "run", Settings("benchmarks", preset, 0, config), CLAIMS, **options)
    run.open()
    return run


def measured(folder, config, preset="default"):
    run = opened(folder, config, preset)
    flows.measure(config, run)
    run.close()
    return {row["id"]: row for row in run.rows()}


def invented(number):
    """Seconds with which 8 starts take the peer 8 * 3 * 2 * .5, and jaxgen 2 * (1 + number) + 10."""
    return flows.Seconds({1: 0.7, 2: 0.5}, 1.0 + number, {3: 5.0, 8: 10.0, 16: 20.0})


def test_both_sides_have_the_same_losses_from_every_start():
    x = np.asarray(sample_sequences(jax.random.key(1), gaussian_start(), 4, 5, 2))
    given = flows.starts(3)
    with hastily_compiled():
        found = flows.descend(flows.correlate(x, block=2), jnp.asarray(given), epochs=3)
    for losses, start in zip(found.losses, given, strict=True):
        port = flows.port_of(x, start, real=True)  # with few sequences imaginary parts would move
        # Sums of float32 in another order.
        np.testing.assert_allclose([port.epoch(1) for _ in range(3)], losses[:-1], rtol=1e-5)


def test_the_first_starts_are_those_of_the_paper_and_all_differ():
    found = flows.starts(16)
    np.testing.assert_allclose(found[:3], [(0.1, 0.1), (0.5, 1.5), (2.0, 2.0)], rtol=1e-6)
    np.testing.assert_array_equal(found[:8], flows.starts(16)[:8])
    assert len(np.unique(found, axis=0)) == 16
    assert flows.starts(1).shape == (1, 2)


def test_a_ratio_scales_up_what_grows_with_the_sequences_and_takes_the_faster_peer():
    assert invented(0).ratio(8, 3, 2.0) == pytest.approx(8 * 3 * 2 * 0.5 / (2 * 1 + 10))


def test_the_sides_take_turns(monkeypatch):
    sizes, order = dataclasses.replace(SIZES, threads=(1, 2)), []

    def theirs(threads):
        order.append(threads)
        return 0.0

    def ours():
        order.append("ours")
        return 1.0, {3: 1.0, 8: 1.0, 16: 1.0}

    monkeypatch.setattr(flows, "port_of", lambda x, start: flows.Port(theirs, dict))
    monkeypatch.setattr(flows, "_compiled", lambda x, sizes: ours)
    assert len(flows.time_sweeps(sizes, 0, 2)) == 2
    assert order == [1, 2, "ours", 1, 1, 2, 2, 1, 1, 2, 2, "ours"]  # at first the warm-up of the peer


def test_each_repetition_is_a_process_and_one_more_sees_all_sequences(folder, monkeypatch):
    calls = []

    def here(stop, work, *arguments):
        del stop, work
        calls.append(arguments[2:])
        return [invented(arguments[2])]

    monkeypatch.setattr(flows, "in_process", here)
    config = Config(repetitions=8, flows=dataclasses.replace(SIZES, check=True))
    rows = measured(folder, config)
    assert calls == [*((number,) for number in range(8)), (0, 8)]
    assert [cell["name"] for cell in rows["P10"]["cells"]] == ["8 starts", "16 starts"]
    expected = [24.0 / (2 * (1 + number) + 10) for number in range(8)]
    np.testing.assert_allclose(rows["P10"]["cells"][0]["values"], expected)
    assert "Measured once on all 8 sequences the ratios are 0.75 (" in rows["P9"]["reason"]
    assert rows["P9"]["scale"] == "reduced"


def test_without_torch_the_rows_name_the_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = measured(folder, Config(repetitions=8, isolated=False, flows=SIZES), "ci")
    assert [(row["verdict"], row["reason"]) for row in rows.values()] == [("not run", MISSING)] * 2


def test_nothing_is_measured_at_the_preset_of_a_gpu(folder):
    assert measured(folder, Config(), "gpu") == {}


def test_a_stop_ends_the_repetitions(folder, monkeypatch):
    monkeypatch.setattr(flows, "_compiled", lambda x, sizes: lambda: (1.0, {3: 1.0, 8: 1.0, 16: 1.0}))
    config = Config(repetitions=8, isolated=False, flows=SIZES)
    run = opened(folder, config, stop=lambda: True)
    with pytest.raises(Interrupted):
        flows.measure(config, run)
    run.close()
