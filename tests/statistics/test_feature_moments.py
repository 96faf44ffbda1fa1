import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.statistics.feature_functions import INCEPTION_ID, custom_features, random_conv_features
from jaxgen.statistics.feature_moments import (
    FeatureMoments,
    Features,
    check_feature_moments,
    check_features,
    extract_features,
    feature_moments,
    moments_of_features,
)

CONV = random_conv_features(0, channels=1, widths=(3, 5))


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 1), np.uint8)


def batches(of, *cuts):
    return np.split(of, cuts)


def test_streamed_moments_are_those_of_all_features_in_float64():
    data = images(53)
    moments = feature_moments(CONV, iter(batches(data, 16, 32, 48)))
    features = np.asarray(CONV(data), np.float64)
    assert moments.num_images == 53
    assert moments.feature_id == CONV.id
    assert moments.covariance.dtype == np.float64
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-6)  # float32 features of another batch size
    np.testing.assert_allclose(moments.covariance, np.cov(features.T), rtol=1e-4, atol=1e-7)


def test_the_same_features_give_the_same_moments_however_they_are_cut():
    data = images(53)
    whole = extract_features(CONV, [data], batch_size=16)
    assert whole.values.shape == (53, 5)
    exact = moments_of_features(whole)
    for parts in ([data], batches(data, 7, 8, 30), batches(data, 40)):
        moments = feature_moments(CONV, parts, batch_size=16)
        np.testing.assert_allclose(moments.mean, exact.mean, rtol=1e-6)
        np.testing.assert_allclose(moments.covariance, exact.covariance, rtol=1e-4, atol=1e-9)


def test_uneven_batches_are_computed_by_one_program_of_the_first_size():
    traced = []

    def brightness(x):
        traced.append(x.shape)
        return jnp.asarray(x, jnp.float32).mean((1, 2))

    feature_moments(custom_features("brightness", brightness), batches(images(30), 8, 16, 19, 29))
    assert traced == [(8, 6, 6, 1)]


def test_a_function_of_another_library_runs_on_the_host_with_numpy():
    kinds = set()

    def host(x):
        kinds.add(type(x))
        return x.reshape(len(x), -1)[:, :2] * np.float64(1)

    moments = feature_moments(custom_features("host", host, compiled=False), [jnp.asarray(images(9))], batch_size=4)
    assert kinds == {np.ndarray}
    np.testing.assert_allclose(moments.covariance, np.cov(images(9).reshape(9, -1)[:, :2].T), rtol=1e-12)


def test_batches_sharded_over_eight_devices_give_the_moments_of_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    one = feature_moments(CONV, [images(53)], batch_size=16)
    eight = feature_moments(CONV, [images(53)], batch_size=16, sharding=NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(eight.mean, one.mean, rtol=1e-6)
    np.testing.assert_allclose(eight.covariance, one.covariance, rtol=1e-4, atol=1e-9)
    with pytest.raises(ValueError, match="must divide evenly over 8 devices, got 12 images"):
        feature_moments(CONV, [images(53)], batch_size=12, sharding=NamedSharding(mesh, P("data")))


def test_features_that_are_not_finite_are_refused_with_the_number_of_the_image():
    function = custom_features("log", lambda x: jnp.log(x.reshape(x.shape[0], -1)), image_dtype="float32")
    data = np.ones((20, 2, 2, 1), np.float32)
    data[13, 0, 0] = -1
    with pytest.raises(ValueError, match="the features log must be finite, those of image 13 are not"):
        feature_moments(function, batches(data, 4, 7, 12))


def test_a_dimension_that_changes_with_the_images_is_refused():
    function = custom_features("pixels", lambda x: x.reshape(x.shape[0], -1), image_dtype="float32")
    parts = [np.ones((2, 2, 2, 1), np.float32), np.ones((2, 3, 3, 1), np.float32)]
    with pytest.raises(ValueError, match="the features pixels must keep their dimension, 4, got 9"):
        extract_features(function, parts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_moments(CONV, []), "at least 2 images, got 0"),
        (lambda: feature_moments(CONV, [images(1)]), "at least 2 images, got 1"),
        (lambda: feature_moments(CONV, [images(4)], batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: feature_moments(CONV, [images(4).astype(np.float32)]), "are of uint8 images, got float32"),
        (lambda: extract_features(CONV, []), "at least 1 image, got 0"),
        (lambda: moments_of_features(Features(np.ones((1, 2)), "a")), "at least 2 samples, got 1"),
        (lambda: check_features(Features(np.ones((3, 2), int), "a")), r"real floating point .* got int64 \[3, 2\]"),
        (lambda: check_features(Features(np.full((3, 2), np.inf), "a")), "features must be finite, got 6 entries"),
        (lambda: check_features(Features(np.ones((3, 64)), INCEPTION_ID)), "2048 pool features, got 64"),
    ],
)
def test_what_has_no_moments_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 1}, "num_images must be at least 2, got 1"),
        ({"mean": np.zeros(3)}, r"got \[3\] and \[2, 2\]"),
        ({"mean": np.array([0, np.nan])}, "mean must be finite, got 1 entries"),
        ({"covariance": np.full((2, 2), np.inf)}, "covariance must be finite, got 4 entries"),
        ({"covariance": np.array([[1, 0.5], [0.4, 1]])}, "symmetric, got entries that differ from their mirror by 0.1"),
        ({"covariance": np.diag([1.0, -1.0])}, "variances must be at least 0, got -1"),
        ({"feature_id": "a b"}, "a feature id is"),
        ({"feature_id": INCEPTION_ID}, "2048 pool features, got 2"),
    ],
)
def test_unsound_moments_are_refused(changes, message):
    moments = FeatureMoments(np.zeros(2), np.eye(2), 10, "a")
    assert check_feature_moments(moments) is moments
    with pytest.raises(ValueError, match=message):
        check_feature_moments(moments._replace(**changes))
