"""Experts: axes of a router's rows, and that the tensors of the experts have in common.

A top-k or an argmax chooses positions of them, or all experts compute and a softmax over them weighs the results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from .analyse import INPUT, OUTPUT, Analysis
from .axes import Var
from .capture import Captured
from .rules import CHOSEN, EXPERTS, Reason, Value

SOFTMAX = "mixed:aten.softmax"
CHOICES = ("aten.topk", "aten.argmax", "aten.max.dim")
PRODUCTS = ("aten.linear", "aten.addmm", "aten.matmul", "aten.mm", "aten.einsum")
NEAR = 4
"""Most ops between the product with a router's weight and the softmax."""
NO_ROUTER = Reason("a top-k picks positions of it that no weights score")


def find_experts(captured: Captured, a: Analysis) -> set[Var]:
    """Return the leaves of experts, which are held; freeze those that somebody outside of the model counts on."""
    roots = [v for i in range(a.alg.count) if a.alg.find(v := Var(i)) == v]
    found = {v for v in roots if EXPERTS in a.alg.marks(v)} | _weighted(a, roots)
    if not found:
        return found
    for reason, names in ((INPUT, map(captured.nodes.get, captured.inputs)), (OUTPUT, captured.outputs)):
        for value in (v for node in names if isinstance(node, fx.Node) for v in _values(a.values[node])):
            for axis in value.axes:
                _freeze(a, axis, found, reason)
    for v in found - _scored(a):
        a.alg.freeze(v, NO_ROUTER)
    return found


def _scored(a: Analysis) -> set[Var]:
    """Return the leaves that weights compute, as those of a router do."""
    return {v for c in a.contractions if c.weight is not None and not c.weight.active for v in a.alg.vars(c.out)}


def _weighted(a: Analysis, roots: list[Var]) -> set[Var]:
    """Return the leaves of experts that all compute: a softmax runs over their scores, and matrices are stacked along them."""
    summed = {v for v in roots if a.alg.is_held(v) and any(str(m).startswith(SOFTMAX) for m in a.alg.marks(v))}
    summed &= _scored(a) if summed else set()
    found = set[Var]()
    for c in a.contractions if summed else ():
        if c.weight is not None and not c.weight.active and c.x is not None:
            used = {*a.alg.vars(c.out), *a.alg.vars(c.x.axes[c.dim])}
            found |= {v for axis in c.weight.axes for v in a.alg.vars(axis)} & summed - used
    for v in found:
        a.alg.mark(v, EXPERTS)
    return found


def _freeze(a: Analysis, axis: Any, found: set[Var], reason: Reason) -> None:
    for v in found.intersection(a.alg.vars(axis)):
        a.alg.freeze(v, reason)


def _values(value: Any) -> Iterator[Value]:
    if isinstance(value, Value):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _values(item)


def chosen_of(marks: frozenset[Any]) -> int:
    """Return how many positions of an axis are chosen at a time, by its marks; 1 if no top-k runs over it."""
    counts = (str(m).removeprefix(CHOSEN) for m in marks if str(m).startswith(CHOSEN))
    return max(map(int, counts), default=1)


def has_router(captured: Captured) -> bool:
    """Return whether a graph chooses positions, or has a softmax of what a parameter computes, so that axes may be experts."""
    ops = [(str(node.target), node) for node in captured.nodes.values()]
    return any(
        op.startswith(CHOICES) or (op.startswith("aten.softmax") and _is_scored(node, captured)) for op, node in ops
    )


def _is_scored(node: fx.Node, captured: Captured) -> bool:
    """Return whether the input of a softmax is a product with a parameter, some ops earlier at most."""
    for _ in range(NEAR):
        before = node.args[0] if node.args else None
        before = before[0] if isinstance(before, list | tuple) and before else before
        if not isinstance(before, fx.Node):
            return False
        node = before
        if str(node.target).startswith(PRODUCTS):
            return any(n.name in captured.tensors for n in node.all_input_nodes)
    return False
