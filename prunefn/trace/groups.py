"""Solved equations → groups with names, kinds and members, sites, and costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import count
from typing import NamedTuple

from torch import fx

from ..types import FrozenDict, Group, Member, Site
from .analyse import Analysis
from .axes import Plus, Term, Times, Var
from .capture import Captured
from .expr import Axis, Fixed, Leaf, leaves
from .program import Slot
from .rules import Contraction

AxisOf = Callable[[Term], Axis]


class Found(NamedTuple):
    """Everything that follows from the equations."""

    axes: FrozenDict[str, tuple[Axis, ...]]
    sizes: FrozenDict[str, int]
    groups: FrozenDict[str, Group]
    sites: FrozenDict[str, Site]
    slots: tuple[Slot, ...]
    frozen: FrozenDict[tuple[str, int], tuple[str, ...]]
    """(tensor, dim) → why (parts of) it may not be pruned."""
    batch: FrozenDict[str, tuple[str, int]]
    axis_of: AxisOf


def find_groups(captured: Captured, a: Analysis) -> Found:
    """Name every leaf, then write every axis down as an expression."""
    contractions = [c for c in a.contractions if c.weight is not None]
    order = _tensor_order(captured, a)
    users = _users(a, order)
    names = _names(captured, a, contractions, users)
    taken = {n for n, _ in names.values()}
    free = (n for i in count() if (n := f"batch_{i}" if i else "batch") not in taken)
    batch = dict(zip(a.batch, free, strict=False))
    cache: dict[Var, Axis] = {}

    def name(v: Var) -> Axis:
        if v in batch:
            return Leaf(batch[v])
        return Leaf(names[v][0]) if v in names else Fixed(a.alg.size(v))

    def axis_of(t: Term) -> Axis:
        return a.alg.resolve(t, name, cache)

    axes = {t: tuple(axis_of(x) for x in a.tensors[t]) for t in order}
    sizes = {n: a.alg.size(v) for v, (n, _) in names.items()}
    sites = _sites(captured, a, contractions, axis_of, sizes)
    slots = _slots(captured, contractions, sites, axis_of)
    axes.update({s.tensor: (s.axis,) for s in slots})
    groups = _groups(a, names, users, sites, contractions, captured)
    frozen = {(t, d): r for t in order for d, x in enumerate(a.tensors[t]) if (r := _reasons(a, x))}
    return Found(
        FrozenDict(axes),
        FrozenDict(sizes),
        FrozenDict(groups),
        FrozenDict(sites),
        slots,
        FrozenDict(frozen),
        FrozenDict({batch[v]: source for v, source in a.batch.items()}),
        axis_of,
    )


def _reasons(a: Analysis, axis: Term) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(r) for v in a.alg.vars(axis) if (r := a.alg.reason(v)) is not None))


def _tensor_order(captured: Captured, a: Analysis) -> list[str]:
    """Parameters and buffers in the order in which the program uses them; unused ones last."""
    seen: dict[str, None] = {}
    for node in captured.graph.nodes:
        for source in node.all_input_nodes if node.op == "call_function" else ():
            if source.name in captured.tensors:
                seen[captured.tensors[source.name]] = None
    return [*seen, *(t for t in a.tensors if t not in seen)]


def _users(a: Analysis, order: list[str]) -> dict[Var, list[tuple[str, int]]]:
    """Prunable leaf → the (tensor, dim)s where it occurs."""
    users: dict[Var, list[tuple[str, int]]] = {}
    for t in order:
        for d, axis in enumerate(a.tensors[t]):
            for v in dict.fromkeys(a.alg.vars(axis)):
                if a.alg.reason(v) is None:
                    users.setdefault(v, []).append((t, d))
    return users


# ---- names and kinds


def base_name(tensor: str) -> str:
    """`fc.weight` → `fc`; other parameters keep their own name."""
    return tensor.removesuffix(".weight") if tensor.endswith(".weight") else tensor


def _owner(captured: Captured, c: Contraction) -> str:
    """The name of a contraction: its weight's module, or the module that it is called in where the weight is computed."""
    assert c.weight is not None
    if c.weight.name in captured.tensors:
        return base_name(captured.tensors[c.weight.name])
    return module_path(captured.nodes[c.node]) or c.node


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that a node belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].replace("@1", "") if stack else ""


