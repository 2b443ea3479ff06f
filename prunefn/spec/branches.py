"""Removal of branches from a program: which instructions each branch keeps alive, and the program without some of them.

A residual network adds what its blocks compute to a stream. Each such summand is a branch: without it, the addition passes the
stream on, and whatever only the branch needs is dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

from ..frozen_dict import FrozenDict
from .axis import Axis, Leaf, any_of, leaves, product, size
from .data import SpecData
from .parts import Branch, Group, Site, Term
from .program import Instruction, Program, Ref, refs

S = TypeVar("S", bound=SpecData)
Condition = frozenset[Axis]
"""Factors of sizes 0 or 1, all of which must be 1; empty: always met."""
ALWAYS: Condition = frozenset()
PASS_ON = "aten.alias.default"
"""What an addition becomes that loses an operand."""


class Needs(NamedTuple):
    """The conditions on branches under which something is there."""

    runs: dict[str, Condition]
    """Instruction → condition under which it runs; an addition with a removed operand passes the other one on, and does not."""
    read: dict[str, Condition]
    """Tensor, input or result of an instruction → condition under which something reads it."""

    def tensors(self, names: Iterable[str], tied: Mapping[str, str]) -> dict[str, Condition]:
        """Return tensor → condition under which it stays.

        A tensor that nothing reads, such as a counter of batches, stays while another tensor of its module stays.
        """
        names, by_first = list(names), dict[str, list[Condition]]()
        for n in names:
            if n in self.read:
                by_first.setdefault(tied.get(n, n), []).append(self.read[n])
        out = {n: either(by_first[tied.get(n, n)]) for n in names if tied.get(n, n) in by_first}
        inside: dict[str, list[Condition]] = {}
        for n, condition in out.items():
            for path in _parents(n):
                inside.setdefault(path, []).append(condition)
        for n in names:
            if n not in out:
                out[n] = next((either(inside[path]) for path in _parents(n) if path in inside), ALWAYS)
        return out


def needs_of(program: Program, branches: Mapping[str, Branch]) -> Needs:
    """Return the conditions under which instructions run and values are read; a buffer is updated while it is needed."""
    needs = _needs(program, branches, {})
    if not program.updates:
        return needs
    updated = needs.tensors([*program.tensors, *(t for t, _ in program.updates)], {})
    return _needs(program, branches, {ref.name: updated[t] for t, ref in program.updates})


def _needs(program: Program, branches: Mapping[str, Branch], wanted: Mapping[str, Condition]) -> Needs:
    """Return the conditions under which the outputs, the numbers that Python reads or the wanted values need something."""
    kept, slots = _Operands(program, branches), {s.instruction: s.tensor for s in program.slots}
    readers: dict[str, list[Condition]] = {name: [condition] for name, condition in wanted.items()}
    for name in _always_read(program):
        readers.setdefault(name, []).append(ALWAYS)
    runs: dict[str, Condition] = {}
    for i in reversed(program.instructions):
        if f"%{i.name}" not in readers:
            continue
        condition = runs[i.name] = either(readers[f"%{i.name}"])
        if i.name in slots:
            readers.setdefault(slots[i.name], []).append(condition)
        if i.name in kept.bypassed:
            layer, stream = kept.bypassed[i.name]
            readers.setdefault(stream, []).append(condition)
            condition = runs[i.name] = condition | {Leaf(layer)}
        if i.name in kept.additions:
            for n, operand in enumerate(i.args):
                runs[i.name] |= kept.survives(i, n)
                readers.setdefault(operand.name, []).append(condition | kept.edge(i, n))
        else:
            for name in dict.fromkeys(i.reads()):
                readers.setdefault(name, []).append(condition)
    return Needs(runs, {name: either(conditions) for name, conditions in readers.items()})


def _always_read(program: Program) -> list[str]:
    """Return the values that are read whatever branches are removed."""
    return [*refs(program.outputs), *(r.value for r in (program.recorded.reads if program.recorded else ()))]


class _Operands:
    """The conditions under which operands of additions survive."""

    def __init__(self, program: Program, branches: Mapping[str, Branch]) -> None:
        self.instructions = {f"%{i.name}": i for i in program.instructions}
        self.terms: dict[Term, Condition] = {}
        for name, branch in branches.items():
            for term in branch.terms:
                self.terms[term] = self.terms.get(term, ALWAYS) | {Leaf(name)}
        self.bypassed = {b.bypass: (name, b.input) for name, b in branches.items() if b.bypass}
        """Instruction → layer without which it passes on a stream, and this stream."""
        self.additions = self._additions({t.addition for t in self.terms})

    def _additions(self, names: set[str]) -> set[str]:
        """Return the additions with a branch among their summands, those of sums of sums included."""
        found = set(names)
        for i in self.instructions.values():
            if is_sum(i) and any(a.name[1:] in found for a in i.args) and any(self.survives(i, n) for n in (0, 1)):
                found.add(i.name)
        return found

    def edge(self, addition: Instruction, operand: int) -> Condition:
        """Return when an addition reads its operand, if it runs or passes the operand on."""
        return self.terms.get(Term(addition.name, operand), ALWAYS)

    def survives(self, addition: Instruction, operand: int) -> Condition:
        """Return when something of an operand is left: of a branch, while it is there; of a sum of branches, while one is."""
        if own := self.edge(addition, operand):
            return own
        inner = self.instructions.get(addition.args[operand].name)
        if inner is None or not (is_sum(inner) or (inner.op == PASS_ON and Term(inner.name, 0) in self.terms)):
            return ALWAYS
        parts = [self.survives(inner, n) for n in range(len(inner.args))]
        return either(parts) if all(parts) else ALWAYS

    def left(self, addition: Instruction, removed: Collection[str]) -> list[int]:
        """Return the operands that are left without some branches."""
        return [n for n in range(len(addition.args)) if is_met(self.survives(addition, n), removed)]


def is_sum(i: Instruction) -> bool:
    """Return whether an instruction adds two values."""
    return i.op == "aten.add.Tensor" and not i.kwargs and all(isinstance(a, Ref) for a in i.args) and len(i.args) == 2


def either(conditions: Iterable[Condition]) -> Condition:
    """Return the condition that one of the conditions is met: their common factors, and an alternative of the others.

    >>> sorted(either([frozenset({Leaf("a"), Leaf("layer")}), frozenset({Leaf("b"), Leaf("layer")})]), key=repr)
    [AnyOf(alternatives=(Leaf(name='a'), Leaf(name='b'))), Leaf(name='layer')]
    """
    distinct = list(dict.fromkeys(conditions))
    if not distinct or ALWAYS in distinct:
        return ALWAYS
    common = frozenset.intersection(*distinct)
    rests = [c - common for c in distinct]
    if ALWAYS in rests:
        return common
    alternatives = sorted((product(sorted(r, key=repr)) for r in rests), key=repr)
    return common | {any_of(alternatives)}


def factors(condition: Condition) -> tuple[Axis, ...]:
    """Return the factors of a cost that is incurred under a condition."""
    return tuple(sorted(condition, key=repr))


def _parents(name: str) -> list[str]:
    """Return the paths of the modules that contain a tensor, from the innermost one; not the whole model."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def is_met(condition: Condition, removed: Collection[str]) -> bool:
    """Return whether a condition is met without some branches."""
    sizes = {leaf: int(leaf not in removed) for axis in condition for leaf in leaves(axis)}
    return all(size(axis, sizes) > 0 for axis in condition)


