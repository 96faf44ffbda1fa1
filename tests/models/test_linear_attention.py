import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from programs import PLATFORMS, assert_portable

from jaxgen.models import (
    CausalLinearAttention,
    CausalLinearAttentionConfig,
    Model,
    abstract_params,
    attend_by_prefix_sums,
    attend_by_scores,
    attend_real,
    autoregressive_loss,
    autoregressive_loss_real,
    autoregressive_tokens,
    blocks,
    diagonal_params,
    gaussian_params,
    init_params,
    logical_axes,
    next_token_loss,
    sector_params,
)

LENGTH, DIMENSION = 7, 3


def by_parts(params, x):
    return jax.lax.complex(*attend_real(params, x.real, x.imag))


IMPLEMENTATIONS = {"scores": attend_by_scores, "prefix sums": attend_by_prefix_sums, "real": by_parts}
# Compiled once for all tests, which share a shape as far as they can.
COMPILED = {name: jax.jit(attend) for name, attend in IMPLEMENTATIONS.items()}
attend_with = pytest.mark.parametrize("attend", COMPILED.values(), ids=COMPILED.keys())


def turning(start, angles, length=LENGTH):
    """x_t = lambda^(t-1) x_1, coordinate by coordinate."""
    return np.asarray(start)[..., None, :] * np.exp(1j * np.arange(length)[:, None] * np.asarray(angles)[..., None, :])


def sequences(lead=(4,), seed=0, length=LENGTH, d=DIMENSION):
    random = np.random.default_rng(seed)
    return turning(random.standard_normal((*lead, d)), random.uniform(0, 2 * np.pi, (*lead, d)), length)


def dense(seed=10, d=DIMENSION, scale=0.5):
    random = np.random.default_rng(seed)
    return {"kq": scale * random.standard_normal((2 * d, 2 * d)), "pv": scale * random.standard_normal((d, 2 * d))}


def by_hand(params, x, conjugate=np.conj, rho=lambda t: t - 1):
    """The layer as it is printed, token by token in float64, for one sequence."""
    length, d = x.shape
    at = lambda i: x[i - 1] if i else np.zeros(d)  # noqa: E731
    token = lambda i: np.concatenate([at(i), at(i - 1)])  # noqa: E731
    predictions = []
    for t in range(2, length):
        total = np.zeros(2 * d, complex)
        for i in range(1, t + 1):
            total += token(i) * np.sum(conjugate(token(i)) * (params["kq"] @ token(t)))
        predictions.append(params["pv"] @ total / rho(t))
    return np.array(predictions)


def assert_equal(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)  # float64 over some tens of terms


def assert_far(got, expected):
    assert np.abs(got - expected).max() > 0.1 * np.abs(expected).max()


@attend_with
def test_layer_equals_the_printed_formula_for_all_six_blocks(attend):
    x = sequences()
    with jax.enable_x64(True):
        got = attend(dense(), x)
        assert got.dtype == jnp.complex128
        assert_equal(got, [by_hand(dense(), one) for one in x])


@attend_with
def test_float32_agrees_with_the_printed_formula(attend):
    x = sequences()
    got = attend(jax.tree.map(jnp.float32, dense()), jnp.asarray(x, jnp.complex64))
    assert got.dtype == jnp.complex64
    expected = np.array([by_hand(dense(), one) for one in x])
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()  # float32 over some tens of terms


@attend_with
def test_leading_axes_and_vmap_agree(attend):
    x, params = jnp.asarray(sequences(), jnp.complex64), jax.tree.map(jnp.float32, dense())
    whole = attend(params, x)
    for other in (attend(params, x.reshape(2, 2, LENGTH, DIMENSION)), jax.vmap(attend, (None, 0))(params, x)):
        # another order of float32 sums
        np.testing.assert_allclose(other.reshape(whole.shape), whole, rtol=1e-5, atol=1e-6)
    swept = jax.vmap(attend, (0, None))(jax.tree.map(lambda leaf: jnp.stack([leaf, -2 * leaf]), params), x)
    np.testing.assert_allclose(swept, np.array([1, 4])[:, None, None, None] * whole[None], rtol=1e-5, atol=1e-6)