def _names(
    captured: Captured, a: Analysis, contractions: list[Contraction], users: dict[Var, list[tuple[str, int]]]
) -> dict[Var, tuple[str, str]]:
    """Leaf → (name, kind), in program order: after its first producer, with a suffix where it is only a part of the axis."""
    producer: dict[Var, tuple[str, Term]] = {}
    for c in contractions:
        for v in a.alg.vars(c.out):
            if v in users and v not in producer:
                producer[v] = (_owner(captured, c), c.out)
    for v, places in users.items():
        if v not in producer:
            t, d = places[0]
            producer[v] = (base_name(t), a.tensors[t][d])
    names: dict[Var, tuple[str, str]] = {}
    taken: set[str] = set()
    for v, (base, axis) in producer.items():
        kind = _kind(a, v, [axis, *(a.tensors[t][d] for t, d in users[v])])
        suffix = _suffix(a, v, axis, kind)
        name, k = base + suffix, 0
        while name in taken:
            k += 1
            name = f"{base}{suffix}.{k}"
        taken.add(name)
        names[v] = (name, kind)
    return names


def _kind(a: Analysis, v: Var, places: list[Term]) -> str:
    """`groups` and `heads` are certain; a factor beside heads is head_dim; then residual, then a lone contracted axis."""
    marks = a.alg.marks(v)
    for kind in ("groups", "heads"):
        if kind in marks:
            return kind
    if any("heads" in a.alg.marks(w) for axis in places for w in _siblings(a, axis, v)):
        return "head_dim"
    return "residual" if "residual" in marks else "head_dim" if "head_dim" in marks else "hidden"


def _siblings(a: Analysis, axis: Term, v: Var) -> Iterable[Var]:
    """The other factors of the product that a leaf stands in."""
    axis = a.alg.find(axis)
    if isinstance(axis, Plus):
        for p in axis.parts:
            yield from _siblings(a, p, v)
    elif isinstance(axis, Times):
        factors = [w for f in axis.factors for w in a.alg.vars(f)]
        if v in factors:
            yield from (w for w in factors if w != v)


def _suffix(a: Analysis, v: Var, axis: Term, kind: str) -> str:
    axis = a.alg.find(axis)
    if axis == v or a.alg.factors(axis) == [v]:
        return ""
    parts = a.alg.parts(axis)
    if len(parts) > 1 and kind not in ("heads", "head_dim", "groups"):
        return f".{next(i for i, p in enumerate(parts) if v in a.alg.vars(p))}"
    return f".{kind}"


# ---- groups and sites


def _groups(
    a: Analysis,
    names: dict[Var, tuple[str, str]],
    users: dict[Var, list[tuple[str, int]]],
    sites: dict[str, Site],
    contractions: list[Contraction],
    captured: Captured,
) -> dict[str, Group]:
    roles = _roles(a, contractions, captured)
    at: dict[str, list[str]] = {}
    for s in sites.values():
        for leaf in dict.fromkeys(leaves(s.axis)):
            at.setdefault(leaf, []).append(s.name)
    kinds = [kind for _, kind in names.values()]
    seen: dict[str, int] = {}
    groups = {}
    for v, (name, kind) in names.items():
        members = tuple(Member(t, d, roles.get((t, d), "along")) for t, d in users[v])
        mixed = sorted(str(m).removeprefix("mixed:") for m in a.alg.marks(v) if str(m).startswith("mixed:"))
        label = kind if kinds.count(kind) == 1 else f"{kind}_{seen.setdefault(kind, 0)}"
        seen[kind] = seen.get(kind, 0) + 1
        groups[name] = Group(name, kind, a.alg.size(v), members, tuple(at.get(name, ())), tuple(mixed), label)
    return groups


