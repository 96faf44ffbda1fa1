"""Parameters of a module as plain arrays, and the logical name of each of their axes beside them."""

from collections.abc import Callable
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
    return nn.unbox(jax.jit(model.init)(key, *model.example_inputs())["params"])


def abstract_params(model: Model) -> PyTree:
    """Return the shapes and dtypes of the parameters without drawing them."""
    return nn.unbox(_boxed(model))


def logical_axes(model: Model) -> PyTree:
    """Return, in the structure of the parameters, a `PartitionSpec` of logical axis names for each.

    A rule table turns the names into mesh axes, so that one table shards every model.
    """
    return nn.get_partition_spec(_boxed(model))


def _boxed(model: Model) -> PyTree:
    # Under eval_shape nothing is drawn, and the boxes that carry the names survive.
    return jax.eval_shape(lambda key: model.init(key, *model.example_inputs())["params"], jax.random.key(0))
