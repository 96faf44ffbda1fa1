"""Maximum likelihood of several sources, against closed forms, scipy, and separate fits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jaxgen.statistics.likelihood import fit_mle
from jaxgen.statistics.source_params import SourceParams, apply_sources, separate

NODES, SOURCES = 40, 3
_RANDOM = np.random.default_rng(0)
SHARED, OWN = _RANDOM.standard_normal((NODES, 4)), _RANDOM.standard_normal((NODES, 2))
TRUTH = {"shared": 0.5 * _RANDOM.standard_normal(4), "own": 0.5 * _RANDOM.standard_normal((SOURCES, 2))}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def log_prob(params):
    shared, own = (jnp.asarray(of, params["own"].dtype) for of in (SHARED, OWN))
    return jax.nn.log_softmax(shared @ params["shared"] + own @ params["own"])


def counts(seed, replicates=None):
    random, shape = np.random.default_rng(seed), (() if replicates is None else (replicates,))
    exponents = (SHARED @ TRUTH["shared"])[None] + TRUTH["own"] @ OWN.T
    drawn = [random.multinomial(300, row, size=shape) for row in special.softmax(exponents, axis=1)]
    return np.stack(drawn, axis=-2).astype(float)


def start():
    return SourceParams({"shared": jnp.zeros(4), "own": None}, {"shared": None, "own": jnp.zeros((SOURCES, 2))})


@functools.partial(jax.jit, static_argnames=("alone", "options"))
def fit(data, alone=False, options=()):
    begin = separate(start()) if alone else start()
    return fit_mle(lambda p, c: c @ log_prob(p), begin, data, **dict(options))


@pytest.mark.usefixtures("double")
def test_categorical_laws_are_fitted_to_their_frequencies_whatever_shift_their_logits_have():
    data = np.array([[3.0, 5.0, 2.0], [1.0, 1.0, 8.0]])
    # All logits of a source are free, so that the Hessian is singular along their common shift.
    begin = SourceParams(None, jnp.array([[0.0, 1.0, -2.0], [5.0, 0.0, 0.0]]))
    found = jax.jit(lambda c: fit_mle(lambda z, c: c @ jax.nn.log_softmax(z), begin, c))(data)
    laws = jax.nn.softmax(found.params.specific)
    assert found.converged
    assert found.gradient <= 1e-9
    np.testing.assert_allclose(laws, data / 10, atol=1e-9)
    entropy = -(data * np.log(data / 10)).sum()
    np.testing.assert_allclose(-found.log_likelihood, entropy, rtol=1e-12)


@pytest.mark.usefixtures("double")
def test_shared_parameters_are_those_that_scipy_finds():
    data = counts(1)
    found = fit(data)

    def loss(vector):
        exponents = (SHARED @ vector[:4])[None] + vector[4:].reshape(SOURCES, 2) @ OWN.T
        return -(data * special.log_softmax(exponents, axis=1)).sum()

    wanted = optimize.minimize(loss, np.zeros(10), method="BFGS", options={"gtol": 1e-4})
    np.testing.assert_allclose(found.params.shared["shared"], wanted.x[:4], atol=1e-6)  # gtol over curvature 100
    np.testing.assert_allclose(found.params.specific["own"].reshape(-1), wanted.x[4:], atol=1e-6)
    assert -float(found.log_likelihood) <= wanted.fun + 1e-9
    assert found.gradient <= 1e-9


@pytest.mark.usefixtures("double")
def test_separate_models_are_fitted_as_if_each_source_were_alone():
    data = counts(2)
    together = fit(data, alone=True)
    for source in range(SOURCES):
        begin = SourceParams({"shared": None, "own": None}, {"shared": jnp.zeros((1, 4)), "own": jnp.zeros((1, 2))})
        one = _fit_one(begin, data[source : source + 1])
        for name in ("shared", "own"):
            np.testing.assert_allclose(together.params.specific[name][source], one.params.specific[name][0], atol=1e-9)
    assert together.converged


@jax.jit
def _fit_one(begin, data):
    return fit_mle(lambda p, c: c @ log_prob(p), begin, data)


@pytest.mark.usefixtures("double")
def test_many_data_sets_are_fitted_as_one_by_one():
    data = counts(3, replicates=4)
    many = jax.jit(jax.vmap(functools.partial(fit_mle, lambda p, c: c @ log_prob(p), start())))(data)
    for replicate in range(4):
        one = fit(data[replicate])
        laws = [
            apply_sources(log_prob, params)
            for params in (jax.tree.map(lambda leaf, r=replicate: leaf[r], many.params), one.params)
        ]
        np.testing.assert_allclose(*laws, atol=1e-10)
        assert many.steps[replicate] == one.steps
    assert many.converged.all()


@pytest.mark.usefixtures("double")
def test_a_source_without_samples_stays_where_it_starts_and_changes_no_other():
    data = counts(4)
    data[1] = 0.0
    found = fit(data)
    others = fit(np.stack([data[0], data[2], np.zeros(NODES)]))
    np.testing.assert_array_equal(found.params.specific["own"][1], 0.0)
    np.testing.assert_allclose(found.params.shared["shared"], others.params.shared["shared"], atol=1e-9)
    assert found.converged


@pytest.mark.usefixtures("double")
def test_undamped_steps_would_diverge_where_the_fit_converges():
    data = np.array([[1.0, 199.0]])
    slope = lambda z: data.sum() * special.expit(z) - data[0, 0]  # noqa: E731 - of the loss in one logit
    # The curvature at 6 is a hundredth of that at 0: one undamped step ends where there is none left at all.
    z = 6.0 - slope(6.0) / (data.sum() * special.expit(6.0) * special.expit(-6.0))
    assert z < -390
    assert special.expit(z) == pytest.approx(0.0, abs=1e-150)
    law = lambda z, c: c[0] * jax.nn.log_sigmoid(z[0]) + c[1] * jax.nn.log_sigmoid(-z[0])  # noqa: E731
    found = jax.jit(lambda c: fit_mle(law, SourceParams(None, jnp.array([[6.0]])), c))(data)
    np.testing.assert_allclose(found.params.specific[0, 0], np.log(1 / 199), atol=1e-8)
    assert found.converged


def test_single_precision_stops_at_its_rounding_and_says_so():
    data = counts(5).astype(np.float32)
    found = fit(data / data.sum(), options=(("tolerance", 1e-5),))
    assert found.params.shared["shared"].dtype == jnp.float32
    assert found.converged
    hopeless = fit(data, options=(("tolerance", 1e-12),))
    assert not hopeless.converged
    assert np.isfinite(hopeless.params.shared["shared"]).all()
    few = fit(data, options=(("tolerance", 1e-5), ("max_steps", 1)))
    assert few.steps == 1
    assert not few.converged


@pytest.mark.parametrize("most", [1, 3])
def test_what_is_told_is_of_the_parameters_where_a_fit_was_cut(most):
    with jax.enable_x64(True):
        data = jnp.array([[1.0, 30.0]])
        law = lambda z, c: c[0] * jax.nn.log_sigmoid(z[0]) + c[1] * jax.nn.log_sigmoid(-z[0])  # noqa: E731
        found = fit_mle(law, SourceParams(None, jnp.array([[4.0]])), data, max_steps=most)
        value, slope = jax.value_and_grad(law)(found.params.specific[0], data[0])
        assert found.steps == most
        assert not found.converged
        np.testing.assert_allclose(found.log_likelihood, value, rtol=1e-12)
        np.testing.assert_allclose(found.gradient, np.abs(slope[0]), rtol=1e-9)


def test_a_fit_lowers_for_every_platform_without_double_precision():
    program = jax.jit(lambda c: fit_mle(lambda p, c: c @ log_prob(p), start(), c, tolerance=1e-4))
    data = jnp.asarray(counts(6), jnp.float32)
    exported = jax.export.export(program, platforms=["cpu", "cuda", "tpu"])(data)
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tolerance": 0.0}, "tolerance must be above 0, got 0.0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"data": jnp.ones((2, NODES))}, r"data must have a leading axis of 3 sources, got shape \(2, 40\)"),
        ({"params": SourceParams(None, jnp.zeros((3, 2), int))}, "real floating arrays, got int"),
        ({"params": SourceParams({"a": jnp.zeros(2)}, {"a": None})}, "one leading axis of sources"),
    ],
)
def test_bad_arguments_are_refused_with_one_sentence(change, error):
    options = {"params": start(), "data": jnp.ones((SOURCES, NODES))} | change
    with pytest.raises(ValueError, match=error):
        fit_mle(lambda p, c: jnp.zeros(()), options.pop("params"), options.pop("data"), **options)
