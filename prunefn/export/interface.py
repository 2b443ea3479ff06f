"""The signature of a plain source: parameters by their original names, outputs nested as in the original."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .. import trees
from ..program.arguments import Node, call_of, paths
from ..program.inputs import signature
from ..spec.example import Like
from ..spec.expressions import written
from ..spec.spec import Spec
from .text import Group, Text, assigned, flat, literal

TAKEN = ("self", "torch", "nn", "F", "math", "device", "constants")
"""Names that a source uses itself."""


class Interface(NamedTuple):
    """The parameters of a forward."""

    arguments: tuple[str, ...]
    """Names of all arguments of the traced call."""
    parameters: dict[str, str]
    """Argument that has tensors → its type; empty if the type has no name."""
    variables: tuple[str, ...]
    """Variable of each tensor input."""
    unpacked: tuple[tuple[str, str], ...]
    """(variable, expression) of inputs inside containers."""
    fixed: tuple[tuple[str, object], ...]
    """(expression, value) of plain values inside containers, which must be those of the trace."""
    shapes: tuple[str, ...]
    """Dtype and shape of each tensor input."""
    outputs: trees.Form


def interface_of(spec: Spec) -> Interface:
    """Return the signature of a spec's program."""
    traced = call_of(spec.example)
    names = tuple(_identifier(n) for n in traced.names)
    parameters, variables, unpacked, fixed = (
        dict[str, str](),
        list[str](),
        list[tuple[str, str]](),
        list[tuple[str, object]](),
    )
    for original, name, node in zip(traced.names, names, traced.nodes, strict=True):
        if not node.tensors:
            continue
        parameters[name] = _type_of_node(node)
        if node.kind == "tensor":
            variables.append(name)
            continue
        fixed += [(name + p.removeprefix(original), v) for p, v in _fixed(node)]
        for path in paths(node):
            variable = _unused(_identifier("_".join(re.findall(r"\w+", path))), {*names, *variables})
            variables.append(variable)
            unpacked.append((variable, name + path.removeprefix(original)))
    likes = [x for x in spec.example.leaves if isinstance(x, Like)]
    shapes = [
        f"{str(like.dtype).removeprefix('torch.')} [{', '.join(map(written, shape))}]"
        for like, shape in zip(likes, signature(spec).shapes, strict=True)
    ]
    return Interface(
        names, parameters, tuple(variables), tuple(unpacked), tuple(fixed), tuple(shapes), spec.program.out_spec
    )


def _identifier(name: str) -> str:
    """Return an argument's name as a variable: `args[0]` is `args_0`."""
    text = re.sub(r"\W+", "_", name).strip("_") or "value"
    text = f"value_{text}" if text[0].isdigit() else text
    return f"{text}_" if keyword.iskeyword(text) or text in TAKEN else text


def _unused(name: str, taken: set[str]) -> str:
    return name if name not in taken else _unused(f"{name}_", taken)


def _fixed(node: Node) -> Iterator[tuple[str, object]]:
    """Yield the plain values inside an argument, by their paths."""
    if node.kind == "fixed" and node.is_compared:
        yield node.path, node.value
    for child in node.children:
        yield from _fixed(child)


def _type_of_node(node: Node) -> str:
    """Return the annotation of an argument; empty if its elements are of several types."""
    if node.kind == "tensor":
        return "Tensor"
    types = {_type_of_node(c) for c in node.children}
    inner = types.pop() if len(types) == 1 else ""
    if not inner or node.kind == "object":
        return ""
    return f"dict[str, {inner}]" if node.kind == "dict" else f"list[{inner}]"


class Returned(NamedTuple):
    """The result of a forward."""

    text: Text
    type: str
    """Annotation; empty if elements are of several types."""
    classes: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """(name, fields with their types) of named tuples."""


def returned(
    form: trees.Form, values: Iterator[Text], classes: list[tuple[str, tuple[tuple[str, str], ...]]]
) -> Returned:
    """Return the nest of the outputs; named tuples that it needs are added to the classes."""
    shape = trees.outline(form)
    if shape.kind == "leaf":
        text = next(values)
        return Returned(text, "None" if text == "None" else "Tensor")
    parts = [returned(child, values, classes) for child in form.children()]
    types = [p.type for p in parts]
    inner = types[0] if len(set(types)) == 1 else ""
    if shape.keys and all(isinstance(k, trees.Field) for k in shape.keys):
        name = f"Output{len(classes) + 1 if classes else ''}"
        fields = tuple((str(k), t or "object") for k, t in zip(shape.keys, types, strict=True))
        classes.append((name, fields))
        items = [assigned(f"{k}=", p.text) for k, p in zip(shape.keys, parts, strict=True)]
        return Returned(Group(f"{name}(", tuple(items), ")"), name)
    if shape.kind == "dict":
        items = [assigned(f"{flat(literal(k))}: ", p.text) for k, p in zip(shape.keys, parts, strict=True)]
        return Returned(Group("{", tuple(items), "}"), f"dict[str, {inner}]" if inner else "")
    texts = tuple(p.text for p in parts)
    if form.type is list:
        return Returned(Group("[", texts, "]"), f"list[{inner}]" if inner else "")
    return Returned(_tuple(texts), f"tuple[{', '.join(types)}]" if all(types) and types else "")


def _tuple(items: Sequence[Text]) -> Text:
    return Group("(", tuple(items), ",)" if len(items) == 1 else ")")
