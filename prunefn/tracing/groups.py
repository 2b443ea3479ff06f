"""Solved equations → groups with names, kinds and members, and sites."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..frozen_dict import FrozenDict
from ..spec.axis import Axis, Fixed, Leaf, leaves
from ..spec.parts import Group, Member, Site
from ..spec.program import Slot
from .analyse import Analysis
from .axes import Plus, Term, Times, Var
from .capture import Captured
from .dynamic import Names
from .experts import chosen_of
from .rules import EXPERTS, SEQUENCE, Contraction, Reason
from .rules.slicing import OUTSIDE
from .sites import AxisOf, base_name, find_sites, find_slots, owner_of
from .streams import mark_streams
from .symbols import BATCH, LENGTH, UNKNOWN, Free, axis_of_expression, name_sizes, solved

NOT_READ = Reason("nothing reads it at this size of the inputs")


class Found(NamedTuple):
    """The axes, groups and sites that follow from the equations."""

    axes: FrozenDict[str, tuple[Axis, ...]]
    sizes: FrozenDict[str, int]
    groups: FrozenDict[str, Group]
    sites: FrozenDict[str, Site]
    slots: tuple[Slot, ...]
    frozen: FrozenDict[tuple[str, int], tuple[str, ...]]
    """(tensor, dim) → reasons why it, or parts of it, may not be pruned."""
    free: Free
    """Sizes of the inputs that may change."""
    axis_of: AxisOf


def find_groups(captured: Captured, a: Analysis) -> Found:
    """Name every leaf, express every axis by these names, and return all groups and sites."""
    contractions = [c for c in a.contractions if c.weight is not None]
    tensors = _tensor_order(captured, a)
    _freeze_outside(a, _find_users(a, tensors))
    users = _find_users(a, tensors)  # again, without the leaves that were just frozen
    mark_streams(captured.graph, a, users)
    names = _name_leaves(captured, a, contractions, users)
    free = _name_inputs(captured, a, {n for n, _ in names.values()})
    derived = _derived_axes(a, free)
    cache: dict[Var, Axis] = {}

    def name(v: Var) -> Axis:
        if v in free.leaves:
            return Leaf(free.leaves[v])
        return Leaf(names[v][0]) if v in names else derived.get(v) or Fixed(a.alg.size(v))

    def axis_of(t: Term) -> Axis:
        return a.alg.resolve(t, name, cache)

    def group_or_number(v: Var) -> Axis:
        """A tensor has one size, also where it is the sum of sizes of inputs that vary against each other."""
        return Leaf(names[v][0]) if v in names else Fixed(a.alg.size(v))

    own: dict[Var, Axis] = {}
    axes = {t: tuple(a.alg.resolve(x, group_or_number, own) for x in a.tensors[t]) for t in tensors}
    sizes = {n: a.alg.size(v) for v, (n, _) in names.items()}
    sites = find_sites(captured, a, contractions, axis_of, sizes)
    slots = find_slots(captured, contractions, sites, axis_of)
    axes.update({s.tensor: (s.axis,) for s in slots})
    groups = _build_groups(a, names, users, sites, contractions, captured)
    frozen = {(t, d): r for t in tensors for d, x in enumerate(a.tensors[t]) if (r := _reasons_of(a, x))}
    return Found(
        FrozenDict(axes),
        FrozenDict(sizes),
        FrozenDict(groups),
        FrozenDict(sites),
        slots,
        FrozenDict(frozen),
        free,
        axis_of,
    )


def _name_inputs(captured: Captured, a: Analysis, group_names: set[str]) -> Free:
    """Name the sizes of the inputs that may change."""

    def dims() -> Iterator[tuple[str, int, Any, Var | None, str | None]]:
        for name, preferred in zip(captured.inputs, captured.names, strict=True):
            node = captured.nodes[name]
            roots = [a.alg.find(axis) for axis in a.values[node].axes]
            names = _batch_first(preferred, [any(SEQUENCE in a.alg.marks(v) for v in a.alg.vars(r)) for r in roots])
            for d, (n, root) in enumerate(zip(node.meta["val"].shape, roots, strict=True)):
                yield name, d, n, root if isinstance(root, Var) else None, names[d]

    return name_sizes(dims(), group_names)


def _batch_first(names: Names, sequences: list[bool]) -> Names:
    """Return the names of an input's dims; if the first one is a sequence, the next one that is none holds the samples."""
    if not sequences or not sequences[0] or names[0] != BATCH:
        return names
    other = next((d for d, name in enumerate(names) if name == LENGTH and not sequences[d]), None)
    return tuple(LENGTH if d == 0 else BATCH if d == other else name for d, name in enumerate(names))


