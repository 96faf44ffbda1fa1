import contextlib
import shutil
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regression_run
import tiny_run

from jaxgen.training import (
    CheckpointDamagedError,
    CheckpointError,
    Checkpoints,
    PowerEmaState,
    Snapshots,
    TrainingDivergedError,
    checkpoints,
    create,
    ema,
    fit,
    in_memory,
    make_mesh,
    posthoc_coefficients,
    power_ema,
    read_config,
    reconstruct,
    restore_params,
    snapshot_times,
)

WIDTHS = [0.05, 0.1]
AVERAGE = power_ema(WIDTHS)
SINE = jnp.zeros(())


def waving(state, constants, batch):
    """A step whose parameter is sin(n / 50) after n of them."""
    del constants, batch
    params = jnp.sin((state.step + 1).astype(state.params.dtype) / 50)
    return state._replace(params=params, ema=AVERAGE.update(state.ema, params)), {"loss": params}


def wave(path, steps=800, every=100, **options):
    """Keep snapshots of the averages of a sine, in the default precision."""
    params = jnp.zeros((), float)
    state = create(jax.random.key(0), params, ema=AVERAGE.init(params))
    batches = in_memory(jnp.zeros(1), 1, jax.random.key(0))
    with Snapshots(path, widths=WIDTHS) as snapshots:
        return fit(waving, state, (), batches, steps=steps, snapshots=snapshots, snapshot_every=every, **options)


@pytest.fixture(scope="module")
def sine(tmp_path_factory):
    path = tmp_path_factory.mktemp("sine")
    return path, wave(path)


@pytest.fixture
def copied(sine, tmp_path):
    return shutil.copytree(sine[0], tmp_path / "snapshots")


def direct(width, updates=800):
    """The average of another width as it would have been kept."""
    average = power_ema([width])
    state = average.init(jnp.zeros((), float))
    values = jnp.sin(jnp.arange(1, updates + 1) / 50).astype(float)
    return float(jax.lax.scan(lambda state, value: (average.update(state, value), None), state, values)[0].averages[0])


EXPECTED = [(0.075, 0.3732956526, 0.3731942431), (0.15, 0.2453830735, 0.2439363778)]


def test_averages_of_a_sine_are_reconstructed_in_double_precision(tmp_path):
    with jax.enable_x64(True):
        wave(tmp_path)
        for width, reconstructed, kept in EXPECTED:
            assert abs(float(reconstruct(tmp_path, jnp.zeros((), float), width)) - reconstructed) < 6e-11
            assert abs(direct(width) - kept) < 6e-11


def test_averages_of_a_sine_are_reconstructed_in_single_precision(sine):
    assert snapshot_times(sine[0]) == tuple(range(100, 801, 100))
    for width, reconstructed, kept in EXPECTED:
        # 800 float32 updates.
        np.testing.assert_allclose(reconstruct(sine[0], SINE, width), reconstructed, atol=1e-6)
        np.testing.assert_allclose(direct(width), kept, atol=1e-6)


def test_a_stored_width_and_time_is_the_stored_average_to_the_bit(sine):
    path, state = sine
    for index, width in enumerate(WIDTHS):
        np.testing.assert_array_equal(reconstruct(path, SINE, width), state.ema.averages[index])
        stored = restore_params(path, SINE, field=f"averages.{index}", step=300)
        np.testing.assert_array_equal(reconstruct(path, SINE, width, step=300), stored)


def test_an_earlier_step_is_reconstructed_from_the_snapshots_up_to_it(sine):
    times = np.repeat([100, 200, 300], 2)
    coefficients = posthoc_coefficients(times, np.tile(WIDTHS, 3), 300, 0.12)
    averages = [
        float(restore_params(sine[0], SINE, field=f"averages.{index}", step=step))
        for step in (100, 200, 300)
        for index in range(2)
    ]
    np.testing.assert_allclose(reconstruct(sine[0], SINE, 0.12, step=300), coefficients @ averages, rtol=1e-6)