@attend_with
def test_shortest_sequence_and_one_coordinate(attend):
    x = sequences((2,), length=3, d=1)
    with jax.enable_x64(True):
        got = attend(dense(d=1), x)
        assert_equal(got, [by_hand(dense(d=1), one) for one in x])


class HandSequences(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_quarter_turn_in_one_dimension_is_continued(self):
        x = jnp.asarray([[1.0], [1.0j], [-1.0], [-1.0j], [1.0]], jnp.complex64)
        predictions = self.variant(attend_by_scores)(diagonal_params(2.0, 0.5, 1), x)
        np.testing.assert_allclose(predictions, x[2:], atol=1e-6)


@attend_with
def test_two_coordinates_interfere_at_the_first_prediction_and_not_at_the_next(attend):
    x = jnp.asarray([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, -1.0]], jnp.complex64)
    expected = [[0.0, 0.0], [1.0, -1.0]]
    np.testing.assert_allclose(attend(diagonal_params(2.0, 0.5, 2), x), expected, atol=1e-6)


def test_real_sequences_are_taken_as_they_are():
    x = sequences().real
    with jax.enable_x64(True):
        got = jax.jit(attend_by_scores)(dense(), x)
        assert got.dtype == jnp.float64
        assert_equal(got, [by_hand(dense(), one).real for one in x])
        loss = jax.jit(autoregressive_loss)
        assert_equal(loss(dense(), x), loss(dense(), x.astype(complex)))


@attend_with
def test_turning_all_eigenvalues_turns_the_predictions_in_the_trained_sector(attend):
    random, phase = np.random.default_rng(3), 0.7
    start, angles = random.standard_normal((4, DIMENSION)), random.uniform(0, 6, (4, DIMENSION))
    still, turned = turning(start, angles), turning(start, angles + phase)
    turn = np.exp(1j * phase * np.arange(2, LENGTH))[None, :, None]
    with jax.enable_x64(True):
        sector = sector_params(*random.standard_normal((2, DIMENSION, DIMENSION)))
        assert_equal(attend(sector, turned), turn * np.asarray(attend(sector, still)))
        # The other blocks break the symmetry, and so would the plain transpose.
        assert_far(attend(dense(), turned), turn * np.asarray(attend(dense(), still)))
        sector = jax.tree.map(np.asarray, sector)
    assert_far(*(by_hand(sector, x[0], conjugate=np.array) * of for x, of in ((turned, 1), (still, turn[0]))))


def test_tokens_hold_a_token_and_the_one_before():
    x = jnp.asarray(sequences((2,)), jnp.complex64)
    tokens = autoregressive_tokens(x)
    np.testing.assert_array_equal(tokens[..., :DIMENSION], x)
    np.testing.assert_array_equal(tokens[..., 1:, DIMENSION:], x[..., :-1, :])
    np.testing.assert_array_equal(tokens[..., 0, DIMENSION:], 0)


def test_loss_sums_over_positions_and_coordinates_and_averages_over_sequences():
    x = sequences((2, 3))
    expected = 0.5 * np.sum(np.abs(x[..., 2:, :]) ** 2) / 6
    with jax.enable_x64(True):
        zero = jax.tree.map(np.zeros_like, dense())
        losses = [
            jax.jit(autoregressive_loss),
            jax.jit(functools.partial(autoregressive_loss, attend=attend_by_prefix_sums)),
            lambda params, x: jax.jit(autoregressive_loss_real)(params, x.real, x.imag),
        ]
        for loss in losses:
            assert_equal(loss(zero, x), expected)
        errors = np.array([by_hand(dense(), one) for one in x.reshape(6, LENGTH, DIMENSION)]).reshape(2, 3, -1, 3)
        expected = 0.5 * np.sum(np.abs(errors - x[..., 2:, :]) ** 2) / 6
        for loss in losses:
            assert_equal(loss(dense(), x), expected)


def test_gradients_are_those_of_finite_differences_and_all_forms_agree():
    x = sequences((2,), length=5, d=2)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, dense(d=2))
        losses = [functools.partial(autoregressive_loss, attend=attend) for attend in IMPLEMENTATIONS.values()]
        of = jax.jit(lambda kq, pv: losses[0]({"kq": kq, "pv": pv}, x))
        chex.assert_numerical_grads(of, (params["kq"], params["pv"]), order=1)
        grads = [jax.jit(jax.grad(loss))(params, x) for loss in losses]
        grads.append(jax.jit(jax.grad(autoregressive_loss_real))(params, x.real, x.imag))
        for other in grads[1:]:
            jax.tree.map(assert_equal, other, grads[0])


