"""The traced computation as immutable data, and its compilation for given sizes.

A `Program` is a tuple of instructions. Every static size in it that belongs to an axis is stored as that axis, so that one
program serves every mask and every batch size: `build` looks the sizes up and emits an `fx.Graph`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..types import FrozenDict
from .domain import Domain
from .expr import Axis, Concat, Fixed, Leaf, Product, leaves, size


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the program: a parameter, constant or input by name, or the result of an instruction (`%name`)."""

    name: str


@dataclass(frozen=True, slots=True)
class Size:
    """The size of an axis."""

    axis: Axis


@dataclass(frozen=True, slots=True)
class Device:
    """The device that the parameters are on."""


class Instruction(NamedTuple):
    """One op."""

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    module: str
    """Path of the module that the op belongs to."""

    def arguments(self) -> dict[str, Any]:
        """Return the given arguments by name, or by position where the op has no schema."""
        schema = getattr(target(self.op), "_schema", None)
        names = [a.name for a in schema.arguments] if schema is not None else [str(n) for n in range(len(self.args))]
        return {**dict(zip(names, self.args, strict=False)), **dict(self.kwargs)}


class Input(NamedTuple):
    """A tensor input; sizes of the axes of its dims."""

    name: str
    axes: tuple[Axis, ...]


class Slot(NamedTuple):
    """A bias that may be added to a contraction that has none."""

    tensor: str
    instruction: str
    argument: int
    """Position of the op's bias argument; -1: the bias is added to the result."""
    dim: int
    """Dim of the result that the bias runs along, counted from the right."""
    axis: Axis