def test_averages_are_held_one_at_a_time_and_only_those_that_count_are_read(sine, monkeypatch):
    read, held, read_field = [], [], checkpoints._read_field

    def watched(folder, meta, like, field):
        assert all(earlier() is None for earlier in held)
        tree = read_field(folder, meta, like, field)
        read.append(f"{folder.name}.{field}")
        held.append(weakref.ref(tree))
        return tree

    monkeypatch.setattr(checkpoints, "_read_field", watched)
    reconstruct(sine[0], SINE, 0.1, step=500)
    assert read == ["500.averages.1"]
    reconstruct(sine[0], SINE, 0.08, step=200)
    assert read[1:] == ["100.averages.0", "100.averages.1", "200.averages.0", "200.averages.1"]


@pytest.mark.parametrize(("width", "step"), [(0.08, 250), (0.28, 800), (0.12, 101), (0.005, 800)])
def test_an_average_that_the_snapshots_do_not_reach_is_refused(sine, width, step):
    # Between two snapshots the recent past is missing; 0.28 is far wider than what is stored, 0.005 far narrower.
    with pytest.raises(ValueError, match=f"width {width} at step {step} is out of reach of . snapshots .* at most 20%"):
        reconstruct(sine[0], SINE, width, step=step)


def test_settings_are_named_beside_the_averages_and_nothing_else_is_stored(sine):
    assert read_config(sine[0]) == {"widths": WIDTHS, "run": {}}
    stored = (sine[0] / "100" / "state" / "_METADATA").read_text()
    assert "averages.1" in stored
    for absent in ("params", "count"):
        assert absent not in stored


def test_a_damaged_snapshot_is_named_and_one_that_is_not_needed_does_no_harm(copied):
    expected = reconstruct(copied, SINE, 0.08, step=300)
    (copied / "400" / "manifest.json").unlink()
    with pytest.raises(CheckpointDamagedError, match=r"snapshots/400 is damaged: manifest\.json"):
        reconstruct(copied, SINE, 0.08)
    (copied / "800" / "manifest.json").unlink()
    np.testing.assert_array_equal(reconstruct(copied, SINE, 0.08, step=300), expected)


@pytest.mark.parametrize(
    ("width", "step", "message"),
    [
        (0.3, None, r"must lie in \(0, 1/sqrt\(12\) = 0.288675\), got 0.3"),
        (0.1, 801, r"step must lie in \[100, 800\], from the first snapshot to the last, got 801"),
        (0.1, 99, r"step must lie in \[100, 800\], from the first snapshot to the last, got 99"),
    ],
)
def test_targets_out_of_range_are_refused(sine, width, step, message):
    with pytest.raises(ValueError, match=message):
        reconstruct(sine[0], SINE, width, step=step)


def test_a_folder_without_snapshots_and_other_parameters_are_refused(sine, tmp_path):
    assert snapshot_times(tmp_path / "absent") == ()
    with pytest.raises(CheckpointError, match="absent holds no snapshots"):
        reconstruct(tmp_path / "absent", SINE, 0.1)
    with pytest.raises(CheckpointError, match=r"averages\.0 is float32\[\], expected float32\[3\]"):
        reconstruct(sine[0], jnp.zeros(3), 0.08)


def test_other_widths_or_settings_are_not_added_to_a_folder(copied):
    with pytest.raises(CheckpointError, match=r"widths was \[0\.05, 0\.1\], now \[0\.1\]"):
        Snapshots(copied, widths=[0.1])
    with pytest.raises(CheckpointError, match=r"run\.seed was absent, now 3"):
        Snapshots(copied, widths=WIDTHS, config={"seed": 3})
    for widths in ([], [0.1, 0.1], [0.3]):
        with pytest.raises(ValueError, match="width"):
            Snapshots(copied, widths=widths)


def updated(params, count, average=AVERAGE):
    state = average.init(params)
    for number in range(count):
        state = average.update(state, jax.tree.map(lambda leaf, number=number: leaf + number, params))
    return state


