"""The Gaussian of each digit: what the shrinkage makes of it, and the table that its samples are held against."""

import numpy as np
import pytest

from experiments.digits import data
from experiments.guidance import references


@pytest.mark.parametrize(("label", "trace"), [(3, 9.688), (8, 11.759)])
def test_the_gaussian_of_a_digit_has_the_known_trace(label, trace):
    digits = data.load()
    mean, covariance = data.class_gaussian(digits, label)
    images = digits.train[digits.train_labels == label].astype(np.float64)
    np.testing.assert_allclose(mean, images.mean(axis=0), atol=1e-6)
    assert np.trace(covariance) == pytest.approx(trace, abs=5e-4)
    assert np.trace(covariance) == pytest.approx(images.var(axis=0, ddof=1).sum(), rel=1e-6)
    # A twentieth of the mean variance of a pixel keeps every direction alive.
    assert np.linalg.eigvalsh(covariance).min() == pytest.approx(0.05 * trace / 64, rel=1e-3)


def test_the_known_shifts_tell_the_samplers_apart():
    shifts = {key: shift for key, (shift, _) in references.CLASS_SHIFTS.items()}
    # 3 % between DDPM and the PCG that matches it, 38 % to the one that does not, and twice as far by DDIM.
    assert shifts["PCG", 3.0] / shifts["DDPM", 2.0] == pytest.approx(0.977, abs=1e-3)
    assert shifts["PCG", 2.0] / shifts["DDPM", 2.0] == pytest.approx(0.62, abs=5e-3)
    assert shifts["DDIM", 2.0] / shifts["DDPM", 2.0] > 1.9
