"""Population correlations: quadrature over sequences as the oracle, and the numbers and limits of theory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxgen.flows import (
    feature_weights,
    gaussian_start,
    kappas,
    limit_product,
    one_hot_start,
    population_correlations,
    population_loss,
    quartic_loss,
    rademacher_start,
    rates,
    sample_correlations,
    sample_sequences,
    skewed_start,
    start_at,
    uniform_start,
)
from jaxgen.flows.start_laws import Ones
from jaxgen.models import diagonal_params

ORDERS = 16  # roots of unity: exponents of one phase lie within +-9 at T = 4
HERMITE = np.polynomial.hermite_e.hermegauss(4)
# Points and masses of one coordinate, exact up to the sixth moment.
SUPPORTS = {
    "gaussian": (gaussian_start(0.8), 2 * [(0.8 * HERMITE[0], HERMITE[1] / HERMITE[1].sum())]),
    "anisotropic": (
        gaussian_start(np.array([1.0, 0.6])),
        [(s * HERMITE[0], HERMITE[1] / HERMITE[1].sum()) for s in (1.0, 0.6)],
    ),
    "skewed": (skewed_start(0.7), 2 * [(0.7 * np.array([2, -1]), np.array([1, 2]) / 3)]),
    "ones": (Ones(0.9), 2 * [(np.array([0.9]), np.array([1.0]))]),
}
# d, T, the limit (a, alpha, b, beta) of the flow on tokens of ones from (0.1, 0.1) or (0.5, 1.5), its loss
# and a0^2 - b0^2. The loss at d = 3, T = 100 is misprinted there (12.74813914): where the gradient vanishes it is
# d ((T-2) / 2 - (T-2) ab / 2 - S_T (d-1) b alpha / 2), which gives this one.
ONES_LIMITS = [
    (2, 5, (0.905817164536, -0.088908041640, 0.857319964226, -0.305633529537), 0.8100160876898, 0.0),
    (3, 6, (0.811827449461, -0.097322721752, 0.797499183019, -0.144917709614), 2.6005020781026, 0.0),
    (5, 20, (0.812956956996, -0.070001841258, 0.817437897632, -0.055442151295), 17.0955941042952, 0.0),
    (3, 100, (0.957776013036, -0.046466355525, 0.958443742237, -0.038979023238), 12.7481393421562, 0.0),
    (5, 100, (0.922377848024, -0.048500470995, 0.925468655204, -0.030404956450), 38.1795787402559, 0.0),
    (5, 100, (0.561758707920, -0.029538395765, 1.519570190128, -0.049923317439), 38.1795787402559, -2.0),
]


# Compiled once for every shape.
loss_of, loss_and_gradient = jax.jit(quartic_loss), jax.jit(jax.value_and_grad(quartic_loss))
draw = jax.jit(sample_sequences, static_argnames=("count", "length", "dimension"))


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def correlations():
    """Population correlations by law, T and d, made once."""
    laws = {"gaussian": gaussian_start(), "ones": Ones(), "skewed": skewed_start(), "one-hot": one_hot_start()}
    made = {}

    def get(name, length, dimension, *, full=False):
        key = name, length, dimension, full
        if key not in made:
            made[key] = population_correlations(laws[name], length, dimension, full=full)
        return made[key]

    return get


def quadrature(support, length):
    """All sequences of a grid over phases and tokens, and their masses: [n, T, d], [n]."""
    roots = np.exp(2j * np.pi * np.arange(ORDERS) / ORDERS)
    sequences, masses = [], []
    for tokens in itertools.product(*(zip(*axis, strict=True) for axis in support)):
        start, mass = np.array([x for x, _ in tokens]), np.prod([p for _, p in tokens])
        for phases in itertools.product(roots, repeat=len(support)):
            sequences.append([start * np.array(phases) ** (t - 1) for t in range(1, length + 1)])
            masses.append(mass / ORDERS ** len(support))
    return np.array(sequences), np.array(masses)


def defined_loss(kq, pv, x, masses):
    """The loss of the layer, from its definition: y_t = P E_t E_t^* K e_t / (t-1)."""
    length = x.shape[1]
    tokens = [np.concatenate([x[:, i], x[:, i - 1] if i else 0 * x[:, 0]], axis=1) for i in range(length)]
    total = 0.0
    for t in range(2, length):  # x_t is x[:, t - 1]
        gram = sum(tokens[i][:, :, None] * tokens[i].conj()[:, None, :] for i in range(t))
        y = np.einsum("jk,nkm,mq,nq->nj", pv, gram, kq, tokens[t - 1]) / (t - 1)
        total += 0.5 * masses @ (np.abs(y - x[:, t]) ** 2).sum(axis=1)
    return total


def dense(d, seed, *, full):
    random = np.random.default_rng(seed)
    n = 2 * d if full else d
    return {"kq": jnp.asarray(random.normal(size=(n, n))), "pv": jnp.asarray(random.normal(size=(d, n)))}


def mixed(a, alpha, b, beta, d):
    off = jnp.ones((d, d)) - jnp.eye(d)
    return {"kq": a * jnp.eye(d) + alpha * off, "pv": b * jnp.eye(d) + beta * off}


def diagonals(a, b):
    return {"kq": jnp.diag(jnp.asarray(a)), "pv": jnp.diag(jnp.asarray(b))}


def split(matrix):
    """The diagonal and the other entries of a square block."""
    away = ~np.eye(len(matrix), dtype=bool)
    return np.diagonal(matrix), np.asarray(matrix)[away]


def assert_gradient(correlations, params, kq_diagonal, kq_off, pv_diagonal, pv_off, atol=1e-9):
    gradient = loss_and_gradient(params, correlations)[1]
    for found, expected in zip(
        (*split(gradient["kq"]), *split(gradient["pv"])), (kq_diagonal, kq_off, pv_diagonal, pv_off), strict=True
    ):
        np.testing.assert_allclose(found, np.full_like(found, expected), atol=atol)


@pytest.mark.parametrize("full", [True, False], ids=["all blocks", "sector"])
@pytest.mark.parametrize(("law", "support"), SUPPORTS.values(), ids=SUPPORTS.keys())
def test_the_loss_is_that_of_the_definition_by_quadrature(law, support, full):
    x, masses = quadrature(support, 4)
    correlations = population_correlations(law, 4, 2, full=full)
    for seed in range(4):
        params = dense(2, seed, full=full)
        kq, pv = np.asarray(params["kq"]), np.asarray(params["pv"])
        if not full:
            kq = np.block([[np.zeros((2, 4))], [kq, np.zeros((2, 2))]])
            pv = np.block([pv, np.zeros((2, 2))])
        expected = defined_loss(kq, pv, x, masses)
        assert float(loss_of(params, correlations)) == pytest.approx(expected, rel=1e-12)


def test_every_correlation_is_that_of_quadrature():
    # Entry by entry, which a loss does not see: it adds up the entries that belong to one product of weights.
    law, support = SUPPORTS["skewed"]
    x, masses = quadrature(support, 4)
    found = population_correlations(law, 4, 2, full=True)
    gram, cross, constant = np.zeros((64, 64)), np.zeros((2, 64)), 0.0
    tokens = np.concatenate([x, np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]], axis=2)
    for t in range(2, 4):
        features = np.zeros((len(x), 4, 4, 4), complex)
        for i in range(1, t + 1):
            features += np.einsum("nk,nm,nq->nkmq", tokens[:, i - 1], tokens[:, i - 1].conj(), tokens[:, t - 1])
        features = features.reshape(len(x), 64) / (t - 1)
        gram += np.einsum("n,nf,ng->fg", masses, features, features.conj()).real
        cross += np.einsum("n,nf,nj->jf", masses, features, x[:, t].conj()).real
        constant += 0.5 * masses @ (np.abs(x[:, t]) ** 2).sum(axis=1)
    np.testing.assert_allclose(found.gram, gram, atol=1e-12)
    np.testing.assert_allclose(found.cross, cross, atol=1e-12)
    assert float(found.constant) == pytest.approx(constant, rel=1e-13)


def test_the_sector_is_cut_out_of_all_blocks(correlations):
    d = 3
    sector, full = correlations("skewed", 6, d), correlations("skewed", 6, d, full=True)
    k, m, n = np.meshgrid(np.arange(d), d + np.arange(d), np.arange(d), indexing="ij")
    at = ((k * 2 * d + m) * 2 * d + n).reshape(-1)
    np.testing.assert_allclose(full.gram[np.ix_(at, at)], sector.gram, rtol=1e-14)
    np.testing.assert_allclose(full.cross[:, at], sector.cross, rtol=1e-14)
    np.testing.assert_allclose(full.gram, full.gram.T, rtol=1e-14)
    assert np.linalg.eigvalsh(full.gram).min() > -1e-9


def test_samples_have_the_correlations_of_the_population():
    for law in (gaussian_start(0.9), skewed_start(0.6)):
        x = draw(jax.random.key(3), law, 40 * 250, 5, 2)
        blocks = jax.jit(jax.vmap(sample_correlations))(x.reshape(40, 250, 5, 2))
        expected = population_correlations(law, 5, 2)
        for drawn, exact in zip(blocks, expected, strict=True):
            error = np.std(drawn, axis=0, ddof=1) / np.sqrt(40)
            assert (np.abs(np.mean(drawn, axis=0) - exact) <= 5 * error + 1e-12).all()


@pytest.mark.parametrize(("length", "dimension"), [(6, 3), (4, 2)])
@pytest.mark.parametrize("law", [gaussian_start(0.7), uniform_start(), one_hot_start(1.3), rademacher_start()])
def test_the_diagonal_model_is_closed_and_follows_lemma_5_2(law, length, dimension):
    correlations = population_correlations(law, length, dimension, full=True)
    moments = kappas(law, dimension)
    c1, c2 = rates(moments, length)
    for a, b in ((0.7, 0.4), (-1.2, 0.3), (2.0, 2.0)):
        loss, found = loss_and_gradient(diagonal_params(a, b, dimension), correlations)
        expected = diagonal_params(-b * (c2 - c1 * a * b), -a * (c2 - c1 * a * b), dimension)
        for name in ("kq", "pv"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-9)
        assert float(loss) == pytest.approx(float(population_loss(a, b, moments, length, dimension)), rel=1e-12)


def test_the_known_gradients_of_gaussian_and_constant_tokens(correlations):
    # Derived by hand.
    point = start_at(0.7, 0.4, 3)
    assert float(loss_of(point, correlations("gaussian", 6, 3))) == pytest.approx(4.446, rel=1e-12)
    assert_gradient(correlations("gaussian", 6, 3), point, 3.32, 0.0, 5.81, 0.0)
    expected = (-0.6853333, -0.2072222, -1.1993333, 0.4083333)
    assert_gradient(correlations("ones", 6, 3), point, *expected, atol=5e-8)
    full = correlations("gaussian", 4, 2, full=True)
    loss, gradient = loss_and_gradient(diagonal_params(0.7, 0.4, 2), full)
    assert float(loss) == pytest.approx(1.3448, rel=1e-12)
    expected = diagonal_params(1.464, 2.562, 2)
    for name in ("kq", "pv"):
        np.testing.assert_allclose(gradient[name], expected[name], atol=1e-12)


def test_the_gradients_of_constant_tokens_have_the_papers_form(correlations):
    a, b = 0.7, 0.4
    for d, length in ((3, 6), (2, 5), (5, 20)):
        steps, n = np.arange(1, length - 1), length - 2
        total = (1 / steps).sum()
        same = n + (d - 1) * total
        off = (a * b**2 * (2 * steps + d - 2) / steps**2 - b / steps).sum()
        expected = (a * b**2 * same - b * n, off, a**2 * b * same - a * n, a**2 * b * total)
        assert_gradient(correlations("ones", length, d), start_at(a, b, d), *expected)


def test_the_gradients_of_dense_weights(correlations):
    # Derived by hand, in binary fractions.
    params = {
        "kq": jnp.array([[-0.25, 0.0], [-0.125, 0.125]]),
        "pv": jnp.array([[-0.125, 0.0], [0.125, 0.25]]),
    }
    for name, loss, kq, pv in (
        (
            "ones",
            1.861328125,
            [[0.19921875, -0.373046875], [0.13671875, -0.49609375]],
            [[0.654296875, 0.0087890625], [0.015625, -0.1962890625]],
        ),
        (
            "gaussian",
            1.6806640625,
            [[0.4453125, -0.03515625], [-0.046875, -1.265625]],
            [[1.248046875, 0.0087890625], [0.234375, -0.5478515625]],
        ),
    ):
        value, gradient = loss_and_gradient(params, correlations(name, 4, 2))
        assert float(value) == pytest.approx(loss, rel=1e-14)
        np.testing.assert_allclose(gradient["kq"], kq, atol=1e-14)
        np.testing.assert_allclose(gradient["pv"], pv, atol=1e-14)


def test_a_skewed_law_leaves_the_diagonal(correlations):
    # Derived: a b^2 S_T mu_3^2 and a^2 b S_T mu_3^2, which the proof of lemma 5.2 drops.
    assert_gradient(correlations("skewed", 6, 3), start_at(0.3, 0.2, 3), -3.144, 0.1, -4.716, 0.15)
    for a, b, scale, length, d in ((0.5, 0.8, 1.0, 5, 2), (-0.4, 0.7, 0.6, 8, 3)):
        third, total = 2 * scale**3, (1 / np.arange(1, length - 1)).sum()
        c1, c2 = rates(kappas(skewed_start(scale), d), length)
        pull = c2 - c1 * a * b
        off = a * b * total * third**2
        assert_gradient(
            population_correlations(skewed_start(scale), length, d),
            start_at(a, b, d),
            *(float(value) for value in (-b * pull, b * off, -a * pull, a * off)),
        )


def test_the_symmetric_model_of_constant_tokens_has_the_known_quadratic_form(correlations):
    # Derived, in v = (ba, b alpha, beta a, beta alpha).
    found = correlations("ones", 5, 2)
    eye, off = jnp.eye(2), 1.0 - jnp.eye(2)
    weights = [feature_weights({"kq": kq, "pv": pv}) for pv in (eye, off) for kq in (eye, off)]
    form = [[jnp.einsum("jf,fg,jg", left, found.gram, right) / 2 for right in weights] for left in weights]
    expected = np.array([[29, 22, 11, 11], [22, 29, 11, 6], [11, 11, 29, 22], [11, 6, 22, 29]]) / 6
    np.testing.assert_allclose(form, expected, rtol=1e-13)
    np.testing.assert_allclose([(w * found.cross).sum() / 2 for w in weights], (3, 11 / 6, 0, 0), atol=1e-13)
    assert float(found.constant) == 3.0


@pytest.mark.parametrize(("d", "length", "point", "loss", "difference"), ONES_LIMITS)
def test_the_flow_on_constant_tokens_ends_where_the_gradient_vanishes(correlations, d, length, point, loss, difference):
    a, alpha, b, beta = point
    value, gradient = loss_and_gradient(mixed(*point, d), correlations("ones", length, d))
    # Points of 12 decimals and curvatures of order length * d.
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-11 * length * d**2
    assert float(value) == pytest.approx(loss, rel=1e-12)
    # And on the orbit of the start: a^2 + (d-1) alpha^2 - b^2 - (d-1) beta^2.
    kept = a**2 + (d - 1) * alpha**2 - b**2 - (d - 1) * beta**2
    assert kept == pytest.approx(difference, abs=1e-10)


def test_the_flow_on_skewed_tokens_ends_where_the_gradient_vanishes(correlations):
    # Not on the diagonal, and better than the best diagonal.
    point = (0.343817622022, -0.021071657271, 0.345820957753, -0.009930777314)
    skewed = correlations("skewed", 5, 5)
    value, gradient = loss_and_gradient(mixed(*point, 5), skewed)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-9
    assert float(value) == pytest.approx(9.6495297297, rel=1e-10)
    assert point[0] * point[2] == pytest.approx(0.1188993393, abs=1e-10)
    u = float(limit_product(skewed_start(), 5, 5, check=False))
    assert u == pytest.approx(9 / 77, rel=1e-13)
    assert float(loss_of(start_at(1.0, u, 5), skewed)) == pytest.approx(9.7402597403, rel=1e-10)


def test_the_limit_of_the_theorem_is_a_minimum(correlations):
    # The theorem's limit, and the masked losses of tokens of ones, the third from fractions.
    gaussian = correlations("gaussian", 100, 5)
    u = float(limit_product(gaussian_start(), 100, 5))
    # A mixed-sign diagonal of any sizes: the products decide.
    a = np.array([0.4, -0.5, 0.3, 1.0, -0.6])
    sizes = diagonals(np.full(5, 0.4), np.full(5, u / 0.4))
    for params in (start_at(1.0, u, 5), diagonals(0.4 * np.sign(a), u / 0.4 * np.sign(a)), sizes):
        value, gradient = loss_and_gradient(params, gaussian)
        assert float(value) == pytest.approx(103.94975993369235, rel=1e-13)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-10
    for d, length, loss in ((2, 5, 33 / 29), (3, 6, 150 / 49), (5, 20, 19.672012183019326), (5, 100, 42.6726985)):
        best = float(limit_product(rademacher_start(), length, d))
        masked = loss_of(start_at(1.0, best, d), correlations("ones", length, d))
        assert float(masked) == pytest.approx(loss, rel=2e-9 if length == 100 else 1e-13)


@pytest.mark.parametrize(
    ("stds", "length", "products", "loss"),
    [
        ((1.0, 0.5), 10, (0.1941014687, 0.6944919874), 2.1499133848),
        ((0.8, 1.0, 1.2, 0.6), 100, (0.3013025851, 0.1946932378, 0.1360645555, 0.5270398585), 70.2824731200),
    ],
)
def test_the_flow_on_anisotropic_tokens_ends_where_the_gradient_vanishes(stds, length, products, loss):
    # From a = b = 0.5 by the flow of the diagonal model in its general form.
    s, n, d = np.array(stds), length - 2, len(stds)
    fourth, sixth = 3 * s**4, 15 * s**6
    cross = 3 * np.outer(s**2, s**4) * (1 - np.eye(d)) * (1 / np.arange(1, length - 1)).sum()

    def velocity(_, point):
        a, b = point[:d], point[d:]
        left = -a * (n * b**2 * sixth + b**2 @ cross) + n * b * fourth
        return np.concatenate([left, -b * (n * a**2 * sixth + cross @ a**2) + n * a * fourth])

    end = solve_ivp(velocity, (0, 400), np.full(2 * d, 0.5), method="LSODA", rtol=1e-12, atol=1e-14).y[:, -1]
    np.testing.assert_allclose(end[:d] * end[d:], products, atol=5e-11)
    correlations = population_correlations(gaussian_start(s), length, d)
    value, gradient = loss_and_gradient(diagonals(end[:d], end[d:]), correlations)
    assert float(value) == pytest.approx(loss, rel=1e-10)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-11 * length


def test_the_sparse_law_leaves_directions_flat(correlations):
    # One-hot tokens: the off-diagonals of W32 have no gradient, those of W12 decay.
    sparse = correlations("one-hot", 6, 3)
    params = dense(3, 0, full=False)
    gradient = loss_and_gradient(params, sparse)[1]
    assert (split(gradient["kq"])[1] == 0).all()
    assert (split(gradient["pv"])[1] * split(params["pv"])[1] > 0).all()
    # Conserved for each column: a_j da_j = sum_k W12_kj dW12_kj.
    left = jnp.diagonal(params["kq"] * gradient["kq"])
    np.testing.assert_allclose(left, (params["pv"] * gradient["pv"]).sum(axis=0), rtol=1e-12)


def test_the_parameters_of_a_law_may_be_traced():
    slope = jax.jit(jax.grad(lambda std: population_correlations(gaussian_start(std), 4, 2).constant))(1.5)
    assert float(slope) == pytest.approx(2 * 2 * 1.5)


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="length must be an integer of at least 3 tokens, got 2"):
        population_correlations(gaussian_start(), 2, 2)
    with pytest.raises(ValueError, match="dimension must be an integer of at least 1, got 0"):
        population_correlations(gaussian_start(), 5, 0)
    with pytest.raises(ValueError, match="dimension must be at most 8, whose 4096 features fit into memory, got 9"):
        population_correlations(gaussian_start(), 5, 9, full=True)
    with pytest.raises(ValueError, match="dimension must be at most 10, whose 1000 features fit into memory, got 11"):
        population_correlations(gaussian_start(), 5, 11)
