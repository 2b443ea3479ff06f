"""Calls of an op → a model with one branch per call, and the graph of it as `trace` would capture it."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

import prunefn as pf
from prunefn.tracing.capture import Captured
from prunefn.tracing.rules import find, use_canonical

from .search import SIZE, Args, bound, filled, tensor_slots

aten = torch.ops.aten
X = torch.tensor([[0.9, 1.0, 1.1], [1.0, 0.8, 1.2]], dtype=torch.float64)
"""The input, of mean 1: it reaches the tensors of a branch as a factor, so that they are activations."""


class Toy(nn.Module):
    """Each argument of each call is a parameter whose dims may all be pruned, and so may those of a linear head over the result."""

    def __init__(self, op: OpOverload, calls: Sequence[Args]) -> None:
        super().__init__()
        self.tested = op
        self.graph, self.inputs = fx.Graph(), dict[str, str]()
        self.generator = torch.Generator().manual_seed(1)
        self.values: dict[fx.Node, Any] = {}
        self.x = self.node("placeholder", "x", X)
        mean = self.op(aten.mean.default, self.x)
        outputs: list[fx.Node] = []
        self.branches: list[range] = []
        for i, call in enumerate(calls):
            before = len(outputs)
            outputs += self.branch(op, call, f"b{i}", mean, 1 + i % 2)
            self.branches.append(range(before, len(outputs)))
        self.outputs = outputs
        self.graph.output(tuple(outputs))
        self.module = fx.GraphModule(self, self.graph)

    def branch_of(self, output: int) -> int:
        """The call that an output belongs to."""
        return next(i for i, outputs in enumerate(self.branches) if output in outputs)

    def branch(self, op: OpOverload, call: Args, name: str, mean: fx.Node, active: int) -> list[fx.Node]:
        """The first `active` arguments depend on the input, the others are parameters alone."""
        tensors, generator = [], torch.Generator().manual_seed(0)  # the numbers with which the call was found to run
        for j, slot in enumerate(tensor_slots(call)):
            t = self.parameter(f"{name}_arg{j}", slot.tensor(generator))
            if slot.holds in ("bool", "int"):
                t = self.op(aten.gt.Scalar, t, 0.5) if slot.holds == "bool" else self.op(aten.mul.Tensor, t, SIZE)
                t = t if slot.holds == "bool" else self.op(aten.to.dtype, t, torch.int64)
            elif j < active:
                t = self.op(aten.mul.Tensor, t, mean)
            tensors.append(t)
        positional, named = bound(op, filled(call, tensors))
        out = self.op(op, *positional, **named)
        value = self.values[out]
        if isinstance(value, Tensor):
            return [self.head(out, f"{name}_head")]
        return [self.head(self.item(out, k), f"{name}_head{k}") for k, v in enumerate(value) if isinstance(v, Tensor)]

    def head(self, out: fx.Node, name: str) -> fx.Node:
        """A linear layer over all numbers of a result."""
        value = self.values[out]
        if value.is_complex():
            out = self.op(aten.view_as_real.default, self.op(aten.resolve_conj.default, out))
        elif value.dtype != torch.float64:
            out = self.op(aten.to.dtype, out, torch.float64)
        flat = self.op(aten.reshape.default, out, [-1])
        weight = self.parameter(name, torch.rand(3, self.values[flat].numel(), generator=self.generator).double())
        return self.op(aten.mul.Tensor, self.x, self.op(aten.linear.default, flat, weight))

    def parameter(self, name: str, value: Tensor) -> fx.Node:
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        node = self.node("placeholder", name, value)
        self.inputs[node.name] = name
        return node

    def op(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        real = pytree.tree_map_only(fx.Node, self.values.__getitem__, (args, kwargs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated calls
            value = op(*real[0], **real[1])
        return self.node("call_function", op, value, args, kwargs)

    def item(self, node: fx.Node, k: int) -> fx.Node:
        return self.node("call_function", operator.getitem, self.values[node][k], (node, k))

    def node(self, kind: str, target: Any, value: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        node = self.graph.create_node(kind, target, args, kwargs or {})
        node.meta["val"] = self.values[node] = value
        return node

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = [
                x if n is self.x else getattr(self, self.inputs[n.name])
                for n in self.graph.nodes
                if n.op == "placeholder"
            ]
            return fx.Interpreter(self.module, graph=self.graph).run(*values)

    def captured(self) -> Captured:
        """What `capture` would return."""
        _, in_spec = pytree.tree_flatten(((X,), {}))
        _, out_spec = pytree.tree_flatten(tuple(self.outputs))
        use_canonical(self.graph)
        nodes = {n.name: n for n in self.graph.nodes}
        return Captured(
            self.graph,
            self.inputs,
            {},
            {},
            ["x"],
            in_spec,
            out_spec,
            list(self.outputs),
            {},
            nodes,
            [("batch", *(None,) * (X.ndim - 1))],
            {},
            {},
        )

    def trace(self) -> pf.Spec:
        """The spec, without an export and a proof: their time is a hundred times that of the rules.

        An op without a rule is recorded, by which it is written out.
        """

        def captured(*args: Any, **kwargs: Any) -> Captured:
            if find(self.tested, {}) is None:
                raise pf.TraceError("it has no rule")
            return self.captured()

        with mock.patch("prunefn.tracing.api.capture", captured):
            return pf.trace(self, (X,), check=False)
