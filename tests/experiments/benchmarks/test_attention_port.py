"""The loop of the official code, restated in torch, computes the numbers of jaxgen."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks.attention_port import attention_port
from experiments.benchmarks.peers import MISSING
from jaxgen.flows import quartic_loss, sample_correlations, sample_features
from jaxgen.flows.gradient_descent import gradient_descent
from jaxgen.models.linear_attention import autoregressive_loss

BATCH, LENGTH, D, EPOCHS, STEP_SIZE = 6, 7, 2, 5, 3e-3
CLOSE = {"float32": 1e-5, "float64": 1e-10}  # a few steps of rounding in another order


def problem(kind):
    """A few sequences that the layer fits badly, and a start with every block."""
    random = np.random.default_rng(0)
    phases = np.arange(LENGTH)[:, None] * random.uniform(0, 2 * np.pi, (BATCH, 1, D))
    x = np.exp(1j * phases) * random.standard_normal((BATCH, 1, D))
    params = {"kq": random.standard_normal((2 * D, 2 * D)), "pv": random.standard_normal((D, 2 * D))}
    return x.astype(np.result_type(kind, np.complex64)), {
        name: 0.3 * leaf.astype(kind) for name, leaf in params.items()
    }


def port_of(x, params, **options):
    """Return its losses and where it ends."""
    port = attention_port(x, params["kq"], params["pv"], STEP_SIZE, **options)
    return np.array([port.epoch(1) for _ in range(EPOCHS)]), port.weights()


def descent_of(loss, params):
    """Return losses before each step and the end, as the port does."""
    found = jax.jit(lambda params: gradient_descent(loss, params, optax.sgd(STEP_SIZE), EPOCHS))(params)
    return np.asarray(found.losses)[:-1], found.params


def assert_same(found, expected, kind):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=CLOSE[kind], atol=CLOSE[kind])


@pytest.mark.parametrize("kind", CLOSE)
@pytest.mark.parametrize("route", ["correlations", "model"])
def test_with_real_parameters_it_is_the_descent_of_the_library(kind, route):
    x, params = problem(kind)
    with jax.enable_x64(kind == "float64"):
        if route == "correlations":
            correlations = sample_correlations(x, full=True)
            expected = descent_of(lambda params: quartic_loss(params, correlations), params)
        else:
            expected = descent_of(lambda params: autoregressive_loss(params, x), params)
    losses, weights = port_of(x, params, real=True)
    assert weights["kq"].dtype == kind
    assert_same((losses, weights), expected, kind)
    assert np.abs(weights["kq"] - params["kq"]).max() > 0.01  # they moved


def test_with_complex_parameters_it_is_the_descent_on_their_real_and_imaginary_parts():
    x, params = problem("float64")
    with jax.enable_x64(True):
        features, goals = sample_features(x, full=True), x[:, 2:]

        def loss(parts):
            kq, pv = (parts[name][0] + 1j * parts[name][1] for name in ("kq", "pv"))
            weights = (pv[:, :, None, None] * kq[None, None]).reshape(D, -1)
            error = jnp.einsum("ntf,jf->ntj", features, weights) - goals
            return 0.5 * (error.real**2 + error.imag**2).sum() / BATCH

        losses, parts = descent_of(loss, {name: np.stack([leaf, 0 * leaf]) for name, leaf in params.items()})
    expected = {name: np.asarray(of[0]) + 1j * np.asarray(of[1]) for name, of in parts.items()}
    assert_same(port_of(x, params), (losses, expected), "float64")
    assert np.abs(expected["kq"].imag).max() > 1e-4  # few sequences: the imaginary parts move


def test_a_missing_torch_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install"):
        port_of(*problem("float32"))
    assert "torch" in MISSING
