"""Meshes of devices, and where on a mesh the parts of a training state lie."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxgen.training.state import TrainState
from jaxgen.training.tree_paths import host_value

RULES: Mapping[str, str] = {"hidden": "model"}
"""From the logical name of a parameter's axis to the mesh axis that it is split over; others are replicated."""

DATA_AXIS = "data"
"""The mesh axis over which a batch is split, and the state as well where it is fully sharded."""

# Splitting a bias saves nothing and costs a message.
_SMALLEST_SHARDED = 1024


def parse_mesh(text: str) -> dict[str, int]:
    """Read the sizes of a mesh from text such as "data=4,model=2".

    Raises:
        ValueError: if the text is not a list of NAME=COUNT with distinct names and counts of at least 1.

    >>> parse_mesh("data=4,model=2")
    {'data': 4, 'model': 2}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, count = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier() or not count.isdecimal() or int(count) < 1 or name in sizes:
            raise ValueError(f"a mesh is written as data=4,model=2 with counts of at least 1, got {text!r}")
        sizes[name] = int(count)
    return sizes


def make_mesh(sizes: str | Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in a mesh whose axes the compiler shards automatically.

    Args:
        sizes: text as for `parse_mesh`, or the size of each axis.
        devices: which devices to take the first ones of; all by default.

    Raises:
        ValueError: if there are fewer devices than the mesh asks for.
    """
    sizes = parse_mesh(sizes) if isinstance(sizes, str) else dict(sizes)
    available = list(jax.devices() if devices is None else devices)
    needed = math.prod(sizes.values())
    if needed > len(available):
        written = ",".join(f"{name}={count}" for name, count in sizes.items())
        raise ValueError(f"the mesh {written} needs {needed} devices, but there are {len(available)}")
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=available[:needed]
    )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy every array of a tree to all devices of a mesh; with several processes, each holds the same tree."""
    return place(tree, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree))


def replicate_all(tree: PyTree, mesh: Mesh) -> PyTree:
    """Leave alone what is already placed on this mesh, and copy the rest to all of its devices."""

    def lay(leaf):
        sharding = getattr(leaf, "sharding", None)
        return leaf if isinstance(sharding, NamedSharding) and sharding.mesh == mesh else replicate(leaf, mesh)

    return jax.tree.map(lay, tree)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Lay every array of a tree out as its sharding says; with several processes, each holds the same whole tree."""
    return jax.tree.map(_place, tree, shardings)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def check_batch(size: int, mesh: Mesh | AbstractMesh) -> None:
    """Refuse a batch that the devices of the data axis cannot share evenly.

    Raises:
        ValueError: naming the batch and the axis.
    """
    devices = mesh.shape.get(DATA_AXIS, 1)
    if size % devices:
        raise ValueError(
            f"a batch of {size} cannot be split evenly over {DATA_AXIS}={devices} devices; choose a multiple"
        )


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding that splits one axis of a batch over the data axis of a mesh, if it has one."""
    split = DATA_AXIS if DATA_AXIS in mesh.shape else None
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, split))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Split the first axis of every array of a batch over the data axis of a mesh.

    Raises:
        ValueError: if the first axis is not a multiple of the number of devices.
    """
    for leaf in jax.tree.leaves(batch):
        check_batch(np.shape(leaf)[0], mesh)
    return jax.device_put(batch, batch_sharding(mesh))


def state_shardings(
    state: TrainState,
    mesh: Mesh,
    axes: PyTree | None = None,
    rules: Mapping[str, str] = RULES,
    *,
    fully_sharded: bool = False,
) -> TrainState:
    """Say where on a mesh every array of a training state lies.

    An array follows a parameter when its path ends in the parameter's path and its last axes are the parameter's: so
    do averages and the optimiser's moments, one or several. The names belong to the last axes of the parameter;
    leading ones, such as the seeds of a stacked state, are replicated, and so is all else.

    Args:
        state: of arrays or of shapes.
        mesh: the mesh.
        axes: in the structure of the parameters, a `PartitionSpec` of logical names each; None replicates all.
        rules: from logical name to mesh axis; a mesh axis that the mesh lacks is skipped.
        fully_sharded: split parameters, and what follows them, over the data axis as well: each along the largest of
            its axes that the rules leave whole and the devices can share (Rajbhandari et al. 2020, ZeRO, stage 3).
            Arrays of fewer than 1,024 numbers, and those without such an axis, stay whole.

    Returns:
        The structure of `state` with a `NamedSharding` at each leaf.

    Raises:
        ValueError: if an axis is not a multiple of the mesh axis it is split over, or `axes` is of other parameters.
    """
    named = _named_axes(state, axes)
    lengths = sorted({len(path) for path in named}, reverse=True)
    shards = mesh.shape.get(DATA_AXIS, 1) if fully_sharded else 1

    def lay(path, leaf):
        shape = np.shape(leaf)
        spec: list[str | None] = [None] * len(shape)
        names, followed = next((named[path[-n:]] for n in lengths if path[-n:] in named), (PartitionSpec(), None))
        if followed is not None and shape[len(shape) - len(followed) :] == followed:
            spec[len(shape) - len(names) :] = [_mesh_axis(name, mesh, rules) for name in names]
            _check_split(path, shape, spec, mesh)
            if shards > 1:
                spec = _shard_further(shape, spec, len(shape) - len(followed), shards)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(lay, state)


def _check_split(path: Any, shape: tuple[int, ...], spec: Sequence[str | None], mesh: Mesh) -> None:
    for size, axis in zip(shape, spec, strict=True):
        if axis and size % mesh.shape[axis]:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{where} has an axis of {size}, which {axis}={mesh.shape[axis]} devices cannot split")


def _shard_further(shape: tuple[int, ...], spec: Sequence[str | None], lead: int, shards: int) -> list[str | None]:
    """Split the largest whole axis of a parameter, the last of equal ones, over the data axis."""
    free = [axis for axis in range(lead, len(shape)) if spec[axis] is None and shape[axis] % shards == 0]
    spec = list(spec)
    if free and math.prod(shape[lead:]) >= _SMALLEST_SHARDED:
        spec[max(free, key=lambda axis: (shape[axis], axis))] = DATA_AXIS
    return spec


def _named_axes(state: TrainState, axes: PyTree | None) -> dict[Any, tuple[PartitionSpec, tuple[int, ...]]]:
    """Return the names of the axes and the shape of each parameter, by its path."""
    params = jax.tree_util.tree_flatten_with_path(state.params)[0]
    if axes is None:
        return {path: (PartitionSpec(), np.shape(leaf)) for path, leaf in params}
    specs = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))[0]
    if len(specs) != len(params):
        raise ValueError(f"axes must name each parameter: there are {len(params)} parameters and {len(specs)} names")
    return {path: (names, np.shape(leaf)) for (path, names), (_, leaf) in zip(specs, params, strict=True)}


def _mesh_axis(name: str | None, mesh: Mesh, rules: Mapping[str, str]) -> str | None:
    axis = rules.get(name) if name else None
    return axis if axis in mesh.shape else None


def local_mesh() -> Mesh:
    """Return the mesh of this process's own devices along the data axis."""
    devices = jax.local_devices()
    return make_mesh({DATA_AXIS: len(devices)}, devices)


def gathered(tree: PyTree) -> PyTree:
    """Copy every array of a tree to the host, whole, in every process."""
    return jax.tree.map(host_value, tree)
