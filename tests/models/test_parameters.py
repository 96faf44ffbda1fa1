import jax
from jax.sharding import PartitionSpec

from jaxgen.models import ImageMLP, ImageMLPConfig, abstract_params, logical_axes


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
