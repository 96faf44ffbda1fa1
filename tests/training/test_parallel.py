import functools

import chex
import jax
import numpy as np
import pytest
import regression_run
from jax.sharding import PartitionSpec

from jaxgen.training import RULES, Checkpoints, fit, make_mesh, run_span, state_shardings


@functools.cache
def alone():
    """Train on one device, without a mesh."""
    return regression_run.run()


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((tree.params, tree.opt_state, tree.ema))]


@pytest.mark.parametrize("fully_sharded", [False, True], ids=["", "fully sharded"])
@pytest.mark.parametrize("sizes", ["data=1", "data=8", "data=4,model=2"])
def test_meshes_give_the_losses_of_one_device(sizes, fully_sharded):
    state, losses = regression_run.run(make_mesh(sizes), fully_sharded=fully_sharded)
    expected, expected_losses = alone()
    assert len(losses) == 50
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    chex.assert_trees_all_close(leaves(state), leaves(expected), rtol=1e-3, atol=1e-5)


def test_accumulated_gradients_give_the_losses_of_whole_batches():
    _, losses = regression_run.run(make_mesh("data=8"), step=regression_run.in_parts)
    np.testing.assert_allclose(losses, alone()[1], rtol=1e-5)


def compiled(mesh, fully_sharded):
    state = regression_run.start()
    shardings = state_shardings(state, mesh, regression_run.AXES, fully_sharded=fully_sharded)
    batches = regression_run.data(mesh)
    constants = jax.device_put(regression_run.constants(), jax.NamedSharding(mesh, PartitionSpec()))
    arguments = (jax.device_put(state, shardings), constants, batches.load(0, 4), np.int32(4))
    layout, batch = tuple(jax.tree.leaves(shardings)), jax.NamedSharding(mesh, PartitionSpec("data"))
    lowered = run_span.lower(regression_run.update, batches.select, 4, layout, batch, "loss", *arguments)
    return lowered.compile(), state


def bytes_a_device(tree, shardings):
    sizes = jax.tree.map(
        lambda leaf, sharding: np.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


def test_the_compiled_program_holds_an_eighth_of_the_optimiser_state_on_each_device():
    whole, state = compiled(make_mesh("data=8"), fully_sharded=False)
    split, _ = compiled(make_mesh("data=8"), fully_sharded=True)
    for which in ("input_shardings", "output_shardings"):
        of_whole, of_split = (getattr(program, which) for program in (whole, split))
        # Arguments are (state, constants, payload, count), results (state, metrics).
        of_whole, of_split = (of[0] if which == "input_shardings" else of for of in (of_whole, of_split))
        for field in ("params", "opt_state", "ema"):
            tree = getattr(state, field)
            once = bytes_a_device(tree, getattr(of_whole[0], field))
            assert once == sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
            # The bias and its moments, of 64 numbers, and the counters are whole on every device.
            small = sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if leaf.size < 1024)
            assert bytes_a_device(tree, getattr(of_split[0], field)) == (once - small) / 8 + small
    # What the compiler itself says of the memory of a device: three and a half copies of 4,160 numbers are split.
    saved = whole.memory_analysis().argument_size_in_bytes - split.memory_analysis().argument_size_in_bytes
    assert saved == 4 * (32 * 64 * 2) * 4 * 7 / 8
    assert "all-gather" in split.as_text()
    assert "all-gather" not in whole.as_text()


def test_fully_sharded_states_split_what_the_rules_leave_whole():
    mesh = make_mesh("data=4,model=2")
    state = regression_run.start()
    shardings = state_shardings(state, mesh, regression_run.AXES, RULES, fully_sharded=True)
    for tree in (shardings.params, shardings.opt_state[0].mu, shardings.ema.average):
        assert tree["enter"].spec == PartitionSpec("data", "model")
        assert tree["leave"].spec == PartitionSpec("model", "data")
        assert tree["bias"].spec == PartitionSpec("model")
    plain = state_shardings(state, make_mesh("data=8"), fully_sharded=True)
    assert plain.params["enter"].spec == PartitionSpec(None, "data")
    assert plain.params["bias"].spec == PartitionSpec(None)


@pytest.mark.parametrize("sizes", [None, "data=1", "data=2,model=2", "data=8"])
def test_a_fully_sharded_run_goes_on_on_another_mesh(tmp_path, sizes):
    mesh = make_mesh("data=8")
    with Checkpoints(tmp_path) as checkpoints:
        regression_run.run(mesh, steps=20, fully_sharded=True, checkpoints=checkpoints)
    other = None if sizes is None else make_mesh(sizes)
    with Checkpoints(tmp_path) as checkpoints:
        state, losses = regression_run.run(other, checkpoints=checkpoints, resume=True)
    np.testing.assert_allclose(losses, alone()[1][20:], rtol=1e-5)
    assert len(state.params["enter"].sharding.device_set) == (1 if other is None else other.size)


@pytest.mark.parametrize("sizes", [None, "data=1", "data=8"])
def test_constants_and_averages_may_share_the_memory_of_the_parameters(sizes):
    mesh = None if sizes is None else make_mesh(sizes)
    laid = (
        jax.sharding.SingleDeviceSharding(jax.devices()[0])
        if mesh is None
        else jax.NamedSharding(mesh, PartitionSpec())
    )
    state = regression_run.start()
    params = jax.device_put(state.params, laid)
    # New arrays over the same memory, as a reference policy that is the initial one.
    again, reference = (jax.device_put(params, laid) for _ in range(2))
    state = state._replace(params=params, extra=again)
    constants = {**regression_run.constants(), "reference": reference}
    state = fit(regression_run.update, state, constants, regression_run.data(mesh), steps=5, mesh=mesh)
    expected = regression_run.start().params
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, state.extra), jax.tree.map(np.asarray, expected))
    assert not np.allclose(state.params["enter"], expected["enter"])


def test_frozen_constants_are_neither_donated_nor_differentiated_nor_saved(tmp_path):
    tangents = []

    @jax.custom_jvp
    def use(params, constant):
        return params * constant

    def rule(primals, tangent):
        # Called while the update is differentiated: a constant's tangent has to be a symbolic zero.
        tangents.append([type(t).__name__ for t in tangent])
        return use(*primals), tangent[0] * primals[1]

    use.defjvp(rule, symbolic_zeros=True)
    constants = {"frozen": jax.numpy.arange(1.0, 33.0)}

    def update(state, constants, batch):
        loss = lambda params: jax.numpy.mean(use(params["bias"][:32], constants["frozen"]) ** 2)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(state.params)
        return state._replace(params=jax.tree.map(lambda p, g: p - 1e-4 * g, state.params, gradient)), {"loss": value}

    mesh = make_mesh("data=8")
    with Checkpoints(tmp_path) as checkpoints:
        fit(
            update,
            regression_run.start(),
            constants,
            regression_run.data(mesh),
            steps=3,
            mesh=mesh,
            checkpoints=checkpoints,
        )
    assert tangents
    assert all(of[1] == "SymbolicZero" for of in tangents)
    np.testing.assert_array_equal(constants["frozen"], np.arange(1.0, 33.0))  # neither donated nor changed
    arrays = (tmp_path / "3" / "state" / "_METADATA").read_text()
    assert "params.bias" in arrays
    assert "frozen" not in arrays
