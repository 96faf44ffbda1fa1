import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Level,
    Prediction,
    RectifiedFlow,
    View,
    combine,
    ddim,
    denoiser,
    from_noise,
    from_v,
    from_velocity,
    from_x0,
    gaussian_mixture,
    guide_pair,
    noise_target,
    noise_view,
    predict_exactly,
    rescale,
    rescaled_guidance,
    sample,
    separate_pair,
    uniform_grid,
    v_target,
    v_view,
    velocity_target,
    x0_target,
    x0_view,
)

CONDITIONAL, UNCONDITIONAL = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 2.5, 2.0, 4.5])
VIEWS = {"noise": noise_view, "v": v_view, "x0": x0_view}
SCHEDULE = RectifiedFlow()


def test_values_of_the_reference_derivation():
    guided = 3.0 * CONDITIONAL - 2.0 * UNCONDITIONAL
    np.testing.assert_array_equal(guided, [2.0, 1.0, 5.0, 3.0])
    with jax.enable_x64(True):
        measured = rescale(guided, CONDITIONAL, 0.7)
    np.testing.assert_allclose(measured, [1.65830052, 0.82915026, 4.14575131, 2.48745079], atol=5e-9)  # as printed


@pytest.fixture(scope="module")
def cases():
    """A sample, its level, its two predictions, and what guidance by 4 rescaled in each view says of it."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, first, second = (jnp.asarray(row) for row in rng.standard_normal((3, 2, 3)))
        level = Level(0.3, jnp.asarray(0.7), jnp.asarray(0.4))
        pair = (from_x0(x, level, first), from_x0(x, level, second))

        @jax.jit
        def program(x, level, pair, share):
            return {
                name: rescaled_guidance(lambda x, level: pair, 4.0, share, view=view)(x, level)
                for name, view in VIEWS.items()
            }

        return x, level, pair, {share: program(x, level, pair, share) for share in (0.0, 0.6, 1.0)}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_spread_of_the_view_moves_from_the_guided_to_the_conditional_one(cases, name, share):
    x, _, (conditional, unconditional), results = cases
    target = {
        "noise": lambda p: p.noise,
        "v": lambda p: 0.7 * p.noise - 0.4 * p.x0,
        "x0": lambda p: p.x0,
    }[name]
    prediction = results[share][name]
    with jax.enable_x64(True):
        guided = combine(conditional, unconditional, 4.0)
        kept, guided, measured = (np.asarray(target(p)) for p in (conditional, guided, prediction))
        read = np.asarray(0.7 * prediction.x0 + 0.4 * prediction.noise)
    assert guided.std() > 1.5 * kept.std()
    expected = share * kept.std() + (1 - share) * guided.std()
    assert measured.std() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(measured / measured.std(), guided / guided.std(), rtol=1e-11)  # along the guided one
    np.testing.assert_allclose(read, x, rtol=1e-12, atol=1e-14)


def test_views_differ_once_the_guided_prediction_is_rescaled(cases):
    plain, rescaled = (jax.tree.map(np.asarray, cases[3][share]) for share in (0.0, 1.0))
    for name in ("v", "x0"):
        np.testing.assert_allclose(plain[name].x0, plain["noise"].x0, rtol=1e-11, atol=1e-12)
        assert np.abs(rescaled[name].x0 - rescaled["noise"].x0).max() > 0.1


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5)])
def test_constants_are_left_as_they_are_and_slopes_stay_finite(shape):
    # 0.1 in float32: the mean of 7 or 15 such numbers is not 0.1, and their variance is not 0.
    constant, varied = np.full(shape, 0.1, np.float32), np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    @jax.jit
    def program(guided, conditional, share):
        slopes = jax.grad(lambda *args: rescale(*args, share).sum(), argnums=(0, 1))(guided, conditional)
        return rescale(guided, conditional, share), slopes

    for guided, conditional in ((constant, varied), (constant, 3 * constant), (0 * constant, 0 * constant)):
        result, slopes = program(guided, conditional, 1.0)
        np.testing.assert_allclose(result, guided, rtol=1e-6)
        assert all(np.isfinite(slope).all() for slope in slopes)
    result, slopes = program(varied, constant, 0.25)
    if varied.size > 1:
        np.testing.assert_allclose(result, 0.75 * varied, rtol=1e-6, atol=1e-6)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_samples_are_the_same_in_every_view_of_a_network_unless_they_are_rescaled():
    # A network that predicts noise, x0, v or the velocity, the null label included, and is guided in what it predicts.
    views = {
        "noise": View(noise_target, from_noise),
        "x0": View(x0_target, from_x0),
        "v": View(v_target, from_v),
        "velocity": View(velocity_target(SCHEDULE), lambda x, level, out: from_velocity(x, level, out, SCHEDULE)),
    }

    @jax.jit
    def program(laws, grid, x, scale, share):
        pair = separate_pair(*(lambda x, level, law=law: predict_exactly(law, x, level) for law in laws))

        def guided_in(view):
            def predict(x, level):
                conditional, unconditional = (view.target(prediction, level) for prediction in pair(x, level))
                return view.read(x, level, scale * conditional + (1.0 - scale) * unconditional)

            return predict

        def run(predict):
            return sample(ddim(denoiser(predict)), jax.random.key(0), x, grid)

        outputs = [run(guided_in(view)) for view in views.values()]
        rescaled = [run(rescaled_guidance(pair, scale, share, view=view)) for view in views.values()]
        return run(guide_pair(pair, scale)), outputs, rescaled

    with jax.enable_x64(True):
        means, covariances = [[1.0, 0.0, -0.5], [-1.0, 2.0, 0.5]], [0.3 * np.eye(3), 0.5 * np.eye(3)]
        laws = [gaussian_mixture(weights, means, covariances) for weights in ([0.2, 0.8], [0.6, 0.4])]
        # No noise tells x0 at alpha = 0, and no x0 the noise at sigma = 0.
        grid = jax.tree.map(jnp.asarray, uniform_grid(SCHEDULE, 20, start=0.98, stop=0.02))
        plain, outputs, rescaled = program(laws, grid, jnp.array([0.4, -1.1, 0.8]), 3.0, 0.7)
    for x in outputs:
        np.testing.assert_allclose(x, plain, rtol=1e-11)  # 20 steps of rounding, divided by alpha = .02 at the first
    for a, first in enumerate(rescaled):
        assert np.abs(first - plain).max() > 1e-2
        for second in rescaled[:a]:
            assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("share", [-0.1, 1.5, np.nan])
def test_shares_outside_of_zero_to_one_are_refused(share):
    with pytest.raises(ValueError) as caught:
        rescaled_guidance(lambda x, level: (Prediction(x, x), Prediction(x, x)), 2.0, share)
    assert str(caught.value) == f"the share of the rescaling must lie in [0, 1], got {share}"
