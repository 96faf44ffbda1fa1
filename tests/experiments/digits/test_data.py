import numpy as np
from sklearn.datasets import load_digits

from experiments.digits import data

DIGITS = data.load()


def test_the_split_is_the_one_that_the_reference_numbers_were_measured_on():
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    np.testing.assert_array_equal(DIGITS.train, (pixels[order[:1200]] / 8 - 1).astype(np.float32))
    np.testing.assert_array_equal(DIGITS.held_out, (pixels[order[1200:]] / 8 - 1).astype(np.float32))
    np.testing.assert_array_equal(np.append(DIGITS.train_labels, DIGITS.held_out_labels), labels[order])
    every = np.concatenate([DIGITS.train, DIGITS.held_out])
    np.testing.assert_allclose([every.mean(), every.std()], [-0.3895, 0.7521], atol=5e-5)  # given to four digits


def test_subsets_are_distinct_training_images_of_their_own_seed():
    chosen = [data.subset(DIGITS, seed) for seed in (0, 0, 1)]
    assert len(set(chosen[0].tolist())) == len(DIGITS.held_out) == 597
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert set(chosen[0]) != set(chosen[2])


def test_class_gaussians_have_the_moments_of_their_class():
    labels = np.full(20_000, 3)
    drawn = data.gaussian_samples(DIGITS, labels, seed=0).astype(np.float64)
    members = DIGITS.train[DIGITS.train_labels == 3].astype(np.float64)
    covariance = np.cov(members.T)
    shrunk = 0.95 * covariance + 0.05 * np.trace(covariance) / 64 * np.eye(64)
    error = np.abs(drawn.mean(axis=0) - members.mean(axis=0)) / np.sqrt(np.diag(shrunk) / 20_000)
    assert error.max() < 4.5  # the largest of 64 standard normals
    np.testing.assert_allclose(np.cov(drawn.T), shrunk, atol=5 * np.diag(shrunk).max() * np.sqrt(2 / 20_000))


def test_each_sample_is_of_the_class_it_was_asked_for():
    labels = np.arange(200) % 10
    drawn = data.gaussian_samples(DIGITS, labels, seed=1)
    means = np.stack([DIGITS.train[DIGITS.train_labels == label].mean(axis=0) for label in range(10)])
    nearest = ((drawn[:, None] - means[None]) ** 2).sum(-1).argmin(axis=1)
    assert (nearest == labels).mean() > 0.85  # nearest means read real held-out digits at 0.89
