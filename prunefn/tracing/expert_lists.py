"""Experts that are modules of a list: why a router that chooses among them is no group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ..frozen_dict import FrozenDict
from .groups import Found

ROUTED = ("softmax runs over it", "its largest are picked", "tensors are stacked along it")
"""Beginnings of the reasons why the rows of a router are frozen; rows that a loop takes one by one have no reason."""
Reasons = FrozenDict[tuple[str, int], tuple[str, ...]]
"""(tensor, dim) → why it is frozen."""


class ExpertList(NamedTuple):
    """A list of modules of one class."""

    path: str
    size: int


def with_reasons(solution: Found, model: nn.Module) -> Reasons:
    """Return the reasons why dims are frozen, with one more for the rows of a router beside a list of as many modules."""
    frozen, more = solution.frozen, dict[tuple[str, int], tuple[str, ...]]()
    free = {m.tensor for g in solution.groups.values() for m in g.members if not m.dim}
    rows = {n: t.shape[0] for n, t in model.named_parameters() if t.ndim and n not in free}
    for found in _lists(model):
        parent = found.path.rpartition(".")[0]
        prefix = f"{parent}." if parent else ""
        for tensor in (t for t, n in rows.items() if n == found.size and t.startswith(prefix)):
            reasons = frozen.get((tensor, 0), ())
            if not tensor.startswith(f"{found.path}.") and (not reasons or any(r.startswith(ROUTED) for r in reasons)):
                more[tensor, 0] = (*reasons, _text(found))
    return FrozenDict({**frozen, **more}) if more else frozen


def _lists(model: nn.Module) -> Iterator[ExpertList]:
    """Yield the lists and dicts of two or more modules of one class with parameters."""
    for path, m in model.named_modules():
        children = list(m.children()) if path and isinstance(m, nn.ModuleList | nn.ModuleDict) else []
        if len(children) > 1 and len({type(c) for c in children}) == 1 and any(True for _ in children[0].parameters()):
            yield ExpertList(path, len(children))


def _text(found: ExpertList) -> str:
    return (
        f"if it scores the {found.size} modules of {found.path!r}: experts in a list are no group, since each has tensors of its own, "
        "and the loop over them counts positions; their widths are groups, and each one is a branch where the program adds it; "
        "whole experts go where their weights are stacked in one tensor [experts, …]"
    )
