"""Training on samples: the same bits after an interruption, the paper's settings, and an error where it diverges."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import hastily_compiled

from experiments.configuration import Settings
from experiments.mesa_optimization import CLAIMS, Config, references, tables, training
from experiments.run_directory import Interrupted, RunDirectory
from jaxgen.flows import (
    gaussian_start,
    gradient_descent,
    quartic_loss,
    rescaled,
    sample_correlations,
    sample_sequences,
    start_at,
)
from jaxgen.models import autoregressive_loss, diagonal_params
from jaxgen.training import make_mesh, shard_batch

CONFIG = Config(
    dimension=2, length=6, small_length=4, sequences=8, epochs=3, seeds=2, block_size=8, test_lengths=(5, 6)
)


def directory(path, *, config=CONFIG, resumed=False, stop=lambda: False, source=None, seed=0):
    settings = Settings("mesa-optimization", "ci", seed, config, mesh="data=2", source=source)
    return RunDirectory(path, settings, CLAIMS, resumed=resumed, stop=stop)


def train(run, config=CONFIG):
    run.open()
    try:
        return training.obtain(config, run)
    finally:
        run.close()


def assert_same(left, right):
    assert left.keys() == right.keys() == set(tables.TABLES)
    for table in left:
        for field in ("kq", "pv", "losses", "ratios", "test_losses"):
            np.testing.assert_array_equal(getattr(left[table], field), getattr(right[table], field), err_msg=table)


@pytest.mark.slow
@hastily_compiled()
def test_an_interrupted_run_resumes_to_the_same_bits_and_is_taken_up_by_another(tmp_path):
    asked = iter([False] * 3 + [True] * 99)
    with pytest.raises(Interrupted):
        train(directory(tmp_path / "cut", stop=lambda: next(asked)))
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 3
    resumed = train(directory(tmp_path / "cut", resumed=True))
    whole = train(directory(tmp_path / "whole"))
    assert_same(resumed, whole)
    taken = directory(tmp_path / "taken", source=tmp_path / "whole")
    training.check(CONFIG, taken)
    assert_same(train(taken), whole)
    with pytest.raises(ValueError, match="takes what was trained as it is, but seed is 0 in the run and 1 here"):
        training.check(CONFIG, directory(tmp_path / "other", source=tmp_path / "whole", seed=1))
    gaussian = whole["gaussian"]
    assert gaussian.kq.shape == (2, 12, 4, 4, 4)
    assert gaussian.pv.shape == (2, 12, 4, 2, 4)
    assert gaussian.ratios.shape == (2, 2, 12, 4)
    start = gaussian.sector(f"scale 0.5, {tables.start_name(references.STARTS[1])}")
    np.testing.assert_allclose(start[0][:, 0], np.broadcast_to(0.5 * np.eye(2), (2, 2, 2)))
    np.testing.assert_allclose(start[1][:, 0], np.broadcast_to(1.5 * np.eye(2), (2, 2, 2)))
    assert np.abs(gaussian.losses[0] - gaussian.losses[1]).min() > 0
    assert len(whole["small"].kq) == 24
    damaged = tmp_path / "whole" / "checkpoints" / "small-23.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"small-23.npz cannot be read .*; start a new run"):
        training.check(CONFIG, taken)
    masked = whole["ones"].sector(f"{tables.MASKED}, {tables.start_name(references.STARTS[0])}")
    for block in masked:
        assert not (block * ~np.eye(2, dtype=bool)).any()


def test_scaled_loss_is_the_loss_of_scaled_sequences():
    with jax.enable_x64(True):
        x = sample_sequences(jax.random.key(0), gaussian_start(), 5, 6, 2)
        params = start_at(0.7, -0.4, 2)
        correlations = sample_correlations(x)
        found = float(training.scaled_loss(params, correlations, jnp.asarray(1.7)))
        assert found == pytest.approx(float(quartic_loss(params, sample_correlations(1.7 * x))), rel=1e-12)
        assert found == pytest.approx(float(quartic_loss(params, rescaled(correlations, 1.7))), rel=1e-12)


def test_a_step_that_is_too_long_is_an_error_with_epoch_and_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "GAUSSIAN_STEPS", (1e-3, 10.0, 2e-6))
    with pytest.raises(FloatingPointError) as raised:
        train(directory(tmp_path / "run", config=LONG), LONG)
    found = re.match(
        r"the loss is not finite at epoch (\d+) \(member (\d+)\) with gaussian, seed 0 .*3: scale 1, \(0.1, 0.1\), "
        r"step size 490;.*: lower the step size",
        str(raised.value),
    )
    epoch, member = map(int, found.groups())
    assert member in (3, 4, 5)
    # 10 times 98 / 2. The product is cubed in each step once it is large: fifteen leave float64, and two do not.
    assert 2 < epoch < 15


LONG = Config(dimension=2, length=4, small_length=3, sequences=8, epochs=20, seeds=2, block_size=8, test_lengths=(4,))


def test_the_batch_axis_over_eight_devices_gives_the_same_trajectory():
    start = diagonal_params(0.5, 1.5, 3)
    x = sample_sequences(jax.random.key(0), gaussian_start(), 64, 8, 3)

    @jax.jit
    def train(x):
        loss = functools.partial(autoregressive_loss, x=x)
        return gradient_descent(loss, start, optax.sgd(2e-3), 40).observed

    spread = shard_batch(x, make_mesh("data=8"))
    assert len(spread.sharding.device_set) == 8
    ways = train(x), train(spread)
    assert np.abs(ways[0]["kq"][-1] - ways[0]["kq"][0]).max() > 0.05  # it has moved
    chex.assert_trees_all_close(*ways, atol=1e-6, rtol=0.0)
