"""Many samples in blocks of one fixed shape, over every device of a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxgen.diffusion.levels import Level
from jaxgen.typing import PRNGKey, PRNGKeys, Sample


def prior(key: PRNGKey, shape: tuple[int, ...], level: Level, dtype: Any = jnp.float32) -> Sample:
    """Draw the start of a run, sigma * noise of the given shape: x at `level` but for the data's share alpha * x0."""
    return jnp.asarray(level.sigma, dtype) * jax.random.normal(key, shape, dtype)


@partial(jax.jit, static_argnums=0)
def draw_block(draw: Callable, keys: PRNGKeys, conditions: PyTree, operands: tuple) -> PyTree:
    """Run `draw(key, condition, *operands)` for a block of keys and conditions; compiled once a shape and `draw`."""
    return jax.vmap(lambda key, condition: draw(key, condition, *operands))(keys, conditions)


def sample_many(
    draw: Callable[..., PyTree],
    key: PRNGKey,
    count: int,
    *operands: PyTree,
    conditions: PyTree = None,
    block_size: int = 64,
    mesh: jax.sharding.Mesh | None = None,
    on_block: Callable[[int], None] | None = None,
) -> PyTree:
    """Draw `count` independent samples: sample i depends on (key, i) and its condition alone.

    The compiled program always sees `block_size` samples, the last block padded, so that sample i is the same to the
    bit however many are asked for. Over other block sizes or meshes its noise is, and the result agrees to rounding.

    Args:
        draw: maps (key, condition, *operands) to one sample (any pytree of arrays), pure. It is the key of the
            compilation cache: pass one module-level function, and what varies as operands.
        key: sample i uses `fold_in(key, i)`.
        count: how many samples.
        operands: pytrees for all samples alike: parameters, guidance scale, grid. Replicated over the mesh unless they
            are placed on it.
        conditions: pytree of arrays `[count, ...]`, for example labels; None without.
        block_size: samples in one call of the program.
        mesh: its `data` axis shares out each block; the default device alone without it.
        on_block: called with the number of finished samples after each block.

    Returns:
        numpy arrays `[count, ...]`, one for each leaf of a sample.

    Raises:
        ValueError: if `count` or `block_size` is below 1, `block_size` does not divide over the mesh, or a condition
            has not `count` entries.
    """
    _check(count, conditions, block_size, mesh)
    if mesh is not None:
        sharded = jax.sharding.NamedSharding(mesh, jax.P("data" if "data" in mesh.shape else None))
        operands = jax.tree.map(partial(_on_mesh, mesh), operands)

    def launch(start: int) -> PyTree:
        # Padding repeats the last sample of the block: its condition is valid, and its result is dropped.
        index = np.minimum(np.arange(start, start + block_size), count - 1)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(index))
        given = jax.tree.map(lambda leaf: np.asarray(leaf)[index], conditions)
        if mesh is not None:
            keys, given = jax.device_put((keys, given), sharded)
        return draw_block(draw, keys, given, operands)

    def fetch(start: int, block: PyTree) -> PyTree:
        block = jax.tree.map(lambda leaf: np.asarray(leaf)[: count - start], block)
        if on_block is not None:
            on_block(min(start + block_size, count))
        return block

    blocks, pending = [], (0, launch(0))
    for start in range(block_size, count, block_size):
        # One block is always in flight while the previous one is copied to the host.
        launched = (start, launch(start))
        blocks.append(fetch(*pending))
        pending = launched
    blocks.append(fetch(*pending))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *blocks)


def _on_mesh(mesh: jax.sharding.Mesh, leaf: Any) -> jax.Array:
    placed = isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == mesh
    return leaf if placed else jax.device_put(leaf, jax.sharding.NamedSharding(mesh, jax.P()))


def _check(count: int, conditions: PyTree, block_size: int, mesh: jax.sharding.Mesh | None) -> None:
    for name, value in (("count", count), ("block_size", block_size)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    shares = mesh.shape.get("data", 1) if mesh is not None else 1
    if block_size % shares:
        raise ValueError(
            f"a block of {block_size} samples does not divide over {shares} devices of the mesh's data "
            f"axis; choose a multiple"
        )
    for leaf in jax.tree.leaves(conditions):
        if np.shape(leaf)[:1] != (count,):
            raise ValueError(f"conditions need one entry a sample, got shape {np.shape(leaf)} for {count} samples")
