"""The delta method's law of the expected total variation, against closed forms and a dense inverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxgen.statistics.asymptotic_tv import asymptotic_expected_tv
from jaxgen.statistics.expected_tv import expected_tv_categorical
from jaxgen.statistics.source_params import SourceParams, apply_sources, separate

UNIFORM = np.full(4, 0.25)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def energy_problem():
    """The dossier's energy-based model: six shared and two own products of cosines on 24 x 24 midpoints."""
    centres = (np.arange(24) + 0.5) / 24
    x, y = np.meshgrid(centres, centres, indexing="ij")

    def wave(a, b):
        scale = np.sqrt(2) if 0 in (a, b) else 2.0
        return (scale * np.cos(np.pi * a * x) * np.cos(np.pi * b * y)).reshape(-1)

    shared = np.stack([wave(*pair) for pair in ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1))], axis=1)
    own = np.stack([wave(*pair) for pair in ((1, 2), (2, 2))], axis=1)

    def log_prob(params):
        dtype = params["shared"].dtype
        exponent = jnp.asarray(shared, dtype) @ params["shared"] + jnp.asarray(own, dtype) @ params["own"]
        return jax.nn.log_softmax(exponent) + np.log(576.0)

    params = SourceParams(
        {"shared": jnp.array([0.5, -0.4, 0.3, -0.2, 0.6, 0.1]), "own": None},
        {"shared": None, "own": jnp.array([[0.3, -0.2], [-0.5, 0.4], [0.1, 0.6], [0.0, 0.0]])},
    )
    return log_prob, params, jnp.full(576, 1 / 576)


def by_hand(log_prob, params, n, p_y, weights):
    """The law by one dense pseudo-inverse of the whole information, in numpy from jax's jacobians."""
    total, scores = 0.0, []
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    jacobian = np.asarray(jax.jacfwd(lambda v: apply_sources(log_prob, unravel(v)))(flat))
    mass = np.exp(np.asarray(apply_sources(log_prob, params))) * np.asarray(weights)
    for k in range(len(p_y)):
        total = total + n * p_y[k] * jacobian[k].T @ (mass[k][:, None] * jacobian[k])
        scores.append(jacobian[k])
    inverse = np.linalg.pinv(total, rcond=1e-10, hermitian=True)
    spread = [np.sqrt(np.einsum("ni,ij,nj->n", of, inverse, of)) for of in scores]
    return [m @ s / np.sqrt(2 * np.pi) for m, s in zip(mass, spread, strict=True)]


@pytest.mark.usefixtures("double")
def test_energy_based_model_has_the_published_law_in_both_arms():
    log_prob, params, weights = energy_problem()
    law = functools.partial(asymptotic_expected_tv, log_prob, n=2000, p_y=UNIFORM, weights=weights)
    shared, alone = jax.jit(lambda p: (law(p), law(separate(p))))(params)
    dense = by_hand(log_prob, params, 2000, UNIFORM, weights)
    assert UNIFORM @ shared == pytest.approx(0.031368142612, abs=1e-12)
    assert UNIFORM @ alone == pytest.approx(0.046872152814, abs=1e-12)
    np.testing.assert_allclose(shared, dense, rtol=1e-8)


@pytest.mark.usefixtures("double")
def test_gaussian_of_ten_dimensions_has_the_chi_law():
    # Nodes on the axes at the radii of a fine rule: their second moments are those of the whole density, and the law
    # asks of a Gaussian only for these and for E|x|, so that the rule is exact.
    nodes, weights = np.polynomial.legendre.leggauss(80)
    radii, rule = 7.0 * (nodes + 1), 7.0 * weights
    axes = np.concatenate([np.eye(10), -np.eye(10)])
    sphere = 2 * np.pi**5 / special.gamma(5)
    points = (radii[:, None, None] * axes[None]).reshape(-1, 10)
    measure = np.repeat(rule * radii**9 * sphere / 20, 20)
    points = jnp.asarray(points)
    log_prob = lambda mean: -0.5 * jnp.sum((points - mean[None]) ** 2, axis=1) - 5 * np.log(2 * np.pi)  # noqa: E731
    found = asymptotic_expected_tv(log_prob, SourceParams(None, jnp.zeros((1, 10))), 100, jnp.ones(1), weights=measure)
    assert float(found[0]) == pytest.approx(0.123046875, abs=1e-12)


