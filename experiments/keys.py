"""Keys of random numbers, told apart by what they are for."""

import zlib

import jax

from experiments.run_directory import RunDirectory
from jaxgen.typing import PRNGKey


def key_of(run: RunDirectory, purpose: str, *numbers: int) -> PRNGKey:
    """Return the key of one purpose of a run, such as "train", and of a seed, a source or other numbers within it.

    Args:
        run: whose seed decides.
        purpose: what is drawn; another purpose has other random numbers.
        numbers: each folded in.
    """
    key = jax.random.fold_in(jax.random.key(run.seed), zlib.crc32(purpose.encode()))
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key
