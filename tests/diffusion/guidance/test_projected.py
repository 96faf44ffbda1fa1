"""Adaptive projected guidance, whose memory belongs to one sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Level,
    Prediction,
    combine,
    ddim,
    from_x0,
    gaussian_mixture,
    heun,
    interval_scale,
    karras_grid,
    predict_exactly,
    projected_guidance,
    sample,
    separate_pair,
)

CONDITIONAL, UNCONDITIONAL = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 2.5, 2.0, 4.5])
LEVEL = Level(0.3, 0.8, 0.6)


def reference(conditional, unconditional, memory, scale, parallel, threshold, momentum):
    """One step of Sadat et al. (2024) on the clean samples, with the projection as a matrix."""
    difference = conditional - unconditional + momentum * memory
    shortened = difference * min(1.0, threshold / np.linalg.norm(difference))
    projector = np.outer(conditional, conditional) / np.dot(conditional, conditional)
    across = (np.eye(len(conditional)) - projector) @ shortened
    return conditional + (scale - 1) * (across + parallel * projector @ shortened), difference


@pytest.fixture(scope="module")
def apply():
    """One evaluation in float64, compiled once: (x0 conditional, x0 unconditional, memory, x, sigma, numbers)."""

    @jax.jit
    def program(conditional, unconditional, memory, x, level, scale, parallel, threshold, momentum):
        pair = (Prediction(conditional, 2.0 * conditional), Prediction(unconditional, unconditional))
        model = projected_guidance(
            lambda x, level: pair, scale, parallel=parallel, norm_threshold=threshold, momentum=momentum
        )
        memory = jnp.where(jnp.isnan(memory), model.init(x), memory)
        return model.apply(memory, x, level)

    def evaluate(c, u, memory=None, x=None, level=LEVEL, scale=3.0, parallel=0.0, threshold=np.inf, momentum=0.0):
        memory = np.full(c.shape, np.nan) if memory is None else memory
        with jax.enable_x64(True):
            x = np.ones(c.shape) if x is None else x
            return jax.tree.map(np.asarray, program(c, u, memory, x, level, scale, parallel, threshold, momentum))

    return evaluate


def test_values_of_the_reference_derivation(apply):
    plain, _ = apply(CONDITIONAL, UNCONDITIONAL)
    np.testing.assert_allclose(plain.x0, [1.96666667, 0.93333333, 4.9, 2.86666667], atol=5e-9)  # as printed
    # Started from the unconditional instead, as diffusers does by default, guidance by 3 gives other numbers.
    assert np.abs(plain.x0 - [1.95, 0.9, 4.85, 2.8]).max() > 0.01

    first, memory = apply(CONDITIONAL, UNCONDITIONAL, threshold=0.5, momentum=-0.5)
    np.testing.assert_allclose(first.x0, [1.36536566, 1.5968379, 3.7181325, 3.57164026], atol=5e-9)
    np.testing.assert_array_equal(memory, CONDITIONAL - UNCONDITIONAL)  # as it was before it was shortened
    second, _ = apply(CONDITIONAL, 1.1 * UNCONDITIONAL, memory, threshold=0.5, momentum=-0.5)
    np.testing.assert_allclose(second.x0, [1.31091264, 1.65692399, 3.61110414, 3.63548174], atol=5e-9)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 7.5])
@pytest.mark.parametrize(
    ("parallel", "threshold", "momentum"), [(0.0, 1.0, 0.0), (0.3, np.inf, -0.75), (1.0, 1e3, 0.5), (-0.5, 0.2, 1.0)]
)
def test_a_step_is_that_of_the_formulas(apply, scale, parallel, threshold, momentum):
    c, u, memory, x = np.random.default_rng(0).standard_normal((4, 4))
    numbers = {"scale": scale, "parallel": parallel, "threshold": threshold, "momentum": momentum}
    prediction, memory_next = apply(c, u, memory, x, **numbers)
    expected, expected_memory = reference(c, u, memory, *numbers.values())
    np.testing.assert_allclose(prediction.x0, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(memory_next, expected_memory, rtol=1e-13)
    np.testing.assert_allclose(0.8 * prediction.x0 + 0.6 * prediction.noise, x, rtol=1e-12, atol=1e-13)


def test_parallel_one_without_threshold_and_momentum_is_classifier_free_guidance(apply):
    x = np.linspace(-1.0, 2.0, 4)
    prediction, _ = apply(CONDITIONAL, UNCONDITIONAL, x=x, parallel=1.0)
    with jax.enable_x64(True):
        expected = combine(*(from_x0(x, LEVEL, x0) for x0 in (CONDITIONAL, UNCONDITIONAL)), 3.0)
    for measured, right in zip(prediction, expected, strict=True):
        np.testing.assert_allclose(measured, right, rtol=1e-12, atol=1e-13)


def test_projecting_the_noise_instead_gives_other_samples(apply):
    # Unlike plain guidance, the rule depends on what it acts upon: the same formulas on the noise differ.
    x = np.array([0.3, -1.0, 0.8, 1.7])
    prediction, _ = apply(CONDITIONAL, UNCONDITIONAL, x=x)
    noises = ((x - 0.8 * x0) / 0.6 for x0 in (CONDITIONAL, UNCONDITIONAL))
    noise, _ = reference(*noises, 0.0, 3.0, 0.0, np.inf, 0.0)
    assert np.abs(prediction.x0 - (x - 0.6 * noise) / 0.8).max() > 0.1


@pytest.mark.parametrize("sigma", [0.0, 1e-30, 1.0])
def test_clean_levels_equal_predictions_and_a_conditional_of_zero_are_safe(sigma):
    x, zero = jnp.arange(3.0), jnp.zeros(3)

    @jax.jit
    def program(conditional, unconditional, sigma):
        def x0_and_noise(conditional, unconditional):
            pair = (Prediction(conditional, 2.0 + conditional), Prediction(unconditional, unconditional))
            level = Level(0.0, 1.0, sigma)
            prediction, _ = projected_guidance(lambda x, level: pair, 3.0).apply(zero, x, level)
            return prediction.x0.sum() + prediction.noise.sum(), prediction

        return jax.grad(x0_and_noise, argnums=(0, 1), has_aux=True)(conditional, unconditional)

    for conditional, unconditional in ((x, x), (zero, x), (x, zero), (zero, zero)):
        slopes, prediction = program(conditional, unconditional, sigma)
        if sigma == 1e-30:  # the noise may be any size there, but not "not a number"
            assert not any(jnp.isnan(value).any() for value in prediction)
            continue
        assert all(jnp.isfinite(value).all() for value in (*prediction, *slopes))
        if sigma == 0.0:
            np.testing.assert_array_equal(prediction.noise, 2.0 + conditional)


@pytest.fixture(scope="module")
def runs():
    """Samples of a mixture by projected guidance with momentum: a batch of three, and each of them alone."""
    means, covariances = [[1.0, 0.0], [-1.0, 2.0]], [0.3 * np.eye(2), 0.5 * np.eye(2)]
    laws = [gaussian_mixture(weights, means, covariances) for weights in ([0.2, 0.8], [0.6, 0.4])]
    grid = jax.tree.map(jnp.asarray, karras_grid(12, sigma_max=10.0))

    @jax.jit
    def program(laws, xs, momentum):
        pair = separate_pair(*(lambda x, level, law=law: predict_exactly(law, x, level) for law in laws))
        model = projected_guidance(pair, 4.0, norm_threshold=1.5, momentum=momentum)
        return jax.vmap(lambda x: sample(ddim(model), jax.random.key(0), x, grid))(xs)

    xs = 10.0 * jax.random.normal(jax.random.key(1), (3, 2))
    alone = jnp.concatenate([program(laws, x[None], -0.75) for x in xs])
    return alone, program(laws, xs, -0.75), program(laws, xs[::-1], -0.75)[::-1], program(laws, xs, 0.0)


def test_momentum_belongs_to_one_sample(runs):
    alone, together, reversed_, inert = runs
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)  # 12 steps of float32 rounding
    np.testing.assert_allclose(reversed_, alone, rtol=1e-5, atol=1e-6)
    assert (np.abs(inert - alone).max(axis=1) > 1e-3).all()


def test_memory_advances_once_in_a_step_of_two_evaluations():
    # The difference at x is x itself: with momentum 1 the memory sums what the first evaluations saw.
    pair = lambda x, level: (Prediction(x, x), Prediction(0.0 * x, x))  # noqa: E731
    sampler = heun(projected_guidance(pair, 2.0, momentum=1.0))
    state, seen = sampler.init(jnp.array([1.0, -2.0])), jnp.zeros(2)
    for now, next in ((1.0, 0.5), (0.5, 0.25)):
        seen = seen + state.x
        state, _ = sampler.step(jax.random.key(0), state, Level(now, 1.0, now), Level(next, 1.0, next))
        np.testing.assert_allclose(state.memory, seen, rtol=1e-6)


def test_scale_may_depend_on_the_level():
    pair = lambda x, level: (Prediction(x, x), Prediction(x[::-1], x))  # noqa: E731
    x = jnp.array([1.0, -2.0, 0.5])
    model = projected_guidance(pair, interval_scale(3.0, 0.5, 2.0))
    inside, outside = (model.apply(jnp.zeros(3), x, Level(0.0, 1.0, sigma))[0].x0 for sigma in (1.0, 4.0))
    expected, _ = projected_guidance(pair, 3.0).apply(jnp.zeros(3), x, Level(0.0, 1.0, 1.0))
    np.testing.assert_array_equal(inside, expected.x0)
    np.testing.assert_array_equal(outside, x)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"scale": np.nan}, "the guidance scale must be finite, got nan; 0 is unconditional, 1 conditional, above 1 "),
        ({"parallel": np.inf}, "parallel of projected guidance must be finite, got inf"),
        ({"momentum": np.nan}, "momentum of projected guidance must be finite, got nan"),
        ({"norm_threshold": 0.0}, "norm_threshold must be positive, got 0.0; infinity clips nothing"),
        ({"norm_threshold": np.nan}, "norm_threshold must be positive, got nan; infinity clips nothing"),
    ],
)
def test_numbers_that_make_no_guidance_are_refused(numbers, sentence):
    with pytest.raises(ValueError) as caught:
        projected_guidance(lambda x, level: (Prediction(x, x),) * 2, **{"scale": 2.0, **numbers})
    assert str(caught.value).startswith(sentence)


def test_predictions_of_different_shapes_are_refused():
    model = projected_guidance(lambda x, level: (Prediction(x, x), Prediction(x[:1], x[:1])), 2.0)
    with pytest.raises(ValueError) as caught:
        model.apply(jnp.zeros(3), jnp.zeros(3), LEVEL)
    assert str(caught.value) == "both predictions need one shape, got (3,) and, unconditional, (1,)"
