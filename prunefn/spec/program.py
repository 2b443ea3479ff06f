"""The traced computation as immutable data.

A `Program` is a tuple of instructions. Every static size that belongs to an axis is stored as that axis, so one program serves
every mask and every size of its inputs: `program.build` looks up the sizes and emits an `fx.Graph`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch

from .. import trees
from ..frozen_dict import FrozenDict
from .axis import Axis, leaves
from .domain import Domain
from .interface import Interface

HIGHER_ORDER = "higher_order."
"""Namespace of ops that call functions, such as `torch.cond`."""


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
    """The device of the parameters."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The present position of a unit of an interface, such as the id of a token that the model compares ids with."""

    group: str
    traced: int
    """Its position in the model that was traced."""


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A function of tensors that a higher-order op calls, such as a branch of `torch.cond`; its values are local."""

    inputs: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    outputs: Any


class Instruction(NamedTuple):
    """One op."""

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    module: str
    """Path of the module that the op belongs to."""

    def reads(self) -> list[str]:
        """Return the names of the values that the instruction reads, in the order of its arguments."""
        return list(refs((self.args, tuple(v for _, v in self.kwargs))))

    @property
    def is_size(self) -> bool:
        """Whether the result is the size of a dim."""
        return self.op.startswith("aten.sym_size")

    def arguments(self) -> dict[str, Any]:
        """Return the passed arguments by name, or by position if the op has no schema."""
        schema = getattr(target(self.op), "_schema", None)
        names = [a.name for a in schema.arguments] if schema is not None else [str(n) for n in range(len(self.args))]
        return {**dict(zip(names, self.args, strict=False)), **dict(self.kwargs)}


class Input(NamedTuple):
    """A tensor input, with the axis of each dim."""

    name: str
    axes: tuple[Axis, ...]


class Slot(NamedTuple):
    """A bias that may be added to a contraction without one."""

    tensor: str
    instruction: str
    argument: int
    """Position of the op's bias argument; -1 if the bias is added to the result."""
    dim: int
    """Dim of the result along which the bias is added, counted from the right."""
    axis: Axis


class Read(NamedTuple):
    """Numbers that Python read from a value of a recorded run."""

    value: str
    numbers: tuple[int | bool, ...]
    place: str
    """Place in the source."""


class Recorded(NamedTuple):
    """The control flow of a recorded run: another run has the same one if Python reads the same numbers, and shapes agree."""

    reads: tuple[Read, ...] = ()
    refusal: str = ""
    """Why the run cannot be replayed on other inputs; empty if it can."""


class Program(NamedTuple):
    """Instructions with their inputs and outputs."""

    tensors: tuple[str, ...]
    constants: tuple[str, ...]
    inputs: tuple[Input, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[Any, ...]
    updates: tuple[tuple[str, Ref], ...]
    """(buffer, its new value) in train mode."""
    slots: tuple[Slot, ...]
    free: FrozenDict[str, tuple[str, int]]
    """Leaf whose size is known only at run time → (input, dim)."""
    in_spec: trees.Form
    out_spec: trees.Form
    axes: FrozenDict[str, tuple[Axis, ...]]
    """Result of an instruction (`%name`) → axis of each dim, if the result is one tensor."""
    layers: frozenset[str]
    """Instructions whose result is an activation even if they read only parameters, such as learned queries."""
    domain: Domain = Domain()
    """The sizes for which the program represents the model."""
    recorded: Recorded | None = None
    """The control flow, if the model was recorded."""
    interfaces: FrozenDict[str, Interface] = FrozenDict()
    """Group that is an interface → the units that are left of it."""

    def number(self, unit: Unit) -> int:
        """Return the present position of a unit, which is there: no mask removes a unit with a name."""
        position = self.interfaces[unit.group].position(unit.traced)
        assert position is not None
        return position

    def activations(self) -> frozenset[str]:
        """Return the values that depend on the inputs or on their sizes, or that are a layer's result.

        All other values depend on parameters alone.
        """
        active, free = {i.name for i in self.inputs}, set(self.free)
        for i in self.instructions:
            reads = set(i.reads())
            if i.name in self.layers or reads & active or free & set(size_leaves((i.args, i.kwargs))):
                active.add(f"%{i.name}")
        return frozenset(active)


def target(op: str) -> Callable[..., Any]:
    """Return the function that an instruction calls."""
    if op.startswith("operator."):
        return getattr(operator, op.removeprefix("operator."))
    if op in ("math.floor", "math.ceil", "math.trunc"):
        return getattr(__import__("math"), op.removeprefix("math."))
    if op.startswith(HIGHER_ORDER):
        return getattr(
            import_module("torch._higher_order_ops") and torch.ops.higher_order, op.removeprefix(HIGHER_ORDER)
        )
    obj: Any = torch if op.startswith("torch.") else torch.ops
    for part in op.removeprefix("torch.").split("."):
        obj = getattr(obj, part)
    return obj


def op_name(function: Any) -> str:
    """Return the name of a function as an instruction's op; the inverse of `target`."""
    if isinstance(function, torch._ops.OpOverload):
        return str(function)
    if isinstance(function, torch._ops.HigherOrderOperator):
        return f"{HIGHER_ORDER}{function.name()}"
    module = {"_operator": "operator"}.get(function.__module__, function.__module__)
    return f"{module}.{function.__name__}"


def needed_by(program: Program, wanted: set[str], slots: Mapping[str, Slot]) -> set[str]:
    """Return the names of all values that the wanted ones depend on, including these."""
    for ins in reversed(program.instructions):
        if f"%{ins.name}" in wanted:
            wanted |= set(ins.reads())
            if ins.name in slots:
                wanted.add(slots[ins.name].tensor)
    return wanted


def refs(args: Any) -> Iterable[str]:
    """Yield the names of the values in nested arguments."""
    if isinstance(args, Ref):
        yield args.name
    elif isinstance(args, tuple):
        for a in args:
            yield from refs(a)


def size_leaves(args: Any) -> Iterable[str]:
    """Yield the leaves in the static sizes of nested arguments."""
    if isinstance(args, Size):
        yield from leaves(args.axis)
    elif isinstance(args, tuple):
        for a in args:
            yield from size_leaves(a)