def _derived_axes(a: Analysis, free: Free) -> dict[Var, Axis]:
    """Return leaf of the algebra → the axis whose size follows from sizes of the inputs."""
    roots = [(expr, a.alg.find(term)) for expr, term in a.symbols.items()]
    exprs: dict[Var, Any] = {root: expr for expr, root in reversed(roots) if isinstance(root, Var)}
    fixed = {root for root in map(a.alg.find, a.fixed) if isinstance(root, Var)}
    # a leaf that only occurs inside of others, such as the windows of a length: their sizes say its own
    for _ in roots:
        before = len(exprs)
        for expr, root in roots:
            unknown = [v for v in a.alg.vars(root) if v not in exprs and v not in fixed]
            if len(unknown) == 1:
                exprs[unknown[0]] = solved(expr, a.alg.sympy(root, {**exprs, unknown[0]: UNKNOWN}))
        if len(exprs) == before:
            break
    # an axis that is also a dim of a fixed size, such as that of a weight, has this size at all sizes that the guards allow
    derived = {v: expr for v, expr in exprs.items() if v not in free.leaves and v not in fixed}
    axes = {v: axis_of_expression(expr, free) for v, expr in derived.items()}
    return {v: axis for v, axis in axes.items() if axis is not None}


def _reasons_of(a: Analysis, axis: Term) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(r) for v in a.alg.vars(axis) if (r := a.alg.reason(v)) is not None))


def _tensor_order(captured: Captured, a: Analysis) -> list[str]:
    """Return parameters and buffers in the order in which the program uses them; unused ones come last."""
    used: dict[str, None] = {}
    for node in captured.graph.nodes:
        for source in node.all_input_nodes if node.op == "call_function" else ():
            if source.name in captured.tensors:
                used[captured.tensors[source.name]] = None
    return [*used, *(t for t in a.tensors if t not in used)]


def _find_users(a: Analysis, order: list[str]) -> dict[Var, list[tuple[str, int]]]:
    """Return prunable leaf → each (tensor, dim) where it occurs."""
    users: dict[Var, list[tuple[str, int]]] = {}
    for t in order:
        for d, axis in enumerate(a.tensors[t]):
            for v in dict.fromkeys(a.alg.vars(axis)):
                if a.alg.reason(v) is None:
                    users.setdefault(v, []).append((t, d))
    return users


def _freeze_outside(a: Analysis, users: dict[Var, list[tuple[str, int]]]) -> None:
    """Freeze rows of a table that nothing reads at this size of the inputs, such as those of farther positions."""
    for v, places in users.items():
        if OUTSIDE in a.alg.marks(v) and len(places) == 1:
            a.alg.freeze(v, NOT_READ)


# ---- names and kinds


def _name_leaves(
    captured: Captured, a: Analysis, contractions: list[Contraction], users: dict[Var, list[tuple[str, int]]]
) -> dict[Var, tuple[str, str]]:
    """Return leaf → (name, kind), in program order; the name is that of its first producer.

    A leaf that is only a part of the producer's axis gets a suffix.
    """
    producer: dict[Var, tuple[str, Term]] = {}
    for c in contractions:
        for v in a.alg.vars(c.out):
            if v in users and v not in producer:
                producer[v] = (owner_of(captured, c), c.out)
    for v, places in users.items():
        if v not in producer:
            t, d = places[0]
            producer[v] = (base_name(t), a.tensors[t][d])
    names: dict[Var, tuple[str, str]] = {}
    used_names: set[str] = set()
    for v, (base, axis) in producer.items():
        kind = _kind_of(a, v, [axis, *(a.tensors[t][d] for t, d in users[v])])
        suffix = f".{kind}" if v in a.freed or kind == EXPERTS else _suffix_of(a, v, axis, kind)
        base = a.freed[v][0] if v in a.freed else base
        name, k = base + suffix, 0
        while name in used_names:
            k += 1
            name = f"{base}{suffix}.{k}"
        used_names.add(name)
        names[v] = (name, kind)
    return names


