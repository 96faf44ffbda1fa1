"""Dataclasses registered as pytrees: their structures, and what jit keeps apart."""

import dataclasses
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jaxgen
from jaxgen.pytrees import register_dataclass


@dataclasses.dataclass(frozen=True)
class Line:
    slope: object
    offset: object
    unit: str = dataclasses.field(default="s", metadata={"static": True})


register_dataclass(Line)


def test_fields_are_leaves_with_their_names_and_static_fields_belong_to_the_structure():
    line = Line(slope=jnp.float32(2.0), offset=[1.0, 3.0], unit="ms")
    paths, structure = jax.tree_util.tree_flatten_with_path(line)
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [".slope", ".offset[0]", ".offset[1]"]
    assert [leaf for _, leaf in paths] == jax.tree.leaves(line) == [2.0, 1.0, 3.0]
    assert jax.tree.unflatten(structure, [5, 6, 7]) == Line(5, [6, 7], "ms")
    assert structure != jax.tree.structure(dataclasses.replace(line, unit="s"))
    assert jax.tree.map(lambda leaf: leaf * 2, line) == Line(4.0, [2.0, 6.0], "ms")


def test_jit_never_takes_one_class_for_another():
    # With jax.tree_util.register_dataclass about one pair in forty is mixed up.
    for _ in range(150):
        classes = []
        for combine in (lambda node: node.a + node.b, lambda node: node.a * node.b):
            cls = dataclasses.make_dataclass("Node", ["a", "b"], frozen=True, namespace={"combine": combine})
            classes.append(register_dataclass(cls))
        combine = jax.jit(lambda node: node.combine())
        assert [float(combine(cls(3.0, 5.0))) for cls in classes] == [8.0, 15.0]


def test_a_class_that_is_no_dataclass_is_refused_by_name():
    with pytest.raises(TypeError, match=r"class 'object'.*decorate it"):
        register_dataclass(object)


def _pytree_classes():
    for module in pkgutil.walk_packages(jaxgen.__path__, "jaxgen."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and dataclasses.is_dataclass(cls):
                yield cls


def test_no_two_pytrees_of_the_library_share_a_structure():
    structures = []
    for cls in _pytree_classes():
        node = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(node, field.name, 0)
        if not jax.tree_util.all_leaves([node]):
            structures.append(jax.tree.structure(node))
    assert len(structures) >= 14
    assert all(one != other for index, one in enumerate(structures) for other in structures[:index])