def _roles(a: Analysis, contractions: list[Contraction], captured: Captured) -> dict[tuple[str, int], str]:
    roles: dict[tuple[str, int], str] = {}
    for c in contractions:
        assert c.weight is not None
        if c.weight.name in captured.tensors:
            t = captured.tensors[c.weight.name]
            out = set(a.alg.vars(c.out))
            inner = set(a.alg.vars(c.x.axes[c.dim])) if c.x is not None else set()
            words = re.findall(r"\([^)]*\)|\S+", c.pattern.partition("->")[0]) or [""] * len(a.tensors[t])
            for d, (axis, word) in enumerate(zip(a.tensors[t], words, strict=True)):
                variables = set(a.alg.vars(axis))
                is_out = "o" in word if "i" in word or "o" in word else variables and variables <= out
                role = "out" if is_out else "in" if variables & inner else "along"
                roles.setdefault((t, d), role)
        if c.bias is not None and c.bias.name in captured.tensors:
            roles.setdefault((captured.tensors[c.bias.name], 0), "out")
    return roles


def _sites(
    captured: Captured, a: Analysis, contractions: list[Contraction], axis_of: AxisOf, groups: Collection[str]
) -> dict[str, Site]:
    """One site per weight and bias (or norm that follows): a contraction that is called twice has two values and one site."""
    sites: dict[str, Site] = {}
    nodes, norms = captured.nodes, _norms(captured, a, contractions)
    for c in contractions:
        if c.weight is None or c.x is None or not c.x.active or c.weight.active or not c.pattern:
            continue
        axis = axis_of(c.x.axes[c.dim])
        if not any(leaf in groups for leaf in leaves(axis)):
            continue
        name = owner = _owner(captured, c)
        weight, value = _ref(captured, c.weight.name, nodes), (_ref(captured, c.x.name, nodes), c.dim)
        bias = captured.tensors.get(c.bias.name) if c.bias is not None else None
        norm = norms.get(c.node)
        while name in sites and (sites[name].weight, sites[name].bias, sites[name].norm) != (weight, bias, norm):
            name += "'"
        if name in sites:
            values, calls = sites[name].values, sites[name].calls
            sites[name] = sites[name]._replace(values=(*values, value), calls=(*calls, c.node))
            continue
        slot = (
            ""
            if bias is not None or norm is not None
            else _free(f"{owner}.bias", {*a.tensors, *(s.slot for s in sites.values())})
        )
        sites[name] = Site(
            name,
            axis,
            (value,),
            (c.node,),
            weight,
            c.pattern,
            axis_of(c.groups),
            axis_of(c.out),
            bias,
            norm,
            slot,
            c.geometry,
        )
    return sites


def _ref(captured: Captured, node: str, nodes: dict[str, fx.Node]) -> str:
    """The program's name of a value."""
    if node in captured.tensors:
        return captured.tensors[node]
    return node if nodes[node].op == "placeholder" else f"%{node}"


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_shift"
    return name


def _norms(captured: Captured, a: Analysis, contractions: list[Contraction]) -> dict[str, str]:
    """Contraction without a bias → running mean of the BatchNorm that follows, where it serves this weight alone."""
    found: dict[str, str] = {}
    weights: dict[str, set[str]] = {}
    for c in contractions:
        mean = None if c.bias is not None else _running_mean(captured.nodes[c.node], captured)
        if mean is not None and c.weight is not None:
            found[c.node] = mean
            weights.setdefault(mean, set()).add(c.weight.name)
    calls = Counter(found.values())
    uses = {t: len(captured.nodes[node].users) for node, t in captured.tensors.items() if t in calls}
    return {node: t for node, t in found.items() if len(weights[t]) == 1 and uses[t] == calls[t]}


def _running_mean(node: fx.Node, captured: Captured) -> str | None:
    """The running mean of an evaluating BatchNorm that alone uses this node."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if (
        user.op != "call_function"
        or str(user.target) != "aten.batch_norm.default"
        or user.args[0] is not node
        or user.args[5]
    ):
        return None
    mean = user.args[3]
    return captured.tensors.get(mean.name) if isinstance(mean, fx.Node) else None


def _slots(
    captured: Captured, contractions: list[Contraction], sites: dict[str, Site], axis_of: AxisOf
) -> tuple[Slot, ...]:
    """For every call of a contraction without a bias: where one goes that a compensation creates."""
    slots = []
    at = {node: s for s in sites.values() for node in s.calls}
    for c in contractions:
        if (site := at.get(c.node)) is not None and site.slot:
            argument, dim = (2, -1) if c.bias_arg and c.bias is None else (-1, c.dim)
            slots.append(Slot(site.slot, c.node, argument, dim, axis_of(c.out)))
    return tuple(slots)
