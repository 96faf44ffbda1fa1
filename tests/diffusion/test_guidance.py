import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Level,
    Prediction,
    RectifiedFlow,
    check_scale,
    classifier_free,
    combine,
    from_noise,
    from_score,
    from_v,
    from_velocity,
    from_x0,
    guide,
    level_at,
    noise_target,
    score_target,
    v_target,
    velocity_target,
    x0_target,
)

SHAPE = (2, 3)
NULL = 4
LEVEL = Level(jnp.float32(0.3), jnp.float32(0.8), jnp.float32(0.6))


def conditional_network(x, level, label):
    """A network that depends on all of its arguments, and whose views are not consistent with x."""
    phase = 0.7 * label + level.time
    return Prediction(jnp.sin(x + phase), level.sigma * jnp.cos(2 * x - phase))


def given(label):
    return lambda x, level: conditional_network(x, level, label)


def some_x(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE), jnp.float32)


@jax.jit
def guided(x, scale):
    conditional, unconditional = given(1)(x, LEVEL), given(NULL)(x, LEVEL)
    return conditional, unconditional, combine(conditional, unconditional, scale)


def test_scale_one_is_the_conditional_and_zero_the_unconditional_to_the_bit():
    # u + scale * (c - u) would round where c and u differ in size.
    conditional, unconditional, at_one = guided(some_x(), 1.0)
    jax.tree.map(np.testing.assert_array_equal, at_one, conditional)
    jax.tree.map(np.testing.assert_array_equal, guided(some_x(), 0.0)[2], unconditional)
    large, small = Prediction(*[jnp.full(3, 1e6)] * 2), Prediction(*[jnp.full(3, 1.2345678e-3)] * 2)
    for scale in (1, 1.0, jnp.float32(1.0)):
        jax.tree.map(np.testing.assert_array_equal, combine(small, large, float(scale)), small)
        jax.tree.map(np.testing.assert_array_equal, combine(large, small, 1.0 - float(scale)), small)


@pytest.mark.parametrize("scale", [-0.5, 0.5, 3.0, 7.5])
def test_other_scales_move_along_the_difference(scale):
    conditional, unconditional, prediction = guided(some_x(), scale)
    for view in Prediction._fields:
        c, u = (np.asarray(getattr(part, view), np.float64) for part in (conditional, unconditional))
        np.testing.assert_allclose(getattr(prediction, view), u + scale * (c - u), rtol=1e-5, atol=5e-6)
        if scale > 1:  # beyond the conditional, seen from the unconditional
            assert (np.abs(getattr(prediction, view) - u) > np.abs(c - u)).all()


def test_guidance_is_the_same_in_every_view():
    schedule = RectifiedFlow()
    reads = {
        noise_target: from_noise,
        x0_target: from_x0,
        score_target: from_score,
        v_target: from_v,
        velocity_target(schedule): lambda x, level, out: from_velocity(x, level, out, schedule),
    }
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, first, second = (jnp.asarray(row) for row in rng.standard_normal((3, 4)))
        level, scale = level_at(schedule, jnp.asarray(0.3)), 4.0
        conditional, unconditional = (from_x0(x, level, x0) for x0 in (first, second))
        expected = combine(conditional, unconditional, scale)
        for target, read in reads.items():
            # Guide the raw output, then read it: what a library does that knows one parameterisation only.
            output = scale * target(conditional, level) + (1 - scale) * target(unconditional, level)
            for view, right in zip(read(x, level, output), expected, strict=True):
                np.testing.assert_allclose(view, right, rtol=1e-12, atol=1e-12)


def test_guiding_two_functions_combines_what_they_say():
    x = some_x()
    expected = combine(given(1)(x, LEVEL), given(2)(x, LEVEL), 2.5)
    jax.tree.map(np.testing.assert_array_equal, guide(given(1), given(2), 2.5)(x, LEVEL), expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_classifier_free_equals_two_separate_calls(scale):
    x = some_x()

    @jax.jit
    def both(x, label, scale):
        one_call = classifier_free(conditional_network, label, NULL, scale)
        two_calls = guide(given(label), given(NULL), scale)
        return one_call(x, LEVEL), two_calls(x, LEVEL)

    one_call, two_calls = both(x, 1, scale)
    for left, right in zip(one_call, two_calls, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)  # the batch of two is vectorised otherwise
    assert one_call.x0.shape == SHAPE
    if scale == 1.0:
        assert np.abs(one_call.x0 - given(NULL)(x, LEVEL).x0).max() > 0.1


def test_conditions_may_be_pytrees():
    def network(x, level, condition):
        return conditional_network(x, level, condition["label"] + condition["text"].sum())

    condition, null = ({"label": 1, "text": jnp.array([0.5, 0.25])}, {"label": NULL, "text": jnp.zeros(2)})
    measured = classifier_free(network, condition, null, 2.0)(some_x(), LEVEL)
    expected = combine(given(1.75)(some_x(), LEVEL), given(NULL)(some_x(), LEVEL), 2.0)
    for left, right in zip(measured, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError):
        classifier_free(network, condition, {"label": NULL}, 2.0)


def test_a_condition_that_is_the_null_condition_guides_nothing_and_is_refused():
    for condition, null in ((NULL, NULL), ({"label": np.int32(NULL)}, {"label": jnp.array(NULL)})):
        with pytest.raises(ValueError, match="the condition and the null condition are the same"):
            classifier_free(conditional_network, condition, null, 2.0)
    # Not known, it guides nothing.
    traced = jax.jit(lambda label: classifier_free(conditional_network, label, NULL, 5.0)(some_x(), LEVEL))(NULL)
    np.testing.assert_allclose(traced.x0, given(NULL)(some_x(), LEVEL).x0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, jnp.float32(np.nan)])
def test_scales_that_are_not_finite_are_refused(scale):
    expected = (
        f"the guidance scale must be finite, got {scale}; 0 is unconditional, 1 conditional, above 1 extrapolates"
    )
    for refuse in (
        lambda: check_scale(scale),
        lambda: guide(given(1), given(2), scale),
        lambda: classifier_free(conditional_network, 1, NULL, scale),
    ):
        with pytest.raises(ValueError) as caught:
            refuse()
        assert str(caught.value) == expected


def test_finite_and_traced_scales_pass():
    for scale in (-3.0, 0.0, np.float64(7.5), jnp.float32(2.0)):
        check_scale(scale)
    assert jnp.isnan(jax.jit(lambda scale: (check_scale(scale), scale)[1])(jnp.nan))
