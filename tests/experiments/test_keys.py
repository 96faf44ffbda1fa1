"""Purposes and numbers have random numbers of their own, the same in every process."""

import zlib
from types import SimpleNamespace

import jax
import numpy as np

from experiments.keys import key_of


def test_purposes_and_numbers_are_told_apart():
    runs = [SimpleNamespace(seed=seed) for seed in (0, 1)]
    asked = [("train",), ("draw",), ("train", 0), ("train", 1), ("train", 0, 1), ("train", 1, 0)]
    keys = {tuple(jax.random.key_data(key_of(run, *of)).tolist()) for run in runs for of in asked}
    assert len(keys) == 2 * len(asked)


def test_keys_are_those_of_the_seed_and_of_a_hash_that_no_process_salts():
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), zlib.crc32(b"scatter")), 5)
    found = key_of(SimpleNamespace(seed=3), "scatter", 5)
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(key))