class Program(NamedTuple):
    """Instructions with their inputs and outputs."""

    tensors: tuple[str, ...]
    constants: tuple[str, ...]
    inputs: tuple[Input, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[Any, ...]
    updates: tuple[tuple[str, Ref], ...]
    """Buffer → its new value, in train mode."""
    slots: tuple[Slot, ...]
    batch: FrozenDict[str, tuple[str, int]]
    """Leaf whose size is known at run time only → (input, dim)."""
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    axes: FrozenDict[str, tuple[Axis, ...]]
    """Result of an instruction (`%name`) → the axis of each of its dims, where it is one tensor."""
    domain: Domain = Domain()
    """The sizes for which the program stands for the model."""


def target(op: str) -> Callable[..., Any]:
    """The function that an instruction calls."""
    if op.startswith("operator."):
        return getattr(operator, op.removeprefix("operator."))
    if op in ("math.floor", "math.ceil", "math.trunc"):
        return getattr(__import__("math"), op.removeprefix("math."))
    found: Any = torch if op.startswith("torch.") else torch.ops
    for part in op.removeprefix("torch.").split("."):
        found = getattr(found, part)
    return found


def op_name(function: Any) -> str:
    """The inverse of `target`."""
    if isinstance(function, torch._ops.OpOverload):
        return str(function)
    module = {"_operator": "operator"}.get(function.__module__, function.__module__)
    return f"{module}.{function.__name__}"


Emit = Callable[[fx.Graph, Mapping[str, Any]], Any]
"""Called once all values are there: (graph, value name → node) → what the graph returns."""


def build(
    program: Program,
    sizes: Mapping[str, int],
    *,
    present: frozenset[str],
    device: torch.device,
    load: Callable[[fx.Graph, str], fx.Node],
    emit: Emit,
    only: Iterable[str] | None = None,
) -> fx.Graph:
    """Emit the program for given leaf sizes.

    `load` makes the node of a parameter, constant or input by name. `only` restricts it to what the named values need.
    """
    graph = fx.Graph()
    env: dict[str, Any] = {}
    slots = {s.instruction: s for s in program.slots if s.tensor in present}
    needed = None if only is None else needed_by(program, set(only), slots)
    for name in (*program.tensors, *(s.tensor for s in program.slots if s.tensor in present), *program.constants):
        if needed is None or name in needed:
            env[name] = load(graph, name)
    for i in program.inputs:
        env[i.name] = load(graph, i.name)
    emitter = _Emitter(graph, env, sizes, program.batch, device)
    for ins in program.instructions:
        if needed is None or f"%{ins.name}" in needed:
            env[f"%{ins.name}"] = emitter.call(ins, slots.get(ins.name))
    graph.output(emit(graph, env))
    return graph


def needed_by(program: Program, wanted: set[str], slots: Mapping[str, Slot]) -> set[str]:
    """Names of all values that the wanted ones depend on."""
    for ins in reversed(program.instructions):
        if f"%{ins.name}" in wanted:
            wanted |= set(refs((ins.args, tuple(v for _, v in ins.kwargs))))
            if ins.name in slots:
                wanted.add(slots[ins.name].tensor)
    return wanted


def refs(args: Any) -> Iterable[str]:
    """Names of the values in a nest of arguments."""
    if isinstance(args, Ref):
        yield args.name
    elif isinstance(args, tuple):
        for a in args:
            yield from refs(a)


def size_leaves(args: Any) -> Iterable[str]:
    """Leaves in the static sizes of a nest of arguments."""
    if isinstance(args, Size):
        yield from leaves(args.axis)
    elif isinstance(args, tuple):
        for a in args:
            yield from size_leaves(a)


class _Emitter:
    """Turns instructions into nodes of a graph."""

    def __init__(
        self,
        graph: fx.Graph,
        env: Mapping[str, Any],
        sizes: Mapping[str, int],
        batch: Mapping[str, tuple[str, int]],
        device: torch.device,
    ) -> None:
        self.graph, self.env, self.sizes, self.batch, self.device = graph, env, sizes, batch, device
        self.dynamic: dict[Axis, Any] = {}

    def call(self, ins: Instruction, slot: Slot | None) -> Any:
        args = [self.value(a) for a in ins.args]
        kwargs = {k: self.value(v) for k, v in ins.kwargs}
        if ins.op.startswith("aten.sym_size"):
            return self.graph.call_method("size", tuple(args))
        bias = None if slot is None else self.env[slot.tensor]
        if slot is not None and slot.argument >= 0:
            args += [None] * (slot.argument + 1 - len(args))
            args[slot.argument] = bias
        node = self.graph.call_function(target(ins.op), tuple(args), kwargs)
        if slot is not None and slot.argument < 0:
            for _ in range(-slot.dim - 1):
                bias = self.graph.call_function(torch.unsqueeze, (bias, -1))
            node = self.graph.call_function(torch.add, (node, bias))
        return node

    def value(self, a: Any) -> Any:
        match a:
            case Ref(name):
                return self.env[name]
            case Size(axis):
                return self.size(axis)
            case Device():
                return self.device
            case tuple():
                return [self.value(x) for x in a]
            case _:
                return a

    def size(self, axis: Axis) -> Any:
        """An int, or a node where the axis contains the batch."""
        if not any(leaf in self.batch for leaf in leaves(axis)):
            return size(axis, self.sizes)
        if axis not in self.dynamic:
            match axis:
                case Leaf(name):
                    source, dim = self.batch[name]
                    self.dynamic[axis] = self.graph.call_method("size", (self.env[source], dim))
                case Product(children):
                    self.dynamic[axis] = self._fold(operator.mul, children)
                case Concat(children):
                    self.dynamic[axis] = self._fold(operator.add, children)
                case Fixed(n):
                    return n
        return self.dynamic[axis]

    def _fold(self, op: Callable[..., Any], children: Iterable[Axis]) -> Any:
        first, *rest = (self.size(c) for c in children)
        for other in rest:
            first = (
                op(first, other)
                if isinstance(first, int) and isinstance(other, int)
                else self.graph.call_function(op, (first, other))
            )
        return first
