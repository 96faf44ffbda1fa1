import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgen.models.edm2.layers import MPConv, MPDense, MPFourier, filter_weight

AXES = ("width", "hidden")


def test_dense_layer_and_its_gradient_are_the_worked_example():
    # Filters (1, 2) and (3, -4), each scaled to norm 1 but for epsilon, applied to (1, -1).
    with jax.enable_x64(True):
        kernel, x = jnp.asarray([[1.0, 3.0], [2.0, -4.0]]), jnp.asarray([1.0, -1.0])

        def apply(kernel):
            return MPDense(2, AXES).apply({"params": {"kernel": kernel}}, x)

        np.testing.assert_allclose(apply(kernel), [-0.447185313, 1.399960403], atol=5e-10)
        gradient = jax.grad(lambda kernel: apply(kernel).sum())(kernel)
        expected = [[0.536616719, -0.268322500], [0.032003846, 0.023992986]]
        np.testing.assert_allclose(gradient.T, expected, atol=5e-10)
        products = (gradient * kernel).sum(0)
        assert jnp.abs(products).max() < 4e-5  # orthogonal but for epsilon


def test_convolution_is_the_worked_example():
    with jax.enable_x64(True):
        n, h, w, c = np.ogrid[:1, :4, :4, :2]
        x = jnp.asarray(np.cos(0.7 * n + 0.3 * h + 0.5 * w + 1.1 * c))
        h, w, i, o = np.ogrid[:3, :3, :2, :3]
        kernel = jnp.asarray(np.sin(1 + h + 2 * w + 3 * i + 5 * o))
        y = np.asarray(MPConv(3, 3, AXES).apply({"params": {"kernel": kernel}}, x))
    np.testing.assert_allclose(y[0, 1, 2], [-0.1481024059, 0.3605558915, 0.3538885491], atol=5e-11)
    np.testing.assert_allclose([y.sum(), (y**2).sum()], [3.4764073421, 7.7595182096], atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.5, 100), gain=st.floats(-2, 2))
def test_filters_have_the_norm_of_the_gain_whatever_the_scale_of_the_kernel(scale, gain):
    kernel = scale * np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype(np.float32)
    norms = np.linalg.norm(np.reshape(filter_weight(kernel=jnp.asarray(kernel), gain=gain), (36, 5)), axis=0)
    np.testing.assert_allclose(norms, np.full(5, abs(gain)), rtol=3e-4, atol=1e-7)  # epsilon over half the scale


def test_weights_are_normalised_before_they_are_rounded():
    random = np.random.default_rng(1)
    kernel = jnp.asarray(random.standard_normal((64, 32)), jnp.float32)
    apply = jax.jit(lambda kernel, x: MPDense(32, AXES, "bfloat16").apply({"params": {"kernel": kernel}}, x))
    x = jnp.eye(64)
    y = apply(kernel, x)
    assert y.dtype == jnp.bfloat16
    # The identity reads the weight off: it is the exact one rounded once.
    np.testing.assert_array_equal(y, filter_weight(kernel).astype(jnp.bfloat16))
    lowered = apply.lower(kernel, x).as_text().splitlines()
    assert not [line for line in lowered if "stablehlo.reduce(" in line and "bf16" in line]
    assert [line for line in lowered if "dot_general" in line and "xbf16>" in line]


@pytest.mark.parametrize("layer", [MPDense(256, AXES), MPConv(256, 3, AXES)])
def test_kernels_start_as_standard_normals_and_keep_the_mean_square(layer):
    x = np.random.default_rng(2).standard_normal((2, 16, 16, 32)).astype(np.float32)
    y, variables = jax.jit(lambda key, x: layer.init_with_output(key, x))(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"].value)
    assert list(variables["params"]) == ["kernel"]
    assert [kernel.mean(), kernel.std()] == pytest.approx([0, 1], abs=0.05)  # 8,192 draws or more
    inner = np.asarray(y)[:, 1:-1, 1:-1]  # away from the zeros of the padding
    assert np.mean(inner**2) == pytest.approx(1, abs=0.05)  # 100,000 dependent squares


def test_fourier_features_are_cosines_with_stored_frequencies():
    x = jnp.asarray([[-1.0, 0.0, 0.5]])
    layer = MPFourier(4096)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert list(variables) == ["buffers"]
    frequencies, phases = (np.asarray(variables["buffers"][name]) for name in ("frequencies", "phases"))
    expected = np.sqrt(2) * np.cos(np.asarray(x)[..., None] * frequencies + phases)
    np.testing.assert_allclose(y, expected, atol=1e-5)  # float32 of angles up to 30
    np.testing.assert_allclose(np.mean(np.asarray(y) ** 2, -1), np.ones((1, 3)), atol=0.05)  # 4,096 draws
    assert [frequencies.mean(), frequencies.std()] == pytest.approx([0, 2 * np.pi], abs=0.3)
    assert phases.min() >= 0
    assert phases.max() <= 2 * np.pi
    assert [phases.mean(), phases.std()] == pytest.approx([np.pi, 2 * np.pi / np.sqrt(12)], abs=0.1)
    assert abs(np.corrcoef(frequencies, phases)[0, 1]) < 0.06  # 4 standard errors


def test_fourier_features_take_half_precision_and_return_float32():
    layer = MPFourier(8)
    variables = layer.init(jax.random.key(0), jnp.zeros(()))
    x = jnp.asarray(0.375, jnp.bfloat16)  # exact
    y = layer.apply(variables, x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, layer.apply(variables, x.astype(jnp.float32)))
