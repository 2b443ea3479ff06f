"""The modules of a plain source: layers of `torch.nn` and containers under which tensors have their original names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..names import ancestors
from ..spec.layers import Layer
from .text import Group, Text, call, is_name, lines, literal, quoted

SPARSE = 8
"""Most missing numbers of a list, such as those of layers without tensors; with more, the module is no list."""


class Tensors(NamedTuple):
    """The tensors of a source and how they are made."""

    values: Mapping[str, Tensor]
    """Name → tensor, in the order of the state dict; tied ones under all names."""
    parameters: frozenset[str]
    without_grad: frozenset[str]
    """Parameters that do not train."""
    tied: Mapping[str, str]
    """Second name → first name."""
    constants: Mapping[str, Text]
    """Name → expression of its value."""
    layers: Mapping[str, Layer]
    """Path → layer."""


class Containers:
    """The module tree of a source."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.own: dict[str, list[str]] = {}
        """Path of a module → its tensors that no layer has."""
        self.children: dict[str, list[str]] = {"": []}
        for name in (*tensors.values, *tensors.constants):
            path = name.rpartition(".")[0]
            self._place(path)
            if path not in tensors.layers or name in tensors.constants:
                self.own.setdefault(path, []).append(name)

    def _place(self, path: str) -> None:
        if path not in self.children:
            parent = path.rpartition(".")[0]
            self._place(parent)
            self.children[path] = []
            self.children[parent].append(path)

    def is_list(self, path: str) -> bool:
        """Return whether a module is written as a list."""
        numbers = [c.rpartition(".")[2] for c in self.children.get(path, [])]
        if (
            not path
            or not numbers
            or path in self.own
            or path in self.tensors.layers
            or not all(map(str.isdigit, numbers))
        ):
            return False
        return list(map(int, numbers)) == sorted(map(int, numbers)) and int(numbers[-1]) < 2 * len(numbers) + SPARSE

    def access(self, path: str) -> str:
        """Return the expression of a module or tensor.

        >>> tensors = {"layers.0.fc.weight": torch.ones(1), "0.bias": torch.ones(1)}
        >>> c = Containers(Tensors(tensors, frozenset(tensors), frozenset(), {}, {}, {}))
        >>> c.access("layers.0.fc.weight"), c.access("0.bias")
        ('self.layers[0].fc.weight', 'getattr(self, "0").bias')
        """
        if not path:
            return "self"
        parent, _, name = path.rpartition(".")
        if self.is_list(parent):
            return f"{self.access(parent)}[{name}]"
        owner = self.access(parent)
        return f"{owner}.{name}" if is_name(name) else f"getattr({owner}, {quoted(name)})"

    def lines(self) -> list[str]:
        """Return the statements that make all modules and tensors."""
        out = self._filled("")
        for second, first in self.tensors.tied.items():
            out += self._set(second, self.access(first), is_parameter=second in self.tensors.parameters)
        return [*out, *self._without_grad()]

    def _filled(self, path: str) -> list[str]:
        """Return the statements that fill a module that exists."""
        out = []
        for name in self.own.get(path, []):
            if name not in self.tensors.tied:
                out += self._tensor(name)
        for child in self.children[path]:
            if not self.is_list(path):
                out += self._assigned(child, self._made(child), "add_module")
            out += self._filled(child)
        return out

    def _made(self, path: str) -> Text:
        """Return the expression that makes a module."""
        if path in self.tensors.layers:
            return self._layer(path)
        if not self.is_list(path):
            return "nn.Module()"
        of_number = {int(c.rpartition(".")[2]): self._made(c) for c in self.children[path]}
        items = [of_number.get(i, "nn.Identity()") for i in range(max(of_number) + 1)]
        if len(items) > 2 and set(items) == {"nn.Module()"}:
            return call("nn.ModuleList", [f"[nn.Module() for _ in range({len(items)})]"])
        return call("nn.ModuleList", [Group("[", tuple(items), "]")])

    def _layer(self, path: str) -> Text:
        layer = self.tensors.layers[path]
        dtypes = {
            t.dtype for n, t in self.tensors.values.items() if n.rpartition(".")[0] == path and t.is_floating_point()
        }
        options = [*layer.options, *(("dtype", d) for d in dtypes - {torch.float32})]
        return call(f"nn.{layer.kind}", [_number(s) for s in layer.sizes], [(n, _number(v)) for n, v in options])

    def _tensor(self, name: str) -> list[str]:
        if name in self.tensors.constants:
            return self._set(name, self.tensors.constants[name], is_parameter=False, persistent=False)
        t = self.tensors.values[name]
        sizes = [str(n) for n in t.shape] or ["()"]
        empty = call("torch.empty", sizes, [] if t.dtype == torch.float32 else [("dtype", literal(t.dtype))])
        if name not in self.tensors.parameters:
            return self._set(name, empty, is_parameter=False)
        frozen = [] if t.is_floating_point() or t.is_complex() else [("requires_grad", "False")]
        return self._set(name, call("nn.Parameter", [empty], frozen), is_parameter=True)

    def _set(self, name: str, value: Text, *, is_parameter: bool, persistent: bool = True) -> list[str]:
        """Return the statement that registers a tensor."""
        if is_parameter:
            return self._assigned(name, value, "register_parameter")
        path, _, leaf = name.rpartition(".")
        options = [] if persistent else [("persistent", "False")]
        return lines(call(f"{self.access(path)}.register_buffer", [quoted(leaf), value], options), 2)

    def _assigned(self, name: str, value: Text, method: str) -> list[str]:
        """Return the statement that sets an attribute, by a method if its name is no identifier."""
        path, _, leaf = name.rpartition(".")
        if is_name(leaf):
            return lines(value, 2, f"{self.access(path)}.{leaf} = ")
        return lines(call(f"{self.access(path)}.{method}", [quoted(leaf), value]), 2)

    def _without_grad(self) -> list[str]:
        """Return the statements that keep parameters from training, for whole modules where it holds for all in them."""
        first = [n for n in self.tensors.values if n in self.tensors.parameters and n not in self.tensors.tied]
        frozen = self.tensors.without_grad
        training = {path for n in first if n not in frozen for path in ancestors(n)}
        targets = dict.fromkeys(next((p for p in ancestors(n) if p not in training), n) for n in first if n in frozen)
        return [line for t in targets for line in lines(call(f"{self.access(t)}.requires_grad_", ["False"]), 2)]


def _number(value: object) -> Text:
    """Return the source of an argument of a layer; sizes are tuples there."""
    if isinstance(value, tuple):
        return Group("(", tuple(map(str, value)), ",)" if len(value) == 1 else ")")
    return literal(value)
