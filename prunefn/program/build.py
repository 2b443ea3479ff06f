"""Compile a program for given sizes into an `fx.Graph`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from ..errors import BatchError
from ..frozen_dict import FrozenDict
from ..spec.axis import AnyOf, Axis, Concat, Derived, Fixed, Leaf, Product, leaves, size
from ..spec.expressions import emitted, names
from ..spec.program import (
    HIGHER_ORDER,
    Device,
    Instruction,
    Program,
    Ref,
    Size,
    Slot,
    Subgraph,
    Unit,
    needed_by,
    target,
)

Emit = Callable[[fx.Graph, Mapping[str, Any]], Any]
"""Called after all values are computed: (graph, value name → node) → output of the graph."""


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

    `load` creates the node of a parameter, constant or input by name. `only` restricts the graph to what these values need.
    """
    graph = fx.Graph()
    env: dict[str, Any] = {}
    slots = {s.instruction: s for s in program.slots if s.tensor in present}
    reads = () if program.recorded is None else program.recorded.reads
    needed = None if only is None else needed_by(program, {*only, *(r.value for r in reads)}, slots)
    for name in (*program.tensors, *(s.tensor for s in program.slots if s.tensor in present), *program.constants):
        if needed is None or name in needed:
            env[name] = load(graph, name)
    for i in program.inputs:
        env[i.name] = load(graph, i.name)
    emitter = _Emitter(graph, env, sizes, program.free, device, program.number)
    for instruction in program.instructions:
        if needed is None or f"%{instruction.name}" in needed:
            env[f"%{instruction.name}"] = node = emitter.call(instruction, slots.get(instruction.name))
            if program.recorded is not None and (axes := program.axes.get(f"%{instruction.name}")) is not None:
                graph.call_function(check_shape, (node, tuple(size(a, sizes) for a in axes), instruction.op))
    for read in reads:
        graph.call_function(check_numbers, (env[read.value], read.numbers, read.place))
    graph.output(emit(graph, env))
    return graph


@torch.fx.wrap
def check_shape(value: Any, shape: tuple[int, ...], op: str) -> None:
    """Check that a value of a recorded run has the shape of the recording.

    Raises:
        BatchError: it has another one.
    """
    if tuple(value.shape) != shape:
        raise BatchError(
            f"the spec was recorded from one run, and these inputs take another way through the model: {op} gives shape "
            f"{tuple(value.shape)} instead of {shape}"
        )


@torch.fx.wrap
def check_numbers(value: Any, numbers: tuple[int | bool, ...], place: str) -> None:
    """Check that Python would read the same numbers from a value as in the recorded run.

    Raises:
        BatchError: it would read others.
    """
    actual = tuple(value.reshape(-1).tolist())
    if actual != numbers:
        raise BatchError(
            f"the spec was recorded from one run, and these inputs take another way through the model: Python reads {_few(actual)} "
            f"instead of {_few(numbers)}" + (f" at {place}" if place else "")
        )


def _few(numbers: tuple[int | bool, ...]) -> str:
    return (
        str(numbers[0])
        if len(numbers) == 1
        else f"{', '.join(map(str, numbers[:6]))}{' …' if len(numbers) > 6 else ''}"
    )


def _module(subgraph: Subgraph, device: torch.device) -> fx.GraphModule:
    """Return a subgraph as a module, which a higher-order op takes."""
    graph = fx.Graph()
    env: dict[str, Any] = {name: graph.placeholder(name) for name in subgraph.inputs}
    emitter = _Emitter(graph, env, {}, {}, device, lambda unit: unit.traced)  # all that it touches is frozen
    for instruction in subgraph.instructions:
        env[f"%{instruction.name}"] = emitter.call(instruction, None)
    outputs = emitter.value(subgraph.outputs)
    graph.output(tuple(outputs) if isinstance(outputs, list) else outputs)
    return fx.GraphModule(torch.nn.Module(), graph)


def _constant(value: Any) -> Callable[[], Any]:
    """Return a function that returns the value, since a graph holds only functions and plain values."""

    def subgraph() -> Any:
        return value

    return subgraph


def _tuples(args: Any) -> Any:
    """Return nested arguments with tuples for lists, as higher-order ops take them."""
    return tuple(_tuples(a) for a in args) if isinstance(args, list) else args


class _Emitter:
    """A converter from instructions to nodes of a graph."""

    def __init__(
        self,
        graph: fx.Graph,
        env: Mapping[str, Any],
        sizes: Mapping[str, int],
        free: Mapping[str, tuple[str, int]],
        device: torch.device,
        numbers: Callable[[Unit], int],
    ) -> None:
        self.graph, self.env, self.sizes, self.free, self.device = graph, env, sizes, free, device
        self.numbers = numbers
        self.dynamic: dict[Axis, Any] = {}

    def call(self, instruction: Instruction, slot: Slot | None) -> Any:
        args = [self.value(a) for a in instruction.args]
        kwargs = {k: self.value(v) for k, v in instruction.kwargs}
        if instruction.op.startswith(HIGHER_ORDER):
            args = list(_tuples(args))
        if instruction.is_size:
            return self.graph.call_method("size", tuple(args))
        bias = None if slot is None else self.env[slot.tensor]
        if slot is not None and slot.argument >= 0:
            args += [None] * (slot.argument + 1 - len(args))
            args[slot.argument] = bias
        node = self.graph.call_function(target(instruction.op), tuple(args), kwargs)
        if slot is not None and slot.argument < 0:
            # a bias along an earlier dim needs trailing dims of size 1 to broadcast
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
            case Unit():
                return self.numbers(a)
            case tuple():
                return [self.value(x) for x in a]
            case Subgraph():
                return self.graph.call_function(_constant(_module(a, self.device)))
            case FrozenDict():
                return dict(a)
            case _:
                return a

    def size(self, axis: Axis) -> Any:
        """Return the size of an axis: an int, or a node if it depends on sizes of the inputs."""
        if not any(leaf in self.free for leaf in leaves(axis)):
            return size(axis, self.sizes)
        if axis not in self.dynamic:
            match axis:
                case Leaf(name):
                    source, dim = self.free[name]
                    self.dynamic[axis] = self.graph.call_method("size", (self.env[source], dim))
                case Derived(expr):
                    nodes = {name: self.size(Leaf(name)) for name in names(expr)}
                    self.dynamic[axis] = emitted(expr, nodes, self.graph)
                case Product(children):
                    self.dynamic[axis] = self._fold(operator.mul, children)
                case Concat(children):
                    self.dynamic[axis] = self._fold(operator.add, children)
                case Fixed() | AnyOf():
                    return size(axis, self.sizes)
        return self.dynamic[axis]

    def _fold(self, op: Callable[..., Any], children: Iterable[Axis]) -> Any:
        total, *rest = (self.size(c) for c in children)
        for other in rest:
            total = (
                op(total, other)
                if isinstance(total, int) and isinstance(other, int)
                else self.graph.call_function(op, (total, other))
            )
        return total
