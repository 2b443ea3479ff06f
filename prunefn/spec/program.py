"""The traced computation as immutable data.

A `Program` is a tuple of instructions. Every static size in it that belongs to an axis is stored as that axis, so that one
program serves every mask and every batch size: `program.build` looks the sizes up and emits an `fx.Graph`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .. import trees
from ..frozen_dict import FrozenDict
from .axis import Axis, leaves
from .domain import Domain


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

    def reads(self) -> list[str]:
        """Return the names of the values that it reads, in the order of its arguments."""
        return list(refs((self.args, tuple(v for _, v in self.kwargs))))

    @property
    def is_size(self) -> bool:
        """Whether its result is the size of a dim."""
        return self.op.startswith("aten.sym_size")

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
    in_spec: trees.Form
    out_spec: trees.Form
    axes: FrozenDict[str, tuple[Axis, ...]]
    """Result of an instruction (`%name`) → the axis of each of its dims, where it is one tensor."""
    layers: frozenset[str]
    """Instructions whose result is an activation also where all that they read are parameters, such as learned queries."""
    domain: Domain = Domain()
    """The sizes for which the program stands for the model."""

    def activations(self) -> frozenset[str]:
        """Return the values that depend on the inputs, or on their sizes, or are a layer's result.

        All others come from parameters alone.
        """
        active, batch = {i.name for i in self.inputs}, set(self.batch)
        for i in self.instructions:
            reads = set(i.reads())
            if i.name in self.layers or reads & active or batch & set(size_leaves((i.args, i.kwargs))):
                active.add(f"%{i.name}")
        return frozenset(active)


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


def needed_by(program: Program, wanted: set[str], slots: Mapping[str, Slot]) -> set[str]:
    """Names of all values that the wanted ones depend on."""
    for ins in reversed(program.instructions):
        if f"%{ins.name}" in wanted:
            wanted |= set(ins.reads())
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
