"""The statistics on real handwritten digits, against a table of floors that other code has measured with numpy."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from jaxgen.statistics.frechet import frechet_distance, sample_moments, unbiased_frechet_distance
from jaxgen.statistics.kernel import polynomial_kernel, unbiased_mmd2
from jaxgen.statistics.precision_recall import precision_recall
from jaxgen.statistics.two_sample import (
    classifier_accuracy,
    mean_nearest_neighbor_distance,
    nearest_neighbor_accuracy,
)

KERNEL = polynomial_kernel()
DRAWS = 2


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.target))
    images = (data.data / 8 - 1).astype(np.float32)
    return images[order[:1200]], data.target[order[:1200]], images[order[1200:]]


@pytest.fixture(scope="module")
def features(digits):
    train, labels, _ = digits
    network = MLPClassifier((128, 64), max_iter=200, alpha=1e-3, random_state=0).fit(train, labels)

    def hidden(images):
        for weights, bias in zip(network.coefs_[:2], network.intercepts_[:2], strict=True):
            images = np.maximum(images @ weights + bias, 0)
        return images.astype(np.float32)

    return hidden


def class_gaussians(rng, train, labels, count):
    drawn = rng.choice(labels, count)
    samples = np.empty((count, 64), np.float32)
    for label in range(10):
        images = train[labels == label].astype(np.float64)
        covariance = np.cov(images.T)
        covariance = 0.95 * covariance + 0.05 * np.trace(covariance) / 64 * np.eye(64)
        rows = drawn == label
        samples[rows] = rng.multivariate_normal(images.mean(0), covariance, rows.sum())
    return samples


def measure(samples, train, test, features):
    precision, recall = precision_recall(samples, test)
    ours, real = features(samples), features(test)
    return {
        "1-NN": nearest_neighbor_accuracy(samples, test),
        "precision": precision,
        "recall": recall,
        "MMD^2": unbiased_mmd2(KERNEL, ours, real),
        "FD": frechet_distance(sample_moments(ours), sample_moments(real)),
        "unbiased FD": unbiased_frechet_distance(ours, real),
        "C2ST": classifier_accuracy(samples, test),
        "NN distance": mean_nearest_neighbor_distance(samples, train),
    }


# Mean and standard deviation over 20 draws of 597 samples against the 597 held-out images; C2ST over 4 draws. The NN
# distance was given to two digits, hence its 0.05.
FLOORS = {
    "real": [
        ("1-NN", 0.499, 0.013),
        ("precision", 0.972, 0.005),
        ("recall", 0.963, 0.007),
        ("MMD^2", 1.40, 0.77),
        ("FD", 2.59, 0.52),
        ("C2ST", 0.51, 0.015),
    ],
    "class Gaussians": [
        ("1-NN", 0.702, 0.013),
        ("precision", 0.784, 0.015),
        ("recall", 0.903, 0.015),
        ("MMD^2", 1.24, 1.04),
        ("FD", 2.65, 0.66),
        ("C2ST", 0.55, 0.03),
        ("NN distance", 2.7, 0.05),
    ],
    "clipped class Gaussians": [
        ("1-NN", 0.733, 0.011),
        ("precision", 0.954, 0.01),
        ("recall", 0.772, 0.015),
        ("MMD^2", 7.9, 0.9),
        ("FD", 5.0, 0.7),
        ("C2ST", 0.885, 0.01),
        ("NN distance", 2.5, 0.05),
    ],
}


@pytest.fixture(scope="module")
def measured(digits, features):
    train, labels, test = digits
    rng = np.random.default_rng(0)
    rows = {name: [] for name in FLOORS}
    for _ in range(DRAWS):
        gaussian = class_gaussians(rng, train, labels, len(test))
        rows["real"].append(measure(train[rng.permutation(1200)[:597]], train, test, features))
        rows["class Gaussians"].append(measure(gaussian, train, test, features))
        rows["clipped class Gaussians"].append(measure(np.clip(gaussian, -1, 1), train, test, features))
    return {name: {key: np.mean([row[key] for row in of]) for key in of[0]} for name, of in rows.items()}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_of_the_digits_are_reproduced(measured, name):
    for statistic, mean, spread in FLOORS[name]:
        # Four standard errors of the difference of two means, over 2 and over 20 draws.
        tolerance = 4 * spread * (1 / DRAWS + 1 / 20) ** 0.5
        np.testing.assert_allclose(measured[name][statistic], mean, atol=tolerance, err_msg=f"{name}: {statistic}")


def test_unbiased_distance_takes_most_of_the_floor_away(measured):
    # Subsets of the train split and the test split are draws of one law, up to the split itself.
    assert abs(measured["real"]["unbiased FD"]) < 0.3 * measured["real"]["FD"]
    assert measured["clipped class Gaussians"]["unbiased FD"] > 5 * abs(measured["real"]["unbiased FD"])


def test_copies_of_training_images_are_seen_by_their_distance(digits, measured):
    train, _, test = digits
    assert measured["real"]["NN distance"] == 0.0
    np.testing.assert_allclose(mean_nearest_neighbor_distance(test, train), 2.13, atol=0.005)  # given as 2.13
