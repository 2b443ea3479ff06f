"""A spec as plain data: JSON and tensors, and back, equal in all that it says. Nothing in it is executed when it is read.

A number, a text, None or a flag is itself; a tuple is a JSON array; all else is an object with one key, which names what it is.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .. import trees
from ..errors import FormatError
from ..frozen_dict import FrozenDict
from . import axis, constants, costs, domain, example, interface, parts, program
from .program import Instruction, target
from .spec import Spec

AXES: tuple[type[Any], ...] = (axis.Leaf, axis.Fixed, axis.Derived, axis.Product, axis.Concat, axis.AnyOf)
RECORDS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        *AXES,
        *(parts.Branch, parts.Geometry, parts.Group, parts.Layout, parts.Member, parts.Site, parts.Term),
        *(costs.Costs, costs.Polynomial, constants.Constants, interface.Interface),
        *(domain.Domain, domain.Guard, domain.Limit, example.Example, example.Like, example.Packed),
        *(program.Device, program.Input, program.Instruction, program.Program, program.Read, program.Recorded),
        *(program.Ref, program.Size, program.Slot, program.Subgraph, program.Unit, Spec),
    )
}
"""Name → class of the parts of a spec."""
OF_TORCH: tuple[type[Any], ...] = (torch.dtype, torch.layout, torch.memory_format)
LIBRARIES = ("transformers", "timm", "torchvision", "torch")
"""Packages that are imported for the classes of outputs that a spec names."""


def to_plain(spec: Spec) -> tuple[Any, dict[str, Tensor]]:
    """Return a spec as what JSON can say, and the tensors that it holds.

    Raises:
        FormatError: it holds a value that is no plain data, such as an object in the inputs of the trace.
    """
    writer = _Writer()
    return writer.encoded(spec), writer.tensors


def from_plain(plain: Any, tensor: Callable[[str], Tensor]) -> Spec:
    """Return the spec of plain data.

    Args:
        plain: of `to_plain`.
        tensor: name → tensor.

    Raises:
        FormatError: an op or a class of its outputs is unknown here.
    """
    spec = _Reader(tensor).decoded(plain)
    if not isinstance(spec, Spec):
        raise FormatError(f"it holds a {type(spec).__name__} instead of a spec")
    _check_ops(spec.program.instructions)
    return spec


def fields_of(cls: type[Any]) -> tuple[str, ...]:
    """Return the fields of a part of a spec, in their order."""
    return tuple(f.name for f in fields(cls)) if is_dataclass(cls) else cls._fields


def _check_ops(instructions: tuple[Instruction, ...]) -> None:
    for op in dict.fromkeys(i.op for i in instructions):
        try:
            target(op)
        except (AttributeError, RuntimeError) as e:
            raise FormatError(
                f"it calls the op {op!r}, which torch {torch.__version__} does not know; import the module that registers it first"
            ) from e


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def encoded(self, x: Any) -> Any:
        if x is None or isinstance(x, bool | int | str):
            return x
        if isinstance(x, float):
            return x if isfinite(x) else {"float": repr(x)}
        name = type(x).__name__
        if RECORDS.get(name) is type(x):
            return {name: [self.encoded(getattr(x, f)) for f in fields_of(type(x))]}
        if type(x) is tuple:
            return [self.encoded(v) for v in x]
        return self._one_of_few(x)

    def _one_of_few(self, x: Any) -> dict[str, Any]:
        if isinstance(x, FrozenDict | dict):
            kind = "FrozenDict" if isinstance(x, FrozenDict) else "dict"
            return {kind: [[self.encoded(k), self.encoded(v)] for k, v in x.items()]}
        if isinstance(x, Tensor):
            return self._tensor(x)
        if isinstance(x, OF_TORCH):
            return {"torch": str(x).removeprefix("torch.")}
        if isinstance(x, trees.Form):
            return {"form": _form_text(x)}
        for name, (cls, parts_of, _) in PLAIN.items():
            if type(x) is cls:
                return {name: [self.encoded(v) for v in parts_of(x)]}
        raise FormatError(f"a value of the class {type(x).__qualname__} is no plain data: {x!r:.80}")

    def _tensor(self, t: Tensor) -> dict[str, Any]:
        if t.is_meta:
            return {"meta": [list(t.shape), self.encoded(t.dtype)]}
        name = f"tensor {len(self.tensors)}"
        self.tensors[name] = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        return {"complex tensor" if t.is_complex() else "tensor": name}


class _Reader:
    def __init__(self, tensor: Callable[[str], Tensor]) -> None:
        self.tensor = tensor
        self.axes: dict[Any, Any] = {}
        """Axes that were read, so that equal ones are one object."""

    def decoded(self, x: Any) -> Any:
        if isinstance(x, list):
            return tuple(self.decoded(v) for v in x)
        if not isinstance(x, dict):
            return x
        ((name, value),) = x.items()
        if (cls := RECORDS.get(name)) is not None:
            made = cls(*map(self.decoded, value))
            return self.axes.setdefault(made, made) if cls in AXES else made
        if name in ("FrozenDict", "dict"):
            items = {self.decoded(k): self.decoded(v) for k, v in value}
            return FrozenDict(items) if name == "FrozenDict" else items
        if name in PLAIN:
            return PLAIN[name][2](*map(self.decoded, value))
        return self._one_of_few(name, value)

    def _one_of_few(self, name: str, value: Any) -> Any:
        if name == "float":
            return float(value)
        if name == "torch" and isinstance(found := getattr(torch, value, None), OF_TORCH):
            return found
        if name == "form":
            return _form(value)
        if name == "tensor":
            return self.tensor(value)
        if name == "complex tensor":
            return torch.view_as_complex(self.tensor(value))
        if name == "meta":
            return torch.empty(value[0], dtype=self.decoded(value[1]), device="meta")
        raise FormatError(f"it holds {name!r}: {value!r:.80}, which is no part of a spec")


def _collected(cls: Callable[[tuple[Any, ...]], Any]) -> Callable[..., Any]:
    return lambda *values: cls(values)


PLAIN: Mapping[str, tuple[type[Any], Callable[[Any], Any], Callable[..., Any]]] = {
    "list": (list, list, _collected(list)),
    "frozenset": (frozenset, lambda s: sorted(s, key=repr), _collected(frozenset)),
    "range": (range, lambda r: (r.start, r.stop, r.step), range),
    "slice": (slice, lambda s: (s.start, s.stop, s.step), slice),
    "complex": (complex, lambda c: (c.real, c.imag), complex),
    "bytes": (bytes, lambda b: (b64encode(b).decode(),), b64decode),
    "device": (torch.device, lambda d: (str(d),), torch.device),
    "Size": (torch.Size, tuple, _collected(torch.Size)),
    "Ellipsis": (type(...), lambda _: (), lambda: ...),
}
"""Name → class, value → what makes it up, and the way back."""


def _form_text(form: trees.Form) -> str:
    """Return the form of a nest as torch writes it.

    Raises:
        FormatError: a class in it has no name by which torch finds it again.
    """
    try:
        return _pytree.treespec_dumps(form)
    except (NotImplementedError, TypeError) as e:
        raise FormatError(f"its inputs or outputs are of a class that torch.export cannot write: {e}") from e


def _form(text: str) -> trees.Form:
    """Return the form of a nest; a class of a known package is imported, so that it is registered.

    Raises:
        FormatError: a class in it is not registered.
    """
    for name in _classes(json.loads(text)[1]):
        module, _, _ = name.rpartition(".")
        if module.partition(".")[0] in LIBRARIES:
            import_module(module)
    try:
        return _pytree.treespec_loads(text)
    except NotImplementedError as e:
        raise FormatError(
            f"its inputs or outputs are of a class that is not registered here: {e}; import it first"
        ) from e


def _classes(node: Mapping[str, Any]) -> list[str]:
    names = [node["type"]] if node["type"] else []
    return names + [n for child in node["children_spec"] for n in _classes(child)]