def test_a_snapshot_that_is_there_is_skipped_and_a_damaged_one_written_again(tmp_path):
    params = {"w": jnp.arange(3.0)}
    states = {step: updated(params, step) for step in (2, 4)}
    before = None
    for _ in range(2):
        with Snapshots(tmp_path, widths=WIDTHS) as snapshots:
            for step, state in states.items():
                snapshots.save(step, state)
                snapshots.save(step, state)
        files = {step: (tmp_path / str(step) / "manifest.json").stat().st_mtime_ns for step in states}
        assert before in (None, files)
        before = files
    (tmp_path / "2" / "seal.json").write_text("{")
    with Snapshots(tmp_path, widths=WIDTHS) as snapshots:
        with pytest.warns(RuntimeWarning, match=r"2 is damaged: seal\.json: .*; it is set aside"):
            snapshots.save(2, states[2])
        snapshots.wait()
        assert snapshots.steps == snapshot_times(tmp_path) == (2, 4)
    assert (tmp_path / "2.damaged").is_dir()
    chex.assert_trees_all_equal(reconstruct(tmp_path, params, 0.1, step=2), states[2].averages[1])


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    destroy = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    state = updated(jnp.arange(2.0**20), 1)
    with Snapshots(tmp_path, widths=WIDTHS) as snapshots:
        snapshots.save(1, state)
        jax.block_until_ready(destroy(state.averages))
    np.testing.assert_array_equal(reconstruct(tmp_path, jnp.zeros(2**20), 0.05), np.arange(2.0**20))


def test_averages_stacked_over_seeds_and_split_over_a_mesh_come_back_on_another(tmp_path):
    sharding = jax.NamedSharding(make_mesh("data=4"), jax.P(None, "data"))
    params = {"w": jax.random.normal(jax.random.key(0), (3, 8))}
    with Snapshots(tmp_path, widths=WIDTHS) as snapshots:
        for step in (1, 3):
            state = jax.vmap(lambda params, step=step: updated(params, step))(params)
            averages = jax.device_put(state.averages, sharding)
            snapshots.save(step, PowerEmaState(averages, state.count))
    one = reconstruct(tmp_path, jax.eval_shape(lambda: params), 0.08)
    other = jax.NamedSharding(make_mesh("data=2"), jax.P(None, "data"))
    two = reconstruct(tmp_path, jax.device_put(params, other), 0.08)
    assert two["w"].sharding == other
    np.testing.assert_array_equal(one["w"], two["w"])
    coefficients = posthoc_coefficients([1, 1, 3, 3], np.tile(WIDTHS, 2), 3, 0.08)
    # The parameters are what they were at first, and the number of updates more.
    offsets = [float(average) for step in (1, 3) for average in updated(jnp.zeros(()), step).averages]
    np.testing.assert_allclose(one["w"] - params["w"], np.full((3, 8), coefficients @ offsets), atol=1e-6)


def test_what_is_not_an_average_of_every_step_is_refused(tmp_path):
    with Snapshots(tmp_path, widths=WIDTHS) as snapshots:
        state = updated(jnp.zeros(()), 2)
        for step in (3, 1):
            with pytest.raises(ValueError, match=rf"got \[2\] updates at step {step}"):
                snapshots.save(step, state)
        with pytest.raises(ValueError, match=r"got \[0\] updates at step 0"):
            snapshots.save(0, AVERAGE.init(jnp.zeros(())))
        with pytest.raises(ValueError, match=r"of widths \(0\.05, 0\.1\), but there are 1 averages"):
            snapshots.save(2, updated(jnp.zeros(()), 2, power_ema([0.1])))
        with pytest.raises(ValueError, match="of the averages of power_ema, got EmaState"):
            snapshots.check(ema(decay=0.5).init(jnp.zeros(())))
    assert list(tmp_path.iterdir()) == []


def update(state, constants, batch):
    """The tiny run, whose own average moves to `extra`."""
    after, metrics = tiny_run.update(state._replace(ema=state.extra), constants, batch)
    return after._replace(ema=AVERAGE.update(state.ema, after.params), extra=after.ema), metrics


def run(folder, *, steps=tiny_run.STEPS, mesh=None, save_every=5, update=update, **options):
    """Train with checkpoints and snapshots below a folder."""
    start = tiny_run.start()
    state = start._replace(ema=AVERAGE.init(start.params), extra=start.ema)
    options = {"steps_per_call": 4, "call_seconds": None, "snapshot_every": 7, "mesh": mesh, **options}
    with (
        Checkpoints(folder / "checkpoints", keep=9) as checkpoints,
        Snapshots(folder / "snapshots", widths=WIDTHS) as snapshots,
    ):
        options |= {"checkpoints": checkpoints, "save_every": save_every, "snapshots": snapshots, "steps": steps}
        return fit(update, state, tiny_run.constants(), tiny_run.data(mesh), **options)


