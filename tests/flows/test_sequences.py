"""Sequences x_{t+1} = W x_t: exact powers, symmetric laws of W, and draws that do not depend on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import PLATFORMS

from jaxgen.flows import (
    gaussian_start,
    sample_haar_sequences,
    sample_noisy_sequences,
    sample_sequences,
    sequence_parts,
)
from jaxgen.flows.sequences import evolve
from jaxgen.flows.start_laws import Ones

KEY = jax.random.key(7)
COUNT, LENGTH, DIMENSION = 2000, 5, 3
# One compilation each: eagerly every operation would take its own. Noise, law and first are arguments.
_SIZES = ("count", "length", "dimension")
diagonal = jax.jit(sample_sequences, static_argnames=_SIZES)
haar = jax.jit(sample_haar_sequences, static_argnames=(*_SIZES, "real"))
noisy = jax.jit(sample_noisy_sequences, static_argnames=_SIZES)
SHAPE = (COUNT, LENGTH, DIMENSION)
DRAWS = {
    "diagonal": lambda first=0, noise_std=0.0: diagonal(KEY, gaussian_start(1.0), *SHAPE, first=first),
    "noisy": lambda first=0, noise_std=0.0: noisy(KEY, gaussian_start(1.0), *SHAPE, noise_std=noise_std, first=first),
    "unitary": lambda first=0, noise_std=0.0: haar(
        KEY, gaussian_start(1.0), *SHAPE, real=False, noise_std=noise_std, first=first
    ),
    "orthogonal": lambda first=0, noise_std=0.0: haar(
        KEY, gaussian_start(1.0), *SHAPE, real=True, noise_std=noise_std, first=first
    ),
}


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def drawn():
    return {name: np.asarray(draw()) for name, draw in DRAWS.items()}


def mean_and_error(values):
    """The mean over sequences and five of its standard errors."""
    return values.mean(axis=0), 5 * values.std(axis=0) / np.sqrt(len(values))


def test_a_sequence_is_a_power_of_its_phases(drawn):
    for x in (drawn["diagonal"], drawn["noisy"]):
        assert x.shape == SHAPE
        assert x.dtype == np.complex128
        assert (x[:, 0].imag == 0).all()
        phase = x[:, 1] / x[:, 0]
        np.testing.assert_allclose(np.abs(phase), 1, atol=1e-12)
        np.testing.assert_allclose(x, x[:, :1] * phase[:, None] ** np.arange(LENGTH)[None, :, None], atol=1e-11)


def test_phases_and_tokens_are_independent_and_of_their_laws(drawn):
    for x in (drawn["diagonal"], drawn["noisy"]):
        phase = x[:, 1] / x[:, 0]
        powers = [phase**n for n in (1, 2, 3, 4)]
        pairs = [phase[:, 0] * phase[:, 1], phase[:, 0] * phase[:, 1].conj()]
        for values in (*powers, *pairs, phase * x[:, 0], phase * x[:, 0, ::-1], x[:, 0] ** 2 - 1, x[:, 0]):
            mean, error = mean_and_error(values)
            assert (np.abs(mean) < error).all()


@pytest.mark.parametrize("name", DRAWS)
def test_a_sequence_depends_on_the_key_and_its_number_alone(drawn, name):
    np.testing.assert_array_equal(DRAWS[name](first=700)[:-700], drawn[name][700:])
    assert len(np.unique(drawn[name][:, 0, 0])) == COUNT


def test_a_sequence_does_not_depend_on_the_batch_it_is_drawn_in(drawn):
    found = diagonal(KEY, gaussian_start(1.0), 3, LENGTH, DIMENSION, first=2)
    np.testing.assert_allclose(found, drawn["diagonal"][2:5], atol=1e-14)
    other = diagonal(jax.random.key(8), gaussian_start(1.0), 3, LENGTH, DIMENSION, first=2)
    assert (found[:, 0] != other[:, 0]).all()


def test_the_parts_are_those_of_the_complex_sequence(drawn):
    parts = jax.jit(lambda key: sequence_parts(key, gaussian_start(1.0), LENGTH, DIMENSION))
    for n in range(2):
        real, imaginary = parts(jax.random.fold_in(KEY, n))
        np.testing.assert_allclose(real + 1j * imaginary, drawn["diagonal"][n], atol=1e-14)


def test_the_end_of_a_long_sequence_is_as_accurate_as_its_start():
    exact = np.asarray(diagonal(KEY, Ones(), 200, 1000, 2))
    with jax.enable_x64(False):
        x = np.asarray(diagonal(KEY, Ones(), 200, 1000, 2))
    assert x.dtype == np.complex64
    # float32: 2e-7 of an angle of up to 2 pi, and a rounding of the cosine.
    np.testing.assert_allclose(np.abs(x), 1, atol=3e-7)
    theta = np.angle(exact[:, 1])
    for t in (2, 10, 100, 1000):
        np.testing.assert_allclose(x[:, t - 1], np.exp(1j * (t - 1) * theta), atol=1e-6)


@pytest.mark.parametrize("name", ["unitary", "orthogonal"])
def test_haar_sequences_keep_their_inner_products(drawn, name):
    x = drawn[name][:20]
    assert x.dtype == np.complex128
    gram = np.einsum("nsj,ntj->nst", x.conj(), x)
    # W is unitary: x_s^* x_t depends on t - s alone.
    np.testing.assert_allclose(gram[:, 1:, 1:], gram[:, :-1, :-1], atol=1e-12)
    # One W for all steps: three tokens fix it in three dimensions.
    w = np.linalg.solve(x[:, :3], x[:, 1:4])
    np.testing.assert_allclose(x[:, 3:4] @ w, x[:, 4:5], atol=1e-9)
    assert (np.abs(x.imag).max() == 0) == (name == "orthogonal")


@pytest.mark.parametrize(("name", "fourth"), [("unitary", 2 / (3 * 4)), ("orthogonal", 3 / (3 * 5))])
def test_haar_matrices_turn_a_direction_to_anywhere(drawn, name, fourth):
    x = drawn[name]
    size = np.linalg.norm(x[:, :1], axis=2)
    turned = np.abs(x[:, 1] / size) ** 2
    np.testing.assert_allclose(turned.sum(axis=1), 1, atol=1e-12)
    mean, error = mean_and_error(turned**2)
    assert (np.abs(mean - fourth) < error).all()
    # E |W_1|^2 |W_2|^2 from the fourth moment and the norm.
    mean, error = mean_and_error(turned[:, 0] * turned[:, 1])
    assert abs(mean - (1 / 3 - fourth) / 2) < error
    # The Q of a Householder QR is unitary too, but its trace prefers one sign.
    mean, error = mean_and_error((x[:, 0].conj() * x[:, 1]).sum(axis=1) / size[:, 0] ** 2)
    assert abs(mean) < error


def test_evolution_is_a_power_of_w_without_noise():
    random = np.random.default_rng(0)
    w, start = random.normal(size=(3, 3)), random.normal(size=3)
    x = evolve(jnp.asarray(w), jnp.asarray(start), 5, KEY, 0.0)
    for t in range(5):
        np.testing.assert_allclose(x[t], np.linalg.matrix_power(w, t) @ start, rtol=1e-12)


def test_the_noise_has_its_variance_and_is_circular():
    for w in (0.5 * jnp.eye(4), 0.5j * jnp.eye(4)):
        x = np.asarray(evolve(w, jnp.zeros(4), 5000, KEY, 0.3))
        noise = x[1:] - x[:-1] @ np.asarray(w).T
        size = np.abs(noise) ** 2
        error = 5 / np.sqrt(noise.size)
        assert abs(size.mean() - 0.09) < error * size.std()
        if np.iscomplexobj(noise):
            assert abs((noise**2).mean()) < error * size.std() * np.sqrt(2)
        # Steps and coordinates are independent.
        assert abs((noise[1:] * noise[:-1].conj()).mean()) < error * 0.09
        assert abs((noise[:, 1:] * noise[:, :-1].conj()).mean()) < error * 0.09 * np.sqrt(4 / 3)


@pytest.mark.parametrize("name", ["noisy", "unitary", "orthogonal"])
def test_every_step_adds_the_variance_of_the_noise(name):
    x = DRAWS[name](noise_std=0.5)
    size = (np.abs(np.asarray(x)) ** 2).sum(axis=-1)
    for t in range(LENGTH):
        mean, error = mean_and_error(size[:, t])
        assert abs(mean - DIMENSION * (1 + 0.25 * t)) < error


def test_sequences_are_drawn_without_complex_or_double_numbers_on_every_platform():
    with jax.enable_x64(False):
        draw = jax.jit(jax.vmap(lambda key: sequence_parts(key, gaussian_start(), 6, 3)))
        exported = jax.export.export(draw, platforms=PLATFORMS)(jax.ShapeDtypeStruct((4,), KEY.dtype))
    text = exported.mlir_module()
    assert exported.platforms == PLATFORMS
    assert "f64" not in text
    assert "complex<" not in text


@pytest.mark.parametrize(
    "draw",
    [
        lambda length, dimension: sample_sequences(KEY, gaussian_start(), 2, length, dimension),
        lambda length, dimension: sequence_parts(KEY, gaussian_start(), length, dimension),
        lambda length, dimension: sample_haar_sequences(KEY, gaussian_start(), 2, length, dimension),
        lambda length, dimension: sample_noisy_sequences(KEY, gaussian_start(), 2, length, dimension, noise_std=0.1),
    ],
    ids=["diagonal", "parts", "haar", "noisy"],
)
def test_short_sequences_and_tokens_without_coordinates_are_refused(draw):
    with pytest.raises(ValueError, match="length must be an integer of at least 3 tokens, got 2"):
        draw(2, 3)
    with pytest.raises(ValueError, match="dimension must be an integer of at least 1, got 0"):
        draw(5, 0)


@pytest.mark.parametrize("draw", [sample_haar_sequences, sample_noisy_sequences])
def test_a_negative_noise_is_refused(draw):
    for bad in (-0.1, np.nan):
        with pytest.raises(ValueError, match="noise_std must be at least 0 and finite, got"):
            jax.eval_shape(lambda bad=bad: draw(KEY, gaussian_start(), 2, 4, 3, noise_std=bad))
