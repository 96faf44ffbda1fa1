"""Dataclasses as pytree nodes of their own type."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

Node = TypeVar("Node")


def register_dataclass(cls: type[Node]) -> type[Node]:
    """Register a dataclass as a pytree, whose fields are children but for those with the metadata `static=True`.

    Use it in place of `jax.tree_util.register_dataclass`, and for a schedule or law of your own. To jax 0.10 the tree
    structures of any two classes registered there (or by `flax.struct.dataclass`) that have as many children and equal
    static fields are equal, though their hashes differ: where these meet in a slot of jit's cache, once in about forty
    pairs of classes, `jit(f)(schedule)` silently runs what was compiled for the other class. Structures of two classes
    registered here are never equal.

    Args:
        cls: a dataclass. Rebuilding calls its `__init__` with the fields by name.

    Returns:
        `cls`, to be used as a decorator.

    Raises:
        TypeError: `cls` is not a dataclass.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass; decorate it with dataclasses.dataclass first.")
    fields = dataclasses.fields(cls)
    names = [field.name for field in fields if field.init]
    static = {field.name for field in fields if field.metadata.get("static", False)}
    children = [name for name in names if name not in static]
    constants = [name for name in names if name in static]

    def flatten(node: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in children]
        return keyed, tuple(getattr(node, name) for name in constants)

    def unflatten(values: Any, leaves: Iterable[Any]) -> Any:
        return cls(**dict(zip(children, leaves, strict=True)), **dict(zip(constants, values, strict=True)))

    def flatten_alone(node: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(node, name) for name in children], tuple(getattr(node, name) for name in constants)

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten, flatten_alone)
    return cls
