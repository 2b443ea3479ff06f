"""Find units that affect each other through values computed from parameters, such as the norm that divides a weight (spectral norm)."""

from __future__ import annotations

from collections.abc import Mapping

from ..frozen_dict import FrozenDict
from ..spec.axis import Axis, leaves
from ..spec.parts import Group
from ..spec.program import Program


def mixed_by_weights(
    program: Program, axes: Mapping[str, tuple[Axis, ...]], groups: Mapping[str, Group]
) -> FrozenDict[str, Group]:
    """Return the groups with `mixed_by` extended by ops that reduce parameters over units to a value that all units use again.

    Args:
        program: the program of the model.
        axes: axes of its tensors.
        groups: groups from the rules, whose `mixed_by` has the ops that mix activations.
    """
    active = program.activations()
    groups_of = {n: _groups_in(a, groups) for n, a in axes.items()}
    reduced_by: dict[str, dict[str, str]] = {}  # value → group that was summed over before it → op that did so
    mixed: dict[str, set[str]] = {}
    for i in program.instructions:
        value, read = f"%{i.name}", set(i.reads())
        read_groups = {g for r in read for g in groups_of.get(r, ())}
        value_axes = program.axes.get(value)
        groups_of[value] = read_groups if value_axes is None else _groups_in(value_axes, groups)
        reduced_by[value] = {g: op for r in read for g, op in reduced_by.get(r, {}).items()}
        for g in groups_of[value] & set(reduced_by[value]):
            mixed.setdefault(g, set()).add(reduced_by[value][g])
        if value not in active:
            reduced_by[value] |= dict.fromkeys(read_groups - groups_of[value], i.op)
    extended = {n: g._replace(mixed_by=tuple(sorted({*g.mixed_by, *mixed.get(n, ())}))) for n, g in groups.items()}
    return FrozenDict(extended)


def _groups_in(axes: tuple[Axis, ...], groups: Mapping[str, Group]) -> set[str]:
    return {leaf for axis in axes for leaf in leaves(axis) if leaf in groups}
