"""The devices that a run asks for."""

import jax
from jax.sharding import Mesh

from experiments.run_directory import RunDirectory
from jaxgen.training import make_mesh


def mesh_of(run: RunDirectory) -> Mesh:
    """Return the mesh that `--mesh` asks for, by default all devices along `data`."""
    return make_mesh(run.mesh or {"data": jax.device_count()})


def check_divides(run: RunDirectory, **counts: int) -> None:
    """Refuse counts that the devices along `data` cannot share evenly.

    Args:
        run: the run whose mesh is meant.
        counts: what is shared, by the name of its field.

    Raises:
        ValueError: names the option, the count and the devices.
    """
    shares = mesh_of(run).shape.get("data", 1)
    for name, count in counts.items():
        if count % shares:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {count} does not divide over {shares} devices; choose a multiple")