def test_gradient_is_finite_where_a_prediction_is_exact():
    x = jnp.asarray([[[1.0], [1.0j], [-1.0]]], jnp.complex64)
    params = diagonal_params(1.0, 1.0, 1)
    value, grad = jax.jit(jax.value_and_grad(autoregressive_loss))(params, x)
    assert float(value) == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))


def test_descending_the_gradient_lowers_the_loss_from_a_random_start():
    x = jnp.asarray(sequences((16,)), jnp.complex64)
    start = gaussian_params(jax.random.key(1), DIMENSION, 0.3)

    @jax.jit
    def descend(params):
        def step(params, _):
            loss, grad = jax.value_and_grad(autoregressive_loss)(params, x)
            return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grad), loss

        return jax.lax.scan(step, params, None, length=30)

    params, losses = descend(start)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.9 * losses[0]


def exact_law(d, roots, length, whole=False):
    """Sequences and their probabilities with the moments of Gaussian starts that the loss asks for, by quadrature.

    Gauss-Hermite nodes are exact up to order 7, and roots of unity up to their number. In the diagonal sector a loss is
    even in each coordinate of x_1 and a common phase does not change it, so that half of the nodes and one root fewer
    will do; `whole` takes all.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    nodes, weights = (of if whole else of[2:] for of in (nodes, weights / weights.sum()))
    starts = np.array(list(itertools.product(nodes, repeat=d)))
    likely = np.prod(list(itertools.product(weights, repeat=d)), axis=1)
    circle = 2 * np.pi * np.arange(roots) / roots
    angles = np.array(list(itertools.product(circle if whole else [0.0], *[circle] * (d - 1))))
    x = turning(starts[:, None], angles[None], length).reshape(-1, length, d)
    return x, np.repeat(likely / likely.sum() / len(angles), len(angles))


@pytest.mark.parametrize(("d", "length", "roots", "best"), [(5, 3, 3, 1 / 9), (2, 5, 9, 18 / 101), (3, 5, 9, 9 / 56)])
def test_best_step_size_is_the_closed_form_for_gaussian_starts(d, length, roots, best):
    x, likely = exact_law(d, roots, length)
    with jax.enable_x64(True):
        unit = np.asarray(jax.jit(attend_by_scores)(diagonal_params(1.0, 1.0, d), x))
    # The prediction is linear in u = a b: the loss is a parabola with this minimum (Zheng et al. 2024, theorem 4.1).
    overlap = np.einsum("m,mtj,mtj->", likely, unit.conj(), x[:, 2:]).real
    assert_equal(overlap / np.einsum("m,mtj,mtj->", likely, unit.conj(), unit).real, best)


def test_losses_and_gradients_of_unrelated_matrices_are_the_exact_ones_of_the_population():
    # W32 and W12 that no symmetry relates, at d = 2 and T = 4; from the moment tensor of the law, in rational numbers.
    w32, w12 = np.array([[-0.25, 0.0], [-0.125, 0.125]]), np.array([[-0.125, 0.0], [0.125, 0.25]])
    gaussian = exact_law(2, 13, 4, whole=True)
    ones = turning(np.ones((13, 2)), np.stack([np.zeros(13), 2 * np.pi * np.arange(13) / 13], -1), 4)

    @jax.jit
    def evaluate(params, x, likely):
        loss = lambda p: likely @ jax.vmap(functools.partial(autoregressive_loss, p))(x)  # noqa: E731
        value, grad = jax.value_and_grad(loss)(params)
        return value, blocks(grad)

    with jax.enable_x64(True):
        value, grad = evaluate(sector_params(w32, w12), *gaussian)
        assert_equal(value, 1.6806640625)
        assert_equal(grad["W32"], [[0.4453125, -0.03515625], [-0.046875, -1.265625]])
        assert_equal(grad["W12"], [[1.248046875, 0.0087890625], [0.234375, -0.5478515625]])
        # Those of the other blocks vanish, as a common phase of the eigenvalues changes nothing in law.
        for name in ("W22", "W23", "W33", "W13"):
            assert_equal(grad[name], np.zeros((2, 2)))
        value, grad = evaluate(sector_params(w32, w12), ones, np.full(13, 1 / 13))
        assert_equal(value, 1.861328125)
        assert_equal(grad["W32"], [[0.19921875, -0.373046875], [0.13671875, -0.49609375]])
        assert_equal(grad["W12"], [[0.654296875, 0.0087890625], [0.015625, -0.1962890625]])


def test_blocks_are_where_the_formula_reads_them():
    d = DIMENSION
    parts = blocks(jax.tree.map(jnp.float32, dense()))
    whole = jnp.block([[parts["W22"], parts["W23"]], [parts["W32"], parts["W33"]]])
    np.testing.assert_array_equal(whole, dense()["kq"].astype(np.float32))
    np.testing.assert_array_equal(jnp.block([parts["W12"], parts["W13"]]), dense()["pv"].astype(np.float32))
    back = blocks(sector_params(parts["W32"], parts["W12"]))
    for name, part in back.items():
        np.testing.assert_array_equal(part, parts[name] if name in ("W32", "W12") else np.zeros((d, d)))


def test_diagonal_parameters_may_be_traced_and_swept():
    values = jnp.array([0.1, 0.5])
    swept = jax.vmap(lambda a: diagonal_params(a, 2 * a, 2))(values)
    parts = jax.vmap(blocks)(swept)
    np.testing.assert_allclose(parts["W32"], values[:, None, None] * np.eye(2)[None])
    np.testing.assert_allclose(parts["W12"], 2 * values[:, None, None] * np.eye(2)[None])
    assert sum(float(jnp.abs(parts[name]).sum()) for name in ("W22", "W23", "W33", "W13")) == 0


def test_gaussian_parameters_have_the_standard_deviation_and_the_sector_keeps_two_blocks_of_the_draw():
    key, d = jax.random.key(0), 20
    params = gaussian_params(key, d, 0.1)
    entries = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert len(entries) == 6 * d * d
    assert abs(entries.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * len(entries))  # 4 standard deviations
    assert abs(entries.mean()) < 4 * 0.1 / np.sqrt(len(entries))
    assert len(np.unique(entries)) > 0.99 * len(entries)
    parts = blocks(params)
    for name, part in blocks(gaussian_params(key, d, 0.1, sector=True)).items():
        np.testing.assert_array_equal(part, parts[name] if name in ("W32", "W12") else np.zeros((d, d)))
    stds = jnp.array([0.1, 0.2])
    swept = jax.vmap(lambda std: gaussian_params(key, 2, std)["pv"])(stds)
    np.testing.assert_allclose(swept[1], 2 * swept[0])


@pytest.mark.parametrize("attend", [attend_by_scores, attend_by_prefix_sums])
def test_forward_and_gradient_lower_for_every_platform(attend):
    params = abstract_params(CausalLinearAttention(CausalLinearAttentionConfig(DIMENSION)))
    x = jax.ShapeDtypeStruct((2, LENGTH, DIMENSION), jnp.complex64)
    assert_portable(jax.jit(attend), params, x)
    assert_portable(jax.jit(jax.grad(functools.partial(autoregressive_loss, attend=attend))), params, x)


def program(function, *shapes):
    # "complex<f32>" is the type; "complex" alone occurs in the names of source lines.
    return jax.export.export(function, platforms=PLATFORMS)(*shapes).mlir_module()


def test_real_form_has_no_complex_number_in_its_programs():
    params = abstract_params(CausalLinearAttention(CausalLinearAttentionConfig(DIMENSION)))
    part = jax.ShapeDtypeStruct((2, LENGTH, DIMENSION), jnp.float32)
    for function in (jax.jit(attend_real), jax.jit(jax.value_and_grad(autoregressive_loss_real))):
        assert_portable(function, params, part, part)
        assert "complex<" not in program(function, params, part, part)
    whole = jax.ShapeDtypeStruct(part.shape, jnp.complex64)
    assert "complex<" in program(jax.jit(attend_by_scores), params, whole)


def test_module_applies_the_layer_to_its_parameters():
    x, params = jnp.asarray(sequences(), jnp.complex64), jax.tree.map(jnp.float32, dense())
    for attend in (attend_by_scores, attend_by_prefix_sums):
        model = CausalLinearAttention(CausalLinearAttentionConfig(DIMENSION), attend)
        assert isinstance(model, Model)
        assert jax.tree.map(jnp.shape, abstract_params(model)) == jax.tree.map(jnp.shape, params)
        got = model.apply({"params": params}, x)
        np.testing.assert_allclose(got, COMPILED["scores"](params, x), rtol=1e-5, atol=1e-6)


def test_module_starts_at_its_diagonal_and_draws_every_entry_around_it():
    mean = diagonal_params(0.5, 1.5, 12)
    still, first, other = (
        init_params(CausalLinearAttention(CausalLinearAttentionConfig(12, a=0.5, b=1.5, std=std)), jax.random.key(seed))
        for std, seed in ((0.0, 0), (0.1, 0), (0.1, 1))
    )
    jax.tree.map(np.testing.assert_array_equal, still, mean)
    assert all((first[name] != other[name]).all() for name in mean)
    noise = jax.tree.map(lambda drawn, mean: np.asarray(drawn) - np.asarray(mean), first, mean)
    entries = np.concatenate([np.ravel(leaf) for leaf in noise.values()])
    assert abs(entries.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * len(entries))  # 4 standard deviations
    # The two matrices come from keys of their own.
    assert abs(np.corrcoef(noise["kq"][:12].ravel(), noise["pv"].ravel())[0, 1]) < 0.25


def test_every_axis_of_the_module_has_a_name():
    axes = logical_axes(CausalLinearAttention(CausalLinearAttentionConfig()))
    assert axes == {"kq": PartitionSpec("keys", "queries"), "pv": PartitionSpec("outputs", "values")}


SHORT = "T must be at least 3, got 2; the first token to be predicted is x_3"
UNFIT = (
    "params must have the shapes {'kq': (6, 6), 'pv': (3, 6)}, got {'kq': (6, 6), 'pv': (6, 3)}",
    "params must have the shapes {'kq': (6, 6), 'pv': (3, 6)}, got {'kq': (6, 6)}",
)


def refuse(text, function, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    assert str(caught.value) == text


@attend_with
def test_sequences_and_parameters_that_do_not_fit_are_refused(attend):
    params, x = jax.tree.map(jnp.float32, dense()), jnp.asarray(sequences(), jnp.complex64)
    refuse(SHORT, attend, params, x[:, :2])
    refuse("d must be at least 1, got 0", attend, params, x[..., :0])
    refuse(UNFIT[0], attend, {**params, "pv": params["pv"].T}, x)
    refuse(UNFIT[1], attend, {"kq": params["kq"]}, x)
    refuse(SHORT, next_token_loss, x[:, 2:2], x[:, :2])


def test_other_arguments_out_of_range_are_refused():
    x = jnp.asarray(sequences(), jnp.complex64)
    refuse(
        "predictions must have shape (4, 5, 3) for x of shape (4, 7, 3), got (4, 4, 3)", next_token_loss, x[:, 3:], x
    )
    refuse("d must be at least 1, got 0", diagonal_params, 1.0, 1.0, 0)
    refuse("d must be at least 1, got 0", gaussian_params, jax.random.key(0), 0, 1.0)
    refuse("std must be at least 0 and finite, got -0.1", gaussian_params, jax.random.key(0), 2, -0.1)
    refuse("std must be at least 0 and finite, got nan", gaussian_params, jax.random.key(0), 2, float("nan"))
    refuse("std must be at least 0 and finite, got -1.0", CausalLinearAttentionConfig, std=-1.0)
    refuse("dimension must be at least 1, got 0", CausalLinearAttentionConfig, dimension=0)
    refuse("b must be finite, got inf", CausalLinearAttentionConfig, b=float("inf"))


@pytest.mark.parametrize("of", [{"kq": jnp.zeros((4, 4)), "pv": jnp.zeros((3, 6))}])
def test_blocks_of_shapes_that_do_not_belong_together_are_refused(of):
    text = "params must have the shapes {'kq': (6, 6), 'pv': (3, 6)}, got {'kq': (4, 4), 'pv': (3, 6)}"
    refuse(text, blocks, of)
