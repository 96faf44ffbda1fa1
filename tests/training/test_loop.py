import signal
import subprocess
import sys
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from jax.sharding import PartitionSpec

from jaxgen.training import (
    SEED_AXES,
    Asynchronous,
    Batches,
    CheckpointError,
    Checkpoints,
    TrainingDivergedError,
    best_step,
    create,
    fingerprint,
    fit,
    in_memory,
    make_mesh,
    replicate,
    restore_params,
    run_span,
)


def plain(state):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def assert_bit_equal(left, right):
    chex.assert_trees_all_equal(plain(left), plain(right))


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run."""
    return tiny_run.run()


def quadratic(learning_rate, curvature):
    """Gradient descent on sum(curvature * w^2) / 2, whose step n has the closed form (1 - rate * curvature)^n w_0."""
    optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)

    def update(state, constants, batch):
        loss = lambda params: jnp.sum(constants * params**2) / 2  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(state.params)
        change, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        return state._replace(params=state.params + change, opt_state=opt_state), {"loss": value}

    def start(rate=learning_rate):
        params = jnp.ones(len(curvature))
        opt_state = optimiser.init(params)
        opt_state.hyperparams["learning_rate"] = jnp.asarray(rate)
        return create(jax.random.key(0), params, opt_state)

    return update, start


def nothing():
    return in_memory(jnp.zeros(1), 1, jax.random.key(0))


def test_gradient_descent_on_a_quadratic_follows_its_recursion():
    curvature = jnp.array([0.5, 1.0, 3.0])
    update, start = quadratic(0.1, curvature)
    losses = {}
    state = fit(update, start(), curvature, nothing(), steps=20, steps_per_call=6, on_metrics=losses.__setitem__)
    factor = 1 - 0.1 * np.asarray(curvature, np.float64)
    np.testing.assert_allclose(state.params, factor**20, rtol=1e-5)  # 20 float32 steps
    # The metrics of step n are those of the parameters before it.
    expected = [np.sum(np.asarray(curvature) * factor ** (2 * (n - 1))) / 2 for n in range(1, 21)]
    np.testing.assert_allclose([losses[n]["loss"] for n in range(1, 21)], expected, rtol=1e-5)
    assert int(state.step) == 20


def test_fit_equals_a_loop_over_the_update_alone(whole):
    state, batches = tiny_run.start(), tiny_run.data()
    step, select = jax.jit(tiny_run.update), jax.jit(batches.select)
    for number in range(tiny_run.STEPS):
        state, _ = step(state, tiny_run.constants(), select(batches.load(number, 1), 0))
        state = state._replace(step=state.step + 1)
    # Two programs of the same mathematics: fusion may round differently.
    chex.assert_trees_all_close(plain(state), plain(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps_per_call", [1, 7, 100])
def test_the_result_is_the_same_to_the_bit_however_many_steps_a_call_runs(whole, steps_per_call):
    assert_bit_equal(tiny_run.run(steps_per_call=steps_per_call), whole)


def test_steps_without_a_loop_give_the_result_of_those_in_one(whole, tmp_path):
    state = tiny_run.run(steps_per_call=None)
    # Two programs of the same mathematics.
    chex.assert_trees_all_close(plain(state), plain(whole), rtol=1e-5, atol=1e-6)
    tiny_run.run(tmp_path, steps=13, steps_per_call=None, save_every=5)
    assert_bit_equal(tiny_run.run(tmp_path, resume=True, steps_per_call=None), state)


def test_saving_and_resuming_changes_no_bit(whole, tmp_path):
    stops = iter([False, False, False, True])
    state = tiny_run.run(tmp_path, stop=lambda: next(stops))
    assert int(state.step) == 5  # calls of 2, 2 and, up to the checkpoint, 1 step
    for steps in (13, 24):
        state = tiny_run.run(tmp_path, steps=steps, resume=True, save_every=7)
        assert int(state.step) == steps
    assert_bit_equal(state, whole)


def killed_run(path, until, hold=()):
    """Start a run in a process of its own and kill it as soon as it prints a line."""
    command = [sys.executable, tiny_run.__file__, str(path), *hold]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == until:
                process.kill()
        assert process.wait() == -signal.SIGKILL


def test_a_run_killed_while_training_resumes_to_the_same_bits(whole, tmp_path):
    killed_run(tmp_path, "step 13")
    assert_bit_equal(tiny_run.run(tmp_path, resume=True), whole)


def test_a_run_killed_while_writing_a_checkpoint_resumes_to_the_same_bits(whole, tmp_path):
    killed_run(tmp_path, "holding", ["15"])
    assert sorted(entry.name.split(".")[0] for entry in tmp_path.iterdir()) == ["10", "15", "5"]
    assert not (tmp_path / "15").exists()
    seen = []
    state = tiny_run.run(tmp_path, resume=True, on_metrics=lambda step, metrics: seen.append(step))
    assert seen == list(range(11, 25))
    assert_bit_equal(state, whole)


def test_resuming_where_nothing_was_saved_starts_at_the_beginning(whole, tmp_path):
    assert_bit_equal(tiny_run.run(tmp_path, resume=True), whole)


def test_resuming_a_finished_run_returns_it(whole, tmp_path):
    tiny_run.run(tmp_path)
    assert_bit_equal(tiny_run.run(tmp_path, resume=True), whole)


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path):
    tiny_run.run(tmp_path, steps=5)
    with pytest.raises(ValueError, match="holds checkpoints already"):
        tiny_run.run(tmp_path)


def test_stopping_saves_and_returns_early(tmp_path):
    state = tiny_run.run(tmp_path, stop=lambda: True)
    assert int(state.step) == 0
    assert (tmp_path / "0").is_dir()
    calls = iter([False, True])
    state = tiny_run.run(tmp_path, stop=lambda: next(calls), resume=True)
    assert int(state.step) == 2
    assert_bit_equal(tiny_run.run(steps=2), state)
    np.testing.assert_array_equal(restore_params(tmp_path, state.params)["kernel"], state.params["kernel"])


def poisoned(state, constants, batch):
    """The tiny update with a loss, or parameters, that are not a number after a certain step."""
    after, metrics = tiny_run.update(state, constants, batch)
    poison = {name: jnp.where(state.step + 1 == step, jnp.nan, 1.0) for name, step in constants["poison"].items()}
    params = jax.tree.map(lambda leaf: leaf * poison["params"], after.params)
    return after._replace(params=params), {**metrics, "loss": metrics["loss"] * poison["loss"]}


@pytest.mark.parametrize(
    ("where", "step", "message"),
    [
        ("loss", 13, "loss is nan at step 13; the last good checkpoint is .*/10$"),
        ("loss", 15, "loss is nan at step 15; the last good checkpoint is .*/10$"),
        ("params", 15, "a parameter or its average is not finite after step 15; the last good checkpoint is .*/10$"),
        ("params", 13, "loss is nan at step 14; the last good checkpoint is .*/10$"),
        ("loss", 3, "loss is nan at step 3; no checkpoint was written$"),
    ],
)
def test_a_value_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, where, step, message):
    constants = {**tiny_run.constants(), "poison": {"loss": -1, "params": -1, where: step}}
    arguments = (poisoned, tiny_run.start(), constants, tiny_run.data())
    options = {"steps": 24, "save_every": 5, "steps_per_call": 2}
    checkpoints = Checkpoints(tmp_path, keep=9)
    with pytest.raises(TrainingDivergedError, match=message):
        fit(*arguments, checkpoints=checkpoints, **options)
    written = sorted(int(entry.name) for entry in tmp_path.iterdir())
    assert written == ([5, 10] if step > 10 else [])
    for number in written:
        params = restore_params(tmp_path, tiny_run.start().params, step=number)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_an_average_that_is_not_finite_is_not_saved(tmp_path):
    def update(state, constants, batch):
        after, metrics = tiny_run.update(state, constants, batch)
        spoilt = after.ema._replace(average=jax.tree.map(lambda leaf: leaf * jnp.nan, after.ema.average))
        return after._replace(ema=spoilt), metrics

    with Checkpoints(tmp_path) as checkpoints:
        arguments = (update, tiny_run.start(), tiny_run.constants(), tiny_run.data())
        with pytest.raises(TrainingDivergedError, match="a parameter or its average is not finite after step 5"):
            fit(*arguments, steps=5, checkpoints=checkpoints)
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_of_a_run_is_that_of_its_lowest_metric(tmp_path):
    losses = {}
    with Checkpoints(tmp_path, keep=1, best="loss") as checkpoints:
        fit(
            tiny_run.update,
            tiny_run.start(),
            tiny_run.constants(),
            tiny_run.data(),
            steps=20,
            save_every=2,
            checkpoints=checkpoints,
            on_metrics=lambda step, metrics: losses.__setitem__(step, float(metrics["loss"])),
        )
    best = min(range(2, 21, 2), key=losses.__getitem__)
    assert best_step(tmp_path, "loss") == best
    assert {entry.name for entry in tmp_path.iterdir()} == {"20", str(best)}


def test_metrics_arrive_one_call_late_while_the_next_call_runs():
    events = []
    batches = tiny_run.data()
    load = batches.load
    batches.load = lambda first, count: (events.append(f"run {first}+{count}"), load(first, count))[1]
    fit(
        tiny_run.update,
        tiny_run.start(),
        tiny_run.constants(),
        batches,
        steps=9,
        steps_per_call=2,
        call_seconds=None,
        log_every=3,
        on_metrics=lambda step, metrics: events.append(f"step {step}"),
    )
    assert events == ["run 0+2", "run 2+2", "run 4+2", "step 3", "run 6+2", "step 6", "run 8+1", "step 9"]


def test_the_state_is_donated_and_what_it_shares_survives(whole):
    params = {"kernel": tiny_run.start().params["kernel"] + 0, "bias": jnp.zeros(4)}
    state = tiny_run.start()._replace(params=params, extra={"reference": params})
    key, constants = state.key, {**tiny_run.constants(), "policy": state.params}
    moments = state.opt_state[0].mu["kernel"]
    after = fit(tiny_run.update, state, constants, tiny_run.data(), steps=3, steps_per_call=2)
    assert moments.is_deleted()
    np.testing.assert_array_equal(params["kernel"], after.extra["reference"]["kernel"])
    assert not key.is_deleted()
    assert float(constants["scale"]) == 2.0


def test_the_compiled_step_reuses_the_memory_of_the_state():
    arguments = (tiny_run.start(), tiny_run.constants(), tiny_run.data().load(0, 4), np.int32(4))
    lowered = run_span.lower(tiny_run.update, tiny_run.data().select, 4, None, None, "loss", *arguments)
    memory = lowered.compile().memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(plain(arguments[0])))
    assert memory.alias_size_in_bytes == size


def test_learning_rate_seed_and_steps_never_trace_again():
    curvature = jnp.array([0.5, 2.0])
    update, start = quadratic(0.1, curvature)
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(update, n=1)
    for rate, steps in ((0.1, 3), (0.2, 11), (0.05, 4)):
        state = start(rate)._replace(key=jax.random.key(steps))
        state = fit(counted, state, curvature, nothing(), steps=steps, steps_per_call=4)
        np.testing.assert_allclose(state.params, (1 - rate * curvature) ** steps, rtol=1e-5)


def test_constants_are_named_in_the_checkpoint_but_not_saved(tmp_path):
    tiny_run.run(tmp_path, steps=5)
    assert fingerprint(tiny_run.constants()) in (tmp_path / "5" / "meta" / "metadata").read_text()
    stored = (tmp_path / "5" / "state" / "_METADATA").read_text()
    assert "params.kernel" in stored
    assert "scale" not in stored
    other = {"scale": jnp.asarray(2.5)}
    with Checkpoints(tmp_path, config=tiny_run.CONFIG) as checkpoints:
        arguments = (tiny_run.update, tiny_run.start(), other, tiny_run.data())
        with pytest.raises(CheckpointError, match="other constants"):
            fit(*arguments, steps=9, checkpoints=checkpoints, resume=True)


def test_seeds_trained_together_equal_seeds_trained_alone():
    update = jax.vmap(tiny_run.update, in_axes=(SEED_AXES, None, None), out_axes=(SEED_AXES, 0))
    states = [tiny_run.start(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)._replace(step=states[0].step + 0)
    alone = [
        fit(tiny_run.update, state, tiny_run.constants(), tiny_run.data(), steps=8, steps_per_call=2)
        for state in states
    ]
    losses = []
    together = fit(
        update,
        stacked,
        tiny_run.constants(),
        tiny_run.data(),
        steps=8,
        on_metrics=lambda step, metrics: losses.append(metrics["loss"].shape),
    )
    assert losses == [(3,)] * 8
    for seed, state in enumerate(alone):
        kernel = together.params["kernel"][seed]
        np.testing.assert_allclose(kernel, state.params["kernel"], rtol=1e-5, atol=1e-6)  # batched products
        assert not np.allclose(kernel, together.params["kernel"][seed - 1], atol=1e-2)


AXES = {"kernel": PartitionSpec("inputs", "outputs"), "bias": PartitionSpec("outputs")}


@pytest.mark.parametrize("sizes", ["data=1", "data=8", "data=4,model=2"])
def test_meshes_agree_with_one_device(whole, sizes):
    mesh = make_mesh(sizes)
    losses = []
    state = tiny_run.run(
        mesh=mesh,
        axes=AXES,
        rules={"outputs": "model"},
        on_metrics=lambda step, metrics: losses.append(float(metrics["loss"])),
    )
    expected = []
    tiny_run.run(on_metrics=lambda step, metrics: expected.append(float(metrics["loss"])))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)  # sums in another order
    chex.assert_trees_all_close(plain(state), plain(whole), rtol=1e-4, atol=1e-5)
    for tree in (state.params, state.ema.average, state.opt_state[0].nu):
        split = PartitionSpec(None, "model") if "model" in sizes else PartitionSpec(None, None)
        assert tree["kernel"].sharding.is_equivalent_to(jax.NamedSharding(mesh, split), 2)


def test_a_run_continues_on_another_number_of_devices(whole, tmp_path):
    tiny_run.run(tmp_path, steps=10, mesh=make_mesh("data=4"))
    state = tiny_run.run(tmp_path, resume=True, mesh=make_mesh("data=8"))
    chex.assert_trees_all_close(plain(state), plain(whole), rtol=1e-4, atol=1e-5)
    assert len(state.params["kernel"].sharding.device_set) == 8


def test_the_batch_is_computed_in_shards():
    mesh = make_mesh("data=8")
    arguments = (tiny_run.start(), tiny_run.constants(), tiny_run.data().load(0, 4), np.int32(4))
    arguments = replicate(arguments, mesh)
    sharding = jax.NamedSharding(mesh, PartitionSpec("data"))
    lowered = run_span.lower(tiny_run.update, tiny_run.data().select, 4, None, sharding, "loss", *arguments)
    compiled = lowered.compile().as_text()
    assert "f32[1,3]" in compiled  # one example of eight on each device
    assert "all-reduce" in compiled


class Stream:
    """Batches that are read in order, as from files: the host stacks those of a span, and a position is a place."""

    def __init__(self, length):
        self.length, self.next, self.block = length, 0, None
        self.arrays = jax.tree.map(np.asarray, tiny_run.data().load(0, 1).arrays)

    @staticmethod
    def select(payload, offset):
        return jax.tree.map(lambda rows: rows[offset], payload)

    def load(self, first, count):
        index = (8 * self.next + np.arange(8 * self.length)).reshape(self.length, 8) % 37
        self.next += count
        return jax.tree.map(lambda array: array[index], self.arrays)

    def position(self, step):
        return {"next": self.next}

    def seek(self, position):
        self.next = position["next"]


def test_a_stream_that_has_to_be_read_in_order_resumes_where_it_was(tmp_path):
    def train(batches, **options):
        return fit(tiny_run.update, tiny_run.start(), tiny_run.constants(), batches, steps_per_call=4, **options)

    assert isinstance(Stream(4), Batches)
    expected = train(in_memory(Stream(4).arrays, 8, jax.random.key(0), shuffle=False), steps=14)
    with Checkpoints(tmp_path) as checkpoints:
        train(Stream(4), steps=9, checkpoints=checkpoints, save_every=3)
        state = train(Stream(4), steps=14, checkpoints=checkpoints, resume=True)
    # Another program picks the batch, so that fusion may round differently.
    chex.assert_trees_all_close(plain(state), plain(expected), rtol=1e-5, atol=1e-6)
    assert_bit_equal(train(Stream(4), steps=14), state)


def test_a_batch_that_devices_cannot_share_is_refused():
    mesh = make_mesh("data=8")
    with pytest.raises(ValueError, match="a batch of 6 cannot be split evenly over data=8"):
        fit(
            tiny_run.update,
            tiny_run.start(),
            tiny_run.constants(),
            tiny_run.data(mesh, batch_size=6),
            steps=1,
            mesh=mesh,
        )
    with pytest.raises(ValueError, match="the batches lie on 1 devices, the mesh has 8"):
        fit(tiny_run.update, tiny_run.start(), tiny_run.constants(), tiny_run.data(), steps=1, mesh=mesh)


def test_the_training_step_lowers_for_every_platform():
    arguments = (tiny_run.start(), tiny_run.constants(), tiny_run.data().load(0, 4), np.int32(4))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    select = tiny_run.data().select
    span = jax.jit(lambda *args: run_span(tiny_run.update, select, 4, None, None, "loss", *args))
    exported = jax.export.export(span, platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "f64" not in exported.mlir_module()


def test_the_host_spends_under_200_microseconds_a_step():
    curvature = jnp.array([0.5, 2.0])
    update, start = quadratic(0.1, curvature)
    batches = nothing()
    seconds = []
    for _ in range(6):
        state = start()
        begin = time.process_time()
        fit(update, state, curvature, batches, steps=640, on_metrics=lambda step, metrics: None)
        seconds.append(time.process_time() - begin)
    # Processor time of all threads, so that it bounds the host's; the first run compiles. About 20 measured.
    assert min(seconds[1:]) / 640 < 200e-6


def test_a_metric_writer_that_never_returns_does_not_hold_up_the_training(whole):
    release = threading.Event()
    written = []

    def stalled(step, metrics):
        release.wait()
        written.append(step)

    writer = Asynchronous(stalled, capacity=4)
    try:
        assert_bit_equal(tiny_run.run(on_metrics=writer), whole)
        assert written == []
    finally:
        release.set()
    with pytest.warns(RuntimeWarning, match="lines of metrics"):
        writer.close()
    # One was being written, four were waiting, and the others were dropped.
    assert written[:4] == [1, 2, 3, 4]
    assert len(written) == 5
    assert writer.dropped == tiny_run.STEPS - 5


def test_timings_tell_where_the_time_of_a_call_went():
    class Slow:
        def __init__(self):
            self.inner, self.select, self.block = tiny_run.data(), tiny_run.data().select, 3

        def load(self, first, count):
            assert first // 3 == (first + count - 1) // 3  # no span crosses a multiple of the block
            time.sleep(0.03)
            return self.inner.load(first, count)

        def position(self, step):
            return self.inner.position(step)

        def seek(self, position):
            self.inner.seek(position)

    timings = {}
    fit(
        tiny_run.update,
        tiny_run.start(),
        tiny_run.constants(),
        Slow(),
        steps=12,
        steps_per_call=8,
        call_seconds=None,
        on_timing=timings.__setitem__,
    )
    # The first of four calls compiles, and the metrics of the last arrive when the loop is over.
    assert sorted(timings) == [3, 6, 9]
    for timing in timings.values():
        assert timing.data >= 0.03 / 3
        assert timing.step >= timing.data


def test_calls_are_as_short_as_they_are_asked_to_be():
    calls = []

    def update(state, constants, batch):
        # A step of 20 ms, in which the host sleeps.
        wait = jax.pure_callback(lambda x: (time.sleep(0.02), x)[1], state.params, state.params)
        return state._replace(params=wait), {"loss": jnp.sum(wait)}

    batches = nothing()
    load = batches.load
    batches.load = lambda first, count: (calls.append(count), load(first, count))[1]
    state = create(jax.random.key(0), jnp.zeros(3))
    fit(update, state, (), batches, steps=40, steps_per_call=16, call_seconds=0.1)
    assert calls[:3] == [1, 1, 1]
    assert sum(calls) == 40
    assert 2 <= max(calls) <= 5  # of 20 ms each


@pytest.mark.parametrize("name", ["steps", "save_every", "log_every", "steps_per_call"])
def test_counts_below_one_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        tiny_run.run(tmp_path, **{name: 0})


def test_options_that_need_checkpoints_or_a_loss_are_refused():
    with pytest.raises(ValueError, match="need checkpoints"):
        tiny_run.run(save_every=3)
    with pytest.raises(ValueError, match=r"watched metric 'accuracy', got \['loss', 'size'\]"):
        tiny_run.run(watch="accuracy")
