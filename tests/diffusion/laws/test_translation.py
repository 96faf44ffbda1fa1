"""The translator of guidance scales, against inverses that are written down or solved by scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from jaxgen.diffusion import laws


def test_a_scale_of_ddim_becomes_the_scale_of_ddpm_with_the_same_variance():
    closed = lambda g: (2 - 2 ** (2 - 2 * g)) / (2 * g - 1)  # noqa: E731
    with jax.enable_x64(True):
        scales = jnp.array([1.5, 2.0, 3.0])
        found = jax.jit(jax.vmap(lambda g: laws.translate(laws.ddim_variance(g), laws.ddpm_variance)))(scales)
        back = jax.vmap(lambda g: laws.translate(laws.ddpm_variance(g), laws.ddim_variance))(found)
        np.testing.assert_allclose(back, scales, rtol=1e-12)
    expected = [brentq(lambda g, v=v: closed(g) - v, 1.0, 50.0, xtol=1e-14) for v in 2.0 ** (1 - np.array(scales))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_pcg_with_one_correction_is_ddpm_at_the_mean_scale_in_mean_and_variance_of_clusters():
    with jax.enable_x64(True):
        problem = laws.two_clusters(1.0)
        pcg = lambda g: laws.pcg_moments(problem, g, 1.0, cells=80, steps=80)  # noqa: E731
        ddpm = laws.ddpm_moments(problem, 3.0, cells=80, steps=80)
        by_mean = laws.translate(ddpm.mean, lambda g: pcg(g).mean, high=10.0)
        by_variance = laws.translate(ddpm.variance, lambda g: pcg(g).variance, high=10.0)
    assert [float(by_mean), float(by_variance)] == [pytest.approx(5.0, rel=1e-9)] * 2
    assert (laws.pcg_scale_of_ddpm(3.0), laws.ddpm_scale_of_pcg(5.0)) == (5.0, 3.0)


def test_more_corrections_need_another_scale():
    with jax.enable_x64(True):
        target = laws.ddpm_variance(2.0)
        scales = [float(laws.translate(target, lambda g, k=k: laws.pcg_variance(g, k))) for k in (1, 5)]
        assert float(laws.pcg_variance(scales[1], 5)) == pytest.approx(7 / 12, rel=1e-12)
    assert scales[0] == pytest.approx(3.0, rel=1e-12)
    assert 17 / 7 < scales[1] < 3.0  # the powered law, K = infinity, has 7/12 at 17/7


def test_the_translation_differentiates_by_the_implicit_function_theorem():
    with jax.enable_x64(True):
        to = lambda g: laws.translate(laws.ddim_variance(g), laws.ddpm_variance)  # noqa: E731
        slope, step = float(jax.grad(to)(2.0)), 1e-4
        difference = float(to(2.0 + step) - to(2.0 - step)) / (2 * step)
        # Also in what the law itself depends on: the unconditional variance.
        of = lambda u2: laws.translate(0.5, lambda g: laws.powered_variance(g, 1.0, u2))  # noqa: E731
        # 1 / (g + (1 - g) / u2) = 1/2 at g = (2 - 1/u2) / (1 - 1/u2), so d g / d u2 = -1 / (u2 - 1)^2.
        assert float(jax.grad(of)(3.0)) == pytest.approx(-1 / 4, rel=1e-10)
    assert slope == pytest.approx(difference, rel=1e-6)


def test_the_mean_translates_to_many_corrections_too():
    with jax.enable_x64(True):
        target = laws.ddim_mean(2.0, 1.0)
        scale = laws.translate(target, lambda g: laws.pcg_mean(g, 1.0, 3), high=200.0)
        assert float(laws.pcg_mean(scale, 1.0, 3)) == pytest.approx(1.6232252401402307, rel=1e-12)


def test_a_traced_value_that_no_scale_gives_has_no_scale():
    found = jax.vmap(lambda value: laws.translate(value, laws.ddpm_variance))(jnp.array([2.0, 0.5]))
    np.testing.assert_array_equal(np.isnan(found), [True, False])


def test_a_value_that_no_scale_gives_is_refused_with_the_range():
    with pytest.raises(ValueError, match=r"no scale between 1.0 and 50.0 gives 2: the statistic goes from .* to 1;"):
        laws.translate(2.0, laws.ddpm_variance)
