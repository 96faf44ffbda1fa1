"""Affine layers with a ReLU between each two, inside a module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.mlp import MLPConfig
from jaxgen.models.relu_layers import check_sizes, relu_layers


class Layers(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, h):
        return relu_layers(h, 5, self.layers, 2, None)


@pytest.mark.parametrize("layers", [1, 3])
def test_every_layer_but_the_last_ends_in_a_relu(layers):
    x = jax.random.normal(jax.random.key(1), (6, 4))
    variables = jax.jit(Layers(layers).init)(jax.random.key(0), x)
    params = nn.unbox(variables)["params"]
    assert list(params) == [f"dense_{index}" for index in range(layers)]
    h = np.asarray(x, np.float64)
    for index in range(layers):
        h = h @ np.asarray(params[f"dense_{index}"]["kernel"], np.float64)
        h = h if index == layers - 1 else np.maximum(h, 0.0)
    found = Layers(layers).apply({"params": params}, x)
    np.testing.assert_allclose(found, h, rtol=1e-4, atol=1e-5)  # float32 over 3 layers
    assert found.shape == (6, 2)
    assert (np.asarray(found) < 0).any()
    assert jnp.all(params["dense_0"]["bias"] == 0)


def test_sizes_are_checked_by_name():
    check_sizes(MLPConfig(), width=128)
    with pytest.raises(ValueError, match="width must be at least 129, got 128"):
        check_sizes(MLPConfig(), layers=1, width=129)
