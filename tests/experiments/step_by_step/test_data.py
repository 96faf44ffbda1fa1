import numpy as np
import pytest

from experiments.step_by_step import data


def test_the_spiral_is_centred_of_unit_variance_and_winds_outwards():
    u = (np.arange(200_000) + 0.5) / 200_000
    points = data.spiral(u)
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-6)  # midpoint rule, error about 1 / 200,000^2
    np.testing.assert_allclose(np.mean(points**2), 1.0, atol=1e-6)
    middle, scale = data._middle_and_scale()
    x, y = (points * scale + middle).T
    np.testing.assert_allclose(np.hypot(x, y), 0.1 + 0.9 * u, atol=1e-9)
    turned = np.unwrap(np.arctan2(y, x))
    np.testing.assert_allclose(turned[-1] - turned[0], 2 * np.pi * data.TURNS * 0.9, rtol=1e-4)


def test_annulus_is_uniform_in_area_and_direction():
    points = data.annulus_samples(0, 100_000).astype(np.float64)
    areas = (np.sum(points**2, axis=1) - 1.5**2) / (2.0**2 - 1.5**2)
    angles = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) + 0.5
    for shares in (areas, angles):
        counts = np.histogram(shares, bins=20, range=(0.0, 1.0))[0]
        assert counts.sum() == pytest.approx(100_000, abs=5)  # float32 may round a point across the edge
        assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)


def test_training_sets_are_nested_padded_and_differ_by_seed():
    points, counts = data.training_sets((3, 5), 2, seed=1)
    assert points.shape == (2, 2, 5, 2)
    assert counts.tolist() == [[3, 5], [3, 5]]
    np.testing.assert_array_equal(points[:, 0, :3], points[:, 1, :3])
    assert not points[:, 0, 3:].any()
    assert np.abs(points[0, 1] - points[1, 1]).min() > 0
    assert data.distances_to_spiral(points[:, 1].reshape(-1, 2)).max() < 3e-4  # half a spacing of the dense row


def test_both_ends_of_a_flow_are_those_of_their_seed_and_of_no_training_set():
    ends = data.flow_ends(2, 7, seed=0)
    np.testing.assert_array_equal(ends.base[1], data.annulus_samples(501, 7))
    np.testing.assert_array_equal(ends.target[0], data.spiral_samples(500, 7))
    sets, _ = data.training_sets((7,), 2, seed=0)
    assert np.abs(sets[0, 0] - ends.target[0]).max() > 0.1


def test_distances_are_to_the_nearest_target():
    random = np.random.default_rng(0)
    points, targets = random.normal(size=(20, 2)), random.normal(size=(9, 2))
    expected = [min(float(np.hypot(*(point - target))) for target in targets) for point in points]
    np.testing.assert_allclose(data.distances(points, targets), expected, rtol=1e-12)


def test_distance_to_the_spiral_is_that_of_a_point_beside_it():
    u = np.random.default_rng(1).uniform(0.2, 0.9, 50)
    along = data.spiral(u + 1e-6) - data.spiral(u - 1e-6)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    # Its turns are 1.3 apart, so that a step of 0.1 keeps to one of them; 3e-4 squared over 0.2 is lost in the digits.
    np.testing.assert_allclose(data.distances_to_spiral(data.spiral(u) + 0.1 * across), 0.1, atol=2e-6)
