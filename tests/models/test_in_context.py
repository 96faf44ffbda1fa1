import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import PLATFORMS, assert_portable

from jaxgen.models import (
    attend_by_scores,
    diagonal_least_squares_predict,
    diagonal_params,
    gradient_steps_predict,
    in_context_loss,
    least_squares_predict,
)

LENGTH, DIMENSION = 8, 3
STEPS = np.array([0.5, 0.2, 0.7])
descend = jax.jit(gradient_steps_predict)
regress = jax.jit(least_squares_predict)
regress_diagonally = jax.jit(diagonal_least_squares_predict)


@jax.jit
def all_solvers(x):
    """Predictions of the three solvers side by side, in one program."""
    steps = jnp.asarray(STEPS, x.real.dtype)
    solved = (least_squares_predict(x), gradient_steps_predict(x, steps), diagonal_least_squares_predict(x))
    return jnp.concatenate(solved, axis=-1)


def turning(start, angles, length=LENGTH):
    """x_t = lambda^(t-1) x_1, coordinate by coordinate."""
    return np.asarray(start)[..., None, :] * np.exp(1j * np.arange(length)[:, None] * np.asarray(angles)[..., None, :])


def sequences(seed=0, count=2, length=LENGTH, d=DIMENSION):
    random = np.random.default_rng(seed)
    return turning(random.standard_normal((count, d)), random.uniform(0, 2 * np.pi, (count, d)), length)


def noise(seed=1, count=2, length=LENGTH, d=DIMENSION):
    """Sequences that no linear map explains."""
    real, imaginary = np.random.default_rng(seed).standard_normal((2, count, length, d))
    return real + 1j * imaginary


def unitary(d=DIMENSION):
    return np.linalg.qr(noise(5, 1, d, d)[0])[0]


def close(got, expected, tolerance):
    assert got.shape == np.shape(expected)
    assert np.abs(got - np.asarray(expected)).max() <= tolerance * max(np.abs(expected).max(), 1)


def by_autodiff(x, steps):
    """Descend the gradient of the loss itself at every position of one sequence."""
    gradient = jax.jit(jax.grad(in_context_loss), static_argnums=2)
    predictions = []
    for t in range(2, len(x)):
        w = np.zeros((x.shape[-1],) * 2, x.dtype)
        for step in steps:
            # The gradient in a complex argument is the conjugate of the direction of ascent.
            w = w - x.real.dtype.type(step / (t - 1)) * np.conj(gradient(w, x, t))
        predictions.append(w @ x[t - 1])
    return predictions


def by_pseudo_inverse(x, ridge=0.0):
    """Solve every position of one sequence by the singular value decomposition of its data."""
    predictions = []
    for t in range(2, len(x)):
        inputs, targets = x[: t - 1].T, x[1:t].T  # columns are pairs
        if ridge:
            w = targets @ inputs.conj().T @ np.linalg.inv(inputs @ inputs.conj().T + ridge * np.eye(len(inputs)))
        else:
            w = targets @ np.linalg.pinv(inputs, rcond=1e-10)
        predictions.append(w @ x[t - 1])
    return predictions


def test_loss_is_half_the_squared_residuals_of_the_pairs_so_far():
    x, w = noise(), noise(3, 2, DIMENSION)
    with jax.enable_x64(True):
        for t in (2, 5, LENGTH):
            expected = [
                sum(np.linalg.norm(x[n, i] - w[n] @ x[n, i - 1]) ** 2 / 2 for i in range(1, t)) for n in range(2)
            ]
            close(in_context_loss(w, x, t), expected, 1e-12)
        zero = np.diag(x[0, 1] / x[0, 0])
        assert float(in_context_loss(zero, x[0], 2)) < 1e-24


def test_steps_descend_the_gradient_of_the_loss():
    x = noise(length=5)
    with jax.enable_x64(True):
        close(descend(x, STEPS), [by_autodiff(one, STEPS) for one in x], 1e-12)
    single = x.astype(np.complex64)
    got = descend(single, STEPS.astype(np.float32))
    assert got.dtype == jnp.complex64
    close(got, [by_autodiff(one, STEPS) for one in single], 1e-6)  # relative to the largest


