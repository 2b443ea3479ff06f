"""Nests of containers (inputs, outputs, batches, states): the one place that walks them.

The nodes are those of torch.export, so that a class that is registered for it (model outputs and caches of transformers, dataclasses
of the user) is walked in the order in which its program takes it. Only the private `torch.utils._pytree` has this registry: up to
torch 2.14 there is no public module (pytorch/pytorch#65761), and the forms of exported programs and of graph modules are its own.
optree would see a model output as one leaf, None as no leaf, and the keys of a dict sorted.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor
from torch.utils import _pytree

T = TypeVar("T")
Form = _pytree.TreeSpec
"""The form of a nest without its leaves; plain data that pickles."""
flatten: Callable[[Any], tuple[list[Any], Form]] = _pytree.tree_flatten
"""Nest → (leaves, form)."""
unflatten: Callable[[Any, Form], Any] = _pytree.tree_unflatten
"""Leaves, form → nest."""
leaves: Callable[[Any], list[Any]] = _pytree.tree_leaves
"""Nest → leaves."""
map_leaves: Callable[[Callable[[Any], Any], Any], Any] = _pytree.tree_map
"""Function, nest → nest of what the function gives for each leaf."""


def tensors(nest: Any) -> list[Tensor]:
    """Return the tensors of a nest, in order.

    >>> import torch
    >>> [t.tolist() for t in tensors({"b": torch.ones(1), "a": [torch.zeros(2), "text"]})]
    [[1.0], [0.0, 0.0]]
    """
    return [x for x in leaves(nest) if isinstance(x, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], nest: T) -> T:
    """Return a nest of what the function gives for each tensor; all other leaves stay."""
    return _pytree.tree_map_only(Tensor, function, nest)


def register_constant(cls: type) -> None:
    """Make values of a class constants for torch.compile, which guards on them."""
    _pytree.register_constant(cls)


class Outline(NamedTuple):
    """A form as plain data, node by node; it names what each child is called in its parent."""

    kind: str
    """`leaf`, `dict`, `sequence` (list, tuple), or `object` (of any other registered class)."""
    keys: tuple[Any, ...] = ()
    """Of the children: keys of a dict, indices of a sequence, names of fields where they are known."""
    children: tuple[Outline, ...] = ()


def outline(form: Form) -> Outline:
    """Return the outline of a form.

    >>> form = flatten({"a": 1, "b": [2, None]})[1]
    >>> [(child.kind, child.keys) for child in outline(form).children]
    [('leaf', ()), ('sequence', (0, 1))]
    """
    children = tuple(outline(child) for child in form.children())
    if form.type is None:
        return Outline("leaf")
    if form.type in (dict, OrderedDict, defaultdict):
        keys = form.context[1] if form.type is defaultdict else form.context
        return Outline("dict", tuple(keys), children)
    if form.type is namedtuple:
        return Outline("sequence", tuple(map(Field, form.context._fields)), children)
    if form.type in (list, tuple, deque):
        return Outline("sequence", tuple(range(len(children))), children)
    return Outline("object", _fields(form.context, len(children)), children)


class Field(str):
    """The name of a field of an object, where a plain string is a key."""

    __slots__ = ()


def _fields(context: Any, n: int) -> tuple[Any, ...]:
    """Return the names of an object's children, if its context states them as for dataclasses, else their indices."""
    names = context[0] if isinstance(context, list | tuple) and context and isinstance(context[0], list) else context
    is_named = isinstance(names, list | tuple) and len(names) == n and all(isinstance(x, str) for x in names)
    return tuple(map(Field, names)) if is_named else tuple(range(n))


def opened(node: Any) -> tuple[tuple[Any, ...], list[Any]]:
    """Return what a container calls its children, and the children; no names and the value itself if it is no container."""
    children, form = _pytree.tree_flatten(node, is_leaf=lambda x: x is not node)
    return outline(form).keys, children
