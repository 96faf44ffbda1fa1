"""The quartic loss: its polynomial, its symmetries, and the point where all is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_portable

from jaxgen.flows import (
    Correlations,
    feature_weights,
    gaussian_start,
    population_correlations,
    quartic_loss,
    rescaled,
    sector_of,
    skewed_start,
    start_at,
)
from jaxgen.flows.start_laws import Ones
from jaxgen.models import diagonal_params

LAWS = {"gaussian": gaussian_start(0.8), "skewed": skewed_start(0.7), "ones": Ones()}
loss_of, loss_and_gradient = jax.jit(quartic_loss), jax.jit(jax.value_and_grad(quartic_loss))


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def dense(d, *, full, seed=0):
    random = np.random.default_rng(seed)
    n = 2 * d if full else d
    return {"kq": jnp.asarray(random.normal(size=(n, n))), "pv": jnp.asarray(random.normal(size=(d, n)))}


def embedded(sector):
    """Put W32 and W12 among blocks of zeros."""
    d = len(sector["pv"])
    kq = np.zeros((2 * d, 2 * d))
    kq[d:, :d] = sector["kq"]
    return {"kq": jnp.asarray(kq), "pv": jnp.asarray(np.concatenate([sector["pv"], np.zeros((d, d))], axis=1))}


@pytest.fixture(scope="module", params=LAWS.values(), ids=LAWS.keys())
def full_correlations(request):
    return request.param, population_correlations(request.param, 5, 2, full=True)


def test_the_loss_is_its_polynomial_written_out():
    random = np.random.default_rng(1)
    gram, cross = random.normal(size=(8, 8)), random.normal(size=(2, 8))
    gram = gram @ gram.T
    params = dense(2, full=False)
    kq, pv = np.asarray(params["kq"]), np.asarray(params["pv"])
    expected = 1.5
    for j in range(2):
        row = np.array([pv[j, k] * kq[m, n] for k in range(2) for m in range(2) for n in range(2)])
        np.testing.assert_allclose(feature_weights(params)[j], row)
        expected += 0.5 * row @ gram @ row - cross[j] @ row
    found = quartic_loss(params, Correlations(jnp.asarray(gram), jnp.asarray(cross), jnp.asarray(1.5)))
    assert float(found) == pytest.approx(expected, rel=1e-13)


def test_the_sector_is_closed_for_any_dense_weights_and_any_law(full_correlations):
    # lambda -> exp(i phi) lambda leaves the law as it is: the other four blocks carry another charge.
    law, full = full_correlations
    params = dense(2, full=False, seed=3)
    loss, grad = loss_and_gradient(embedded(params), full)
    alone, grad_alone = loss_and_gradient(params, population_correlations(law, 5, 2))
    assert float(loss) == pytest.approx(float(alone), rel=1e-13)
    for found, expected in zip(jax.tree.leaves(sector_of(grad)), jax.tree.leaves(grad_alone), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grad))
    for block in (grad["kq"][:2], grad["kq"][2:, 2:], grad["pv"][:, 2:]):
        assert float(jnp.abs(block).max()) < 1e-14 * size


def test_the_gradients_of_both_matrices_scale_alike(full_correlations):
    _, full = full_correlations
    for seed in range(3):
        params = dense(2, full=True, seed=seed)
        grad = loss_and_gradient(params, full)[1]
        first, second = ((params[name] * grad[name]).sum() for name in ("kq", "pv"))
        assert float(first) == pytest.approx(float(second), rel=1e-12)


def test_flipping_the_same_columns_of_both_matrices_changes_nothing():
    for law in (gaussian_start(), Ones(), skewed_start()):
        correlations = population_correlations(law, 6, 3)
        params = dense(3, full=False, seed=4)
        loss = loss_of(params, correlations)
        for flip in ((-1, 1, 1), (1, -1, -1), (-1, -1, -1)):
            flipped = {name: value * np.array([flip]) for name, value in params.items()}
            assert float(loss_of(flipped, correlations)) == pytest.approx(float(loss), rel=1e-13)
        # Of one matrix alone they do.
        half = {**params, "pv": params["pv"] * np.array([[-1, 1, 1]])}
        assert abs(float(loss_of(half, correlations) - loss)) > 1e-3


def test_rescaled_correlations_are_those_of_a_wider_law():
    for full in (False, True):
        found = rescaled(population_correlations(gaussian_start(), 5, 2, full=full), 1.7)
        expected = population_correlations(gaussian_start(1.7), 5, 2, full=full)
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-13)


def test_the_start_is_a_multiple_of_the_identity_in_two_blocks():
    sector, full = start_at(0.7, 0.4, 3), diagonal_params(0.7, 0.4, 3)
    np.testing.assert_array_equal(sector["kq"], 0.7 * np.eye(3))
    np.testing.assert_array_equal(sector["pv"], 0.4 * np.eye(3))
    for found, expected in zip(jax.tree.leaves(full), jax.tree.leaves(embedded(sector)), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), sector_of(full), sector))


def test_parameters_of_other_blocks_than_the_correlations_are_refused():
    correlations = population_correlations(gaussian_start(), 4, 2)
    with pytest.raises(ValueError, match="params of 64 features do not fit correlations of 8: both must be of all"):
        quartic_loss(diagonal_params(1.0, 1.0, 2), correlations)
    with pytest.raises(ValueError, match="params of 27 features do not fit correlations of 8"):
        quartic_loss(start_at(1.0, 1.0, 3), correlations)


def test_loss_and_gradient_are_portable_in_single_precision():
    with jax.enable_x64(False):
        correlations = population_correlations(gaussian_start(), 5, 2)
        assert_portable(loss_and_gradient, start_at(0.7, 0.4, 2), correlations)
        value, _ = loss_and_gradient(start_at(0.7, 0.4, 2), correlations)
    exact = quartic_loss(start_at(0.7, 0.4, 2), population_correlations(gaussian_start(), 5, 2))
    assert float(value) == pytest.approx(float(exact), rel=1e-6)