def test_one_step_is_the_diagonal_layer_and_the_closed_form():
    x, step = sequences(), 0.7
    start, turn = x[:, 0].real, x[:, 1] / x[:, 0]
    expected = np.zeros((2, LENGTH - 2, DIMENSION), complex)
    for t in range(2, LENGTH):
        for i in range(1, t):
            interference = np.sum(turn ** (t - i) * start**2, axis=-1, keepdims=True)
            expected[:, t - 2] += step / (t - 1) * turn**i * start * interference
    with jax.enable_x64(True):
        close(descend(x, np.array([step])), expected, 1e-12)
        layer = diagonal_params(0.5, step / 0.5, DIMENSION)
        close(jax.jit(attend_by_scores)(layer, x), expected, 1e-12)
    layer = diagonal_params(0.5, step / 0.5, DIMENSION)
    single = x.astype(np.complex64)
    close(jax.jit(attend_by_scores)(layer, single), descend(single, np.array([step], np.float32)), 1e-6)


def test_no_step_predicts_zero():
    np.testing.assert_array_equal(descend(sequences().astype(np.complex64), np.zeros(0, np.float32)), 0)


def test_many_steps_reach_the_solution_of_least_norm_also_where_the_context_is_short():
    x = noise(length=4, d=4)  # fewer pairs than coordinates at every position
    with jax.enable_x64(True):
        got = descend(x, np.full(4000, 0.1))
        close(got, [by_pseudo_inverse(one) for one in x], 1e-8)  # what the slowest direction has left


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_recursion_equals_the_solution_of_every_position(ridge):
    with jax.enable_x64(True):
        for x in (noise(), sequences()):
            close(regress(x, ridge=ridge), [by_pseudo_inverse(one, ridge) for one in x], 1e-11)


def test_directions_that_repeat_do_not_extend_the_span():
    x = noise()
    x[:, 1], x[:, 3] = 2j * x[:, 0], x[:, 0] - x[:, 2]  # pairs 2 and 4 bring no new direction
    x[:, 5] = 0
    with jax.enable_x64(True):
        close(regress(x), [by_pseudo_inverse(one) for one in x], 1e-11)


def test_small_ridge_tends_to_the_solution_of_least_norm():
    x = noise()
    with jax.enable_x64(True):
        exact = regress(x)
        errors = [np.abs(regress(x, ridge=ridge) - exact).max() for ridge in (1e-3, 1e-4, 1e-5)]
        np.testing.assert_allclose(np.log10(np.array(errors[:-1]) / errors[1:]), 1.0, atol=0.02)  # first order


def test_a_linear_process_is_predicted_exactly_once_the_context_spans_the_space():
    x = sequences()
    with jax.enable_x64(True):
        error = np.abs(regress(x) - x[:, 2:]).max(axis=(0, 2))
        # At t = 2, ..., d the token has a part outside the span of the t - 1 tokens before it.
        assert (error[: DIMENSION - 1] > 1e-2).all()
        assert (error[DIMENSION - 1 :] < 1e-10).all()
        mixed = np.einsum("jk,ntk->ntj", unitary(), x)  # a process that is not diagonal
        assert np.abs(regress(mixed) - mixed[:, 2:])[:, DIMENSION - 1 :].max() < 1e-10


def test_one_hot_process_is_predicted_exactly_from_the_start():
    x = turning([[0.0, 2.0, 0.0], [-2.0, 0.0, 0.0]], [[1.0, 2.0, 3.0]] * 2)
    with jax.enable_x64(True):
        close(regress(x), x[:, 2:], 1e-12)
        close(regress_diagonally(x), x[:, 2:], 1e-12)


def test_float32_predicts_long_sequences_of_five_coordinates():
    x = sequences(count=50, length=100, d=5).astype(np.complex64)
    with jax.enable_x64(True):
        exact = np.asarray(regress(x.astype(np.complex128)))
    error = np.abs(np.asarray(regress(x)) - exact).max(axis=(1, 2)) / np.abs(x).max(axis=(1, 2))
    assert np.median(error) < 3e-6
    assert error.max() < 0.01  # near-equal eigenvalues make the worst of 50 problems ill conditioned


def test_diagonal_regression_is_the_ratio_of_sums_and_exact_from_the_start():
    x = noise()
    expected = [
        [
            [
                np.sum(one[1:t, j] * one[: t - 1, j].conj()) / np.sum(np.abs(one[: t - 1, j]) ** 2) * one[t - 1, j]
                for j in range(DIMENSION)
            ]
            for t in range(2, LENGTH)
        ]
        for one in x
    ]
    with jax.enable_x64(True):
        close(regress_diagonally(x), expected, 1e-12)
        close(regress_diagonally(sequences()), sequences()[:, 2:], 1e-12)


