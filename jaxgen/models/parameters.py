"""Parameters and other variables of a module as plain arrays, and the logical name of each parameter's axes."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
from jaxtyping import Array, PyTree

from jaxgen.typing import Params, PRNGKey


@runtime_checkable
class Model(Protocol):
    """A linen module that knows the arguments of one call; every network of this room is one."""

    init: Callable[..., Any]
    apply: Callable[..., Any]

    def example_inputs(self) -> tuple[Array, ...]:
        """Return the arguments of one call, of which only shapes and dtypes matter."""
        ...


def init_params(model: Model, key: PRNGKey) -> Params:
    """Draw the initial parameters of a model, as plain float32 arrays without axis metadata.

    Args:
        model: a network of this room.
        key: typed key, consumed.
    """
    return init_variables(model, key)[0]


def init_variables(model: Model, key: PRNGKey) -> tuple[Params, PyTree]:
    """Draw the initial parameters of a model and the collections beside them, as plain arrays without axis metadata.

    Args:
        model: a network of this room.
        key: typed key, consumed.

    Returns:
        The parameters, and a dict of the other collections, such as the random frequencies of an `EDM2`, which is empty
        for most networks. A call is `model.apply({"params": params, **others}, ...)`.
    """
    return _split(nn.unbox(jax.jit(model.init)(key, *model.example_inputs())))


def abstract_params(model: Model) -> PyTree:
    """Return the shapes and dtypes of the parameters without drawing them."""
    return _split(nn.unbox(_boxed(model)))[0]


def abstract_variables(model: Model) -> PyTree:
    """Return the shapes and dtypes of the collections beside the parameters without drawing them, {} if none."""
    return _split(nn.unbox(_boxed(model)))[1]


def logical_axes(model: Model) -> PyTree:
    """Return, in the structure of the parameters, a `PartitionSpec` of logical axis names for each.

    A rule table turns the names into mesh axes, so that one table shards every model.
    """
    return nn.get_partition_spec(_boxed(model)["params"])


def _split(variables: Mapping[str, PyTree]) -> tuple[Params, PyTree]:
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def _boxed(model: Model) -> PyTree:
    # Under eval_shape nothing is drawn, and the boxes that carry the names survive.
    return jax.eval_shape(lambda key: model.init(key, *model.example_inputs()), jax.random.key(0))
