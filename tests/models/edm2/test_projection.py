import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import filled_params

from jaxgen.models import EDM2, EDM2Config, ImageMLP, ImageMLPConfig, abstract_params, logical_axes, project_weights
from jaxgen.training import create, make_mesh, state_shardings

CONFIG = EDM2Config(image_shape=(4, 4, 1), num_classes=5, width=16, multipliers=(1,), blocks=1, channels_per_head=4)
PARAMS = filled_params(EDM2(CONFIG), scale=3.0)

project = jax.jit(project_weights)  # op by op, every shape would be compiled ten times


def paths(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_every_filter_has_root_mean_square_one_and_gains_are_left_alone():
    projected, before = paths(project(PARAMS)), paths(PARAMS)
    assert list(projected) == list(before)
    for path, leaf in projected.items():
        if "kernel" in path:
            filters = np.asarray(leaf).reshape(-1, leaf.shape[-1])
            original = np.asarray(before[path]).reshape(filters.shape)
            root = np.sqrt(np.mean(filters**2, 0))
            # The factor is 1 / (r + epsilon).
            size = np.sqrt(np.mean(original**2, 0))
            np.testing.assert_allclose(root, size / (size + 1e-4), rtol=1e-5, err_msg=path)
            np.testing.assert_allclose(filters / root, original / size, rtol=1e-5, atol=1e-6)
        else:
            assert path.endswith("gain']")
            np.testing.assert_array_equal(leaf, before[path])


def test_projection_is_idempotent_to_rounding_and_ignores_the_scale():
    once = project(project(PARAMS))
    again = project(once)
    close = lambda rtol: lambda left, right: np.testing.assert_allclose(left, right, rtol=rtol, atol=0)  # noqa: E731
    jax.tree.map(close(1e-6), again, once)  # a root mean square r becomes r / (r + epsilon): 1 - epsilon stays
    larger = jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else 50 * leaf, PARAMS)
    # A filter of one or five small draws may be far below the others, and epsilon not small beside it.
    wide = lambda tree: {path: leaf for path, leaf in paths(tree).items() if np.size(leaf) > 200}  # noqa: E731
    jax.tree.map(close(2e-4), wide(project(larger)), wide(project(PARAMS)))


def test_a_filter_of_one_number_keeps_its_sign():
    params = {"label": {"kernel": jnp.asarray([[0.3, -2.0]])}}  # one class
    np.testing.assert_allclose(project_weights(params)["label"]["kernel"], [[1.0, -1.0]], atol=4e-4)


def test_projection_keeps_shapes_types_and_what_is_not_a_kernel():
    tree = {"kernel": jnp.ones((3, 2), jnp.bfloat16), "bias": 7 * jnp.ones(2), "kernels": [5 * jnp.ones((2, 2))]}
    projected = project_weights(tree)
    assert projected["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(projected["bias"], tree["bias"])
    np.testing.assert_array_equal(projected["kernels"][0], tree["kernels"][0])
    shapes = abstract_params(ImageMLP(ImageMLPConfig(width=8, hidden=8, blocks=1, embedding=8)))
    assert jax.eval_shape(project_weights, shapes) == shapes


def test_stacked_networks_are_projected_one_by_one():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, -2 * leaf]), PARAMS)
    mapped = jax.vmap(project)(stacked)
    jax.tree.map(lambda both, one: np.testing.assert_allclose(both[0], one, rtol=1e-6), mapped, project(PARAMS))


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_sharded_parameters_stay_where_they_are(fully_sharded):
    axes, mesh = logical_axes(EDM2(CONFIG)), make_mesh({"data": 2, "model": 2})
    state = create(jax.random.key(0), PARAMS, ())
    places = state_shardings(state, mesh, axes, fully_sharded=fully_sharded).params
    kernel = places["encoder_0_0"]["residual_0"]["kernel"]
    assert kernel.spec == PartitionSpec(None, None, "data" if fully_sharded else None, "model")
    projected = jax.jit(project_weights, out_shardings=places)(jax.device_put(PARAMS, places))
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-6), projected, project(PARAMS))