@lru_cache(maxsize=16)
def _tensor_needs(spec: SpecData) -> dict[str, Condition]:
    """Return tensor → condition under which it stays."""
    return needs_of(spec.program, spec.branches).tensors(spec.axes, spec.tied)


def removed_tensors(spec: SpecData, removed: Collection[str]) -> frozenset[str]:
    """Return the tensors that nothing needs without some branches."""
    if not removed:
        return frozenset()
    return frozenset(t for t, condition in _tensor_needs(spec).items() if not is_met(condition, removed))


def lost_branches(tensors: Collection[str], spec: SpecData) -> list[str]:
    """Return the branches and layers of which no tensor is left: those whose tensors are all missing."""
    names = set(spec.axes) - {s.tensor for s in spec.program.slots}
    own = {n: removed_tensors(spec, (n,)) & names for n in spec.branches}
    return [n for n, t in own.items() if t and t.isdisjoint(tensors)]


def branches_with(spec: SpecData, tensors: Collection[str]) -> list[str]:
    """Return the branches and layers whose removal would remove one of these tensors."""
    return [n for n in spec.branches if not removed_tensors(spec, (n,)).isdisjoint(tensors)]


def without(spec: S, removed: Collection[str]) -> S:
    """Return the spec without some branches: their instructions, tensors, sites, groups and costs are gone."""
    if not removed:
        return spec
    gone = removed_tensors(spec, removed)
    program = _program_without(spec, removed, gone)
    live = {i.name for i in program.instructions}
    axes = {t: a for t, a in spec.axes.items() if t not in gone}
    sites = {n: s for n, old in spec.sites.items() if (s := _site_without(old, live)) is not None}
    kept = _Operands(spec.program, spec.branches)
    branches = {
        n: b
        for n, old in spec.branches.items()
        if n not in removed and ((b := _branch_without(old, kept, removed, live)).terms or b.bypass in live)
    }
    in_use = _leaves_in(program)
    groups = {
        n: g
        for n, old in spec.groups.items()
        if (g := _group_without(old, axes, sites, {*branches, *in_use})) is not None
    }
    lost = dict.fromkeys(spec.groups.keys() - groups.keys(), 0)
    return replace(
        spec,
        program=program,
        axes=FrozenDict(axes),
        sizes=FrozenDict({n: m for n, m in spec.sizes.items() if n in groups}),
        groups=FrozenDict(groups),
        sites=FrozenDict(sites),
        branches=FrozenDict(branches),
        removed=FrozenDict(
            {**spec.removed, **{b.module: spec.groups[n].kind for n, b in spec.branches.items() if n not in branches}}
        ),
        constants=spec.constants.only(program.constants),
        formulas=spec.formulas.bind(lost),
        layer_formulas=FrozenDict({n: q for n, p in spec.layer_formulas.items() if (q := p.bind(lost)).terms}),
        parameters=spec.parameters - gone,
        tied=FrozenDict({b: a for b, a in spec.tied.items() if a not in gone and b not in gone}),
        frozen=FrozenDict({(t, d): r for (t, d), r in spec.frozen.items() if t not in gone}),
        layouts=FrozenDict({n: x for n, x in spec.layouts.items() if n in live}),
        scales=tuple(s for s in spec.scales if s not in gone and (not s.startswith("%") or s[1:] in live)),
        without_grad=spec.without_grad - gone,
    )


