"""Bracketing numbers: the explicit Gaussian bracket by its definition, published numbers, and the order of the arms."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgen.statistics.bracketing import (
    ArmSize,
    EbmSize,
    bracket_centre,
    count_parameters,
    gaussian_bracket,
    log_bracket_arm,
    log_bracket_density,
    log_bracket_ebm,
    log_bracket_gaussian,
    log_cover_mlp,
)

ARM = ArmSize(depth=3, width=64, nonzero=1000, bound=1.0, length=16, categories=32, embedding=8)
EBM = EbmSize(depth=3, width=64, nonzero=1000, bound=2.0, embedding=8)


def log_gaussian(x, mean):
    return -((x - mean) ** 2).sum(-1) / 2 - x.shape[-1] / 2 * np.log(2 * np.pi)


@pytest.mark.parametrize(("dim", "epsilon"), [(1, 0.5), (3, 0.01), (10, 1 / 500)])
def test_the_bracket_lies_above_every_gaussian_within_its_radius(dim, epsilon):
    rng, bracket = np.random.default_rng(dim), gaussian_bracket(dim, 5.0, epsilon)
    mean = rng.uniform(-5, 5, (20_000, dim))
    with jax.enable_x64(True):
        centre = np.asarray(bracket_centre(mean, 5.0, bracket.cells))
        assert np.linalg.norm(mean - centre, axis=1).max() <= bracket.radius
        x = mean + rng.standard_normal(mean.shape) * rng.choice([1.0, 5.0], (len(mean), 1))
        # And where it is closest: beyond the mean of a Gaussian at the very edge, on the line from the centre.
        direction = rng.standard_normal(mean.shape)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        edge = centre + bracket.radius * direction
        worst = centre + bracket.radius / bracket.eta * direction
        for points, means in ((x, mean), (worst, edge)):
            gap = np.asarray(log_bracket_density(points, centre, epsilon)) - log_gaussian(points, means)
            assert gap.min() >= -1e-9  # rounding of squares of points that lie radius / eta away
        np.testing.assert_allclose(gap, 0, atol=1e-7)  # at the worst point they touch: the bracket is tight


@pytest.mark.parametrize("epsilon", [0.5, 1 / 500])
def test_the_bracket_integrates_to_one_and_epsilon(epsilon):
    at, weights = np.polynomial.legendre.leggauss(80)
    grid = np.stack(np.meshgrid(12 * at, 12 * at), -1).reshape(-1, 2)
    with jax.enable_x64(True):
        density = np.exp(log_bracket_density(grid, np.full(2, 0.3) + 0 * grid, epsilon))
    np.testing.assert_allclose(density @ np.outer(12 * weights, 12 * weights).ravel(), 1 + epsilon, rtol=1e-10)


def test_numbers_of_the_simulations():
    bracket = gaussian_bracket(10, 5.0, 1 / 500)
    np.testing.assert_allclose(bracket.radius, 6.3185547947e-4, rtol=1e-10)
    assert bracket.cells == 25024
    arms = [log_bracket_gaussian(5, 5, 5, 5.0, 1 / 500, shared=shared) for shared in (False, True)]
    np.testing.assert_allclose(arms, [506.37953217, 303.82771930], rtol=1e-10)
    np.testing.assert_allclose(arms[1] / arms[0], 0.6, rtol=1e-14)


def test_a_cover_of_lines_has_as_many_balls_as_they_need():
    # Among networks of one layer and one parameter that is not 0 are x -> w x with |w| <= B, which lie |w - w'| apart:
    # of those a little more than 2 tau apart no ball of radius tau holds two.
    for bound, tau in ((100.0, 0.01), (1.0, 0.01), (1e6, 1.0), (0.5, 0.1)):
        slopes = np.arange(-bound, bound, 2.0001 * tau)
        assert log_cover_mlp(1, 1, 1, bound, tau) >= math.log(len(slopes))


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("bound", [0.5, 1.0, 4.0])
def test_networks_on_the_grid_that_is_counted_cover_all_others(depth, width, bound):
    rng, tau, draws = np.random.default_rng(depth), 0.3, 2000
    x = rng.uniform(0, 1, (width, 64))
    x[:, 0] = 1.0
    # As many middles of cells as the formula counts for one parameter, apart from where the parameters are.
    counted = math.exp(log_cover_mlp(1, depth, width, bound, tau)) / (depth * width * (width + 1))
    cells = math.floor(counted)
    side = 2 * bound / cells
    parameters = rng.uniform(-bound, bound, (draws, depth, width, width + 1))
    parameters[0] = bound  # where outputs are largest
    middles = -bound + side * (np.clip(np.floor((parameters + bound) / side), 0, cells - 1) + 0.5)

    def outputs(parameters):
        h = np.broadcast_to(x, (draws, *x.shape))
        for layer in range(depth):
            h = np.maximum(h, 0) if layer else h
            h = parameters[:, layer, :, :-1] @ h + parameters[:, layer, :, -1:]
        return h

    gap = np.abs(outputs(parameters) - outputs(middles)).max((1, 2))
    assert gap.max() <= tau
    assert gap.max() > 0.01 * tau  # the grid is not finer than what such a bound needs


def test_covers_of_networks_by_hand():
    # depth 2, width 3, weights up to 2 and tau .1: 1 + 2 * 8^2 / .1 cells, at 24 places
    assert log_cover_mlp(7, 2, 3, 2.0, 0.1) == pytest.approx(7 * math.log(1281 * 24), rel=1e-14)
    assert log_cover_mlp(7, 2, 3, 0.5, 0.1) == pytest.approx(7 * math.log(321 * 24), rel=1e-14)
    assert log_cover_mlp(7, 2, 3, 2.0, 64.0) == 0.0
    assert log_cover_mlp(7, 2, 3, 2.0, 63.9) > 0
    assert math.isfinite(log_cover_mlp(10**6, 10_000, 64, 1e9, 1e-9))
    single = ARM._replace(length=1)
    perturbed = log_cover_mlp(1000 + 1 + 33 * 8 + 5 * 8, 3, 64, 1.0, math.log(1.01) / 2)
    assert log_bracket_arm(single, 5, 0.01, shared=True) == pytest.approx(perturbed, rel=1e-12)
    energy = log_cover_mlp(5 * 1008, 3, 64, 2.0, math.log(1.01) / 2)
    assert log_bracket_ebm(EBM, 5, 0.01, shared=False) == pytest.approx(energy, rel=1e-12)


@given(st.integers(1, 20), st.integers(0, 6), st.integers(0, 6), st.floats(1e-6, 0.5))
def test_sharing_never_raises_the_number_and_lowers_it_where_something_is_shared(sources, own, common, epsilon):
    if own + common == 0:
        return
    arms = {
        shared: (
            log_bracket_gaussian(sources, own, common, 5.0, epsilon, shared=shared),
            log_bracket_arm(ARM, sources, epsilon, shared=shared),
            log_bracket_ebm(EBM, sources, epsilon, shared=shared),
        )
        for shared in (True, False)
    }
    something = (common > 0, True, True)
    for together, apart, common_part in zip(arms[True], arms[False], something, strict=True):
        assert together < apart if sources > 1 and common_part else together == apart


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: gaussian_bracket(10, 5.0, 0.0), "epsilon must be finite and positive, got 0.0"),
        (lambda: gaussian_bracket(0, 5.0, 0.1), "dim must be finite and positive, got 0"),
        (lambda: gaussian_bracket(2, -1.0, 0.1), "bound must be finite and positive"),
        (lambda: log_bracket_density(np.zeros(2), np.zeros(2), -0.1), "epsilon must be finite and positive"),
        (lambda: log_bracket_gaussian(0, 1, 1, 5.0, 0.1, shared=True), "num_sources must be at least 1, got 0"),
        (lambda: log_bracket_gaussian(2, -1, 1, 5.0, 0.1, shared=True), "must be at least 0 with a sum of at least 1"),
        (lambda: log_bracket_arm(ARM._replace(length=0), 2, 0.1, shared=True), "length must be finite and positive"),
        (lambda: log_bracket_ebm(EBM, 2, -1.0, shared=True), "epsilon must be finite and positive, got -1.0"),
        (lambda: log_cover_mlp(1, 1, 1, 1.0, 0.0), "tau must be finite and positive"),
        (lambda: count_parameters(0, 0, 2, shared=True), "must be at least 0 with a sum of at least 1"),
        (lambda: bracket_centre(np.zeros(2), 1.0, 0), "cells must be finite and positive"),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call()


def test_entries_lower_for_every_platform_in_single_precision():
    shape = jax.ShapeDtypeStruct((4, 10), np.float32)
    function = jax.jit(lambda x, mean: log_bracket_density(x, bracket_centre(mean, 5.0, 100), 0.01))
    exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(shape, shape)
    assert "f64" not in exported.mlir_module()
