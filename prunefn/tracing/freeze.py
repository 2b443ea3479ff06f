"""Freeze tensors that the caller wants unchanged: their axes are frozen, and no compensation writes to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ..errors import ParamsError, nearest
from ..frozen_dict import FrozenDict
from ..names import named
from ..spec.parts import Site
from ..spec.program import Instruction, Slot, op_name, target
from ..spec.spec import Spec
from .analyse import Analysis
from .capture import Captured
from .rules import Reason
from .sites import free_name

CALLER = Reason("by the caller")


def chosen(patterns: Sequence[str] | str, known: Collection[str]) -> frozenset[str]:
    """Return the tensors that match a pattern.

    Raises:
        ParamsError: a pattern matches nothing.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for p in patterns:
        if not any(named(name, p) for name in known):
            modules = {name.rpartition(".")[0] for name in known} - {""}
            raise ParamsError(f"freeze={p!r} matches no tensor and no module{nearest(p, [*known, *sorted(modules)])}")
    return frozenset(name for name in known if any(named(name, p) for p in patterns))


def freeze_tensors(captured: Captured, a: Analysis, names: frozenset[str]) -> None:
    """Freeze all axes of these tensors."""
    contractions = [
        (captured.tensors.get(c.bias.name), captured.tensors.get(c.weight.name), op_name(captured.nodes[c.node].target))
        for c in a.contractions
        if c.bias is not None and c.weight is not None
    ]
    for name in names | _weights_without_slot(contractions, names):
        for axis in a.tensors[name]:
            a.alg.freeze(axis, CALLER)


def unchangeable(spec: Spec, names: frozenset[str]) -> frozenset[str]:
    """Return the frozen tensors, and the weights that must not lose units, since their frozen bias cannot compensate."""
    ops = {i.name: i.op for i in spec.program.instructions}
    contractions = [(s.bias, s.weight, ops[s.calls[0]]) for s in spec.sites.values() if s.calls[0] in ops]
    return names | _weights_without_slot(contractions, names)


def _weights_without_slot(
    contractions: Iterable[tuple[str | None, str | None, str]], names: Collection[str]
) -> frozenset[str]:
    """Return the weights of contractions (bias, weight, op) with a frozen bias and several results.

    A compensation cannot add another bias to several results.
    """
    return frozenset(
        weight
        for bias, weight, op in contractions
        if bias in names and weight is not None and len(target(op)._schema.returns) > 1  # type: ignore[attr-defined]
    )


def unwritten(spec: Spec, names: Collection[str]) -> Spec:
    """Return the spec in which a compensation creates a new bias instead of writing to one of these tensors."""
    firsts = {spec.tied.get(n, n) for n in names}
    names = {*firsts, *(second for second, first in spec.tied.items() if first in firsts)}
    sites, slots, axes = dict(spec.sites), list(spec.program.slots), dict(spec.axes)
    calls = {i.name: i for i in spec.program.instructions}
    for site in spec.sites.values():
        if site.bias in names or site.norm in names:
            slot = free_name(f"{site.name.rstrip(chr(39))}.bias", axes)
            sites[site.name] = site._replace(bias=None, norm=None, slot=slot)
            dims = [dim for _, dim in site.values]
            slots += [_new_slot(site, slot, calls[c], d) for c, d in zip(site.calls, dims, strict=True) if c in calls]
            axes[slot] = (site.out,)
    program = spec.program._replace(slots=tuple(slots))
    unwritable = spec.unwritable | names
    return replace(spec, program=program, sites=FrozenDict(sites), axes=FrozenDict(axes), unwritable=unwritable)


def _new_slot(site: Site, tensor: str, call: Instruction, dim: int) -> Slot:
    """Return the slot of a new bias: the op's bias argument if it is free, else an addition to the op's result."""
    schema = target(call.op)._schema.arguments  # type: ignore[attr-defined]
    takes_bias = site.bias is None and len(schema) > 2 and schema[2].name == "bias" and "bias" not in dict(call.kwargs)
    argument = 2 if takes_bias and (len(call.args) < 3 or call.args[2] is None) else -1
    return Slot(tensor, call.name, argument, -1 if argument == 2 else dim, site.out)