@pytest.mark.usefixtures("double")
def test_categorical_law_approaches_the_exact_expectation_at_any_gauge():
    p = np.array([0.5, 0.3, 0.2])
    free = SourceParams({"z": None}, {"z": jnp.log(p)[None] + 1.7})
    law = lambda q: asymptotic_expected_tv(lambda one: jax.nn.log_softmax(one["z"]), q, 40_000, np.ones(1))  # noqa: E731
    found = jax.jit(law)(free)
    exact = expected_tv_categorical(40_000, p)
    closed = np.sqrt(p * (1 - p)).sum() / np.sqrt(2 * np.pi * 40_000)
    assert float(found[0]) == pytest.approx(closed, rel=1e-12)
    assert float(found[0]) == pytest.approx(float(exact), rel=1e-4)  # the next order is 1 / n


@pytest.mark.usefixtures("double")
def test_a_shift_that_the_shared_part_can_undo_changes_nothing():
    random = np.random.default_rng(1)
    table, own = random.standard_normal(4), random.standard_normal((3, 4))
    p_y = np.array([0.5, 0.3, 0.2])

    def law(fixed):
        # With `fixed` the first source has no parameters of its own that count; the last logits are 0 in both.
        def log_prob(params, moves):
            return jax.nn.log_softmax(jnp.append(params["table"] + moves * params["own"], 0.0))

        first = jnp.asarray(table) + (jnp.asarray(own[0]) if fixed else 0.0)
        rest = jnp.asarray(own) - (jnp.asarray(own[:1]) if fixed else jnp.zeros((1, 4)))
        params = SourceParams({"table": first, "own": None}, {"table": None, "own": rest})
        moves = jnp.array([0.0, 1.0, 1.0]) if fixed else jnp.ones(3)
        return jax.jit(lambda p: asymptotic_expected_tv(log_prob, p, 500, p_y, moves))(params)

    np.testing.assert_allclose(law(True), law(False), rtol=1e-9)


@pytest.mark.usefixtures("double")
def test_sources_that_are_alike_gain_the_root_of_their_number_if_all_is_shared_but_one():
    log_prob, params, weights = energy_problem()
    alike = params._replace(specific={"shared": None, "own": jnp.zeros((4, 2))})
    law = functools.partial(asymptotic_expected_tv, log_prob, p_y=UNIFORM, weights=weights)
    both = jax.jit(lambda p, n: (law(p, n=n), law(separate(p), n=n)))
    shared, alone = both(alike, 1000)
    more, _ = both(alike, 4000)
    ratio = np.asarray(shared / alone)
    assert np.ptp(ratio) < 1e-9
    assert 0.5 < ratio[0] < 1.0  # 1 / 2 would be everything shared among four
    np.testing.assert_allclose(more, shared / 2, rtol=1e-9)


def test_single_precision_and_traced_arguments_give_the_same_law():
    log_prob, params, weights = energy_problem()
    law = lambda n, p_y: asymptotic_expected_tv(log_prob, params, n, p_y, weights=weights)  # noqa: E731
    total = lambda n, p_y: (jnp.sum(law(n, p_y)), law(n, p_y))  # noqa: E731
    both = jax.jit(jax.value_and_grad(total, argnums=1, has_aux=True))
    (_, found), gradient = both(jnp.asarray(2000), jnp.asarray(UNIFORM, jnp.float32))
    assert found.dtype == jnp.float32
    assert UNIFORM @ found == pytest.approx(0.031368142612, rel=1e-4)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient < 0)  # more samples of a source harm none


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"p_y": jnp.ones(3) / 3}, r"p_y must hold a probability for each of 4 sources, got shape \(3,\)"),
        ({"p_y": jnp.ones(4)}, "p_y must sum to 1"),
        ({"p_y": jnp.array([0.5, 0.5, 0.5, -0.5])}, "p_y must not be negative"),
        ({"p_y": jnp.array([0.5, 0.5, 0.0, 0.0])}, "p_y must be above 0.*leave out a source that has no samples"),
        ({"weights": jnp.ones(5)}, r"weights must hold one number for each of 576 nodes, got \(5,\)"),
    ],
)
def test_bad_arguments_are_refused_with_one_sentence(change, error):
    log_prob, params, weights = energy_problem()
    with pytest.raises(ValueError, match=error):
        asymptotic_expected_tv(
            log_prob, params, **({"n": 10, "p_y": jnp.asarray(UNIFORM), "weights": weights} | change)
        )
