"""Experts: axes of a router's rows, whose positions a top-k chooses, and that the tensors of the experts have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from .analyse import INPUT, OUTPUT, Analysis
from .axes import Var
from .capture import Captured
from .rules import CHOSEN, EXPERTS, Reason, Value

NO_ROUTER = Reason("a top-k picks positions of it that no weights score")
RETURNED = Reason("positions of it are returned")


def find_experts(captured: Captured, a: Analysis) -> set[Var]:
    """Return the leaves of experts, which are held; freeze those that somebody outside of the model counts on."""
    found = {v for i in range(a.alg.count) if EXPERTS in a.alg.marks(v := Var(i)) and a.alg.find(v) == v}
    if not found:
        return found
    for reason, names in ((INPUT, map(captured.nodes.get, captured.inputs)), (OUTPUT, captured.outputs)):
        for value in (v for node in names if isinstance(node, fx.Node) for v in _values(a.values[node])):
            for axis in value.axes:
                _freeze(a, axis, found, reason)
            if value.picks is not None:
                _freeze(a, value.picks, found, RETURNED)
    scored = {v for c in a.contractions if c.weight is not None and not c.weight.active for v in a.alg.vars(c.out)}
    for v in found - scored:
        a.alg.freeze(v, NO_ROUTER)
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


def picks_positions(nodes: Mapping[str, fx.Node]) -> bool:
    """Return whether a graph has a top-k, so that axes that it runs over may be experts."""
    return any(str(node.target).startswith("aten.topk") for node in nodes.values())
