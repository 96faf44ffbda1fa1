import hashlib
import json
import re
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import memory_run
import numpy as np
import pytest

from jaxgen.training import (
    CheckpointDamagedError,
    CheckpointError,
    Checkpoints,
    best_step,
    create,
    fingerprint,
    make_mesh,
    read_config,
    restore_params,
    state_shardings,
)
from jaxgen.training.checkpoints import restore_each, written_steps

CONFIG = {"width": 5, "optimiser": {"name": "adam", "rate": 0.01}}


def state_at(step, scale=1.0):
    params = {"a": {"kernel": scale * jnp.arange(64.0).reshape(8, 8)}, "b": jnp.ones(3, jnp.bfloat16)}
    opt_state = ({"mu": params, "count": jnp.asarray(step)}, (), None)
    state = create(jax.random.key(step), params, opt_state, extra={"kl": jnp.asarray([1, 2], jnp.uint32)})
    return state._replace(step=jnp.asarray(step, jnp.int32))


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 3 and 6; copied before it is harmed."""
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(path, config=CONFIG) as checkpoints:
        for step in (3, 6):
            checkpoints.save(state_at(step, step), data={"epoch": step}, constants="abc")
    return path


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def restore(path, like=None, config=CONFIG, constants="abc"):
    with Checkpoints(path, config=config) as checkpoints:
        return checkpoints.restore(state_at(0) if like is None else like, constants=constants)


def test_everything_comes_back(saved):
    restored = restore(saved)
    assert_same(restored.state, state_at(6, 6))
    assert restored.data == {"epoch": 6}
    assert read_config(saved) == CONFIG


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    destroy = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    state = create(jax.random.key(0), {"w": jnp.arange(2.0**20)})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        jax.block_until_ready(destroy(state.params))
    restored = restore_params(tmp_path, {"w": jax.ShapeDtypeStruct((2**20,), jnp.float32)})
    np.testing.assert_array_equal(restored["w"], np.arange(2.0**20))


def test_one_field_is_read_alone(saved):
    params = restore_params(saved, jax.tree.map(jnp.zeros_like, state_at(0).params))
    assert_same(params, state_at(6, 6).params)
    moments = restore_params(saved, state_at(0).params, field="opt_state.0.mu", step=3)
    assert_same(moments, state_at(3, 3).params)
    with pytest.raises(CheckpointError, match=r"no checkpoint 4, only \[3, 6\]"):
        restore_params(saved, state_at(0).params, step=4)
    with pytest.raises(CheckpointError, match=r"ema\.b is absent"):
        restore_params(saved, state_at(0).params, field="ema")


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(5):
            checkpoints.save(state_at(step))
        checkpoints.wait()
        assert checkpoints.latest_step == 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4"]


def test_without_a_number_all_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=None, best="loss") as checkpoints:
        for step in (2, 9, 4):
            checkpoints.save(state_at(step), metrics={"loss": float(step)})
    assert written_steps(tmp_path) == (2, 4, 9)
    assert written_steps(tmp_path / "absent") == ()


def test_the_best_are_kept_beside_the_newest(tmp_path):
    losses = [5.0, 1.0, 3.0, 2.0, 9.0, 8.0, float("nan"), 7.0]
    for first in (0, 4):  # the second manager reads the metrics of the first from their files
        with Checkpoints(tmp_path, keep=2, best="loss", keep_best=2) as checkpoints:
            for step in range(first, first + 4):
                checkpoints.save(state_at(step), metrics={"loss": losses[step], "accuracy": step})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "3", "6", "7"]
    assert best_step(tmp_path, "loss") == 1
    assert best_step(tmp_path, "accuracy", maximise=True) == 7
    best = restore_params(tmp_path, state_at(0).params, step=best_step(tmp_path, "loss"))
    assert_same(best, state_at(1).params)
    with pytest.raises(CheckpointError, match=r"has the metric 'bleu', only \['accuracy', 'loss'\]"):
        best_step(tmp_path, "bleu")


def test_the_best_of_a_metric_to_maximise_is_the_largest(tmp_path):
    with Checkpoints(tmp_path, keep=1, best="accuracy", maximise=True) as checkpoints:
        for step, accuracy in enumerate([0.1, 0.7, 0.7, 0.3]):
            checkpoints.save(state_at(step), metrics={"accuracy": accuracy})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["2", "3"]  # of equal ones, the later


def test_a_partial_restore_tells_what_was_read_and_what_was_initialised(saved):
    like = state_at(0)
    params = {"a": {"kernel": jnp.full((8, 4), 7.0)}, "b": like.params["b"], "new": jnp.full(3, 5.0)}
    like = like._replace(params=params, opt_state=())
    with Checkpoints(saved, config={"width": 9}) as checkpoints:
        restored = checkpoints.restore(like, constants="other", partial=True)
    expected = state_at(6, 6)._replace(params={**params, "b": state_at(6, 6).params["b"]}, opt_state=())
    assert_same(restored.state, expected)
    assert restored.initialised == ("params.a.kernel", "params.new")
    assert set(restored.restored) == {"step", "params.b", "extra.kl", "key"}
    kernels = {"params.a.kernel", "opt_state.0.mu.a.kernel"}
    assert set(restored.unused) == kernels | {"opt_state.0.mu.b", "opt_state.0.count"}


def test_a_partial_restore_needs_values_for_what_is_not_stored(saved):
    like = jax.eval_shape(lambda: state_at(0)._replace(ema={"x": jnp.zeros(3)}))
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(CheckpointError, match=r"does not hold ema\.x as float32\[3\].*pass an initialised state"):
            checkpoints.restore(like, partial=True)
        with pytest.raises(CheckpointError, match=r"holds another state: .*; and 4 more"):
            checkpoints.restore({"x": jnp.zeros(3)}, partial=True)


def test_a_checkpoint_killed_before_its_seal_is_good(copied):
    (copied / "6" / "seal.json").unlink()
    assert_same(restore(copied).state, state_at(6, 6))
    (copied / "6" / "_CHECKPOINT_METADATA").write_text("{")
    with pytest.warns(RuntimeWarning, match="6 is damaged: _CHECKPOINT_METADATA"):
        assert int(restore(copied).state.step) == 3


def test_what_a_killed_process_left_is_removed(copied):
    (copied / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(copied, config=CONFIG) as checkpoints:
        assert checkpoints.latest_step == 6
        checkpoints.save(state_at(9))
    assert checkpoints.latest_step == 9
    assert not (copied / "9.orbax-checkpoint-tmp").exists()


def files_of(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def harm(file, how):
    content = bytearray(file.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 4
    file.write_bytes(content if how == "flip" else content[: len(content) // 2])
    return bool(content)


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_flipped_bit_or_a_cut_in_any_file_goes_back_to_the_good_checkpoint(saved, tmp_path, how):
    for number, name in enumerate(files_of(saved / "6")):
        path = shutil.copytree(saved, tmp_path / str(number))
        if not (path / "6" / name).stat().st_size:
            continue
        harm(path / "6" / name, how)
        with pytest.warns(RuntimeWarning, match="6 is damaged: .*; going back to checkpoint 3"):
            restored = restore(path)
        assert_same(restored.state, state_at(3, 3))
        assert restored.data == {"epoch": 3}


def test_a_missing_file_is_damage(copied):
    (copied / "6" / "state" / "_METADATA").unlink()
    with pytest.warns(RuntimeWarning, match="_METADATA"):
        assert int(restore(copied).state.step) == 3


def test_a_damaged_checkpoint_is_set_aside_and_its_step_saved_again(copied):
    (copied / "6" / "manifest.json").unlink()
    with Checkpoints(copied, config=CONFIG) as checkpoints:
        with pytest.warns(RuntimeWarning, match="going back to checkpoint 3"):
            checkpoints.restore(state_at(0), constants="abc")
        checkpoints.save(state_at(6, 7.0), constants="abc")
    assert (copied / "6.damaged").is_dir()
    assert_same(restore(copied).state, state_at(6, 7.0))


def test_a_step_that_is_damaged_again_is_set_aside_again(copied):
    for again in ("", "-2"):
        harm(copied / "6" / "meta" / "metadata", "flip")
        with Checkpoints(copied, config=CONFIG) as checkpoints:
            with pytest.warns(RuntimeWarning, match="going back to checkpoint 3"):
                assert checkpoints.good_step() == 3
            assert (copied / f"6.damaged{again}").is_dir()
            assert checkpoints.good_step() == 3
            checkpoints.save(state_at(6, 7.0), constants="abc")
    assert_same(restore(copied).state, state_at(6, 7.0))


def test_a_checkpoint_is_held_when_it_is_whole_and_set_aside_when_it_is_damaged(copied):
    with Checkpoints(copied, config=CONFIG) as checkpoints:
        checkpoints.save(state_at(9))
        assert checkpoints.holds(9)  # which was being written
        assert not checkpoints.holds(4)
        harm(copied / "3" / "meta" / "metadata", "flip")
        with pytest.warns(RuntimeWarning, match="3 is damaged: meta/metadata .*; it is set aside"):
            assert not checkpoints.holds(3)
        checkpoints.save(state_at(3, 5.0))  # earlier than the newest
        assert checkpoints.holds(3)
    assert (copied / "3.damaged").is_dir()
    assert_same(restore_params(copied, state_at(0).params, step=3), state_at(3, 5.0).params)


def test_fields_of_one_structure_are_read_one_after_the_other(saved):
    like = jax.tree.map(jnp.zeros_like, state_at(0).params)
    params, moments = restore_each(saved, like, ["params", "opt_state.0.mu"], step=3)
    assert_same(params, state_at(3, 3).params)
    assert_same(moments, state_at(3, 3).params)
    fields = restore_each(saved, like, ["params", "ema"])
    assert_same(next(fields), state_at(6, 6).params)
    with pytest.raises(CheckpointError, match=r"ema\.b is absent"):
        next(fields)


def test_a_folder_without_checkpoints_has_no_good_step(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.good_step() is None


def test_when_every_checkpoint_is_damaged_the_newest_is_named(copied):
    for step in ("3", "6"):
        harm(copied / step / "meta" / "metadata", "cut")
    with pytest.raises(CheckpointError, match="has no usable checkpoint"):
        restore(copied)
    with pytest.raises(CheckpointDamagedError, match="6 is damaged: meta/metadata"):
        restore_params(copied, state_at(0).params, step=6)
    assert (copied / "6").is_dir()
    with pytest.raises(CheckpointError, match="there is none"):
        read_config(copied / "absent")


def test_reading_a_run_changes_nothing(copied):
    before = files_of(copied)
    harm(copied / "6" / "meta" / "metadata", "flip")
    with pytest.warns(RuntimeWarning, match="going back"):
        params = restore_params(copied, state_at(0).params)
    assert_same(params, state_at(3, 3).params)
    assert files_of(copied) == before


def test_another_configuration_is_refused_field_by_field(saved):
    with pytest.raises(CheckpointError) as caught:
        restore(saved, config={"width": 6, "optimiser": {"name": "adam"}, "seed": 1})
    message = str(caught.value)
    assert message.endswith("optimiser.rate was 0.01, now absent; seed was absent, now 1; width was 5, now 6")


def test_other_constants_are_refused(saved):
    with pytest.raises(CheckpointError, match="their sha256 was abc, now it is none"):
        restore(saved, constants="")


def test_another_state_is_refused_with_the_first_five_paths(saved):
    like = state_at(0)
    other = like._replace(
        params={"a": {"kernel": jnp.zeros((8, 4))}, "b": jnp.ones(3), "c": jnp.ones(3)},
        extra={str(k): jnp.zeros(()) for k in range(3)},
    )
    with pytest.raises(CheckpointError) as caught:
        restore(saved, other)
    message = str(caught.value)
    assert "extra.0 is absent, expected float32[]" in message
    assert "extra.kl is uint32[2], expected none" in message
    assert "params.a.kernel is float32[8,8], expected float32[8,4]" in message
    assert message.endswith("; and 2 more")


def test_a_narrower_type_is_refused_instead_of_cast(saved):
    like = state_at(0)
    params = {"a": {"kernel": like.params["a"]["kernel"].astype(jnp.bfloat16)}, "b": like.params["b"]}
    with pytest.raises(CheckpointError, match=r"params\.a\.kernel is float32\[8,8\], expected bfloat16"):
        restore(saved, like._replace(params=params))


def on_mesh(state, sizes):
    if sizes is None:
        return state
    axes = {"a": {"kernel": jax.P("rows", None)}, "b": jax.P(None)}
    return jax.device_put(state, state_shardings(state, make_mesh(sizes), axes, {"rows": "data"}))


def test_a_state_of_four_devices_comes_back_on_one_two_and_eight(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(on_mesh(state_at(4, 4), "data=4"))
        checkpoints.wait()
        for sizes, devices in ((None, 1), ("data=2", 2), ("data=8", 8)):
            state = checkpoints.restore(on_mesh(state_at(0), sizes)).state
            assert_same(state, state_at(4, 4))
            kernel = state.params["a"]["kernel"]
            assert len(kernel.sharding.device_set) == devices
            assert kernel.addressable_shards[0].data.shape == (8 // devices, 8)


def test_a_state_of_one_device_comes_back_on_four(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(4, 4))
        checkpoints.wait()
        state = checkpoints.restore(on_mesh(state_at(0), "data=4")).state
    assert_same(state, state_at(4, 4))
    assert state.params["a"]["kernel"].addressable_shards[3].data.shape == (2, 8)


# In a process of its own: the limit holds for every thread, and the writes that orbax abandons at the first error
# report to an event loop that is closed by then.
FULL_DISK = """
import resource, sys
import jax, jax.numpy as jnp
from jaxgen.training import CheckpointError, Checkpoints, create

