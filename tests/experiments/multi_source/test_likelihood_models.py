"""Networks of several sources with exact errors, and a tiny run of the whole part."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import finish, hastily_compiled, stored_arrays

from experiments.multi_source.convex import simulate
from experiments.multi_source.families import families
from experiments.multi_source.network_kinds import kinds
from experiments.multi_source.networks import draw_problems, train
from jaxgen.statistics.source_params import merge

AUTOREGRESSIVE, ENERGY = kinds()
KEYS = jax.random.split(jax.random.key(0), 2)
STEPS = 3


@pytest.fixture(scope="module")
def problems():
    """Three sources at both ends of similarity, for both kinds."""
    with hastily_compiled():
        return {
            (kind.name, similarity): draw_problems(KEYS, kind, 3, kind.samples // 2, np.float32(similarity))
            for kind in kinds()
            for similarity in (0.0, 1.0)
        }


def first_source(problems):
    """The parameters that the training of the first source begins with, in the first run."""
    start = jax.tree.map(lambda leaf: leaf[0], problems.start)
    return merge(start.shared, jax.tree.map(lambda leaf: leaf[0], start.specific))


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_laws_are_normalised_alike_in_the_common_part_and_apart_at_similarity_0(problems, kind):
    apart, alike = (np.exp(problems[kind.name, of].log_law) for of in (0.0, 1.0))
    assert apart.shape == (2, 3, 729 if kind is AUTOREGRESSIVE else 128**2)
    for laws in (apart, alike):
        np.testing.assert_allclose(laws.sum(axis=-1), 1.0, rtol=1e-4)  # float32 sums of 16,384 numbers
    gaps = [np.abs(laws[:, 0] - laws[:, 1]).sum(axis=-1).mean() / 2 for laws in (apart, alike)]
    assert 0.05 < gaps[1] < gaps[0] < 0.95
    drawn = problems[kind.name, 1.0].drawn
    assert drawn.shape == (2, 3, kind.samples // 2)
    assert drawn.min() >= 0
    assert drawn.max() < apart.shape[-1]


def test_sequences_have_the_probabilities_of_the_network_asked_token_by_token(problems):
    states = np.array(list(itertools.product(range(3), repeat=6)))[[0, 250, 728]]
    drawn = np.array([0, 250, 250, 728])

    @jax.jit
    def look(params):
        tokens, positions = np.repeat(states[:, None], 6, axis=1), np.tile(np.arange(6), (3, 1))
        asked = jax.nn.log_softmax(AUTOREGRESSIVE.module.apply({"params": params}, tokens, positions))
        data = AUTOREGRESSIVE.data(jnp.asarray(drawn))
        whole = AUTOREGRESSIVE.log_prob(AUTOREGRESSIVE.field(params))
        return asked, whole, AUTOREGRESSIVE.log_likelihood(params, data, jnp.int32(0))

    asked, whole, likelihood = map(np.asarray, look(first_source(problems["autoregressive", 1.0])))
    chosen = np.take_along_axis(asked, states[:, :, None], axis=2)
    np.testing.assert_allclose(whole[[0, 250, 728]], chosen.sum(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(likelihood, whole[drawn].sum(), rtol=1e-5)


def test_the_lattices_of_the_partition_function_cover_every_node_once(problems):
    params, none = first_source(problems["energy-based", 1.0]), jnp.zeros((1, 2))
    at_one = -ENERGY.module.apply({"params": params}, none)[0]
    rough = jax.jit(lambda step: at_one - ENERGY.log_likelihood(params, none, step))  # the log of one lattice's sum
    sums = np.array([float(rough(step)) for step in range(32)], np.float64)
    whole = np.log(np.exp(-np.asarray(ENERGY.field(params), np.float64)).sum())
    np.testing.assert_allclose(np.log(np.exp(sums).sum()), whole, rtol=1e-6)
    assert np.ptp(sums) < 0.01  # every one of them is a fair quadrature already
    assert float(rough(32)) == sums[0]
    assert len(np.unique(sums)) > 25


# The next two compile the programs that the whole run below takes from jit's cache: sizes are the same.


@hastily_compiled()
def test_both_arms_of_networks_start_alike_and_learn_the_same_samples(problems):
    for kind in kinds():
        problem = problems[kind.name, 1.0].of(2, kind.samples // 2)
        shared, alone = (train(kind, problem, STEPS, shared=of) for of in (True, False))
        assert shared.steps.tolist() == alone.steps.tolist() == [1, 2, 3]
        assert shared.tv.shape == alone.tv.shape == (2, 3)
        np.testing.assert_allclose(shared.loss[:, 0], alone.loss[:, 0], rtol=1e-5)  # before the first step
        for curves in (shared, alone):
            assert np.all(curves.loss[:, -1] < curves.loss[:, 0])
            wanted = np.abs(np.exp(curves.log_prob) - np.exp(problem.log_law)).sum(axis=-1).mean(axis=-1) / 2
            np.testing.assert_allclose(curves.tv[:, -1], wanted, rtol=1e-4)
        assert np.all(np.abs(alone.loss[:, -1] - shared.loss[:, -1]) > 1e-4)


@hastily_compiled()
def test_convex_models_are_fitted_to_the_last_digits_and_lie_near_their_prediction():
    family = families()[1]
    errors = simulate(jax.random.key(0), family, (2, 3), 16)
    assert errors.measured.shape == (2, 2, 8, 2)
    assert errors.gradient <= 1e-9
    assert errors.unattained == 0
    relative = errors.measured / errors.predicted[..., None]
    stderr = relative.std(axis=(-2, -1)) / 4
    assert np.all(np.abs(relative.mean(axis=(-2, -1)) - 1) < 4 * stderr + 0.02)  # what 1 / sqrt(n) leaves out
    assert np.all(errors.predicted[1, 1] < 0.85 * errors.predicted[0, 1])
    # Both arms see the same data sets, so that their errors go together.
    arms = relative.reshape(2, -1)
    assert np.corrcoef(arms)[0, 1] > 0.4
    other = simulate(jax.random.key(1), family, (2, 3), 16)
    assert np.all(other.measured != errors.measured)


def test_a_tiny_run_records_every_row_and_figure(tmp_path):
    sizes = f"--model-replicates 16 --network-seeds 2 --network-steps {STEPS} --network-similarities 1.0"
    argv = ("--preset", "ci", "--part", "models", "--model-sources", "2", "3", *sizes.split())
    path = finish(tmp_path / "run", "multi-source", *argv)
    rows = {row["id"]: row for row in json.loads((path / "claims.json").read_text())}
    for name in ("A9", "A10"):
        arms = [cell["name"] for cell in rows[name]["cells"]]
        assert arms == [f"K = {count}, {arm}" for count in (2, 3) for arm in ("separate models", "shared model")]
        assert [len(cell["values"]) for cell in rows[name]["cells"]] == [8] * 4
        assert [cell["name"] for cell in rows[f"{name}-order"]["cells"]] == ["K = 2 against 3"]
        networks = rows[f"{name}-networks"]["cells"]
        assert [cell["name"] for cell in networks] == ["similarity 1, K = 2", "similarity 1, K = 3"]
        assert [len(cell["values"]) for cell in networks] == [2, 2]
    assert len(rows["A15-models"]["cells"]) == 2
    figures = {file.stem for file in (path / "figures").iterdir()}
    assert figures == {"convex_models", "network_errors", "energy_densities"}
    arrays = stored_arrays(path)
    relative = arrays["convex_energy-based_measured"].mean(axis=-1) / arrays["convex_energy-based_predicted"]
    np.testing.assert_allclose(relative[1, 0], rows["A10"]["cells"][1]["values"])
    np.testing.assert_allclose(
        arrays["network_autoregressive_separate_tv"][1, :, -1], rows["A9-networks"]["cells"][1]["values"]
    )
    assert arrays["energy_densities"].shape == (3, 3, 128, 128)
