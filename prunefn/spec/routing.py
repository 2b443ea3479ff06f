"""Where a program chooses experts, and where it adds what they compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from .axis import Axis, Fixed, leaves
from .data import SpecData
from .parts import EXPERTS, Group
from .program import Instruction

TOPK, ARGMAX, MAX, SOFTMAX = "aten.topk", "aten.argmax", "aten.max.dim", "aten.softmax"
SUM, MUL = "aten.sum.dim_IntList", "aten.mul.Tensor"


class Choice(NamedTuple):
    """Where a program chooses positions of an axis by their scores."""

    ids: str
    """Value: the positions; empty where all are used, each by a weight of a softmax."""
    scores: str
    """Value [tokens…, positions] with them in any dim."""
    dim: int
    """Of the positions, counted from the right."""
    single: bool = False
    """Whether one is chosen, so that `ids` is [tokens…] instead of [tokens…, chosen]."""


class Route(NamedTuple):
    """The values of a program that say which experts of a group get a token, and what they add."""

    choice: Choice
    axis: Axis
    """The axis of all experts, which the group is, or is a factor of."""
    parts: str = ""
    """Value [tokens…, chosen, channels] whose sum over dim −2 is what the experts add, each times its weight, or
    [tokens…, experts, channels] where all experts compute; empty if the program has no such value."""
    every: bool = False
    """Whether `parts` has all experts."""
    scale: str = ""
    """Value [tokens…, 1] that the sum is multiplied by, as the score of the one expert that a token chooses; empty if there is none."""


@lru_cache(maxsize=16)
def routes_of(spec: SpecData) -> dict[str, Route]:
    """Return group of experts → its route; without groups whose program has no choice of them."""
    found = {g.name: _route(g, spec) for g in spec.groups.values() if g.kind == EXPERTS}
    return {name: route for name, route in found.items() if route is not None}


def _route(group: Group, spec: SpecData) -> Route | None:
    axes, route = spec.program.axes, None
    for choice in _choices(spec):
        axis = axes[choice.scores][choice.dim]
        if group.name in leaves(axis) and (choice.ids or route is None):
            route = Route(choice, axis)  # where experts are chosen in groups of experts, the last one counts
    return None if route is None else _with_parts(route, group, spec)


def _choices(spec: SpecData) -> Iterator[Choice]:
    """Yield where a program chooses positions, in its order."""
    instructions = spec.program.instructions
    second = {i.args[0].name: f"%{i.name}" for i in instructions if i.op == "operator.getitem" and i.args[1] == 1}
    for i in (i for i in instructions if i.op.startswith((TOPK, MAX, ARGMAX, SOFTMAX))):
        has_dim, name, args = i.op.startswith(TOPK), f"%{i.name}", [*i.args]
        place = 2 if has_dim else 1
        dim = args[place] if len(args) > place else -1 if has_dim else None
        rank = len(spec.program.axes.get(args[0].name, ()))
        if dim is None or not rank:
            continue
        keeps = bool(args[2] if len(args) > 2 else dict(i.kwargs).get("keepdim", False))
        if i.op.startswith(SOFTMAX):
            yield Choice("", name, dim % rank - rank)
        elif ids := name if i.op.startswith(ARGMAX) else second.get(name, ""):
            yield Choice(ids, args[0].name, dim % rank - rank, not (has_dim or keeps))


def _with_parts(route: Route, group: Group, spec: SpecData) -> Route:
    """Return the route with what is summed first of all that is computed by the experts' tensors."""
    axes, choice = spec.program.axes, route.choice
    tokens = [a for d, a in enumerate(axes[choice.scores]) if d != len(axes[choice.scores]) + choice.dim]
    chosen = None if choice.single or not choice.ids else axes[choice.ids][-1]
    stacked = {m.tensor for m in group.members if m.role != "out" and len(spec.axes[m.tensor]) > 1}
    for i in _readers(spec.program.instructions, stacked):
        if i.op != SUM or i.args[2:]:  # the dim stays, with size 1
            continue
        value, dims = i.args[0], i.args[1]
        own = list(axes[value.name])
        inner = len(own) > 1 and [d % len(own) for d in dims] == [len(own) - 2] and own[-1] != Fixed(1)
        if inner and own[-2] in (route.axis, chosen) and own[:-2] == tokens:
            return route._replace(
                parts=value.name, every=own[-2] == route.axis, scale=_scale(f"%{i.name}", tokens, spec)
            )
    return route


def _scale(total: str, tokens: list[Axis], spec: SpecData) -> str:
    """Return the value, one number for each token, that a sum is multiplied by."""
    for i in spec.program.instructions:
        if i.op == MUL and total in i.reads():
            others = [name for name in i.reads() if name != total]
            return next((n for n in others if list(spec.program.axes.get(n, ())) == [*tokens, Fixed(1)]), "")
    return ""


def _readers(instructions: Iterable[Instruction], tensors: set[str]) -> Iterable[Instruction]:
    """Yield the instructions whose results depend on some tensors."""
    values = set(tensors)
    for i in instructions:
        if not values.isdisjoint(i.reads()):
            values.add(f"%{i.name}")
            yield i
