"""How samples are compared with the held-out digits: every statistic, each on samples clipped to [-1, 1]."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from experiments.digits.data import Digits
from jaxgen.statistics import Features, fd
from jaxgen.statistics.frechet import unbiased_frechet_distance
from jaxgen.statistics.kernel import polynomial_kernel, unbiased_mmd2
from jaxgen.statistics.precision_recall import precision_recall
from jaxgen.statistics.two_sample import (
    classifier_accuracy,
    mean_nearest_neighbor_distance,
    nearest_neighbor_accuracy,
)

_KERNEL = polynomial_kernel()
NAMES = {
    "nearest_neighbor": "1-NN accuracy",
    "precision": "precision",
    "recall": "recall",
    "classifier": "classifier accuracy",
    "mmd2": "MMD², polynomial",
    "frechet": "Fréchet distance",
    "accuracy": "asked-for digit",
    "training_distance": "distance to training",
}


class Judge(NamedTuple):
    """What the statistics need besides samples.

    Attributes:
        digits: the data.
        layers: weights and bias of the two hidden layers of the feature network.
        features: of the held-out digits, `[597, 64]`.
        classifier: tells the digits apart, trained on the training images.
        fingerprint: sha256 of the feature network, which names it.
    """

    digits: Digits
    layers: Sequence[tuple[np.ndarray, np.ndarray]]
    features: Float[np.ndarray, "count features"]
    classifier: Any
    fingerprint: str


def make_judge(digits: Digits) -> Judge:
    """Train the feature network and the classifier on the training images, always from the same seed."""
    network = MLPClassifier((128, 64), max_iter=200, alpha=1e-3, random_state=0).fit(digits.train, digits.train_labels)
    layers = list(zip(network.coefs_[:2], network.intercepts_[:2], strict=True))
    # The classifier's annotation of gamma knows only str.
    classifier = SVC(C=10.0).set_params(gamma=0.016).fit(digits.train, digits.train_labels)
    digest = hashlib.sha256(b"".join(part.tobytes() for layer in layers for part in layer)).hexdigest()
    return Judge(digits, layers, _features(layers, digits.held_out), classifier, digest)


def score(
    judge: Judge,
    samples: Float[np.ndarray, "count 64"],
    labels: Int[np.ndarray, " count"],
    *,
    classify: bool = True,
) -> dict[str, float]:
    """Compute the statistics of `NAMES`.

    Args:
        judge: what `make_judge` returned.
        samples: as many as are held out; clipped to [-1, 1] here.
        labels: the digits that were asked for.
        classify: False leaves out the classifier two-sample test, which takes most of the time.
    """
    samples = np.clip(samples, -1.0, 1.0).astype(np.float32)
    held_out, features = judge.digits.held_out, _features(judge.layers, samples)
    precision, recall = precision_recall(samples, held_out)
    scores = {
        "nearest_neighbor": nearest_neighbor_accuracy(samples, held_out),
        "precision": precision,
        "recall": recall,
        "mmd2": unbiased_mmd2(_KERNEL, features, judge.features),
        "frechet": unbiased_frechet_distance(features, judge.features),
        "accuracy": np.mean(judge.classifier.predict(samples) == labels),
        "training_distance": mean_nearest_neighbor_distance(samples, judge.digits.train),
    }
    if classify:
        scores["classifier"] = classifier_accuracy(samples, held_out)
    return {name: float(value) for name, value in scores.items()}


def score_all(
    judge: Judge,
    samples: Float[np.ndarray, "seeds count 64"],
    labels: Int[np.ndarray, "seeds count"],
    *,
    classify: bool = True,
) -> dict[str, np.ndarray]:
    """Compute the statistics for each seed: arrays `[seeds]`."""
    rows = [score(judge, *pair, classify=classify) for pair in zip(samples, labels, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def frechet(judge: Judge, samples: Float[np.ndarray, "count 64"]) -> float:
    """Compute the Fréchet distance of features to the held-out digits, of any number of samples."""
    return float(unbiased_frechet_distance(_features(judge.layers, np.clip(samples, -1.0, 1.0)), judge.features))


def plain_frechet(judge: Judge, samples: Float[np.ndarray, "count 64"], *, clip: bool = True) -> float:
    """Compute the Fréchet distance of features to the held-out digits with its bias, which sets of one size share."""
    name, images = f"digits-mlp-{judge.fingerprint[:16]}", np.clip(samples, -1.0, 1.0) if clip else samples
    features = Features(_features(judge.layers, images.astype(np.float32)), name)
    return fd(features, Features(judge.features, name)).value


def told(values: np.ndarray) -> str:
    """Write the mean and the standard deviation of a statistic over seeds or subsets."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _features(layers: Sequence[tuple[np.ndarray, np.ndarray]], images: np.ndarray) -> np.ndarray:
    for weights, bias in layers:
        images = np.maximum(images @ weights + bias, 0.0)
    return images.astype(np.float32)