def _kind_of(a: Analysis, v: Var, places: list[Term]) -> str:
    """Return the kind of a leaf.

    Marks `groups` and `heads` are certain. A factor beside heads is `head_dim`. Then `residual` takes precedence over `head_dim`.
    """
    if v in a.freed:
        return a.freed[v][1].kind
    marks = a.alg.marks(v)
    for kind in (EXPERTS, "groups", "heads"):
        if kind in marks:
            return kind
    if any("heads" in a.alg.marks(w) for axis in places for w in _siblings(a, axis, v)):
        return "head_dim"
    return "residual" if "residual" in marks else "head_dim" if "head_dim" in marks else "hidden"


def _siblings(a: Analysis, axis: Term, v: Var) -> Iterable[Var]:
    """Yield the other factors of the product that contains a leaf."""
    axis = a.alg.find(axis)
    if isinstance(axis, Plus):
        for p in axis.parts:
            yield from _siblings(a, p, v)
    elif isinstance(axis, Times):
        factors = [w for f in axis.factors for w in a.alg.vars(f)]
        if v in factors:
            yield from (w for w in factors if w != v)


def _suffix_of(a: Analysis, v: Var, axis: Term, kind: str) -> str:
    axis = a.alg.find(axis)
    if axis == v or a.alg.factors(axis) == [v]:
        return ""
    parts = a.alg.parts(axis)
    if len(parts) > 1 and kind not in ("heads", "head_dim", "groups"):
        return f".{next(i for i, p in enumerate(parts) if v in a.alg.vars(p))}"
    return f".{kind}"


# ---- groups and sites


def _build_groups(
    a: Analysis,
    names: dict[Var, tuple[str, str]],
    users: dict[Var, list[tuple[str, int]]],
    sites: dict[str, Site],
    contractions: list[Contraction],
    captured: Captured,
) -> dict[str, Group]:
    roles = _find_roles(a, contractions, captured)
    sites_of: dict[str, list[str]] = {}
    for s in sites.values():
        for leaf in dict.fromkeys(leaves(s.axis)):
            sites_of.setdefault(leaf, []).append(s.name)
    kinds = [kind for _, kind in names.values()]
    count_of_kind: dict[str, int] = {}
    groups = {}
    for v, (name, kind) in names.items():
        members = tuple(Member(t, d, roles.get((t, d), "along")) for t, d in users[v])
        mixed = sorted(str(m).removeprefix("mixed:") for m in a.alg.marks(v) if str(m).startswith("mixed:"))
        label = kind if kinds.count(kind) == 1 else f"{kind}_{count_of_kind.setdefault(kind, 0)}"
        count_of_kind[kind] = count_of_kind.get(kind, 0) + 1
        own_sites = tuple(sites_of.get(name, ()))
        chosen = min(chosen_of(a.alg.marks(v)), a.alg.size(v))
        groups[name] = Group(name, kind, a.alg.size(v), members, own_sites, tuple(mixed), label, chosen)
    return groups


def _find_roles(a: Analysis, contractions: list[Contraction], captured: Captured) -> dict[tuple[str, int], str]:
    roles: dict[tuple[str, int], str] = {}
    for c in contractions:
        assert c.weight is not None
        if c.weight.name in captured.tensors:
            t = captured.tensors[c.weight.name]
            out_vars = set(a.alg.vars(c.out))
            inner_vars = set(a.alg.vars(c.x.axes[c.dim])) if c.x is not None else set()
            words = re.findall(r"\([^)]*\)|\S+", c.pattern.partition("->")[0]) or [""] * len(a.tensors[t])
            for d, (axis, word) in enumerate(zip(a.tensors[t], words, strict=True)):
                variables = set(a.alg.vars(axis))
                is_out = "o" in word if "i" in word or "o" in word else variables and variables <= out_vars
                role = "out" if is_out else "in" if variables & inner_vars else "along"
                roles.setdefault((t, d), role)
        if c.bias is not None and c.bias.name in captured.tensors:
            roles.setdefault((captured.tensors[c.bias.name], 0), "out")
    return roles
