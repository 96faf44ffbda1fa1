"""Parameters of a conditional model of several sources, split into what all sources share and what each has alone.

The split is of any pytree of one source's parameters, by path. A multi-source model has one copy of the shared part and
a specific part for each source. Separate models of each source are the same thing with nothing shared, so that one
function fits or trains both arms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxgen.typing import PRNGKey

Init = Callable[[PRNGKey], PyTree]
"""Draws the parameters of one source from a key."""
IsSpecific = Callable[[str], bool]
"""Tells by its path, as in "dense_0/kernel", whether every source has a parameter of its own."""


class SourceParams(NamedTuple):
    """Parameters of a model of several sources, in two trees of the structure of one source's parameters.

    Attributes:
        shared: what all sources have in common; None in place of what is specific.
        specific: what each source has of its own, with a leading axis of sources; None in place of what is shared.
    """

    shared: PyTree
    specific: PyTree


class ParameterCounts(NamedTuple):
    """How many numbers a model of several sources has.

    Attributes:
        shared: those that all sources have in common.
        specific: those of its own that each source has.
        sources: the number of sources.
    """

    shared: int
    specific: int
    sources: int

    @property
    def total(self) -> int:
        """Return how many numbers the model has."""
        return self.shared + self.sources * self.specific

    @property
    def similarity(self) -> float:
        """Return the share of one source's parameters that all sources have in common (the paper's beta_sim)."""
        return self.shared / (self.shared + self.specific)


def split_by_path(params: PyTree, is_specific: IsSpecific) -> tuple[PyTree, PyTree]:
    """Split the parameters of one source into a shared and a specific tree, each with None where the other has a leaf.

    Args:
        params: parameters of one source: dicts, lists, NamedTuples or other pytree nodes of arrays.
        is_specific: asked of the path of every leaf. Where it says True of all, nothing is shared.

    Raises:
        ValueError: there is no parameter, or none is specific, so that all sources would have one law.

    >>> split_by_path({"mean": {"own": 1.0, "common": 2.0}}, lambda path: path == "mean/own")
    ({'mean': {'common': 2.0, 'own': None}}, {'mean': {'common': None, 'own': 1.0}})
    """
    paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not paths:
        raise ValueError("params holds no array: give the parameters of one source")
    if not any(is_specific(path) for path in paths):
        shown = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
        raise ValueError(f"is_specific must be True for at least one of the {len(paths)} parameters {shown}")

    def part(specific: bool) -> PyTree:
        keep = lambda path, leaf: leaf if bool(is_specific(_name(path))) == specific else None  # noqa: E731
        return jax.tree_util.tree_map_with_path(keep, params)

    return part(False), part(True)


def merge(shared: PyTree, specific: PyTree) -> PyTree:
    """Put the two trees of one source together again.

    Args:
        shared: a tree with None in place of what is specific.
        specific: the same tree with None in place of what is shared, without an axis of sources.

    Raises:
        ValueError: the structures differ, or both hold one parameter.

    >>> merge({"own": None, "common": 2.0}, {"own": 1.0, "common": None})
    {'common': 2.0, 'own': 1.0}
    """

    def either(path: Any, left: Any, right: Any) -> Any:
        if left is not None and right is not None:
            raise ValueError(f"the parameter {_name(path)} is both shared and specific: split the tree by path first")
        return right if left is None else left

    return jax.tree_util.tree_map_with_path(either, shared, specific, is_leaf=lambda leaf: leaf is None)


def init_multi(key: PRNGKey, init: Init, is_specific: IsSpecific, num_sources: int) -> SourceParams:
    """Draw the parameters of one model of several sources: the shared ones once, the specific ones for each source.

    Args:
        key: typed key, consumed.
        init: draws the parameters of one source.
        is_specific: tells by its path whether every source has a parameter of its own.
        num_sources: K, at least 1.

    Raises:
        ValueError: `num_sources` is below 1, or `split_by_path` refuses the split.
    """
    _check_count(num_sources)
    common, own = jax.random.split(key)
    shared, _ = split_by_path(init(common), is_specific)
    return SourceParams(shared, split_by_path(jax.vmap(init)(jax.random.split(own, num_sources)), is_specific)[1])


def init_single(key: PRNGKey, init: Init, num_sources: int) -> SourceParams:
    """Draw the parameters of separate models, one for each source: nothing is shared.

    Args:
        key: typed key, consumed.
        init: draws the parameters of one source.
        num_sources: K, at least 1.

    Raises:
        ValueError: `num_sources` is below 1.
    """
    _check_count(num_sources)
    specific = jax.vmap(init)(jax.random.split(key, num_sources))
    return SourceParams(jax.tree.map(lambda _: None, specific), specific)


def separate(params: SourceParams) -> SourceParams:
    """Give every source a copy of its own of what is shared: the same laws, as separate models.

    Args:
        params: parameters of one model of several sources.

    >>> separate(SourceParams({"a": np.ones(2), "b": None}, {"a": None, "b": np.ones((3, 1))})).specific["a"].shape
    (3, 2)
    """
    specific = of_each_source(params)
    return SourceParams(jax.tree.map(lambda _: None, specific), specific)


def of_each_source(params: SourceParams) -> PyTree:
    """Return the whole parameters of all sources, with a leading axis of sources on every leaf."""
    return apply_sources(lambda whole: whole, params)


def apply_sources(fn: Callable[..., PyTree], params: SourceParams, *per_source: PyTree) -> PyTree:
    """Evaluate a function of one source's parameters at every source, by `jax.vmap`.

    Args:
        fn: called as `fn(params of one source, *arguments of that source)`.
        params: parameters of all sources.
        per_source: arguments, each with a leading axis of sources.

    Returns:
        What `fn` returns, with a leading axis of sources.

    Raises:
        ValueError: the leading axes are not of one length.
    """
    check_per_source("per_source", per_source, num_sources(params))
    return jax.vmap(lambda specific, *args: fn(merge(params.shared, specific), *args))(params.specific, *per_source)


def num_sources(params: SourceParams) -> int:
    """Return K.

    Raises:
        ValueError: nothing is specific, or the specific parameters have no common leading axis.
    """
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params.specific)}
    if len(lengths) != 1 or lengths == {()}:
        found = sorted(lengths)
        raise ValueError(f"specific parameters must have one leading axis of sources, got the lengths {found}")
    return int(lengths.pop()[0])


def check_per_source(name: str, arguments: PyTree, sources: int) -> None:
    """Raise unless every array has one entry for each source.

    Args:
        name: what the arguments are called.
        arguments: pytrees of arrays.
        sources: K.

    Raises:
        ValueError: a leading axis is missing or of another length.
    """
    for leaf in jax.tree.leaves(arguments):
        if np.shape(leaf)[:1] != (sources,):
            raise ValueError(f"{name} must have a leading axis of {sources} sources, got shape {np.shape(leaf)}")


def count_source_parameters(params: SourceParams) -> ParameterCounts:
    """Count the numbers of a model of several sources.

    Args:
        params: arrays, or their shapes (`jax.ShapeDtypeStruct`).

    >>> count_source_parameters(SourceParams({"a": np.ones(6), "b": None}, {"a": None, "b": np.ones((4, 2))}))
    ParameterCounts(shared=6, specific=2, sources=4)
    """
    sources = num_sources(params)
    shared, specific = (sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(part)) for part in params)
    return ParameterCounts(shared, specific // sources, sources)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_count(sources: int) -> None:
    if sources < 1:
        raise ValueError(f"num_sources must be at least 1, got {sources}")
