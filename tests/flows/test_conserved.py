"""What a gradient flow conserves, tested on losses whose symmetries are known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.flows.conserved import balance, column_balance, descended_delta, drift, generator_defect
from jaxgen.flows.curvature import curvature_at
from jaxgen.flows.gradient_flow import gradient_flow


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def bilinear_loss(x, y):
    """A linear attention layer without its softmax: cubic in the data, linear in either weight."""

    def loss(p):
        scores = jnp.einsum("sti,ij,suj->stu", x, p["a"], x)
        return 0.5 * jnp.mean((jnp.einsum("ki,sti,stu->suk", p["b"], x, scores) - y) ** 2)

    return loss


def sparse_loss(q, c):
    """The autoregressive loss on one-hot starts: column j of w12 meets only (w32)_jj."""

    def loss(p):
        diagonal = jnp.diagonal(p["w32"])
        return 0.5 * q * jnp.sum(diagonal**2 * jnp.sum(p["w12"] ** 2, axis=0)) - c * jnp.sum(
            diagonal * jnp.diagonal(p["w12"])
        )

    return loss


@pytest.fixture(scope="module")
def flow():
    """One flow of both models at once, which do not see each other."""
    with jax.enable_x64(True):
        bilinear, sparse = bilinear_loss(normal(0, 8, 4, 3), normal(1, 8, 4, 2)), sparse_loss(2.0, 3.0)
        start = {"a": 0.5 * normal(2, 3, 3), "b": normal(3, 2, 3), "w32": normal(4, 3, 3), "w12": normal(5, 3, 3)}
        run = jax.jit(lambda p: gradient_flow(lambda p: bilinear(p) + sparse(p), p, 2.0, save_at=jnp.linspace(0, 2, 5)))
        return jax.tree.map(np.asarray, run(start).saves.values)


def test_the_balance_of_a_bilinear_model_stays(flow):
    with jax.enable_x64(True):
        balances = jax.vmap(balance)(flow["a"], flow["b"])
        np.testing.assert_allclose(balances[0], np.sum(flow["a"][0] ** 2) - np.sum(flow["b"][0] ** 2), rtol=1e-14)
        assert drift(balances, np.sum(flow["b"][0] ** 2)) < 1e-8  # 1e-9 a step
        assert jnp.max(drift(flow["b"])) > 0.1  # while the weights themselves move


def test_the_columns_of_a_sparse_model_keep_their_balance(flow):
    with jax.enable_x64(True):
        w32, w12 = flow["w32"], flow["w12"]
        assert jnp.max(drift(jax.vmap(column_balance)(w32, w12))) < 1e-7
        # The off-diagonals of w12 decay and drain the diagonal of w32; those of w32 get no gradient at all.
        diagonals = np.diagonal(w32, axis1=1, axis2=2) ** 2 - np.diagonal(w12, axis1=1, axis2=2) ** 2
        assert jnp.min(drift(diagonals)) > 0.01
        assert jnp.max(drift(w32 * (1 - np.eye(3)))) == 0


def test_a_symmetry_of_the_loss_has_no_defect():
    with jax.enable_x64(True):
        loss = bilinear_loss(normal(0, 8, 4, 3), normal(1, 8, 4, 2))
        params = {"a": 0.5 * normal(2, 3, 3), "b": normal(3, 2, 3)}
        defects = jax.jit(
            lambda p: [generator_defect(loss, p, lambda p, s=s: {"a": p["a"], "b": s * p["b"]}) for s in (-1.0, 1.0)]
        )(params)
        assert abs(defects[0]) < 1e-12
        assert abs(defects[1]) > 0.1


def test_balances_of_hand_sized_blocks():
    w32, w12 = jnp.array([[1.0, 9.0], [9.0, 2.0]]), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert column_balance(w32, w12).tolist() == [1 - 10, 4 - 20]
    assert float(balance(w32, w12)) == 1 + 81 + 81 + 4 - 30


def test_drift_is_the_largest_deviation_of_each_entry():
    values = jnp.array([[1.0, 2.0], [4.0, 2.0], [0.0, 1.0]])
    assert drift(values).tolist() == [3, 1]
    assert drift(values, 2.0).tolist() == [1.5, 0.5]


def test_one_step_of_descent_changes_delta_by_its_exact_law():
    with jax.enable_x64(True):
        a, b = normal(6, 50), normal(7, 50)
        r = 3.0 - 2.0 * a * b
        moved = (a + 0.1 * b * r) ** 2 - (b + 0.1 * a * r) ** 2
        np.testing.assert_allclose(descended_delta(a**2 - b**2, 0.1, r), moved, rtol=1e-13, atol=1e-13)


def test_a_skew_generator_tests_the_invariance_under_rotations():
    with jax.enable_x64(True):
        x = normal(8, 4)
        skew = normal(9, 4, 4)
        skew = skew - skew.T
        assert abs(generator_defect(lambda x: jnp.sum(x**2) ** 2, x, lambda x: skew @ x)) < 1e-12
        assert abs(generator_defect(lambda x: jnp.sum(x**4), x, lambda x: skew @ x)) > 0.1


def test_a_generator_of_other_shapes_is_refused():
    message = "generator must keep the structure and shapes of params, got {'x': (3,)}, not {'x': (2,)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        generator_defect(lambda p: (p["x"] ** 2).sum(), {"x": jnp.ones(2)}, lambda p: {"x": jnp.ones(3)})


@jax.jit
def quadratic_curvature(mask):
    rates = jnp.array([2.0, -3.0, 5.0])
    return curvature_at(lambda p: 0.5 * (rates * p**2).sum(), jnp.ones(3), mask)


@pytest.mark.parametrize(
    ("free", "expected"),
    [([1, 1, 1], (-3, 5)), ([1, 0, 1], (2, 5)), ([0, 1, 0], (-3, 3)), ([1, 0, 0], (2, 2)), ([0, 0, 0], (0, 0))],
)
def test_the_curvature_is_that_of_the_coordinates_the_mask_leaves_free(free, expected):
    got = quadratic_curvature(jnp.array(free))
    np.testing.assert_allclose(got, expected, atol=1e-6)
