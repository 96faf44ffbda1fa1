"""The Gaussian of each digit: what the shrinkage makes of it, and the table that its samples are held against."""

import dataclasses

import numpy as np
import pytest

from experiments.configuration import Settings
from experiments.digits import data
from experiments.guidance import CLAIMS, Config, class_gaussians, references
from experiments.run_directory import RunDirectory

# Digit 8 at scale 2: norm of the shift of the mean and trace, of 3,000 samples by the program of `CLASS_SHIFTS`.
OF_EIGHT = {
    "DDIM": (0.632, 12.39),
    "DDPM": (0.427, 12.03),
    "PCG matched": (0.421, 12.35),
    "PCG at gamma": (0.254, 12.09),
}


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


@pytest.mark.slow
def test_digit_eight_is_shifted_as_another_program_says(tmp_path):
    config = dataclasses.replace(Config(), class_label=8, seeds=1)
    run = RunDirectory(tmp_path / "run", Settings("guidance", "default", 0, config), CLAIMS)
    problem, mean = class_gaussians._problem(config), class_gaussians._class_mean(config)
    for name, (shift, trace) in OF_EIGHT.items():
        method, scale = class_gaussians._methods(2.0)[name]
        shifts, traces = class_gaussians._shifts(config, run, problem, mean, method, scale, 3000)
        # Four standard errors of a difference along a direction of variance 1; the samplers are .17 apart. Three of the
        # known traces.
        clean = np.sqrt(shift**2 - trace / references.CLASS_SAMPLES)
        assert shifts[0] == pytest.approx(clean, abs=0.1)
        assert traces[0] == pytest.approx(trace, abs=0.5)
