"""EDM2 on the digits: scaling, which settings belong to the network, and which averages a run can give."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from experiments import configuration
from experiments.digits import Config, EDM2Sizes, data, edm2
from jaxgen.training import CheckpointError


def test_the_network_sees_digits_of_mean_0_and_standard_deviation_a_half():
    digits = data.load()
    scaling = edm2.Scaling(float(digits.train.mean()), 0.5 / float(digits.train.std()))
    inside = scaling.inward(digits.train)
    assert inside.shape == (1200, 8, 8, 1)
    assert inside.mean() == pytest.approx(0.0, abs=1e-5)
    assert inside.std() == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(scaling.outward(inside), digits.train, atol=1e-6)
    # Row by row, as images are drawn.
    np.testing.assert_array_equal(inside[3, 2, :, 0], (digits.train[3, 16:24] - scaling.mean) * scaling.factor)


def test_the_levels_of_the_figure_are_the_middles_of_equally_likely_parts():
    edges = edm2.OBJECTIVE.level_edges(4 * edm2.LEVELS)[::2]
    assert len(edges) == 2 * edm2.LEVELS
    shares = norm.cdf(edges, loc=-0.8, scale=1.6)
    np.testing.assert_allclose(shares, (2 * np.arange(16) + 1) / 32, rtol=1e-12)


def test_how_images_are_drawn_is_no_setting_of_the_network():
    plain = configuration.to_json(Config())
    drawn = configuration.to_json(Config(edm2=EDM2Sizes(sampling_steps=7, seeds=3, widths=(0.1,)), gamma=2.0))
    assert edm2.trained_with(plain) == edm2.trained_with(drawn)
    for name, value in (("width", 8), ("steps", 7), ("snapshots", 3), ("ramp_images", 0.0)):
        other = configuration.to_json(Config(edm2=dataclasses.replace(EDM2Sizes(), **{name: value})))
        assert edm2.trained_with(plain) != edm2.trained_with(other)
    assert edm2.trained_with(plain) != edm2.trained_with(configuration.to_json(Config(label_dropout=0.3)))


def test_widths_are_refused_before_a_training_whose_snapshots_would_not_reach_them(tmp_path):
    edm2.check_widths([None], 10, 10, None)
    edm2.check_widths([0.05, 0.1], 10, 10, None)  # the tracked ones need nothing but the last snapshot
    edm2.check_widths([0.02, 0.15, 0.2, None], 2000, 125, None)
    with pytest.raises(ValueError, match=r"width 0.15 at step 10 is out of reach of 1 snapshots"):
        edm2.check_widths([0.15], 10, 10, None)
    with pytest.raises(ValueError, match=r"\(0, 1/sqrt\(12\) = 0.288675\), got 0.3"):
        edm2.check_widths([0.3], 2000, 125, None)
    with pytest.raises(CheckpointError, match=r"has no snapshot of step 10, only \[\]"):
        edm2.check_widths([0.05], 10, 10, tmp_path)