def contents(folder):
    """Every average of every snapshot."""
    like = tiny_run.start().params
    steps = snapshot_times(folder / "snapshots")
    read = [
        [restore_params(folder / "snapshots", like, field=f"averages.{i}", step=s) for i in range(2)] for s in steps
    ]
    return jax.tree.map(np.asarray, dict(zip(steps, read, strict=True)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    state = run(folder)
    return state, contents(folder)


def plain(state):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def test_snapshots_are_the_averages_after_their_steps_and_the_last(whole):
    state, kept = whole
    assert list(kept) == [7, 14, 21, 24]
    chex.assert_trees_all_equal(kept[24], jax.tree.map(np.asarray, list(state.ema.averages)))
    with_step = fit(
        update,
        tiny_run.start()._replace(ema=AVERAGE.init(tiny_run.start().params), extra=tiny_run.start().ema),
        tiny_run.constants(),
        tiny_run.data(),
        steps=14,
        steps_per_call=4,
    )
    chex.assert_trees_all_equal(kept[14], jax.tree.map(np.asarray, list(with_step.ema.averages)))


def test_taking_snapshots_changes_no_bit_of_the_run(whole, tmp_path):
    start = tiny_run.start()
    state = start._replace(ema=AVERAGE.init(start.params), extra=start.ema)
    alone = fit(update, state, tiny_run.constants(), tiny_run.data(), steps=tiny_run.STEPS, steps_per_call=4)
    chex.assert_trees_all_equal(plain(alone), plain(whole[0]))


def test_a_run_that_is_stopped_and_resumed_has_the_same_snapshots(whole, tmp_path):
    stops = iter([False] * 7 + [True])
    state = run(tmp_path, steps_per_call=2, stop=lambda: next(stops))
    assert int(state.step) == 12  # calls of 2, 2, 1, 2, 2, 1 and 2 steps: no snapshot on a stop
    assert list(contents(tmp_path)) == [7]
    state = run(tmp_path, resume=True)
    chex.assert_trees_all_equal(plain(state), plain(whole[0]))
    chex.assert_trees_all_equal(contents(tmp_path), whole[1])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("save_every", [5, 7])
@pytest.mark.parametrize("moment", [11, 15, 22])
def test_a_run_that_was_killed_and_resumed_has_the_same_snapshots(whole, tmp_path, moment, save_every):
    def kill(step, metrics):
        if step == moment:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, on_metrics=kill, save_every=save_every)
    # As if the kill had come before the snapshots after the last checkpoint, and of its step, were written.
    newest = max(int(entry.name) for entry in (tmp_path / "checkpoints").iterdir())
    lost = [step for step in snapshot_times(tmp_path / "snapshots") if step >= newest]
    for step in lost[:1]:
        shutil.rmtree(tmp_path / "snapshots" / str(step))
    run(tmp_path, resume=True, save_every=save_every)
    chex.assert_trees_all_equal(contents(tmp_path), whole[1])


def test_a_snapshot_is_complete_before_a_later_checkpoint_is_begun(tmp_path, monkeypatch):
    seen = {}
    save = Checkpoints.save

    def watched(self, state, **options):
        if self.path.name == "checkpoints":
            seen[int(state.step)] = snapshot_times(tmp_path / "snapshots")
        return save(self, state, **options)

    monkeypatch.setattr(Checkpoints, "save", watched)
    run(tmp_path, snapshot_every=4)
    assert {step: [s for s in there if s < step] for step, there in seen.items()} == {
        step: list(range(4, step, 4)) for step in (5, 10, 15, 20, 24)
    }


def test_a_finished_run_gets_its_last_snapshot_when_it_is_resumed(whole, tmp_path):
    run(tmp_path)
    shutil.rmtree(tmp_path / "snapshots" / "24")
    run(tmp_path, resume=True)
    chex.assert_trees_all_equal(contents(tmp_path), whole[1])


def test_without_an_interval_the_last_step_alone_is_kept(tmp_path):
    run(tmp_path, snapshot_every=None)
    assert snapshot_times(tmp_path / "snapshots") == (24,)


def test_a_run_on_a_mesh_keeps_the_same_snapshots(whole, tmp_path):
    run(tmp_path, mesh=make_mesh("data=8"), fully_sharded=True)
    chex.assert_trees_all_close(contents(tmp_path), whole[1], rtol=1e-4, atol=1e-5)  # sums in another order


def test_an_average_that_is_not_finite_is_not_kept(tmp_path):
    def poisoned(state, constants, batch):
        after, metrics = update(state, constants, batch)
        spoilt = jax.tree.map(lambda leaf: jnp.where(state.step == 11, leaf * jnp.nan, leaf), after.ema.averages)
        return after._replace(ema=after.ema._replace(averages=spoilt)), metrics

    with pytest.raises(TrainingDivergedError, match=r"an average is not finite after step 14; .*/10$"):
        run(tmp_path, update=poisoned)
    assert snapshot_times(tmp_path / "snapshots") == (7,)


def test_snapshots_of_an_earlier_run_are_not_added_to(tmp_path):
    run(tmp_path, steps=7)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="snapshots holds snapshots already; resume, or name an empty folder"):
        run(tmp_path)


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="snapshot_every needs snapshots and must be at least 1, got 3"):
        tiny_run.run(snapshot_every=3)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        run(tmp_path, snapshot_every=0)
    with (
        Snapshots(tmp_path / "other", widths=WIDTHS) as snapshots,
        pytest.raises(ValueError, match="of the averages of power_ema, got EmaState"),
    ):
        tiny_run.run(snapshots=snapshots)


