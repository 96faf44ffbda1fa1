import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.statistics.feature_functions import FeatureFunction, custom_features, pca_features, random_conv_features
from jaxgen.statistics.frechet_host import sample_frechet_distance


def digits_like(seed, count=60, size=(6, 5, 1), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, 4)) @ rng.standard_normal((4, int(np.prod(size))))
    pixels = 128 + 30 * mixed + 5 * rng.standard_normal(mixed.shape)
    images = np.clip(pixels, 0, 255).reshape(count, *size)
    return images.astype(np.uint8) if dtype == np.uint8 else (images / 127.5 - 1).astype(dtype)


def flat(images):
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def test_all_principal_components_give_the_distance_of_the_pixels():
    reference, images = digits_like(0), digits_like(1)
    function = pca_features(reference, 30)
    ours, theirs = (np.asarray(function(x), np.float64) for x in (images, reference))
    # The projection is a rotation; it runs in float32.
    np.testing.assert_allclose(
        sample_frechet_distance(ours, theirs), sample_frechet_distance(flat(images), flat(reference)), rtol=1e-5
    )


def test_principal_components_match_scikit_learn_without_whitening():
    from sklearn.decomposition import PCA

    reference, images = digits_like(0), digits_like(1)
    fitted = PCA(4, svd_solver="full").fit(flat(reference))
    ours = np.asarray(pca_features(reference, 4)(images))
    np.testing.assert_allclose(np.abs(ours), np.abs(fitted.transform(flat(images))), atol=1e-5)
    np.testing.assert_allclose(
        np.var(np.asarray(pca_features(reference, 4)(reference)), axis=0, ddof=1), fitted.explained_variance_, rtol=1e-4
    )


def test_an_id_names_the_arrays_and_the_dtype_of_images():
    reference = digits_like(0)
    function = pca_features(reference, 4)
    assert function.id.startswith("pca-4-")
    assert pca_features(reference, 4).id == function.id
    floats = (reference / 127.5 - 1).astype(np.float32)
    others = [
        pca_features(reference, 3),
        pca_features(digits_like(1), 4),
        pca_features(reference.reshape(60, 5, 6, 1), 4),
        pca_features(floats, 4),
    ]
    assert len({function.id, *(other.id for other in others)}) == 5
    coarse = (floats > 0).astype(np.float32)  # the same numbers in both types, so the same arrays
    assert pca_features(coarse, 2).id != pca_features(coarse.astype(np.float16), 2).id
    assert random_conv_features(0, widths=(2,)).id != random_conv_features(0, widths=(2,), image_dtype="float32").id


