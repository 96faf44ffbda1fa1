"""The digits, split as everywhere in this experiment, and the Gaussians that they are more than."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.datasets import load_digits

TRAINING_IMAGES = 1200
SIDE = 8
_SHRINKAGE = 0.05


class Digits(NamedTuple):
    """Images in [-1, 1] as rows of 64 pixels, and their labels.

    Attributes:
        train: `[1200, 64]`.
        train_labels: `[1200]`.
        held_out: `[597, 64]`.
        held_out_labels: `[597]`.
    """

    train: Float[np.ndarray, "train 64"]
    train_labels: Int[np.ndarray, " train"]
    held_out: Float[np.ndarray, "test 64"]
    held_out_labels: Int[np.ndarray, " test"]


def load() -> Digits:
    """Load scikit-learn's digits and hold 597 of them out, always the same."""
    pixels, classes = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(classes))
    images, labels = (pixels[order] / 8 - 1).astype(np.float32), classes[order].astype(np.int32)
    return Digits(
        images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES], images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]
    )


def subset(digits: Digits, seed: int) -> Int[np.ndarray, " count"]:
    """Choose as many training images as are held out, without replacement; returns their indices."""
    return np.random.default_rng(seed).permutation(len(digits.train))[: len(digits.held_out)]


def class_gaussian(digits: Digits, label: int) -> tuple[Float[np.ndarray, " 64"], Float[np.ndarray, "64 64"]]:
    """Return mean and covariance of the training images of a digit, shrunk by 5 % towards a multiple of 1; float64."""
    members = digits.train[digits.train_labels == label].astype(np.float64)
    covariance = np.cov(members.T)
    spherical = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return members.mean(axis=0), (1 - _SHRINKAGE) * covariance + _SHRINKAGE * spherical


def gaussian_samples(digits: Digits, labels: Int[np.ndarray, " count"], seed: int) -> Float[np.ndarray, "count 64"]:
    """Draw each label's image from the Gaussian of its class."""
    random = np.random.default_rng(seed)
    images = np.empty((len(labels), digits.train.shape[1]), np.float32)
    for label in np.unique(labels):
        rows = labels == label
        images[rows] = random.multivariate_normal(*class_gaussian(digits, label), int(rows.sum()))
    return images
