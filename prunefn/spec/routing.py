"""Where a program chooses experts, and where it adds what they compute."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from .axis import Axis, Fixed, leaves
from .data import SpecData
from .parts import EXPERTS, Group
from .program import Instruction

TOPK, SUM = "aten.topk", "aten.sum.dim_IntList"


class Route(NamedTuple):
    """The values of a program that say which experts of a group get a token, and what they add."""

    ids: str
    """Value [tokens…, chosen]: positions of `axis`."""
    axis: Axis
    """The axis of all experts, which the group is, or is a factor of."""
    parts: str
    """Value [tokens…, chosen, channels] whose sum over dim −2 is what the experts add, each times its weight, or
    [tokens…, experts, channels] where all experts compute; empty if the program has no such value."""


@lru_cache(maxsize=16)
def routes_of(spec: SpecData) -> dict[str, Route]:
    """Return group of experts → its route; without groups whose program has no top-k of them."""
    found = {g.name: _route(g, spec) for g in spec.groups.values() if g.kind == EXPERTS}
    return {name: route for name, route in found.items() if route is not None}


def _route(group: Group, spec: SpecData) -> Route | None:
    axes, instructions = spec.program.axes, spec.program.instructions
    ids = {i.args[0].name: f"%{i.name}" for i in instructions if i.op == "operator.getitem" and i.args[1] == 1}
    chosen: tuple[str, Axis] | None = None
    for i in (i for i in instructions if i.op.startswith(TOPK) and f"%{i.name}" in ids):
        axis = axes[i.args[0].name][i.args[2] if len(i.args) > 2 else -1]
        if group.name in leaves(axis):
            chosen = ids[f"%{i.name}"], axis  # where experts are chosen in groups of experts, the last one counts
    return None if chosen is None else Route(*chosen, _parts(group, spec, *chosen))


def _parts(group: Group, spec: SpecData, ids: str, axis: Axis) -> str:
    """Return what is summed first of all that is computed by the experts' tensors, over the chosen experts or over all."""
    axes = spec.program.axes
    stacked = {m.tensor for m in group.members if m.role != "out" and len(spec.axes[m.tensor]) > 1}
    for i in _readers(spec.program.instructions, stacked):
        if i.op != SUM or i.args[2:]:  # the dim stays, with size 1
            continue
        value, dims = i.args[0], i.args[1]
        own = list(axes[value.name])
        if len(own) > 1 and [d % len(own) for d in dims] == [len(own) - 2] and own[-1] != Fixed(1):
            *tokens, chosen = axes[ids]
            if own[-2] in (axis, chosen) and own[:-2] == tokens:
                return value.name
    return ""


def _readers(instructions: Iterable[Instruction], tensors: set[str]) -> Iterable[Instruction]:
    """Yield the instructions whose results depend on some tensors."""
    values = set(tensors)
    for i in instructions:
        if not values.isdisjoint(i.reads()):
            values.add(f"%{i.name}")
            yield i