def test_the_sign_of_a_component_does_not_depend_on_the_order_of_the_images():
    reference = digits_like(0)
    for images in (reference, reference[::-1], np.roll(reference, 7, axis=0)):
        components = pca_features(images, 6).params["components"]
        assert np.all(np.max(components, axis=1) == np.max(np.abs(components), axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_floating_images_have_the_features_of_the_same_bytes(dtype):
    images = (digits_like(0, 4, (8, 8, 3)) // 128) * 255  # -1 and 1 after scaling, exact in every dtype
    floats = np.asarray(images / 127.5 - 1, dtype)
    name = np.dtype(dtype).name
    ours = random_conv_features(0, widths=(4, 8), image_dtype=name)(floats)
    chex.assert_trees_all_close(ours, random_conv_features(0, widths=(4, 8))(images), rtol=1e-6)


def test_float64_images_are_projected_in_float64_where_jax_has_it():
    images = digits_like(0, dtype=np.float64)
    with jax.enable_x64(True):
        features = pca_features(images, 3)(images)
    assert features.dtype == jnp.float64


def test_random_convolutions_take_any_size_and_are_named_by_seed_and_sizes():
    function = random_conv_features(3, channels=1, widths=(4, 8))
    assert function.id.startswith("random-conv-3-1x4x8-")
    for size in ((1, 1, 1), (8, 8, 1), (33, 17, 1)):
        features = function(digits_like(0, 2, size))
        assert features.shape == (2, 8)
        assert bool(jnp.all(jnp.isfinite(features) & (features >= 0)))
    assert random_conv_features(3, channels=1, widths=(4, 8)).id == function.id
    others = [random_conv_features(4, channels=1, widths=(4, 8)), random_conv_features(3, channels=1, widths=(4, 9))]
    assert len({function.id, *(other.id for other in others)}) == 3


def test_random_convolution_matches_one_written_by_loops():
    function = random_conv_features(0, channels=2, widths=(3,))
    image = digits_like(0, 1, (4, 5, 2))
    (kernel, bias), padded = function.params[0], np.zeros((6, 7, 2))
    padded[1:-1, 1:-1] = image[0] / 127.5 - 1
    hidden = np.array(
        [[np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) + bias for j in range(5)] for i in range(4)]
    )
    np.testing.assert_allclose(function(image)[0], np.maximum(hidden, 0).mean((0, 1)), rtol=1e-5)


def test_features_of_an_image_do_not_depend_on_its_batch():
    images = digits_like(0, 6, (8, 8, 3))
    function = random_conv_features(1, widths=(4, 8))
    np.testing.assert_allclose(function(images)[2:3], function(images[2:3]), rtol=1e-5)


def test_params_are_arguments_of_the_compiled_program():
    function = pca_features(digits_like(0), 3)
    lowered = jax.jit(lambda function, images: function(images)).lower(function, digits_like(1))
    assert len(jax.tree.leaves(lowered.in_avals)) == 3  # mean, components, images


def test_wrapping_one_function_twice_gives_equal_functions():
    def brightness(images):
        return images.mean((1, 2))

    first, second = (custom_features("mine", brightness, image_dtype="float32") for _ in range(2))
    assert first == second
    assert jax.tree.structure(first) == jax.tree.structure(second)


@pytest.mark.parametrize("feature_id", ["", "a b", "x" * 201, "a[b]", "ä", "-a", "a\n"])
def test_ids_that_names_cannot_hold_are_refused(feature_id):
    with pytest.raises(ValueError, match="a feature id is 1 to 200 letters"):
        custom_features(feature_id, lambda images: images)


@pytest.mark.parametrize("image_dtype", ["int32", "complex64", "bool", "uint16", "pixels"])
def test_images_of_a_dtype_without_a_meaning_are_refused(image_dtype):
    with pytest.raises(ValueError, match="image_dtype must be"):
        custom_features("mine", lambda images: images, image_dtype=image_dtype)


def test_images_of_another_dtype_or_size_are_refused():
    images = digits_like(0)
    with pytest.raises(ValueError, match=r"features pca-3-\w+ are of uint8 images, got float32: convert them"):
        pca_features(images, 3)(images.astype(np.float32))
    with pytest.raises(ValueError, match="mine are of float32 images, got uint8"):
        custom_features("mine", lambda images: images, image_dtype="float32")(images)
    with pytest.raises(ValueError, match=r"the size that was fitted, \[6, 5, 1\], got \[5, 6, 1\]"):
        pca_features(images, 3)(images.reshape(60, 5, 6, 1))
    with pytest.raises(ValueError, match="images must have 3 channels, got 1"):
        random_conv_features(0)(images)


@pytest.mark.parametrize(
    "features",
    [lambda images: images, lambda images: images[:1, :, 0, 0], lambda images: images.sum((1, 2)).astype(int)],
)
def test_features_that_are_no_rows_of_real_numbers_are_refused(features):
    with pytest.raises(ValueError, match=r"features mine of 4 images must be real floating point \[4, dim\], got"):
        custom_features("mine", features)(np.zeros((4, 2, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pca_features(digits_like(0), 31), r"dim must lie in \[1, 30\] for 60 images of \[6, 5, 1\], got 31"),
        (lambda: pca_features(digits_like(0, 5), 5), r"dim must lie in \[1, 4\] for 5 images"),
        (lambda: pca_features(digits_like(0), 0), "got 0"),
        (
            lambda: pca_features(np.full((4, 2, 2, 1), np.nan, np.float32), 1),
            "reference must be finite, got 16 entries",
        ),
        (lambda: random_conv_features(-1), "seed must be at least 0, channels and widths at least 1, got -1"),
        (lambda: random_conv_features(0, widths=()), "widths at least 1"),
        (lambda: FeatureFunction("a", lambda params, images: images, image_dtype="int8"), "got int8"),
    ],
)
def test_what_cannot_be_built_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "function", [pca_features(digits_like(0, size=(6, 5, 3)), 3), random_conv_features(0, widths=(4, 8))]
)
def test_lowers_for_every_platform(function):
    images = jax.ShapeDtypeStruct((4, 6, 5, 3), jnp.uint8)

    def program(params, images):
        return function.apply(params, images)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), function.params)
    exported = jax.export.export(jax.jit(program), platforms=["cpu", "cuda", "tpu"])(shapes, images)
    assert "f64" not in exported.mlir_module()
