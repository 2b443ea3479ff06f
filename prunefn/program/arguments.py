"""The arguments of a traced call: where its tensors are in nested arguments, and what else it was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .. import trees
from ..doors.words import said
from ..errors import nearest
from ..spec.example import Example, Like

CONSTANTS = (bool, int, float, str)
"""Types of arguments that must be the traced ones, because the program was traced for them."""


class Node(NamedTuple):
    """A part of the traced arguments."""

    kind: str
    """`tensor`, `fixed` (any other leaf), `dict`, `sequence` or `object`."""
    path: str
    """As the caller writes it: `batch["image"]`."""
    value: Any = None
    """Of a fixed leaf; None also for values that are not compared."""
    is_compared: bool = False
    """Whether a fixed leaf must have the traced value."""
    keys: tuple[Any, ...] = ()
    children: tuple[Node, ...] = ()
    tensors: int = 0
    """Number of tensors inside."""


class Call(NamedTuple):
    """The arguments of the traced call."""

    names: tuple[str, ...]
    """Names of the arguments, in the order of the program's inputs: those given by position, then keywords."""
    nodes: tuple[Node, ...]
    positional: int
    """Number of arguments given by position."""
    is_ordered: bool
    """Whether the keywords have the order of the parameters of `forward`, so that all could be given by position."""

    @property
    def filled(self) -> list[tuple[str, Node]]:
        """Return the arguments that have tensors."""
        return [(name, node) for name, node in zip(self.names, self.nodes, strict=True) if node.tensors]


def call_of(example: Example) -> Call:
    """Return the arguments of the traced call."""
    args, kwargs = trees.outline(example.in_spec).children
    leaves, known = iter(example.leaves), example.parameters
    names = [known[i] if i < len(known) else f"args[{i}]" for i in range(len(args.children))] + [*map(str, kwargs.keys)]
    nodes = [_node(child, name, leaves) for name, child in zip(names, (*args.children, *kwargs.children), strict=True)]
    places = [known.index(str(name)) for name in kwargs.keys if name in known]
    is_ordered = places == sorted(places) and all(p >= len(args.children) for p in places)
    return Call(tuple(names), tuple(nodes), len(args.children), is_ordered)


def _node(shape: trees.Outline, path: str, leaves: Iterator[Any]) -> Node:
    if shape.kind == "leaf":
        leaf = next(leaves)
        if isinstance(leaf, Like):
            return Node("tensor", path, tensors=1)
        is_plain = leaf is None or type(leaf) in CONSTANTS
        return Node("fixed", path, leaf if is_plain else None, is_plain)
    children = tuple(
        _node(child, path + step(key), leaves) for key, child in zip(shape.keys, shape.children, strict=True)
    )
    return Node(shape.kind, path, keys=shape.keys, children=children, tensors=sum([c.tensors for c in children]))


def step(key: Any) -> str:
    """Return how a caller writes a child of a container.

    >>> step("image"), step(1), step(trees.Field("mask"))
    ('["image"]', '[1]', '.mask')
    """
    if isinstance(key, trees.Field):
        return f".{key}"
    return f'["{key}"]' if isinstance(key, str) else f"[{key!r}]"


def paths(node: Node) -> list[str]:
    """Return the paths of the tensors of a node, in order."""
    return [node.path] if node.kind == "tensor" else [p for child in node.children for p in paths(child)]


def read(node: Node, value: Any) -> tuple[list[Any], str]:
    """Return the tensors of an argument in the order of the trace, and a problem if its form is another than traced.

    Numpy arrays count as tensors here; the caller refuses them.
    """
    if node.kind == "tensor":
        if isinstance(value, Tensor | np.ndarray):
            return [value], ""
        return [], f"{node.path} is {said(value)}, but it was traced with a tensor"
    if node.kind == "fixed":
        return [], _difference(node, value)
    if node.kind == "dict":
        if not isinstance(value, Mapping):
            return [], f"{node.path} is {said(value)}, but it was traced with a dict of {_listed(node.keys)}"
        parts = []
        for key, child in zip(node.keys, node.children, strict=True):
            if key not in value and child.tensors:
                return [], f"{node.path} has no {key!r}{nearest(str(key), [str(k) for k in value])}"
            if key in value:
                parts.append((child, value[key]))
    else:
        if node.kind == "sequence" and not isinstance(value, list | tuple):
            return [], f"{node.path} is {said(value)}, but it was traced with {len(node.children)} elements"
        keys, items = (node.keys, list(value)) if node.kind == "sequence" else trees.opened(value)
        if keys != node.keys:
            return [], f"{node.path} has {_listed(keys) or 'no parts'}, but it was traced with {_listed(node.keys)}"
        if len(items) != len(node.children):
            return [], f"{node.path} has {len(items)} elements, but it was traced with {len(node.children)}"
        parts = list(zip(node.children, items, strict=True))
    out: list[Any] = []
    for child, item in parts:
        leaves, problem = read(child, item)
        if problem:
            return [], problem
        out += leaves
    return out, ""


def _difference(node: Node, value: Any) -> str:
    """Return how a value differs from that of the traced call; an empty text if it does not, or is not compared."""
    if isinstance(value, Tensor):
        return (
            f"{node.path} is a tensor, but it was traced with {said(node.value)}; trace the model with a tensor there"
        )
    if not node.is_compared or value is node.value or (type(value) is type(node.value) and value == node.value):
        return ""
    return (
        f"{node.path} is {said(value)}, but the program is that of {node.path} = {node.value!r}; "
        "trace the model again for another value"
    )


def bind(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], str]:
    """Return the tensors of a call in the order of the trace, and a problem if its arguments are others than traced.

    Arguments without tensors may be left out.
    """
    if len(args) > len(call.names):
        return [], f"{len(args)} arguments were given, but the model was traced with {len(call.names)}"
    if len(args) > call.positional and not call.is_ordered:
        return [], f"give {_listed(call.names[call.positional :])} by name, as they were traced"
    given = dict(zip(call.names, args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            return [], f"{name!r} was given twice"
        if name not in call.names and value is not None:
            return [], _unknown(call, name, value)
        given[name] = value
    out: list[Any] = []
    for name, node in zip(call.names, call.nodes, strict=True):
        if name in given:
            leaves, problem = read(node, given[name])
        else:
            leaves, problem = [], f"{name!r} is missing" if node.tensors else ""
        if problem:
            return [], problem
        out += leaves
    return out, ""


def _unknown(call: Call, name: str, value: Any) -> str:
    """Return why an argument by name is refused."""
    if trees.tensors(value):
        return f"the model has no input {name!r}{nearest(name, call.names)}"
    return f"the model was traced without {name!r}, so that the program does not follow {name}={value!r:.40}"


def _listed(names: Any) -> str:
    return ", ".join([str(n) for n in names])
