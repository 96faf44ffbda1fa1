import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models import EDM2Config
from jaxgen.models.edm2.block import EDM2Block
from jaxgen.models.resampling import double, halve

CONFIG = EDM2Config(
    image_shape=(4, 4, 1),
    num_classes=2,
    width=4,
    multipliers=(1, 2),
    blocks=1,
    channels_per_head=4,
    uncertainty_width=4,
)


def waves(shape):
    """Kernels of a formula: convolutions [h, w, i, o] and dense ones [i, o]."""
    *window, i, o = np.ogrid[tuple(slice(size) for size in shape)]
    return np.sin(1 + sum(factor * place for factor, place in zip((1, 2), window, strict=False)) + 3 * i + 5 * o)


def waving(block, x, embedding, gain=0.5):
    """Parameters of a block from the formula."""
    shapes = nn.unbox(jax.eval_shape(block.init, jax.random.key(0), x, embedding)["params"])
    return jax.tree.map(lambda leaf: jnp.asarray(waves(leaf.shape) if leaf.ndim else gain), shapes)


def inputs(channels, side=4):
    n, h, w, c = np.ogrid[:1, :side, :side, :channels]
    x = jnp.asarray(np.cos(0.7 * n + 0.3 * h + 0.5 * w + 1.1 * c))
    return x, jnp.asarray(np.sin(1 + 3 * np.arange(8.0)))[None]


def test_encoder_block_that_halves_is_the_worked_example():
    with jax.enable_x64(True):
        block, (x, embedding) = EDM2Block(CONFIG, 4, False, True, resample=halve), inputs(2)
        params = waving(block, x, embedding)
        assert set(params) == {"skip", "residual_0", "embed", "embed_gain", "residual_1"}
        y = np.asarray(block.apply({"params": params}, x, embedding))
    expected = [0.8989450205, -1.1229984342, -1.0197576345, -0.7354647674]
    np.testing.assert_allclose(y[0, 1, 0], expected, atol=5e-11)
    np.testing.assert_allclose([y.sum(), (y**2).sum()], [-7.2376771069, 13.4416254654], atol=1e-10)


def numpy_conv(kernel, x, gain=1.0):
    """Same-padded convolution with normalised filters, one offset at a time."""
    size = kernel.shape[0]
    kernel = kernel / (1e-4 + np.sqrt(np.mean(kernel**2, (0, 1, 2)))) / np.sqrt(kernel[..., 0].size)
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows, columns = x.shape[1:3]
    offsets = np.ndindex(size, size)
    return gain * sum(padded[:, i : i + rows, j : j + columns] @ kernel[i, j] for i, j in offsets)


def numpy_attention(params, x, head):
    """One head and one query at a time; channel ((head * width) + c) * 3 + j is feature c of query, key or value j."""
    count, rows, columns, features = x.shape
    projected = numpy_conv(params["query_key_value"]["kernel"], x).reshape(count, rows * columns, 3 * features)
    result = np.zeros((count, rows * columns, features))
    for first in range(0, features, head):
        channels = 3 * (first + np.arange(head))
        query, key, value = (
            part / (1e-4 + np.sqrt(np.mean(part**2, -1, keepdims=True)))
            for part in (projected[..., channels + j] for j in range(3))
        )
        for image, token in np.ndindex(count, rows * columns):
            weights = np.exp(key[image] @ query[image, token] / np.sqrt(head))
            result[image, token, first : first + head] = weights @ value[image] / weights.sum()
    return numpy_conv(params["attend"]["kernel"], result.reshape(x.shape))


def numpy_silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def numpy_sum(a, b, t):
    return ((1 - t) * a + t * b) / np.hypot(1 - t, t)


def test_decoder_block_with_two_heads_is_what_numpy_computes():
    with jax.enable_x64(True):
        x, embedding = inputs(6, side=2)
        block = EDM2Block(CONFIG, 8, True, True, decoder=True, resample=double)
        params = jax.tree.map(np.asarray, waving(block, x, embedding))
        y = block.apply({"params": params}, x, embedding)
    x, embedding = np.repeat(np.repeat(np.asarray(x), 2, 1), 2, 2), np.asarray(embedding)
    scale = 1 + numpy_conv(params["embed"]["kernel"][None, None], embedding[:, None, None], gain=0.5)
    assert params["residual_0"]["kernel"].shape == (3, 3, 6, 8)  # it reads the trunk before its width changes
    hidden = numpy_silu(numpy_conv(params["residual_0"]["kernel"], numpy_silu(x)) * scale)
    h = numpy_sum(numpy_conv(params["skip"]["kernel"], x), numpy_conv(params["residual_1"]["kernel"], hidden), 0.3)
    h = numpy_sum(h, numpy_attention(params, h, 4), 0.3)
    np.testing.assert_allclose(y, h, atol=1e-13)


def apply(block, params, x, embedding):
    return jax.jit(block.apply)({"params": params}, x, embedding)


def test_block_without_gain_ignores_the_embedding_and_one_with_it_does_not():
    block, (x, embedding) = EDM2Block(CONFIG, 4, False, True, decoder=True), inputs(4)
    changes = []
    for gain in (0.0, 0.5):
        params = waving(block, x, embedding, gain)
        first, second = (apply(block, params, x, sign * embedding) for sign in (1, -1))
        changes.append(float(jnp.abs(first - second).max()))
    assert changes[0] == 0
    assert changes[1] > 1e-3


def test_activations_are_clipped_on_their_way_out():
    block, (x, embedding) = EDM2Block(CONFIG, 4, False, True, decoder=True), inputs(4)
    y = apply(block, waving(block, x, embedding), 1e5 * x, embedding)
    assert [float(y.min()), float(y.max())] == [-256, 256]


def test_encoder_block_ignores_the_magnitude_of_its_input():
    block, (x, embedding) = EDM2Block(CONFIG, 4, False, True), inputs(4)
    params = waving(block, x, embedding)
    small, large = (apply(block, params, scale * x, embedding) for scale in (1.0, 1e3))
    np.testing.assert_allclose(small, large, atol=2e-3)  # epsilon over the root mean square of a pixel
