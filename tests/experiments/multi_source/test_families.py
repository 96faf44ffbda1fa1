"""The convex families: normalised laws, the ranks of their information, and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.multi_source.families import autoregressive_family, energy_family, is_own, midpoints, sample_counts
from jaxgen.statistics.source_params import apply_sources, init_multi, separate

FAMILIES = {family.name: family for family in (autoregressive_family(), energy_family())}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def params_of(family, sources, seed=0):
    return init_multi(jax.random.key(seed), family.draw, is_own, sources)


def information_rank(family, params):
    """The rank of the Fisher information of all parameters, from the scores of every source at every node."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    laws = lambda vector: apply_sources(family.log_prob, unravel(vector))  # noqa: E731
    scores = np.asarray(jax.jit(jax.jacfwd(laws))(flat))
    mass = np.exp(np.asarray(laws(flat))) * family.weights
    information = np.einsum("kn,kni,knj->ij", mass, scores, scores)
    return np.linalg.matrix_rank(information, tol=1e-9, hermitian=True), len(flat)


@pytest.mark.parametrize("name", FAMILIES)
def test_laws_are_normalised_and_no_two_sources_have_the_same(name):
    family = FAMILIES[name]
    laws = np.exp(np.asarray(apply_sources(family.log_prob, params_of(family, 3)))) * family.weights
    np.testing.assert_allclose(laws.sum(axis=1), 1.0, rtol=1e-12)
    assert min(np.abs(laws[0] - laws[1]).sum(), np.abs(laws[0] - laws[2]).sum()) > 0.1


@pytest.mark.parametrize("sources", [1, 3])
def test_ranks_of_the_information_are_those_of_the_counting(sources):
    for family, shared, alone in (
        # c (M - 1) + (K - 1) (M - 1) against K c (M - 1), with M = 3 tokens and c = 1 + 3 M contexts.
        (FAMILIES["autoregressive"], 10 * 2 + (sources - 1) * 2, sources * 10 * 2),
        (FAMILIES["energy-based"], 6 + 2 * sources, 8 * sources),
    ):
        params = params_of(family, sources)
        rank, size = information_rank(family, params)
        assert rank == family.rank_of_multi(sources) == shared
        assert size - rank == (2 if family.name == "autoregressive" else 0)  # the common shift
        assert information_rank(family, separate(params))[0] == family.rank_of_single(sources) == alone
        assert family.rank_ratio(sources) == pytest.approx(np.sqrt(shared / alone), rel=1e-12)


def test_sequences_are_those_of_the_chain_rule():
    family = FAMILIES["autoregressive"]
    params = family.draw(jax.random.key(3))
    logits = np.concatenate([np.asarray(params["shared"] + params["own"][None]), np.zeros((10, 1))], axis=1)
    step = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    law = np.exp(np.asarray(family.log_prob(params))).reshape(3, 3, 3, 3)
    wanted = step[0, 2] * step[1 + 2, 0] * step[4 + 0, 1] * step[7 + 1, 1]
    assert law[2, 0, 1, 1] == pytest.approx(wanted, rel=1e-12)


def test_energies_are_orthonormal_waves():
    family, nodes = FAMILIES["energy-based"], midpoints(24)
    unit = jnp.eye(8)
    fields = [family.log_prob({"shared": row[:6], "own": row[6:]}) for row in unit]
    # Up to the constant of each law, which the mean takes away: all waves have mean 0.
    waves = np.stack([np.asarray(field - field.mean()) for field in fields])
    np.testing.assert_allclose(waves @ waves.T / len(nodes), np.eye(8), atol=1e-12)
    np.testing.assert_allclose(waves[0], np.sqrt(2) * np.cos(np.pi * nodes[:, 0]), atol=1e-12)


def test_samples_have_the_frequencies_of_the_joint_law_and_absent_sources_have_none():
    mass = np.array([[0.1, 0.3, 0.0], [0.0, 0.0, 0.0], [0.2, 0.0, 0.4]])
    counts = np.asarray(jax.jit(sample_counts, static_argnums=2)(jax.random.key(0), jnp.asarray(mass), 40_000))
    assert counts.sum() == 40_000
    assert np.all(counts[mass == 0] == 0)
    assert np.abs(counts / 40_000 - mass).max() < 4 * np.sqrt(0.25 / 40_000)  # 4 standard deviations
