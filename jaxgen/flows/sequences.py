"""Sequences x_{t+1} = W x_t from a random first token, with a W of their own each.

Source: Zheng et al. 2024, section 3.1: W = diag(lambda) with lambda_j = exp(i theta_j), theta_j uniform.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Complex, Float, Int, Num

from jaxgen.flows.assumptions import check_dimension, check_length
from jaxgen.flows.start_laws import StartLaw
from jaxgen.typing import ArrayLike, PRNGKey, PRNGKeys, Scalar


def sequence_parts(
    key: PRNGKey, law: StartLaw, length: int, dimension: int
) -> tuple[Float[Array, "time dim"], Float[Array, "time dim"]]:
    """Draw one sequence x_t = lambda^(t-1) x_1 of real and imaginary parts, without complex numbers.

    Args:
        key: consumed.
        law: of the first token.
        length: number of tokens T, at least 3.
        dimension: coordinates d of a token.

    Raises:
        ValueError: length or dimension is too small.
    """
    check_length(length)
    check_dimension(dimension)
    start_key, phase_key = jax.random.split(key)
    return _turn(phase_key, law.sample(start_key, dimension), length)


def sample_starts(
    key: PRNGKey, law: StartLaw, count: int, dimension: int, *, first: int | Int[ArrayLike, ""] = 0
) -> Float[Array, "count dim"]:
    """Draw the first tokens of `sample_sequences` alone.

    Raises:
        ValueError: `dimension` is below 1.
    """
    check_dimension(dimension)
    return jax.vmap(lambda key: law.sample(jax.random.split(key)[0], dimension))(_keys(key, count, first))


def sequences_from(
    key: PRNGKey, starts: Float[ArrayLike, "count dim"], length: int, *, first: int | Int[ArrayLike, ""] = 0
) -> Complex[Array, "count time dim"]:
    """Draw the sequences of `sample_sequences` whose first tokens are given, in a program that no law is part of.

    Args:
        key: consumed.
        starts: first tokens.
        length: number of tokens T of each, at least 3.
        first: number of the first sequence.

    Raises:
        ValueError: `length` is too small.

    >>> from jaxgen.flows import gaussian_start
    >>> starts = sample_starts(jax.random.key(0), gaussian_start(), 2, 3)
    >>> x = sample_sequences(jax.random.key(0), gaussian_start(), 2, 4, 3)
    >>> bool((sequences_from(jax.random.key(0), starts, 4) == x).all())
    True
    """
    check_length(length)
    turn = lambda key, start: _turn(jax.random.split(key)[1], start, length)  # noqa: E731
    return jax.lax.complex(*jax.vmap(turn)(_keys(key, len(starts), first), jnp.asarray(starts)))


def sample_sequences(
    key: PRNGKey,
    law: StartLaw,
    count: int,
    length: int,
    dimension: int,
    *,
    first: int | Int[ArrayLike, ""] = 0,
) -> Complex[Array, "count time dim"]:
    """Draw sequences with diagonal W; sequence n depends on (key, first + n) alone.

    Args:
        key: consumed.
        law: of the first token.
        count: number of sequences.
        length: number of tokens T of each, at least 3.
        dimension: coordinates d of a token.
        first: number of the first sequence, so that a set can be drawn in pieces.

    Raises:
        ValueError: length or dimension is too small.

    >>> from jaxgen.flows import one_hot_start
    >>> x = sample_sequences(jax.random.key(0), one_hot_start(2.0), 3, 5, 4)
    >>> x.shape, jnp.abs(x).sum(axis=-1).round(3)[0].tolist()
    ((3, 5, 4), [2.0, 2.0, 2.0, 2.0, 2.0])
    """
    keys = _keys(key, count, first)
    return jax.lax.complex(*jax.vmap(lambda key: sequence_parts(key, law, length, dimension))(keys))


def sample_haar_sequences(
    key: PRNGKey,
    law: StartLaw,
    count: int,
    length: int,
    dimension: int,
    *,
    real: bool = False,
    noise_std: Scalar = 0.0,
    first: int | Int[ArrayLike, ""] = 0,
) -> Complex[Array, "count time dim"]:
    """Draw sequences x_{t+1} = W x_t + noise with W uniform among the unitary, or the real orthogonal, matrices.

    Args:
        key: consumed.
        law: of the first token.
        count: number of sequences.
        length: number of tokens T of each, at least 3.
        dimension: coordinates d of a token.
        real: draw W orthogonal; with real noise the sequence is then real.
        noise_std: of each coordinate of what is added in every step; complex noise has it in total.
        first: number of the first sequence.

    Raises:
        ValueError: length or dimension is too small, or the noise is negative or not finite.
    """
    check_length(length)
    check_dimension(dimension)

    def draw(key: PRNGKey) -> Num[Array, "time dim"]:
        start_key, matrix_key, noise_key = jax.random.split(key, 3)
        start = law.sample(start_key, dimension)
        kind = start.dtype if real else jnp.result_type(start.dtype, jnp.complex64)
        w, triangle = jnp.linalg.qr(jax.random.normal(matrix_key, (dimension, dimension), kind))
        # Unique once the diagonal of the triangle is positive, and then uniform (Mezzadri 2007).
        diagonal = jnp.diagonal(triangle)
        return evolve(w * (diagonal / jnp.abs(diagonal))[None], start, length, noise_key, noise_std)

    return jax.vmap(draw)(_keys(key, count, first)) + 0j


def sample_noisy_sequences(
    key: PRNGKey,
    law: StartLaw,
    count: int,
    length: int,
    dimension: int,
    *,
    noise_std: Scalar,
    first: int | Int[ArrayLike, ""] = 0,
) -> Complex[Array, "count time dim"]:
    """Draw sequences x_{t+1} = lambda x_t + noise with diagonal W and circular complex Gaussian noise.

    Args:
        key: consumed.
        law: of the first token.
        count: number of sequences.
        length: number of tokens T of each, at least 3.
        dimension: coordinates d of a token.
        noise_std: root of E|noise_j|^2.
        first: number of the first sequence.

    Raises:
        ValueError: length or dimension is too small, or the noise is negative or not finite.
    """
    check_length(length)
    check_dimension(dimension)

    def draw(key: PRNGKey) -> Complex[Array, "time dim"]:
        start_key, phase_key, noise_key = jax.random.split(key, 3)
        theta = jax.random.uniform(phase_key, (dimension,), maxval=2.0 * jnp.pi)
        w = jnp.diag(jnp.exp(1j * theta))
        return evolve(w, law.sample(start_key, dimension), length, noise_key, noise_std)

    return jax.vmap(draw)(_keys(key, count, first))


def evolve(w: Array, start: Float[Array, " dim"], length: int, key: PRNGKey, noise_std: Scalar) -> Array:
    """Return x_1 = start, x_{t+1} = W x_t + noise_std noise, `[length, d]`; noise t has the key `fold_in(key, t)`.

    Raises:
        ValueError: the noise is negative or not finite.
    """
    if not isinstance(noise_std, Tracer) and not 0 <= noise_std < jnp.inf:
        raise ValueError(f"noise_std must be at least 0 and finite, got {noise_std}")

    def step(x: Array, t: Array) -> tuple[Array, Array]:
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape, x.dtype)
        return jnp.dot(w, x, precision="highest") + jnp.asarray(noise_std, noise.dtype) * noise, x

    return jax.lax.scan(step, start.astype(w.dtype), jnp.arange(length))[1]


def _turn(
    key: PRNGKey, start: Float[Array, " dim"], length: int
) -> tuple[Float[Array, "time dim"], Float[Array, "time dim"]]:
    """Return real and imaginary parts of lambda^(t-1) start with random phases.

    The phases are multiples of 2 pi / 2^32, and (t - 1) theta is taken modulo 2 pi in integers: at the end of a long
    sequence it is as accurate as at its start. No moment up to the sixth order can tell the lattice from the circle.
    """
    bits = jax.random.bits(key, start.shape, "uint32")
    turned = jnp.arange(length, dtype="uint32")[:, None] * bits[None]  # wraps around at a whole turn
    angle = turned.astype(start.dtype) * jnp.asarray(2.0 * jnp.pi / 2**32, start.dtype)
    return start[None] * jnp.cos(angle), start[None] * jnp.sin(angle)


def _keys(key: PRNGKey, count: int, first: int | Int[ArrayLike, ""]) -> PRNGKeys:
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(count))
