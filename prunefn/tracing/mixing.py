"""Units that change each other through numbers computed from parameters, such as the norm that spectral norm divides a weight by."""

from __future__ import annotations

from collections.abc import Mapping

from ..frozen_dict import FrozenDict
from ..spec.axis import Axis, leaves
from ..spec.parts import Group
from ..spec.program import Program


def mixed_by_weights(
    program: Program, axes: Mapping[str, tuple[Axis, ...]], groups: Mapping[str, Group]
) -> FrozenDict[str, Group]:
    """The groups, with the ops noted that reduce parameters over units to a number that the others of the group meet again.

    Args:
        program: whose values.
        axes: of its tensors.
        groups: as found by the rules, which note what activations are mixed by.
    """
    active = program.activations()
    has = {n: _groups(a, groups) for n, a in axes.items()}
    gone: dict[str, dict[str, str]] = {}  # value → group that was summed over on the way to it → by which op
    mixed: dict[str, set[str]] = {}
    for i in program.instructions:
        value, read = f"%{i.name}", set(i.reads())
        there = {g for r in read for g in has.get(r, ())}
        known = program.axes.get(value)
        has[value] = there if known is None else _groups(known, groups)
        gone[value] = {g: op for r in read for g, op in gone.get(r, {}).items()}
        for g in has[value] & set(gone[value]):
            mixed.setdefault(g, set()).add(gone[value][g])
        if value not in active:
            gone[value] |= dict.fromkeys(there - has[value], i.op)
    new = {n: g._replace(mixed_by=tuple(sorted({*g.mixed_by, *mixed.get(n, ())}))) for n, g in groups.items()}
    return FrozenDict(new)


def _groups(axes: tuple[Axis, ...], groups: Mapping[str, Group]) -> set[str]:
    return {leaf for axis in axes for leaf in leaves(axis) if leaf in groups}