def test_solvers_do_not_depend_on_the_basis_and_the_diagonal_one_only_on_phases():
    x, turn = noise(), unitary()
    phases = np.diag(np.exp(1j * np.arange(DIMENSION)))
    with jax.enable_x64(True):
        for solve in (regress, functools.partial(descend, steps=STEPS)):
            close(solve(x @ turn.T), np.asarray(solve(x)) @ turn.T, 1e-11)
        close(regress_diagonally(x @ phases), np.asarray(regress_diagonally(x)) @ phases, 1e-12)
        difference = regress_diagonally(x @ turn.T) - np.asarray(regress_diagonally(x)) @ turn.T
        assert np.abs(difference).max() > 0.1


def test_leading_axes_real_sequences_and_the_shortest_agree():
    x = noise()
    with jax.enable_x64(True):
        whole = all_solvers(x)
        close(all_solvers(x[:, None])[:, 0], whole, 1e-12)
        close(all_solvers(x[:, :3]), whole[:, :1], 1e-12)
        real = all_solvers(x.real)
        assert real.dtype == jnp.float64
        close(real, all_solvers(x.real + 0j), 1e-12)
        x = sequences(length=3, d=1)
        close(regress(x), x[:, 2:], 1e-12)
        x = x / np.abs(x)
        close(descend(x, np.array([1.0])), x[:, 2:], 1e-12)


def test_ridge_and_steps_may_be_traced_and_swept():
    x = noise().astype(np.complex64)
    swept = jax.vmap(lambda ridge: least_squares_predict(x, ridge=ridge))(jnp.array([0.0, 0.3]))
    for got, ridge in zip(swept, (0.0, 0.3), strict=True):
        close(got, regress(x, ridge=ridge), 1e-5)  # float32
    sizes = jax.vmap(lambda size: gradient_steps_predict(x, size[None]))(jnp.array([1.0, 2.0]))
    close(sizes[1], 2 * sizes[0], 1e-6)


def test_gradients_are_those_of_finite_differences():
    x = noise(count=1, length=4, d=2)

    @jax.jit
    def evaluate(inputs):
        def total(inputs):
            x = inputs["re"] + 1j * inputs["im"]
            penalised = least_squares_predict(x, ridge=inputs["ridge"])
            solved = (penalised, gradient_steps_predict(x, inputs["steps"]), diagonal_least_squares_predict(x))
            return sum(jnp.sum(jnp.sin(of.real) + of.imag) for of in (*solved, least_squares_predict(x)))

        return jax.value_and_grad(total)(inputs)

    with jax.enable_x64(True):
        inputs = {"re": x.real, "im": x.imag, "ridge": np.array(0.3), "steps": STEPS}
        grad = evaluate(inputs)[1]
        for name, value in inputs.items():
            along = np.random.default_rng(7).standard_normal(value.shape)
            ends = [evaluate({**inputs, name: value + 1e-5 * sign * along})[0] for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(np.sum(grad[name] * along), slope, rtol=1e-6)  # square of the difference


def test_gradients_are_finite_at_zeros():
    x = sequences().astype(np.complex64)
    x[0], x[1, :, 0] = 0, 0
    total = lambda x: jnp.sum((least_squares_predict(x) + diagonal_least_squares_predict(x)).real)  # noqa: E731
    value, grad = jax.jit(jax.value_and_grad(total))(x)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(regress(x)[0], 0)
    np.testing.assert_array_equal(regress_diagonally(x)[0], 0)


def test_solvers_lower_for_every_platform():
    x, steps = jax.ShapeDtypeStruct((2, LENGTH, DIMENSION), jnp.complex64), jax.ShapeDtypeStruct((3,), jnp.float32)
    assert_portable(descend, x, steps)
    assert_portable(regress, x)
    diagonal = jax.export.export(regress_diagonally, platforms=PLATFORMS)(x)  # which has no matrix product
    assert "f64" not in diagonal.mlir_module()


def refuse(text, function, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    assert str(caught.value) == text


def test_arguments_out_of_range_are_refused():
    x = jnp.asarray(noise(), jnp.complex64)
    w = jnp.zeros((2, DIMENSION, DIMENSION))
    refuse("t must lie in [2, 8], got 1", in_context_loss, w, x, 1)
    refuse("t must lie in [2, 8], got 9", in_context_loss, w, x, 9)
    refuse(
        "ridge must be at least 0, got -0.1; 0 gives the solution of least norm", least_squares_predict, x, ridge=-0.1
    )
    for solve in (least_squares_predict, diagonal_least_squares_predict, lambda x: gradient_steps_predict(x, STEPS)):
        refuse("T must be at least 3, got 2; the first token to be predicted is x_3", solve, x[:, :2])
        refuse("d must be at least 1, got 0", solve, x[..., :0])
