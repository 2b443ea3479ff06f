"""Groups of whole blocks: branches (what a block adds to a stream) and layers (children of containers that only add)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from ..frozen_dict import FrozenDict
from ..spec.axis import Axis, Leaf
from ..spec.branches import Needs, is_met, is_sum, needs_of
from ..spec.parts import Branch, Group, Term
from ..spec.program import Instruction, Program, Ref, Slot, refs
from .rules.families import MAXIMA, MOVES, RELU, family

POSITIONS = ("aten.select", "aten.slice", "aten.eq", "operator.getitem")
"""Ops with a position of an axis, or of a list of tensors, as a number."""

CONVERSIONS = ("aten.to.", "aten._to_copy.")
"""Ops that change the type of the numbers."""


class Depth(NamedTuple):
    """The groups of whole blocks."""

    branches: FrozenDict[str, Branch]
    groups: FrozenDict[str, Group]
    slots: tuple[Slot, ...]


class Network(NamedTuple):
    """What is known of a network besides its program."""

    axes: Mapping[str, tuple[Axis, ...]]
    """Tensor → axes."""
    contractions: Mapping[str, Axis]
    """Instruction that contracts → the axis of its outputs."""
    children: frozenset[str]
    """Paths of the modules in containers."""
    tied: Mapping[str, str]
    frozen: frozenset[str]
    """Tensors that must not change."""
    names: Collection[str]
    """Names of other groups."""


def children_of_containers(model: nn.Module) -> frozenset[str]:
    """Return the paths of all modules that are in an `nn.Sequential` or `nn.ModuleList`, whose children may leave it.

    A list of modules of different classes inside a child of another container is no container of layers: its parts have roles.

    >>> sorted(children_of_containers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    ['0', '1']
    """
    containers = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    children = {f"{path}.{n}".lstrip("."): path for path, m in containers for n, _ in m.named_children()}
    roles = {
        path
        for path, m in containers
        if isinstance(m, nn.ModuleList)
        and len({type(c) for c in m.children()}) > 1
        and any(_is_in(path, child) for child in children)
    }
    return frozenset(child for child, path in children.items() if path not in roles)


def find_depth(program: Program, net: Network) -> Depth:
    """Return the branches and layers of a network.

    Chains of additions are flattened into summands. A summand is a branch if weights compute it from another summand: removing
    it leaves x of x + f(x).
    """
    summands = _without_frozen(_contracting(_Sums(program, net.axes).summands(), program, net), program, net)
    needs = needs_of(program, summands)
    layers = _layers(summands, needs, program, net)
    whole = {members[0] for members in layers.values() if len(members) == 1}
    branches: dict[str, Branch] = {}
    for n, branch in ((n, b) for n, b in summands.items() if n not in whole):
        path = _path_of(n, needs, program, net)
        branches[_free(path, "branch", {*net.names, *branches})] = branch._replace(module=path)
    kinds = dict.fromkeys(branches, "branch")
    for path, members in layers.items():
        name = _free(path, "layer", {*net.names, *branches})
        parts = [summands[n] for n in members]
        terms = tuple(t for b in parts for t in b.terms)
        branches[name] = Branch(terms, path, parts[0].input, parts[-1].output)
        kinds[name] = "layer"
    ends = {}
    for path, (stream, end) in _bypassed(summands, layers, program, net).items():
        name = _free(path, "layer", {*net.names, *branches})
        branches[name] = Branch((), path, stream, f"%{end}", bypass=end)
        kinds[name], ends[name] = "layer", end
    slots = _slots(summands, needs, program, net)
    branches = {n: b._replace(shift=slots[b.output].tensor if b.output in slots else "") for n, b in branches.items()}
    ops = {i.name: i.op for i in program.instructions}
    mixed = {name: (ops[end],) for name, end in ends.items()}
    return Depth(FrozenDict(branches), FrozenDict(_groups(kinds, mixed)), tuple(slots.values()))


def _groups(kinds: Mapping[str, str], mixed: Mapping[str, tuple[str, ...]]) -> dict[str, Group]:
    """Return a group of one unit for each branch and layer; one that ends in another op than an addition is not exact."""
    counts, groups = dict.fromkeys(kinds.values(), 0), {}
    for name, kind in kinds.items():
        groups[name] = Group(name, kind, 1, (), (), mixed.get(name, ()), f"{kind}_{counts[kind]}")
        counts[kind] += 1
    return groups


def _slots(summands: Mapping[str, Branch], needs: Needs, program: Program, net: Network) -> dict[str, Slot]:
    """Return sum → slot of a bias along the channels, for each sum with a branch."""
    slots: dict[str, Slot] = {}
    for n, branch in summands.items():
        axes = program.axes.get(branch.output, ())
        outs = [net.contractions[i] for i in _only_for(n, needs) if i in net.contractions]
        channels = [d for d, a in enumerate(axes) if a in outs]
        if branch.output in slots or not channels:
            continue
        taken = {*net.axes, *(s.tensor for s in slots.values())}
        name = _free(f"{_path_of(n, needs, program, net)}.mean", "shift", taken)
        dim = channels[-1] - len(axes)
        slots[branch.output] = Slot(name, branch.output[1:], -1, dim, axes[dim])
    return slots


class _Sums:
    """The sums of a program: chains of additions of values with the same axes."""

    def __init__(self, program: Program, axes: Mapping[str, tuple[Axis, ...]]) -> None:
        self.axes = {**axes, **{i.name: i.axes for i in program.inputs}, **program.axes}
        self.instructions = {f"%{i.name}": i for i in program.instructions}
        self.readers: dict[str, list[str]] = {name: [""] for name in refs(program.outputs)}
        self.ancestors: dict[str, int] = {}
        """Value → the set of values that it is computed from, as bits."""
        self.bit = {n: 1 << k for k, n in enumerate([*(i.name for i in program.inputs), *self.instructions])}
        for i in program.instructions:
            computed_from = 0
            for name in i.reads():
                self.readers.setdefault(name, []).append(i.name)
                computed_from |= self.ancestors.get(name, 0) | self.bit.get(name, 0)
            self.ancestors[f"%{i.name}"] = computed_from

    def summands(self) -> dict[str, Branch]:
        """Return the summands that are computed from another summand of the same sum, under provisional names."""
        out: dict[str, Branch] = {}
        for value, i in self.instructions.items():
            if not self.is_addition(i) or self.is_inner(value):
                continue
            terms = list(self.terms(i))
            for term, summand in terms:
                computed_from = self.ancestors.get(summand, 0)
                before = [v for _, v in terms if v != summand and computed_from & self.bit.get(self.unconverted(v), 0)]
                if before:
                    out[str(len(out))] = Branch((term,), i.module, before[0], value)
        return out

    def unconverted(self, value: str) -> str:
        """Return the value before conversions to another type: a stream that is kept in float32 is still the stream."""
        i = self.instructions.get(value)
        while i is not None and i.op.startswith(CONVERSIONS):
            value = i.args[0].name
            i = self.instructions.get(value)
        return value

    def is_addition(self, i: Instruction | None) -> bool:
        """Return whether an instruction adds two values of the axes of their sum."""
        if i is None or not is_sum(i):
            return False
        axes = self.axes.get(f"%{i.name}")
        return axes is not None and all(self.axes.get(a.name) == axes for a in i.args if isinstance(a, Ref))

    def is_inner(self, value: str) -> bool:
        """Return whether a sum is only a summand of another sum."""
        readers = self.readers.get(value, [])
        return len(readers) == 1 and self.is_addition(self.instructions.get(f"%{readers[0]}"))

    def terms(self, i: Instruction) -> Iterator[tuple[Term, str]]:
        """Yield the summands of a sum, those of inner sums included, each with its value."""
        for n, operand in enumerate(i.args):
            inner = self.instructions.get(operand.name)
            if inner is not None and self.is_addition(inner) and self.is_inner(operand.name):
                yield from self.terms(inner)
            else:
                yield Term(i.name, n), operand.name


def _contracting(summands: Mapping[str, Branch], program: Program, net: Network) -> dict[str, Branch]:
    """Return the summands that alone need a contraction; others save nothing."""
    needs = needs_of(program, summands)
    return {n: b for n, b in summands.items() if any(i in net.contractions for i in _only_for(n, needs))}


def _without_frozen(summands: dict[str, Branch], program: Program, net: Network) -> dict[str, Branch]:
    """Return the summands that can go without a tensor that must stay."""
    if not net.frozen:
        return summands
    by_tensor = needs_of(program, summands).tensors(net.axes, net.tied)
    frozen = frozenset(leaf for t in net.frozen for leaf in by_tensor.get(t, ()))
    return {n: b for n, b in summands.items() if Leaf(n) not in frozen}


def _only_for(name: str, needs: Needs) -> list[str]:
    """Return the instructions that are dead without a summand."""
    return [i for i, condition in needs.runs.items() if Leaf(name) in condition]


def _modules_of(name: str, needs: Needs, program: Program, net: Network) -> list[str]:
    """Return the modules of the contractions that only a summand needs, in the order of the program."""
    dead = set(_only_for(name, needs))
    return [i.module for i in program.instructions if i.name in dead and i.name in net.contractions]


# ---- layers


def _layers(summands: Mapping[str, Branch], needs: Needs, program: Program, net: Network) -> dict[str, list[str]]:
    """Return path of a layer → its summands; a layer is a child of a container that does nothing without them."""
    modules = {n: _modules_of(n, needs, program, net) for n in summands}
    addition = {i.name: i.module for i in program.instructions}
    valid: dict[str, list[str]] = {}
    for path in net.children:
        inside = [n for n, paths in modules.items() if all(_is_in(p, path) for p in paths)]
        if inside and _does_nothing_without(inside, path, summands, needs, program):
            valid[path] = inside
    # of a pair [attention, MLP] whose results the parent adds, no one leaves the pair alone
    outside = [
        p for p, inside in valid.items() if not any(_is_in(addition[summands[n].terms[0].addition], p) for n in inside)
    ]
    pairs = {p for p in outside if any(_is_in(p, q) and p != q and len(valid[q]) > len(valid[p]) for q in valid)}
    numbered = _numbered_experts(valid, summands, needs, program)
    left = {p: inside for p, inside in valid.items() if p not in pairs and p not in numbered}
    order = list(dict.fromkeys(i.module for i in program.instructions))
    smallest = [p for p in left if not any(_is_in(q, p) and q != p for q in left)]
    first = {p: next((k for k, m in enumerate(order) if _is_in(m, p)), len(order)) for p in smallest}
    return {p: left[p] for p in sorted(smallest, key=first.__getitem__)}


def _numbered_experts(
    valid: Mapping[str, list[str]], summands: Mapping[str, Branch], needs: Needs, program: Program
) -> set[str]:
    """Return the children that read one stream side by side and whose results meet a position of another value, such as a score.

    They are experts of a list: without one of them, those behind it would meet the scores of others.
    """
    beside: dict[tuple[str, str], list[str]] = {}
    for path, inside in valid.items():
        beside.setdefault((path.rpartition(".")[0], summands[inside[0]].input), []).append(path)
    together = [path for paths in beside.values() if len(paths) > 1 for path in paths]
    picks = [i for i in program.instructions if i.op.startswith(POSITIONS) and i.name in needs.runs]
    return {
        path
        for path in together
        if any(not _is_in(i.module, path) and not is_met(needs.runs[i.name], valid[path]) for i in picks)
    }


def _bypassed(
    summands: Mapping[str, Branch], layers: Collection[str], program: Program, net: Network
) -> dict[str, tuple[str, str]]:
    """Return path of a layer → (stream that it reads, instruction whose result takes its place).

    These are children of containers with residual sums that are no layers as such, since they end in a norm, say: blocks of
    encoders with the norm behind the sum. All that others read of them is one value, of the axes of one value that they read.
    """
    sums = {b.terms[0].addition for b in summands.values()}
    homes = {i.module for i in program.instructions if i.name in sums}
    paths = [p for p in net.children if not any(_is_in(p, q) or _is_in(q, p) for q in layers)]
    paths = [p for p in paths if any(_is_in(m, p) for m in homes) and not any(_is_in(n, p) for n in net.frozen)]
    axes_of = {**{i.name: i.axes for i in program.inputs}, **program.axes}
    out: dict[str, tuple[str, str]] = {}
    for path in sorted(p for p in paths if not any(_is_in(q, p) and q != p for q in paths)):
        inside = [i for i in program.instructions if _is_in(i.module, path)]
        results = {f"%{i.name}" for i in inside}
        outside = [i for i in program.instructions if not _is_in(i.module, path)]
        read = {*refs(program.outputs), *(n for i in outside for n in i.reads())} & results
        axes = axes_of.get(next(iter(read))) if len(read) == 1 else None
        sources = dict.fromkeys(n for i in inside for n in i.reads() if n not in results and axes_of.get(n) == axes)
        if axes is not None and len(sources) == 1:
            out[path] = next(iter(sources)), next(iter(read))[1:]
    order = {i.name: n for n, i in enumerate(program.instructions)}
    return dict(sorted(out.items(), key=lambda item: order[item[1][1]]))


def _does_nothing_without(
    inside: list[str], path: str, summands: Mapping[str, Branch], needs: Needs, program: Program
) -> bool:
    """Return whether all that a module still computes without these summands is the stream itself.

    The stream may pass ops that move values there and back, and a ReLU if it comes from one.
    """
    sums = {t.addition for n in inside for t in summands[n].terms}
    positive = _is_positive(summands[inside[0]].input, {f"%{i.name}": i for i in program.instructions})
    apart = sums | _numbers(program)
    for i in program.instructions:
        if not _is_in(i.module, path) or i.name not in needs.runs or i.name in apart or family(i.op) in MOVES:
            continue
        if is_met(needs.runs[i.name], inside) and not (positive and family(i.op) == RELU):
            return False
    return True


def _numbers(program: Program) -> set[str]:
    """Return the instructions whose results are sizes, or numbers computed from sizes alone, which other layers may share."""
    found = set[str]()
    for i in program.instructions:
        arithmetic = i.op.startswith("operator.") and i.op != "operator.getitem" and {n[1:] for n in i.reads()} <= found
        found |= {i.name} if i.is_size or arithmetic else set()
    return found


def _is_positive(value: str, instructions: Mapping[str, Instruction]) -> bool:
    """Return whether a ReLU gave a value, perhaps through a maximum over positions."""
    i = instructions.get(value)
    while i is not None and family(i.op) in MAXIMA:
        i = instructions.get(i.reads()[0])
    return i is not None and family(i.op) == RELU


def _is_in(module: str, path: str) -> bool:
    return f"{module}.".startswith(f"{path}.")


# ---- names


def _path_of(name: str, needs: Needs, program: Program, net: Network) -> str:
    """Return the module that computes a summand: the innermost one with all its contractions, and with no others."""
    paths = _modules_of(name, needs, program, net)
    dead = set(_only_for(name, needs))
    common = paths[0].split(".")
    for p in paths[1:]:
        same = [a == b for a, b in zip(common, p.split("."), strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    path = ".".join(common)
    others = (i for i in program.instructions if i.name in net.contractions and i.name not in dead)
    return paths[0] if not path or any(_is_in(i.module, path) for i in others) else path


def _free(name: str, suffix: str, taken: Collection[str]) -> str:
    """Return a name that is not taken."""
    candidates = [name, f"{name}.{suffix}", *(f"{name}.{suffix}.{k}" for k in range(1, len(taken) + 2))]
    return next(c for c in candidates if c not in taken)