state = create(jax.random.key(0), {"w": jax.random.normal(jax.random.key(1), (2**16,))})
checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(state)
checkpoints.wait()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
checkpoints.save(state._replace(step=jnp.asarray(1, jnp.int32)))
try:
    checkpoints.wait()
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"checkpoint 1 could not be written: .*; the last good one is .*/0$", done.stdout.strip())
    state = create(jax.random.key(0), {"w": jax.random.normal(jax.random.key(1), (2**16,))})
    assert_same(restore(tmp_path, state, config={}, constants="").state, state)


def test_restoring_needs_at_most_a_third_more_memory_than_the_state(tmp_path):
    def run(how):
        command = [sys.executable, memory_run.__file__, how, str(tmp_path / "run")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    run("save")
    for how in ("restore", "fit"):
        assert 1 <= float(run(how)) <= 1.3


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    # Root may write where permissions forbid it, but nobody into /proc.
    for folder in (tmp_path / "file" / "x", "/proc/checkpoints"):
        with pytest.raises(CheckpointError, match=f"{folder} cannot hold checkpoints"):
            Checkpoints(folder)
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_later_format_is_refused_without_going_back(copied):
    meta = copied / "6" / "meta" / "metadata"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    manifest = copied / "6" / "manifest.json"
    (copied / "6" / "seal.json").unlink()
    manifest.write_text(
        json.dumps({**json.loads(manifest.read_text()), "meta/metadata": hashlib.sha256(meta.read_bytes()).hexdigest()})
    )
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="has format 99, this version reads 2"):
        restore(copied)


def test_fingerprint_depends_on_values_paths_shapes_and_types():
    base = {"w": jnp.arange(4.0), "k": jax.random.key(1)}
    variants = [
        {"w": jnp.arange(4.0).at[2].add(1e-6), "k": jax.random.key(1)},
        {"v": jnp.arange(4.0), "k": jax.random.key(1)},
        {"w": jnp.arange(4.0).reshape(2, 2), "k": jax.random.key(1)},
        {"w": jnp.arange(4), "k": jax.random.key(1)},
        {"w": jnp.arange(4.0), "k": jax.random.key(2)},
    ]
    prints = [fingerprint(tree) for tree in (base, *variants)]
    assert len(set(prints)) == 6
    assert fingerprint({"k": jax.random.key(1), "w": np.arange(4, dtype=np.float32)}) == prints[0]
    assert fingerprint(None) == ""
