"""The arrays of a tree by their dotted paths: what a checkpoint stores, names in its errors, and fingerprints."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def flatten(tree: PyTree, prefix: str = "") -> dict[str, Any]:
    """Name every array of a tree by its dotted path, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[".".join(filter(None, (prefix, name)))] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if len(named) != len(leaves):
        raise ValueError("two arrays of the state have the same dotted path; rename a key that contains a dot")
    return named


def flatten_json(value: Any, prefix: str = "") -> dict[str, Any]:
    """Name every value of nested JSON objects by its dotted path."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flatten_json(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def describe(leaf: Any) -> str:
    """Write an array's type and shape, as in float32[3,4]."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def is_key(leaf: Any) -> bool:
    """Return whether an array holds typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def fingerprint(tree: PyTree) -> str:
    """Return the sha256 of the paths, shapes, dtypes and values of all arrays of a tree; "" if it has none.

    Arrays that are spread over several processes are gathered, one at a time.
    """
    arrays = flatten(tree)
    digest = hashlib.sha256()
    for path, leaf in sorted(arrays.items()):
        digest.update(f"{path}:{describe(leaf)};".encode())
        digest.update(np.ascontiguousarray(host_value(leaf)).tobytes())
    return digest.hexdigest() if arrays else ""


def host_value(leaf: Any) -> np.ndarray:
    """Copy an array to the host, from all processes where it is spread over several; keys as their data."""
    values = jax.random.key_data(leaf) if is_key(leaf) else leaf
    if isinstance(values, jax.Array) and not (values.is_fully_addressable or values.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(values, tiled=True))
    return np.asarray(values)
