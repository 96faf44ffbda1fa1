"""The devices that a run asks for."""

import jax
from jax.sharding import Mesh

from experiments.run_directory import RunDirectory
from jaxgen.training import make_mesh


def mesh_of(run: RunDirectory, *, processes: bool = False) -> Mesh:
    """Return the mesh that `--mesh` asks for, by default all devices along `data`.

    Args:
        run: the run.
        processes: whether what runs on the mesh is made for several processes, none of which sees all of an array.

    Raises:
        ValueError: there are several processes and it is not.
    """
    if jax.process_count() > 1 and not processes:
        raise ValueError(
            "this experiment runs in one process; leave --coordinator out, or set JAXGEN_DISTRIBUTED=off "
            "(several train together with digits --data)"
        )
    return make_mesh(run.mesh or {"data": jax.device_count()})


def check_divides(run: RunDirectory, *, processes: bool = False, **counts: int) -> None:
    """Refuse counts that the devices along `data` cannot share evenly.

    Args:
        run: the run whose mesh is meant.
        processes: as for `mesh_of`.
        counts: what is shared, by the name of its field.

    Raises:
        ValueError: names the option, the count and the devices.
    """
    shares = mesh_of(run, processes=processes).shape.get("data", 1)
    for name, count in counts.items():
        if count % shares:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {count} does not divide over {shares} devices; choose a multiple")