# Both write a checkpoint and a snapshot at once after steps 4, 8 and 10.
TWO_PROCESSES = """
import sys
import jax
port, process, folder, tests = sys.argv[1:]
sys.path.insert(0, tests)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), initialization_timeout=60)

import numpy as np, regression_run
from jaxgen.training import Checkpoints, Snapshots, fit, gathered, make_mesh, power_ema, reconstruct, snapshot_times

average = power_ema([0.05, 0.1])

def update(state, constants, batch):
    after, metrics = regression_run.update(state._replace(ema=state.extra), constants, batch)
    return after._replace(ema=average.update(state.ema, after.params), extra=after.ema), metrics

mesh, state = make_mesh("data=4,model=2"), regression_run.start()
state = state._replace(ema=average.init(state.params), extra=state.ema)
with Checkpoints(f"{folder}/of/run") as checkpoints, Snapshots(f"{folder}/run", widths=[0.05, 0.1]) as snapshots:
    state = fit(update, state, regression_run.constants(), regression_run.data(mesh), steps=10, mesh=mesh,
                axes=regression_run.AXES, fully_sharded=True, checkpoints=checkpoints, save_every=4,
                snapshots=snapshots, snapshot_every=2)
assert snapshot_times(f"{folder}/run") == (2, 4, 6, 8, 10)
for width, expected in ((0.1, state.ema.averages[1]), (0.08, None)):
    found = reconstruct(f"{folder}/run", state.params, width)
    assert found["enter"].sharding == state.params["enter"].sharding
    assert not found["enter"].is_fully_addressable
    if expected is not None:
        jax.tree.map(np.testing.assert_array_equal, gathered(found), gathered(expected))
print("sum", float(gathered(found)["enter"].sum()))
"""


@pytest.mark.slow
def test_two_processes_write_snapshots_beside_checkpoints_and_reconstruct_their_parts(tmp_path):
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-c", TWO_PROCESSES, str(port)]
    rest = [str(tmp_path), str(Path(tiny_run.__file__).parent)]
    running = [
        subprocess.Popen([*command, str(process), *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for process in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], told
    sums = [float(out.splitlines()[-1].removeprefix("sum ")) for out, _ in told]
    params = jax.eval_shape(lambda: regression_run.start().params)
    one = reconstruct(tmp_path / "run", params, 0.08)
    np.testing.assert_allclose(sums, np.sum(np.asarray(one["enter"])), rtol=1e-5)
