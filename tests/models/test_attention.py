import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.attention import attend


def explicit(query, key, value):
    """One query at a time, in numpy."""
    result = np.zeros_like(query)
    for image, token, head in np.ndindex(query.shape[:3]):
        scores = key[image, :, head] @ query[image, token, head] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        result[image, token, head] = weights @ value[image, :, head] / weights.sum()
    return result


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5), ("bfloat16", 0.03)])
def test_attention_is_the_softmax_average_in_every_precision(dtype, tolerance):
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((2, tokens, 3, 4)) for tokens in (5, 6, 6)]
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, dtype) for array in inputs]
        result = attend(*arrays)
        assert result.dtype == dtype
        np.testing.assert_allclose(np.asarray(result, np.float64), explicit(*inputs), atol=tolerance)
