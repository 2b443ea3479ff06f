"""Find sites, where activations enter a contraction with parameters, and slots, where a compensation may add a bias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from torch import fx

from ..frozen_dict import FrozenDict
from ..spec.axis import Axis, leaves
from ..spec.parts import Layout, Site
from ..spec.program import Slot
from .analyse import Analysis
from .axes import Term
from .capture import Captured
from .rules import Contraction

AxisOf = Callable[[Term], Axis]


def base_name(tensor: str) -> str:
    """Return the module's name for a weight (`fc.weight` → `fc`); other parameters keep their name."""
    return tensor.removesuffix(".weight") if tensor.endswith(".weight") else tensor


def owner_of(captured: Captured, c: Contraction) -> str:
    """Return the name of a contraction: the module of its weight, or the module that calls it if the weight is computed."""
    assert c.weight is not None
    if c.weight.name in captured.tensors:
        return base_name(captured.tensors[c.weight.name])
    return module_path(captured.nodes[c.node]) or c.node


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that a node belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].replace("@1", "") if stack else ""


def find_sites(
    captured: Captured, a: Analysis, contractions: list[Contraction], axis_of: AxisOf, groups: Collection[str]
) -> dict[str, Site]:
    """Return one site per weight and bias (or following norm); a contraction that is called twice has two values and one site."""
    sites: dict[str, Site] = {}
    norms = _following_norms(captured, a, contractions)
    for c in contractions:
        if c.weight is None or c.x is None or not c.x.active or c.weight.active or not c.pattern:
            continue
        axis = axis_of(c.x.axes[c.dim])
        if not any(leaf in groups for leaf in leaves(axis)):
            continue
        name = owner = owner_of(captured, c)
        weight, value = value_name(captured, c.weight.name), (value_name(captured, c.x.name), c.dim)
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
            else free_name(f"{owner}.bias", {*a.tensors, *(s.slot for s in sites.values())})
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


def find_layouts(captured: Captured, a: Analysis, axis_of: AxisOf) -> FrozenDict[str, tuple[Layout, ...]]:
    """Return instruction → layouts of the weights of its contractions; values that depend on the inputs are no weights."""
    layouts: dict[str, tuple[Layout, ...]] = {}
    for node, weight, pattern, groups, convolution in a.layouts:
        if not weight.active:
            layout = Layout(value_name(captured, weight.name), pattern, axis_of(groups), convolution)
            layouts[node] = (*layouts.get(node, ()), layout)
    return FrozenDict(layouts)


def value_name(captured: Captured, node: str) -> str:
    """Return the program's name of a node's value."""
    if node in captured.tensors:
        return captured.tensors[node]
    return node if captured.nodes[node].op == "placeholder" else f"%{node}"


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name, or a longer one that is not taken."""
    while name in taken:
        name += "_shift"
    return name


def _following_norms(captured: Captured, a: Analysis, contractions: list[Contraction]) -> dict[str, str]:
    """Return contraction without a bias → running mean of the following BatchNorm, if the norm serves this weight alone."""
    mean_of: dict[str, str] = {}
    weights: dict[str, set[str]] = {}
    for c in contractions:
        mean = None if c.bias is not None else _running_mean(captured.nodes[c.node], captured)
        if mean is not None and c.weight is not None:
            mean_of[c.node] = mean
            weights.setdefault(mean, set()).add(c.weight.name)
    calls = Counter(mean_of.values())
    uses = {t: len(captured.nodes[node].users) for node, t in captured.tensors.items() if t in calls}
    return {node: t for node, t in mean_of.items() if len(weights[t]) == 1 and uses[t] == calls[t]}


def _running_mean(node: fx.Node, captured: Captured) -> str | None:
    """Return the running mean of an evaluating BatchNorm that is the only user of this node; else None."""
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


def find_slots(
    captured: Captured, contractions: list[Contraction], sites: dict[str, Site], axis_of: AxisOf
) -> tuple[Slot, ...]:
    """Return the slot for a new bias of each call of a contraction without one."""
    slots = []
    site_of = {node: s for s in sites.values() for node in s.calls}
    for c in contractions:
        if (site := site_of.get(c.node)) is not None and site.slot:
            argument, dim = (2, -1) if c.bias_arg and c.bias is None else (-1, c.dim)
            slots.append(Slot(site.slot, c.node, argument, dim, axis_of(c.out)))
    return tuple(slots)