def _program_without(spec: SpecData, removed: Collection[str], gone: Collection[str]) -> Program:
    p, kept = spec.program, _Operands(spec.program, spec.branches)
    updates = tuple((t, ref) for t, ref in p.updates if t not in gone)
    instructions = []
    reads = {*_always_read(p), *(ref.name for _, ref in updates)}
    for i in reversed(p.instructions):
        if f"%{i.name}" not in reads:
            continue
        if i.name in kept.bypassed and kept.bypassed[i.name][0] in removed:
            i = i._replace(op=PASS_ON, args=(Ref(kept.bypassed[i.name][1]),), kwargs=())
        elif i.name in kept.additions:
            left = kept.left(i, removed)
            i = i if len(left) == len(i.args) else i._replace(op=PASS_ON, args=tuple(i.args[n] for n in left))
        reads |= set(i.reads())
        instructions.append(i)
    live = {i.name for i in instructions}
    return p._replace(
        instructions=tuple(reversed(instructions)),
        tensors=tuple(t for t in p.tensors if t not in gone),
        constants=tuple(c for c in p.constants if c in reads),
        updates=updates,
        slots=tuple(s for s in p.slots if s.instruction in live),
        axes=FrozenDict({n: a for n, a in p.axes.items() if n[1:] in live}),
        layers=p.layers & live,
    )


def _site_without(site: Site, live: Collection[str]) -> Site | None:
    """Return a site with the calls that are left; None if there are none."""
    pairs = [(v, c) for v, c in zip(site.values, site.calls, strict=True) if c in live]
    return site._replace(values=tuple(v for v, _ in pairs), calls=tuple(c for _, c in pairs)) if pairs else None


def _group_without(
    group: Group, axes: Collection[str], sites: Collection[str], in_use: Collection[str]
) -> Group | None:
    """Return a group with the members that are left; None if there are none, and no value has its units either."""
    members = tuple(m for m in group.members if m.tensor in axes)
    if not members and group.name not in in_use:
        return None
    return group._replace(members=members, sites=tuple(s for s in group.sites if s in sites))


def _leaves_in(program: Program) -> set[str]:
    """Return the leaves of all values."""
    return {leaf for axes in program.axes.values() for axis in axes for leaf in leaves(axis)}


def _branch_without(branch: Branch, kept: _Operands, removed: Collection[str], live: Collection[str]) -> Branch:
    """Return a branch with the summands that are left, at their new positions."""
    terms = []
    for t in branch.terms:
        left = kept.left(kept.instructions[f"%{t.addition}"], removed)
        if t.addition in live and t.operand in left:
            terms.append(Term(t.addition, left.index(t.operand)))
    return branch._replace(terms=tuple(terms))
