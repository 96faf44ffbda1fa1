"""The laws of guided clusters: an ODE solver and a Fokker-Planck solver of others, closed forms, quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_portable
from scipy.integrate import solve_ivp
from scipy.special import logsumexp
from scipy.stats import norm

from jaxgen.diffusion import laws

# mu, scale; mean, variance and skewness of DDIM, of DDPM (uncertain by 2e-6), and of the powered law.
TWO = [
    (1, 2, (1.612542427, 0.580269344, 0.3302), (1.481578, 0.672050, 0.2533), (1.289989272, 0.744280678, 0.2071)),
    (1, 3, (2.026889029, 0.427312624, 0.5198), (1.751652, 0.574920, 0.3467), (1.439531796, 0.644152483, 0.3123)),
    (2, 3, (3.049743395, 0.398039602, 0.6308), (2.478280, 0.745922, 0.2371), (2.102291048, 0.834442433, 0.2624)),
    (2, 5, (3.628265426, 0.304116178, 0.6701), (2.641214, 0.731132, 0.2387), (2.139363051, 0.790163272, 0.3229)),
]
# Three clusters: scale, and the shares below -1.5, between and above 1.5, of DDIM, DDPM and the powered law.
THREE = {
    1.0: [(0.0567, 0.1867, 0.7566)] * 3,
    2.0: [(0.004439, 0.016699, 0.978862), (0.003414, 0.030591, 0.965995), (0.005373, 0.066003, 0.928625)],
    3.0: [(0.000261, 0.000562, 0.999177), (0.000097, 0.002703, 0.997200), (0.000455, 0.023928, 0.975617)],
}


@pytest.fixture(scope="module")
def compiled():
    """One program for each kind of law, over all problems and scales of one shape."""
    ddim = jax.jit(lambda problem, scale: laws.ddim_moments(problem, scale))
    return ddim, jax.jit(lambda problem, scale, count: laws.pcg_moments(problem, scale, count))


@pytest.mark.parametrize(("mu", "scale", "ddim", "ddpm", "powered"), TWO)
def test_two_clusters(compiled, mu, scale, ddim, ddpm, powered):
    with jax.enable_x64(True):
        problem = laws.two_clusters(float(mu))
        found = compiled[0](problem, float(scale))
        np.testing.assert_allclose(found[:2], ddim[:2], atol=2e-9)
        assert float(found.skewness) == pytest.approx(ddim[2], abs=1e-4)
        found = compiled[1](problem, 2.0 * scale - 1.0, 1.0)
        np.testing.assert_allclose(found[:2], ddpm[:2], atol=4e-6)
        assert float(found.skewness) == pytest.approx(ddpm[2], abs=1e-4)
        found = laws.powered_moments(problem, float(scale))
        np.testing.assert_allclose(found[:2], powered[:2], atol=1e-9)
        assert float(found.skewness) == pytest.approx(powered[2], abs=1e-4)


def test_the_map_of_ddim_has_the_known_values():
    expected = [0.9106746494, 1.3804956803, 1.9648472060, 2.6802610290, 3.4993195722]
    with jax.enable_x64(True):
        found = jax.vmap(lambda y: laws.ddim_map(laws.two_clusters(1.0), 3.0, y[None])[0])(jnp.arange(-2.0, 3.0))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("problem", "scale", "rows", "last"),
    [
        (
            lambda: laws.two_clusters(1.0),
            5.0,
            {1: (1.751652, 0.574920), 2: (1.742513, 0.575221), 5: (1.680389, 0.565933), 20: (1.632414, 0.556172)},
            (1.614777, 0.552378),
        ),
        (
            lambda: laws.two_clusters(2.0),
            5.0,
            {1: (2.478, 0.7459), 2: (2.349, 0.7751), 3: (2.282, 0.7803), 5: (2.224, 0.7833)},
            (2.139, 0.7902),
        ),
        (
            laws.three_clusters,
            3.0,
            {1: (3.23358, 1.08519), 2: (3.25151, 0.91802), 5: (3.21002, 0.86899), 20: (3.17591, 0.85594)},
            (3.16311, 0.85305),
        ),
    ],
    ids=["mu = 1", "mu = 2", "three"],
)
def test_any_number_of_corrections_of_clusters(compiled, problem, scale, rows, last):
    places = 5e-4 if problem().centres.shape == (2, 1) and float(problem().centres[1, 0]) == 2.0 else 1e-5
    with jax.enable_x64(True):
        for count, expected in rows.items():
            np.testing.assert_allclose(compiled[1](problem(), scale, float(count))[:2], expected, atol=places)
        np.testing.assert_allclose(laws.powered_moments(problem(), scale)[:2], last, atol=places)


def test_three_clusters():
    edges, scales = jnp.array([-1.5, 1.5]), jnp.array(list(THREE))
    with jax.enable_x64(True):
        problem = laws.three_clusters()
        # DDIM's map keeps the order of the line: what lies below an edge is the noise below where the edge comes from.
        noise = jax.vmap(lambda scale: jax.vmap(lambda x: laws.ddim_inverse(problem, scale, x[None])[0])(edges))(scales)
        ddim = np.diff(norm.cdf(noise), prepend=0.0, append=1.0, axis=1)
        coarse, fine = (
            np.array([laws.shares(laws.ddpm_law(problem, s, cells=n, steps=n), edges) for s in THREE])
            for n in (800, 1600)
        )
        cells = np.array([laws.shares(laws.ddim_law(problem, scale), edges) for scale in THREE])
    expected = np.array(list(THREE.values()))
    for found, column in ((ddim, 0), ((4 * fine - coarse) / 3, 1)):
        np.testing.assert_allclose(found[0], expected[0, column], atol=6e-5)  # four digits
        np.testing.assert_allclose(found[1:], expected[1:, column], atol=1e-6)
    np.testing.assert_allclose(cells, ddim, atol=3e-5)  # linear within one of 800 cells


def test_the_powered_law_has_the_known_shares_of_three_clusters():
    edges = jnp.array([-1.5, 1.5])
    with jax.enable_x64(True):
        for scale, rows in THREE.items():
            law = laws.powered_law(laws.three_clusters(), scale, cells=40_000)
            np.testing.assert_allclose(laws.shares(law, edges), rows[2], atol=6e-5 if scale == 1 else 6e-7)


def test_the_density_of_a_single_component_is_the_closed_form_of_the_gaussian():
    # One component under both: nothing guides it, and the law is the component, for any number of corrections.
    with jax.enable_x64(True):
        problem = laws.canonical_problem([[1.5]], 0.7, [1.0], [1.0])
        density = laws.pcg_law(problem, 4.0, 3.0, cells=400, steps=400)
        exact = np.exp(-0.5 * ((density.x - 1.5) / 0.7) ** 2) / 0.7 / np.sqrt(2 * np.pi)
        np.testing.assert_allclose(density.density, exact, atol=5e-4)


def comb(mean):
    """N(mean, 1) in N(0, 2), as components of variance 1 at steps of 3/4: their sum is their integral to 3e-8."""
    means = 0.75 * np.arange(-9, 10)
    weights = np.exp(-0.5 * means**2)
    return laws.canonical_problem(means[:, None], 1.0, np.where(means == mean, 1.0, 0.0), weights / weights.sum())


def test_a_gaussian_made_of_clusters_has_the_closed_forms_of_gaussians(compiled):
    with jax.enable_x64(True):
        mean, problem = 0.75, comb(0.75)
        for scale in (0.5, 5.0):
            closed = laws.ddim_mean(scale, mean), laws.ddim_variance(scale), 0.0
            np.testing.assert_allclose(compiled[0](problem, scale), closed, atol=1e-6)
            closed = laws.powered_mean(scale, mean), laws.powered_variance(scale), 0.0
            np.testing.assert_allclose(laws.powered_moments(problem, scale), closed, atol=1e-6)
        # Cells of .04 to .07, extrapolated. Half a correction carries more than it spreads, and is resolved less well.
        for scale, count, places in ((0.5, 1.0, 2e-5), (5.0, 1.0, 2e-5), (3.0, 4.0, 2e-5), (3.0, 0.5, 2e-4)):
            closed = laws.pcg_mean(scale, mean, count), laws.pcg_variance(scale, count), 0.0
            np.testing.assert_allclose(compiled[1](problem, scale, count), closed, atol=places)


def test_negative_scales_stay_on_the_grid():
    # Guidance below 0 pushes away from the condition, far beyond the clusters: from the moments on a grid that
    # reaches sixty standard deviations.
    with jax.enable_x64(True):
        problem = laws.two_clusters(2.0)
        for scale, count in ((-0.9, 20.0), (-3.0, 1.0)):
            near = laws.weighted_moments(*laws.pcg_law(problem, scale, count, cells=4000, steps=300))
            far = laws.weighted_moments(*laws.pcg_law(problem, scale, count, cells=4000, steps=300, reach=60.0))
            np.testing.assert_allclose(near, far, rtol=1e-3)  # cells of .05 at most


def test_ddim_in_the_plane_follows_the_ode_of_the_scores_and_turns_with_the_problem():
    centres = np.array([[-1.0, 0.5], [1.5, 1.0], [0.0, -2.0]])
    weights = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    scale, std, far = 2.5, 0.8, 2e4

    def slope(log_noise, x):  # d x / d tau = -score / 2, over ln tau
        tau = np.exp(log_noise)
        spread = std**2 + tau
        scores = []
        for w in weights:
            logs = np.log(w) - 0.5 * ((x - centres) ** 2).sum(-1) / spread
            scores.append(np.exp(logs - logsumexp(logs)) @ (centres - x) / spread)
        return -0.5 * tau * (scale * scores[0] + (1 - scale) * scores[1])

    y0 = np.array([0.4, -1.1])
    # From noise of std 2e4: the centres are 5e-5 of it away. tau = 1e-12 is 0.
    start = y0 * np.sqrt(far**2 + std**2)
    path = solve_ivp(slope, (2 * np.log(far), np.log(1e-12)), start, method="DOP853", rtol=1e-11, atol=1e-9)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    with jax.enable_x64(True):
        ours, turned = (laws.canonical_problem(c, std, *weights) for c in (centres, centres @ turn.T))
        x = jax.jit(laws.ddim_map)(ours, scale, y0)
        np.testing.assert_allclose(x, path.y[:, -1], atol=3e-4)
        np.testing.assert_allclose(jax.jit(laws.ddim_map)(turned, scale, turn @ y0), turn @ x, rtol=1e-8)
        density = jax.jit(laws.ddim_log_density)
        np.testing.assert_allclose(density(turned, scale, turn @ x), density(ours, scale, x), rtol=1e-8)
        np.testing.assert_allclose(jax.jit(laws.ddim_inverse)(ours, scale, x), y0, atol=1e-7)
        jacobian = jax.jacrev(lambda y: laws.ddim_map(ours, scale, y))(jnp.asarray(y0))
        expected = norm.logpdf(y0).sum() - np.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(density(ours, scale, x), expected, atol=1e-6)


def test_the_laws_of_clusters_lower_for_every_platform():
    # The leaves are the arguments: a problem is made inside.
    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 1), (2,), (2,), (), ())]
    noise = jax.ShapeDtypeStruct((1,), jnp.float32)
    through = lambda *of: laws.ddim_map(laws.CanonicalProblem(*of[:4]), *of[4:], rtol=1e-5, atol=1e-6)  # noqa: E731
    assert_portable(jax.jit(through), *leaves, noise)
    law = lambda *of: laws.pcg_moments(laws.CanonicalProblem(*of[:4]), of[4], 2, cells=40, steps=10)  # noqa: E731
    assert_portable(jax.jit(law), *leaves)


def test_the_law_converges_at_second_order():
    with jax.enable_x64(True):
        problem = laws.two_clusters(1.0)
        means = []
        for part in (1, 2, 4):
            law = laws.ddpm_law(problem, 3.0, cells=100 * part, steps=100 * part)
            means.append(float(jnp.sum(law.x * law.density) * (law.x[1] - law.x[0])))
    order = np.log2(abs(means[0] - means[1]) / abs(means[1] - means[2]))
    assert order == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("law", [laws.ddim_map, laws.ddim_inverse, laws.ddim_log_density])
def test_another_scale_does_not_compile_the_flow_again(law, caplog):
    problem, x = laws.two_clusters(1.0), jnp.ones(1)
    law(problem, 2.0, x)
    with caplog.at_level("DEBUG", logger="jax._src.interpreters.pxla"):
        for scale in (2.5, 3.0):
            law(problem, scale, x)
    assert not [record for record in caplog.records if "Compiling" in record.message]


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scales_that_are_no_numbers_are_refused(scale):
    problem, x = laws.two_clusters(1.0), jnp.ones(1)
    calls = [
        lambda law=law: law(problem, scale, x) for law in (laws.ddim_map, laws.ddim_inverse, laws.ddim_log_density)
    ]
    calls += [
        lambda law=law: law(problem, scale)
        for law in (laws.ddim_moments, laws.ddim_law, laws.powered_law, laws.powered_moments, laws.pcg_law)
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"the guidance scale must be finite, got {scale}"):
            call()


def test_laws_on_a_line_refuse_a_plane_and_problems_that_are_none():
    plane = laws.canonical_problem([[0.0, 1.0]], 1.0, [1.0], [1.0])
    for law in (laws.ddim_moments, laws.ddim_law, laws.powered_moments, laws.powered_law, laws.ddpm_law):
        with pytest.raises(ValueError, match="in one dimension, the problem has 2"):
            law(plane, 2.0)
    for arguments, sentence in (
        (([[0.0]], 0.0, [1.0], [1.0]), "std must be positive and finite, got 0.0"),
        (([[0.0]], 1.0, [0.5], [1.0]), "weights must be non-negative and sum to 1, got \\[0.5\\]"),
        (([[0.0]], 1.0, [0.5, 0.5], [1.0]), "got shapes \\(1, 1\\), \\(2,\\) and \\(1,\\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            laws.canonical_problem(*arguments)
    for call, sentence in (
        (lambda: laws.pcg_law(laws.two_clusters(1.0), 2.0, 0), "num_steps must be positive and finite, got 0"),
        (lambda: laws.ddpm_law(laws.two_clusters(1.0), np.inf), "the guidance scale must be finite, got inf"),
        (lambda: laws.ddim_law(laws.two_clusters(1.0), 2.0, cells=1), "cells must be at least 2, got 1"),
        (lambda: laws.powered_law(laws.two_clusters(1.0), 2.0, cells=1), "cells must be at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(ValueError, match="cells and steps must be at least 2, got 1 and 800"):
        laws.ddpm_law(laws.two_clusters(1.0), 2.0, cells=1)
