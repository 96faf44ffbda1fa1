import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxgen.models import (
    EDM2,
    MLP,
    EDM2Config,
    ImageMLP,
    ImageMLPConfig,
    MLPConfig,
    abstract_params,
    abstract_variables,
    init_params,
    init_variables,
    logical_axes,
)


def test_every_axis_of_every_parameter_has_a_name():
    for blocks in (2, 5):
        model = ImageMLP(ImageMLPConfig(width=16, hidden=24, blocks=blocks, embedding=8, augmentation=3))
        axes = logical_axes(model)
        is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
        params = abstract_params(model)
        assert jax.tree.structure(axes, is_leaf=is_spec) == jax.tree.structure(params)
        for spec, leaf in zip(jax.tree.leaves(axes, is_leaf=is_spec), jax.tree.leaves(params), strict=True):
            assert len(spec) == leaf.ndim
            assert all(spec)
    assert axes["blocks"]["expand"]["kernel"] == PartitionSpec("blocks", "width", "hidden")


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_parameters_are_apart_from_the_other_variables():
    sizes = {"num_classes": 2, "width": 4, "multipliers": (1,), "blocks": 1, "channels_per_head": 4}
    model = EDM2(EDM2Config(image_shape=(2, 2, 1), uncertainty_width=4, **sizes))
    params, others = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
    assert shapes_of(params) == shapes_of(abstract_params(model))
    assert shapes_of(others) == shapes_of(abstract_variables(model))
    assert set(others) == {"buffers"}
    axes = logical_axes(model)
    assert jax.tree.structure(axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)) == jax.tree.structure(params)


def test_a_network_of_parameters_alone_has_no_other_variables():
    model, key = MLP(MLPConfig(width=4)), jax.random.key(0)
    params, others = init_variables(model, key)
    assert others == abstract_variables(model) == {}
    jax.tree.map(np.testing.assert_array_equal, params, init_params(model, key))
