import numpy as np
import pytest

from experiments.level_metrics import LevelMetrics


def test_each_interval_has_the_mean_over_the_images_that_fell_into_it():
    levels = LevelMetrics(np.log([0.1, 1.0]))
    assert levels.names == ["loss_sigma_0_to_0.1", "loss_sigma_0.1_to_1", "loss_sigma_1_to_inf"]
    # Batches of 4: losses 2 and 4 in the first interval, then 6 there; 1 in the second; the rest left out.
    first = {"loss": 7.0, "level_loss": np.array([6.0, 1.0, 0.0]) / 4, "level_share": np.array([2, 1, 0]) / 4}
    second = {"loss": 8.0, "level_loss": np.array([6.0, 0.0, 0.0]) / 4, "level_share": np.array([1, 0, 0]) / 4}
    assert levels.add(first) == {"loss": 7.0}
    assert levels.add(second) == {"loss": 8.0}
    assert levels.take() == pytest.approx({"loss_sigma_0_to_0.1": 4.0, "loss_sigma_0.1_to_1": 1.0})
    assert levels.take() == {}
