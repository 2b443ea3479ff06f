"""Structural identity of groups: the same ops in the same roles, whatever their sizes and names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from ..spec.axis import AnyOf, Axis, Concat, Derived, Fixed, Leaf, Product
from ..spec.parts import Group, Site
from ..spec.program import refs, size_leaves
from ..spec.spec import Spec


class Use(NamedTuple):
    """An instruction that takes a tensor."""

    op: str
    argument: Hashable
    """Position or name of the argument."""
    sized: frozenset[str]
    """Leaves in the op's static sizes, such as the number of groups of a depthwise convolution."""


def signatures(spec: Spec) -> dict[str, Hashable]:
    """Return group → signature, which structurally identical groups share.

    Two groups are identical if they have the same kind and the same members. Members are the same if their tensors have the
    same rank and enter the same ops as the same arguments, with the group in the same dim, in the same role and in an axis of
    the same form. Of each sort of member, only one and several are distinguished, so that streams of three and of six blocks
    are identical. Sizes (kernels, strides, widths) and names do not matter.
    """
    uses = _uses(spec)
    ops = {ins.name: ins.op for ins in spec.program.instructions}
    return {name: _signature(group, spec, uses, ops) for name, group in spec.groups.items()}


def _signature(group: Group, spec: Spec, uses: Mapping[str, set[Use]], ops: Mapping[str, str]) -> Hashable:
    members: Counter[Hashable] = Counter()
    for tensor, dim, role in group.members:
        axes = spec.axes[tensor]
        used = {(u.op, u.argument, group.name in u.sized) for u in uses.get(spec.tied.get(tensor, tensor), ())}
        members[role, dim, len(axes), _form(axes[dim], group, spec), frozenset(used)] += 1
    sites = frozenset(_site(spec.sites[s], group, spec, ops) for s in group.sites)
    counted = frozenset((m, n > 1) for m, n in members.items())
    return group.kind, counted, sites, frozenset(group.mixed_by)


def _site(site: Site, group: Group, spec: Spec, ops: Mapping[str, str]) -> Hashable:
    return frozenset(ops[c] for c in site.calls), _form(site.axis, group, spec), site.groups == Fixed(1)


def _form(axis: Axis, group: Group, spec: Spec) -> Hashable:
    """Return the form of an axis, without sizes and names; of concatenated parts, the set of their forms."""
    match axis:
        case Leaf(name):
            return "itself" if name == group.name else spec.groups[name].kind if name in spec.groups else "batch"
        case Fixed() | Derived() | AnyOf():
            return "fixed"
        case Product(factors):
            return "product", tuple(_form(f, group, spec) for f in factors)
        case Concat(parts):
            return "concat", frozenset(_form(p, group, spec) for p in parts)


def _uses(spec: Spec) -> dict[str, set[Use]]:
    """Return value → the uses of it as an argument of instructions."""
    uses: dict[str, set[Use]] = {}
    for ins in spec.program.instructions:
        arguments = [*enumerate(ins.args), *ins.kwargs]
        sized = frozenset(leaf for _, a in arguments for leaf in size_leaves(a))
        for position, a in arguments:
            for name in refs(a):
                uses.setdefault(name, set()).add(Use(ins.op, position, sized))
    return uses
