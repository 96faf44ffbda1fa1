"""CFG++, whose step is that of classifier-free guidance at the scale lambda rho / (rho - rho'), rho = sigma / alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import (
    Level,
    Prediction,
    VariancePreservingLinear,
    cfg_plus_plus,
    ddim,
    denoiser,
    diagonal_mixture,
    gaussian_mixture,
    guide,
    karras_grid,
    predict_exactly,
    separate_pair,
    uniform_grid,
)


def predictors(laws):
    return [lambda x, level, law=law: predict_exactly(law, x, level) for law in laws]


def one_step(predict, x, now, next):
    sampler = ddim(denoiser(predict))
    return sampler.step(jax.random.key(0), sampler.init(x), now, next)[0].x


def pairs(grids):
    """The levels before and after every step of several grids."""
    return tuple(
        Level(*(np.concatenate([np.asarray(getattr(grid, field))[part] for grid in grids]) for field in Level._fields))
        for part in (slice(None, -1), slice(1, None))
    )


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_a_step_is_that_of_classifier_free_guidance_at_a_scale_of_its_own(scale):
    grids = [karras_grid(12), uniform_grid(VariancePreservingLinear(), 12)]

    @jax.jit
    def program(laws, scale, now, next, x):
        both = predictors(laws)
        ratio, ratio_next = now.sigma / now.alpha, next.sigma / next.alpha
        guidance = scale * ratio / (ratio - ratio_next)
        return (
            one_step(cfg_plus_plus(separate_pair(*both), scale), x, now, next),
            one_step(guide(*both, guidance), x, now, next),
        )

    with jax.enable_x64(True):
        means, covariances = [[1.0, 0.0], [-1.0, 2.0]], [[[0.5, 0.2], [0.2, 0.3]], 0.4 * np.eye(2)]
        laws = [gaussian_mixture(weights, means, covariances) for weights in ([0.1, 0.9], [0.6, 0.4])]
        now, next = pairs(grids)
        x = np.random.default_rng(0).standard_normal((24, 2)) * np.hypot(now.alpha, now.sigma)[:, None]
        ours, theirs = jax.vmap(program, in_axes=(None, None, 0, 0, 0))(laws, scale, now, next, x)
    assert np.abs(ours).max() > 1.0
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_variance_on_the_first_problem_falls_with_the_number_of_steps():
    # p(x | c) = N(0, 1) and p(x) = N(0, 2): every step is linear, and sigma log-uniform from 80 to .002, then 0.
    variances = {
        10: 0.611595053110154,
        20: 0.5646318987633816,
        50: 0.1995980532146286,
        100: 0.02767741542649,
        1000: 3.7e-18,
    }
    sigmas = [np.append(np.geomspace(80.0, 0.002, count), 0.0) for count in variances]

    @jax.jit
    def multipliers(laws, scale, now, next):
        predict = cfg_plus_plus(separate_pair(*predictors(laws)), scale)
        return jax.vmap(lambda now, next: one_step(predict, jnp.ones(1), now, next)[0])(now, next)

    with jax.enable_x64(True):
        laws = [diagonal_mixture([1.0], [[0.0]], [[variance]]) for variance in (1.0, 2.0)]
        now, next = pairs([Level(sigma, np.ones_like(sigma), sigma) for sigma in sigmas])
        steps = np.split(np.asarray(multipliers(laws, 0.6, now, next)), np.cumsum(list(variances))[:-1])
    for (count, variance), factors in zip(variances.items(), steps, strict=True):
        assert len(factors) == count
        tolerance = 0.02 if count == 1000 else 1e-12  # two printed digits there
        assert 6401.0 * np.prod(factors) ** 2 == pytest.approx(variance, rel=tolerance), count


@pytest.mark.parametrize("scale", [-0.1, 1.1, np.nan])
def test_scales_outside_of_zero_to_one_are_refused(scale):
    with pytest.raises(ValueError) as caught:
        cfg_plus_plus(lambda x, level: (Prediction(x, x), Prediction(x, x)), scale)
    sentence = f"the scale of CFG++ must lie in [0, 1], got {scale}; 0 is unconditional, 1 conditional"
    assert str(caught.value) == sentence
