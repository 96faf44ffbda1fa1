import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params, logical_axes
from jaxgen.training import check_batch, create, make_mesh, parse_mesh, replicate, shard_batch, state_shardings

AXES = {"dense": {"kernel": PartitionSpec("width", "hidden"), "bias": PartitionSpec("hidden")}}


def state_of(params):
    return create(jax.random.key(0), params, optax.adam(1e-3).init(params), ema=params)


def test_parse_mesh_reads_names_and_sizes():
    assert parse_mesh("data=4,model=2") == {"data": 4, "model": 2}
    assert parse_mesh(" data = 8 ") == {"data": 8}


@pytest.mark.parametrize("text", ["", "data", "data=", "data=0", "data=-1", "data=1.5", "data=2,data=2", "4", "a b=2"])
def test_text_that_is_no_mesh_is_refused(text):
    with pytest.raises(ValueError, match="data=4,model=2"):
        parse_mesh(text)


def test_make_mesh_has_automatic_axes_over_the_first_devices():
    mesh = make_mesh("data=2,model=3")
    assert mesh.shape == {"data": 2, "model": 3}
    assert set(mesh.devices.flat) == set(jax.devices()[:6])
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="the mesh data=16,model=2 needs 32 devices, but there are 8"):
        make_mesh("data=16,model=2")


def test_a_batch_is_split_over_the_data_axis_only():
    mesh = make_mesh("data=4,model=2")
    batch = shard_batch({"x": np.arange(24.0).reshape(8, 3)}, mesh)
    assert batch["x"].sharding.shard_shape((8, 3)) == (2, 3)
    assert replicate(jnp.ones(3), mesh).sharding.is_fully_replicated
    assert shard_batch(jnp.ones(3), make_mesh("model=2")).sharding.is_fully_replicated


def test_a_batch_that_does_not_divide_is_refused_by_both_numbers():
    with pytest.raises(ValueError, match="a batch of 6 cannot be split evenly over data=4 devices"):
        check_batch(6, make_mesh("data=4"))
    with pytest.raises(ValueError, match="batch of 6"):
        shard_batch(np.zeros((6, 2)), make_mesh("data=4"))


def test_moments_and_averages_follow_their_parameter():
    mesh = make_mesh("data=4,model=2")
    state = state_of({"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}})
    placed = jax.device_put(state, state_shardings(state, mesh, AXES))
    for tree in (placed.params, placed.ema, placed.opt_state[0].mu, placed.opt_state[0].nu):
        assert tree["dense"]["kernel"].sharding.spec == PartitionSpec(None, "model")
        assert tree["dense"]["bias"].addressable_shards[0].data.shape == (2,)
    assert placed.step.sharding.is_fully_replicated
    assert placed.key.sharding.is_fully_replicated


def test_a_stacked_state_replicates_its_seeds():
    state = state_of({"dense": {"kernel": jnp.ones((5, 3, 4)), "bias": jnp.ones((5, 4))}})
    shardings = state_shardings(state, make_mesh("data=4,model=2"), AXES)
    assert shardings.params["dense"]["kernel"].spec == PartitionSpec(None, None, "model")
    assert shardings.ema["dense"]["bias"].spec == PartitionSpec(None, "model")


def test_the_rules_split_the_image_network_over_the_model_axis():
    model = ImageMLP(ImageMLPConfig(blocks=5))
    params = abstract_params(model)
    state = create(jax.random.key(0), params, jax.eval_shape(optax.adam(1e-3).init, params))
    mesh = make_mesh("data=4,model=2")
    shardings = state_shardings(state, mesh, logical_axes(model))
    for tree in (shardings.params, shardings.opt_state[0].mu):
        assert tree["blocks"]["expand"]["kernel"].spec == PartitionSpec(None, None, "model")
        assert tree["blocks"]["contract"]["kernel"].spec == PartitionSpec(None, "model", None)
        assert tree["classes"].is_fully_replicated


def test_factored_moments_do_not_follow_the_parameter_whose_shape_they_lack():
    params = {"dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    optimiser = optax.adafactor(1e-3, min_dim_size_to_factor=2)
    for seeds in ((), (4,)):
        stacked = jax.tree.map(lambda leaf: jnp.ones(seeds + leaf.shape), (params, optimiser.init(params)))  # noqa: B023
        shardings = state_shardings(create(jax.random.key(0), *stacked), make_mesh("data=4,model=2"), AXES)
        assert shardings.params["dense"]["kernel"].spec[-1] == "model"
        assert shardings.opt_state[0].v_row["dense"]["kernel"].is_fully_replicated
        assert shardings.opt_state[0].v["dense"]["bias"].spec[-1] == "model"


def test_names_for_other_parameters_are_refused():
    with pytest.raises(ValueError, match="there are 1 parameters and 2 names"):
        state_shardings(state_of({"kernel": jnp.ones(3)}), make_mesh("data=2"), AXES)


def test_rules_choose_the_mesh_axis_and_a_missing_axis_replicates():
    state = state_of({"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}})
    mesh = make_mesh("data=4")
    assert state_shardings(state, mesh, AXES).params["dense"]["kernel"].spec == PartitionSpec(None, None)
    split = state_shardings(state, mesh, AXES, {"width": "data"})
    assert split.opt_state[0].mu["dense"]["kernel"].spec == PartitionSpec("data", None)
    assert state_shardings(state, mesh).params["dense"]["kernel"].is_fully_replicated


def test_an_axis_that_does_not_divide_is_refused_by_name():
    state = state_of({"dense": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}})
    with pytest.raises(ValueError, match="axis of 5, which model=2"):
        state_shardings(state, make_mesh("data=4,model=2"), AXES)
