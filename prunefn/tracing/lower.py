"""Graph and solved equations → Program: nodes become instructions, static sizes become axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..errors import TraceError
from ..frozen_dict import FrozenDict
from ..spec.axis import Axis, Leaf, last_of, leaves, size
from ..spec.domain import Domain
from ..spec.program import (
    Device,
    Input,
    Instruction,
    Program,
    Read,
    Recorded,
    Ref,
    Size,
    Subgraph,
    Unit,
    op_name,
    refs,
    target,
)
from .analyse import Analysis, hints, reason_of, schema
from .axes import Var
from .capture import Captured
from .groups import Found
from .rules import Last, Value
from .rules.shape import SQUEEZED
from .sites import module_path
from .symbols import axis_of_expression, expression

SPLITS = ("aten.split", "aten.chunk", "aten.tensor_split", "aten.unsafe_split", "aten.unsafe_chunk")
VIEWS = ("aten.view.default", "aten._unsafe_view.default")


def lower(captured: Captured, a: Analysis, found: Found, device: torch.device) -> Program:
    """Translate the graph into a program; omit instructions that the outputs do not need."""
    return _Lowering(captured, a, found, device).run()


class _Lowering:
    """A translation of one graph."""

    def __init__(self, captured: Captured, a: Analysis, solution: Found, device: torch.device) -> None:
        self.captured, self.a, self.solution, self.device = captured, a, solution, device
        self.refs: dict[fx.Node, Any] = {}

    def run(self) -> Program:
        c = self.captured
        instructions = []
        for node in c.graph.nodes:
            if node.op == "placeholder":
                self.refs[node] = Ref(c.tensors.get(node.name) or str(node.name))
            elif node.op == "get_attr":
                self.refs[node] = self.subgraph(getattr(c.graph.owning_module, str(node.target)))
            elif node.op == "call_function":
                self.refs[node] = Ref(f"%{node.name}")
                instructions.append(self.instruction(node))
        outputs = tuple(self.refs[o] if isinstance(o, fx.Node) else o for o in c.outputs)
        updates = tuple((t, self.refs[n]) for t, n in c.updates.items())
        inputs = tuple(Input(n, self.input_axes(c.nodes[n])) for n in c.inputs)
        needed = _needed_instructions(instructions, {*refs(outputs), *refs(tuple(r for _, r in updates))})
        used = {name for i in needed for name in i.reads()} | set(refs(outputs))
        constants = tuple(n for n in c.constants if n in used)
        tensors = tuple(t for t in self.solution.axes if t in self.a.tensors and t in used)
        values = {i.name: self.a.values[c.nodes[i.name]] for i in needed}
        axes = {f"%{n}": tuple(map(self.solution.axis_of, v.axes)) for n, v in values.items() if isinstance(v, Value)}
        return Program(
            tensors,
            constants,
            inputs,
            needed,
            outputs,
            updates,
            self.solution.slots,
            FrozenDict(self.solution.free.places),
            c.in_spec,
            c.out_spec,
            FrozenDict(axes),
            frozenset(i.name for i in needed if i.name in self.a.layers),
            self.domain(),
            self.recorded(needed) if c.how == "recorded" else None,
            FrozenDict({self.group_of(v): interface for v, (_, interface) in self.a.freed.items()}),
        )

    def group_of(self, v: Var) -> str:
        """Return the group of a leaf."""
        axis = self.solution.axis_of(v)
        assert isinstance(axis, Leaf)
        return axis.name

    def recorded(self, instructions: tuple[Instruction, ...]) -> Recorded:
        """Return the control flow of a recorded run."""
        c, reads = self.captured, []
        if c.refusal:
            return Recorded(refusal=c.refusal)
        for name, numbers in c.reads.items():
            place = reason_of(c.nodes[name]).source
            if numbers is None:
                return Recorded(
                    refusal=f"Python reads floats, or thousands of numbers, from a tensor at {place or name}"
                )
            reads.append(Read(self.refs[c.nodes[name]].name, numbers, place))
        for i in instructions:
            if getattr(getattr(target(i.op), "_schema", None), "is_mutable", False):
                return Recorded(refusal=f"{i.op} writes to a tensor in place")
        return Recorded(tuple(reads))

    def input_axes(self, node: fx.Node) -> tuple[Axis, ...]:
        """Return the axes of an input; a symbolic size counts as one axis, even if the program splits it."""
        free = self.solution.free
        symbolic = [axis_of_expression(expression(n), free) for n in node.meta["val"].shape]
        axes = map(self.solution.axis_of, self.a.values[node].axes)
        return tuple(axis if known is None else known for known, axis in zip(symbolic, axes, strict=True))

    def domain(self) -> Domain:
        """Return the sizes that may change at those of the trace."""
        free, nodes = self.solution.free, self.captured.nodes
        traced = {name: hints(nodes[i].meta["val"])[d] for name, (i, d) in free.places.items()}
        places = {f"{i} dim {d}" for i, d in free.places.values()}
        fixed = {dim: why for dim, why in self.captured.fixed.items() if dim not in places}
        return Domain(FrozenDict(traced), batch=free.batch, fixed=FrozenDict(fixed))

    def instruction(self, node: fx.Node) -> Instruction:
        op, resized = op_name(node.target), self.a.resized.get(node, {})
        args, kwargs = [self.arg(x) for x in node.args], {k: self.arg(v) for k, v in node.kwargs.items()}
        if op.startswith(SPLITS) and "split_sizes" in resized:
            sizes = self.resized(None, resized["split_sizes"])
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
            return Instruction(node.name, "aten.split_with_sizes.default", (args[0], sizes, dim), (), module_path(node))
        if SQUEEZED in resized:
            return Instruction(
                node.name, "aten.squeeze.dims", (args[0], tuple(resized[SQUEEZED])), (), module_path(node)
            )
        if resized:
            names = [name for name, _ in schema(node.target)]
            for name, terms in resized.items():
                i = names.index(name)
                if i < len(args):
                    args[i] = self.resized(args[i], terms)
                else:
                    kwargs[name] = self.resized(kwargs.get(name), terms)
        if op in VIEWS:
            op = "aten.reshape.default"
        if node in self.a.compared:
            args[1] = Unit(self.group_of(self.a.compared[node][0]), args[1])
        return Instruction(node.name, op, tuple(args), tuple(sorted(kwargs.items())), module_path(node))

    def subgraph(self, module: Any) -> Subgraph:
        """Translate a function that a higher-order op calls; all axes that it touches are frozen, so its sizes are numbers."""
        if not isinstance(module, fx.GraphModule):
            raise TraceError(f"a function of the graph reads {type(module).__name__}, which is not its argument")
        inputs, instructions, outputs = [], [], None
        for n in module.graph.nodes:
            if n.op == "placeholder":
                inputs.append(n.name)
                self.refs[n] = Ref(n.name)
            elif n.op == "get_attr":
                self.refs[n] = self.subgraph(getattr(module, n.target))
            elif n.op == "call_function":
                self.refs[n] = Ref(f"%{n.name}")
                args, kwargs = tuple(self.arg(x) for x in n.args), sorted((k, self.arg(v)) for k, v in n.kwargs.items())
                instructions.append(Instruction(n.name, op_name(n.target), args, tuple(kwargs), module_path(n)))
            else:
                outputs = self.arg(n.args[0])
        return Subgraph(tuple(inputs), tuple(instructions), outputs)

    def arg(self, x: Any) -> Any:
        if isinstance(x, fx.Node):
            return self.refs[x]
        if isinstance(x, (list, tuple)):
            return tuple(self.arg(y) for y in x)
        if isinstance(x, dict):
            return FrozenDict({k: self.arg(v) for k, v in x.items()})
        return Device() if isinstance(x, torch.device) and x.type == self.device.type else x

    def resized(self, static: Any, terms: Any, *, inside: bool = False) -> Any:
        """Return static sizes as sizes of axes; sizes that export left open (-1, or a symbol that the algebra lost) stay open."""
        if isinstance(terms, list):
            sizes = static if isinstance(static, tuple) and len(static) == len(terms) else (None,) * len(terms)
            return tuple(self.resized(g, t, inside=True) for g, t in zip(sizes, terms, strict=True))
        if isinstance(terms, Last):
            return Size(last_of(self.solution.axis_of(terms.axis)))
        if isinstance(terms, (int, float)) or (inside and static == -1):
            return static if inside and static == -1 else terms
        axis: Axis = self.solution.axis_of(terms)
        if isinstance(static, Ref) and not any(leaf in self.solution.free.places for leaf in leaves(axis)):
            return static
        return Size(axis) if any(True for _ in leaves(axis)) else size(axis, {})


def _needed_instructions(instructions: list[Instruction], wanted: set[str]) -> tuple[Instruction, ...]:
    """Return the instructions that the wanted values depend on."""
    needed = []
    for i in reversed(instructions):
        if f"%{i.name}" in wanted:
            needed.append(i)
            wanted |= set(i.reads())
    return tuple(reversed(needed))
