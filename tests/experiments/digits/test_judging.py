import numpy as np
import pytest

from experiments.digits import data, judging

DIGITS = data.load()


@pytest.fixture(scope="module")
def judge():
    return judging.make_judge(DIGITS)


def test_the_classifier_and_the_features_are_those_of_the_reference(judge):
    # Measured elsewhere: 99.0 % for this support-vector classifier on the held-out digits.
    right = (judge.classifier.predict(DIGITS.held_out) == DIGITS.held_out_labels).mean()
    assert right == pytest.approx(0.990, abs=0.003)
    assert judge.features.shape == (597, 64)
    assert len(judge.fingerprint) == 64


def test_the_feature_network_is_the_same_every_time(judge):
    assert judging.make_judge(DIGITS).fingerprint == judge.fingerprint


def test_held_out_digits_are_not_told_from_themselves(judge):
    scores = judging.score(judge, DIGITS.held_out, DIGITS.held_out_labels, classify=False)
    assert scores["nearest_neighbor"] < 0.05  # each has its own copy in the other set
    assert scores["precision"] == scores["recall"] == 1.0
    assert scores["training_distance"] == pytest.approx(2.13, abs=0.005)
    # Unbiased estimates between a set and itself: -2 / n times the spread of the kernel, and no distance.
    assert scores["mmd2"] < 0
    assert scores["accuracy"] == pytest.approx(0.990, abs=0.003)
    assert "classifier" not in scores


def test_training_images_are_found_out_as_copies(judge):
    chosen = data.subset(DIGITS, 0)
    scores = judging.score(judge, DIGITS.train[chosen], DIGITS.train_labels[chosen])
    assert scores["training_distance"] == 0.0
    assert set(scores) == set(judging.NAMES)
    # Over 20 subsets: 0.499 +- 0.013 and 0.51 +- 0.01; four standard deviations.
    assert scores["nearest_neighbor"] == pytest.approx(0.499, abs=0.052)
    assert scores["classifier"] == pytest.approx(0.51, abs=0.04)


def test_samples_are_clipped_before_they_are_compared(judge):
    wide = np.where(np.abs(DIGITS.held_out) == 1.0, 3.0 * DIGITS.held_out, DIGITS.held_out)
    assert judging.score(judge, wide, DIGITS.held_out_labels, classify=False) == judging.score(
        judge, DIGITS.held_out, DIGITS.held_out_labels, classify=False
    )


def test_noise_fails_every_statistic(judge):
    noise = np.random.default_rng(0).standard_normal((597, 64)).astype(np.float32)
    scores = judging.score(judge, noise, DIGITS.held_out_labels)
    assert scores["nearest_neighbor"] > 0.95
    assert scores["classifier"] > 0.99
    assert scores["precision"] < 0.01
    assert scores["mmd2"] > 20
    assert scores["frechet"] > 10


def test_scores_of_seeds_are_those_of_each(judge):
    chosen = np.stack([data.subset(DIGITS, seed) for seed in (0, 1)])
    rows = judging.score_all(judge, DIGITS.train[chosen], DIGITS.train_labels[chosen], classify=False)
    for seed in (0, 1):
        one = judging.score(judge, DIGITS.train[chosen[seed]], DIGITS.train_labels[chosen[seed]], classify=False)
        assert {name: rows[name][seed] for name in rows} == one


def test_plain_distances_are_those_of_the_eigenvalues_and_may_leave_samples_as_they_are(judge):
    samples = 1.5 * judge.digits.train[:300]
    for clip in (True, False):
        features, held_out = (
            judging._features(judge.layers, images).astype(np.float64)
            for images in (np.clip(samples, -1, 1) if clip else samples, judge.digits.held_out)
        )
        covariances = [np.cov(of.T) for of in (features, held_out)]
        overlap = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0.0)).sum()
        shift = np.sum((features.mean(0) - held_out.mean(0)) ** 2)
        expected = shift + np.trace(covariances[0] + covariances[1]) - 2 * overlap
        found = judging.plain_frechet(judge, samples, clip=clip)
        # Some features are never on: roots of eigenvalues that should be 0.
        np.testing.assert_allclose(found, expected, rtol=1e-4)
