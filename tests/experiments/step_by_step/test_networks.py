"""Training many networks at once: each learns alone, and an interrupted run goes on to the same bits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.fixture
def hastily_compiled():
    """These networks are tiny: nearly all of the time is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("hastily_compiled")
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


@pytest.mark.usefixtures("hastily_compiled")
def test_stacked_networks_train_as_each_does_alone():
    model, rate = MLP(MLPConfig(width=4)), networks.Rate(np.asarray(0.01, np.float32), np.asarray(10.0, np.float32))
    update = jax.jit(networks.StackedUpdate(model, networks.denoiser_loss))
    points = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    given = networks.Points(points, np.array([2, 3, 5]), np.ones(3, np.float32))
    state = networks.initial_state(model, jax.random.key(0), 3)
    batch = np.arange(4, dtype=np.int32)
    together, metrics = update(state, (rate, given), batch)
    assert metrics["loss"].shape == (3,)
    pick = lambda tree: jax.tree.map(lambda leaf: leaf[1:2], tree)  # noqa: E731
    second = state._replace(**{name: pick(getattr(state, name)) for name in ("params", "opt_state", "key")})
    alone, _ = update(second, (rate, pick(given)), batch)
    chex.assert_trees_all_close(pick(together.params), alone.params, rtol=1e-6, atol=1e-7)  # float32, other sums
