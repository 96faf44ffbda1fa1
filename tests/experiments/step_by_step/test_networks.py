"""Training many networks at once: each learns alone, and an interrupted run goes on to the same bits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import hastily_compiled

from experiments.configuration import Settings
from experiments.run_directory import Interrupted, RunDirectory
from experiments.step_by_step import CLAIMS, Config, networks
from jaxgen.models import MLP, MLPConfig, init_params

CONFIG = Config(steps=8, flow_steps=8, batch_size=4, flow_batch_size=4, width=4, sizes=(2, 3), seeds=2, flow_points=6)


def directory(path, *, resumed=False, stop=lambda: False, source=None):
    settings = Settings("step-by-step", "ci", 0, CONFIG, mesh="data=1", source=source)
    return RunDirectory(path, settings, CLAIMS, resumed=resumed, stop=stop)


def train(run):
    run.open()
    try:
        return networks.obtain(CONFIG, run)
    finally:
        run.close()


@pytest.mark.slow
@hastily_compiled()
def test_an_interrupted_run_resumes_to_the_same_bits_and_is_taken_up_by_another(tmp_path):
    asked = iter([False] * 1 + [True] * 9)
    with pytest.raises(Interrupted):
        train(directory(tmp_path / "cut", stop=lambda: next(asked)))
    assert {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()} == {"denoisers"}
    resumed = train(directory(tmp_path / "cut", resumed=True))
    whole = train(directory(tmp_path / "whole"))
    chex.assert_trees_all_equal(resumed.denoisers, whole.denoisers)
    chex.assert_trees_all_equal(resumed.flows, whole.flows)
    taken = directory(tmp_path / "taken", source=tmp_path / "whole")
    networks.check(CONFIG, taken)
    assert not taken.path.exists()
    chex.assert_trees_all_equal(train(taken).denoisers, whole.denoisers)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("cut", "whole")]
    assert lines[0] == lines[1]


def test_a_network_is_trained_on_the_points_of_its_set_alone():
    model = MLP(MLPConfig(width=4))
    params = jax.tree.map(jnp.zeros_like, init_params(model, jax.random.key(0)))
    points = jnp.array([[1.0, 0.0], [1.0, 0.0], [100.0, 0.0]])
    given = networks.Points(points, jnp.asarray(2), jnp.asarray(1.0))
    keys = jax.random.split(jax.random.key(1), 200)
    # A network of zeros predicts 0: its loss is the mean square of a point's coordinates.
    losses = jax.jit(jax.vmap(lambda key: networks.denoiser_loss(model, params, key, given)))(keys)
    np.testing.assert_allclose(losses, 0.5, rtol=1e-6)
    all_three = given._replace(count=jnp.asarray(3))
    losses = jax.jit(jax.vmap(lambda key: networks.denoiser_loss(model, params, key, all_three)))(keys)
    assert 0.2 < np.mean(np.asarray(losses) > 1.0) < 0.5  # a third of 200 draws, 4 standard errors
