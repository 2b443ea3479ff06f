"""Effective tensors: the tensors that the program's ops use as weights, parameters or values computed from parameters.

Under weight norm, spectral norm, `nn.utils.prune`, any other parametrization, weight standardisation or a sum of branches, the
parameter is not the weight. Criteria score effective tensors, so two ways to write the same function get the same scores; and
parameters are set to zero where that makes the effective tensor zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, fx

from ..frozen_dict import FrozenDict
from ..program.compiled import compiled, value_of
from ..program.sharded import Gathering
from ..spec.axis import Axis, leaves
from ..spec.program import Instruction, Ref
from ..spec.spec import Spec
from ..tracing.rules.families import MOVES, family
from ..types import Params


class Effective(NamedTuple):
    """A tensor that the program uses as a weight, with groups in some of its dims."""

    name: str
    """Name of a parameter, or of a value of the program (`%name`) that is computed from parameters."""
    axes: tuple[Axis, ...]
    roles: tuple[str, ...]
    """`out`, `in` or `along` for each dim, as in `Member.role`."""
    bias: bool
    sources: tuple[str, ...]
    """The parameters from which it is computed; for a parameter, the parameter itself."""

    @property
    def computed(self) -> bool:
        """Whether the tensor is computed rather than a parameter."""
        return self.name.startswith("%")

    def dims(self, group: str) -> list[int]:
        """Return the dims in which a group occurs."""
        return [d for d, axis in enumerate(self.axes) if group in leaves(axis)]


@lru_cache(maxsize=64)
def effective(spec: Spec) -> tuple[Effective, ...]:
    """Return the effective tensors with groups, in program order; tied tensors occur once.

    A parameter that only enters the computation of others is not effective. So a group inside such a computation (the ranks of
    factors whose product is a weight) occurs in no effective tensor.
    """
    usage = _WeightUsage(spec)
    computed = {v: usage.sources(v) for v in usage.used if v.startswith("%") and _has_groups(usage.axes(v), spec)}
    inner = {p for sources in computed.values() for p in sources} - set(usage.used)
    order = {t: n for n, t in enumerate(dict.fromkeys(spec.tied.get(t, t) for t in spec.axes))}
    numbered: list[tuple[float, Effective]] = []
    for tensor in order:
        axes = spec.axes[tensor]
        if tensor in spec.parameters and tensor not in inner and _has_groups(axes, spec):
            roles = tuple(_member_role(tensor, d, spec) for d in range(len(axes)))
            numbered.append((order[tensor], Effective(tensor, axes, roles, tensor.endswith("bias"), (tensor,))))
    for value, sources in computed.items():
        # a computed tensor stands just after the first of its parameters
        position, bias = (
            min(order[p] for p in sources) + 0.5,
            value in usage.biases or all(p.endswith("bias") for p in sources),
        )
        numbered.append((position, Effective(value, usage.axes(value), usage.roles(value), bias, sources)))
    return tuple(e for _, e in sorted(numbered, key=lambda x: x[0]))


@lru_cache(maxsize=64)
def computed_weights(spec: Spec, convolutions: bool = False) -> FrozenDict[str, tuple[str, ...]]:
    """Return the contractions (or convolutions) with a computed weight: module → parameters from which it is computed."""
    usage = _WeightUsage(spec)
    computed = [(v, *use) for v, uses in usage.read.items() if v.startswith("%") for use in uses]
    read = [(module, v) for v, _, words, module in computed if len(words) > 2 or not convolutions]
    return FrozenDict({module: usage.sources(v) for module, v in read})


def reader(params: Mapping[str, Tensor], *, spec: Spec) -> Callable[[str], Tensor]:
    """Return a function from the name of an effective tensor to its value, which is differentiable in the parameters.

    If params are gathered one by one, each value is computed on request; otherwise all are computed at once.
    """
    if isinstance(params, Gathering):
        sharded_params = dict(params.params)
        return lambda name: value_of(sharded_params, name, spec=spec)
    values = {**params, **computed_values(dict(params), spec=spec)}
    return values.__getitem__


def computed_values(params: Params, *, spec: Spec) -> dict[str, Tensor]:
    """Return the effective tensors that are computed: `%name` → value."""
    names = tuple(e.name for e in effective(spec) if e.computed)
    if not names:
        return {}

    def emit(_: fx.Graph, env: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(env[n] for n in names)

    run = compiled(spec, params, ("effective",), emit, only=names)
    return dict(zip(names, run(params, [None] * len(spec.program.inputs)), strict=True))


@lru_cache(maxsize=16)
def exposed(spec: Spec) -> Spec:
    """Return a spec whose program takes computed effective tensors as separate tensors, by their names (`%name`)."""
    axes_of_computed = {e.name: e.axes for e in effective(spec) if e.computed}
    if not axes_of_computed:
        return spec
    remaining = tuple(i for i in spec.program.instructions if f"%{i.name}" not in axes_of_computed)
    program = spec.program._replace(instructions=remaining, tensors=(*spec.program.tensors, *axes_of_computed))
    return replace(spec, program=program, axes=FrozenDict({**spec.axes, **axes_of_computed}))


class _WeightUsage:
    """The weights that ops on activations read, traced back to parameters and to values computed from them."""

    def __init__(self, spec: Spec) -> None:
        self.spec, active = spec, spec.program.activations()
        self.roots: dict[str, tuple[str, ...]] = {t: (spec.tied.get(t, t),) for t in spec.axes}
        self.computed_from: dict[str, frozenset[str]] = {t: frozenset({spec.tied.get(t, t)}) for t in spec.parameters}
        self.used: dict[str, None] = {}
        self.biases: set[str] = set()
        self.read: dict[str, list[tuple[str, tuple[str, ...], str]]] = {}
        """Root → (value that a contraction reads, words of its pattern, module of the contraction)"""
        for i in spec.program.instructions:
            names = i.reads()
            if f"%{i.name}" in active:
                self._record_use(i, [n for n in names if n in self.roots])
            else:
                self._record_computation(i, names)

    def _record_use(self, i: Instruction, names: list[str]) -> None:
        self.used |= dict.fromkeys(r for n in names for r in self.roots[n])
        bias = i.arguments().get("bias") if i.name in self.spec.program.layers else None
        if isinstance(bias, Ref) and bias.name in self.roots:
            self.biases |= set(self.roots[bias.name])
        for layout in self.spec.layouts.get(i.name, ()):
            words = tuple(layout.pattern.partition("->")[0].replace("(g o)", "o").replace("(g i)", "i").split())
            for root in self.roots.get(layout.weight, ()):
                self.read.setdefault(root, []).append((layout.weight, words, i.module))

    def _record_computation(self, i: Instruction, names: list[str]) -> None:
        value, op = f"%{i.name}", family(i.op)
        self.computed_from[value] = frozenset().union(*(self.computed_from.get(n, frozenset()) for n in names))
        several = op == "operator.getitem" and any(n.startswith("%") and self.roots.get(n) == (n,) for n in names)
        if op in MOVES and not several:
            self.roots[value] = tuple(dict.fromkeys(r for n in names for r in self.roots.get(n, ())))
        else:
            self.roots[value] = (value,) if self.computed_from[value] else ()

    def axes(self, value: str) -> tuple[Axis, ...]:
        return self.spec.axes.get(value) or self.spec.program.axes.get(value) or ()

    def sources(self, value: str) -> tuple[str, ...]:
        return tuple(t for t in self.spec.axes if t in self.computed_from[value])

    def roles(self, value: str) -> tuple[str, ...]:
        """Return the role of each dim: `in` if the contraction that reads the value sums over the dim's groups, `out` or `along`.

        If a group occurs on both sides of the contraction, the position of the dim decides.
        """
        axes = self.axes(value)
        for read_value, words, _ in self.read.get(value, ()):
            groups_of_side = {
                w: {g for a, word in zip(self.axes(read_value), words, strict=True) if word == w for g in leaves(a)}
                for w in "oi"
            }
            places = words if read_value == value else tuple(reversed(words))
            roles = []
            for d, axis in enumerate(axes):
                dim_groups = set(leaves(axis))
                sides = [w for w in "oi" if dim_groups and dim_groups <= groups_of_side[w]]
                word = sides[0] if len(sides) == 1 else places[d] if len(sides) == 2 and d < len(places) else ""
                roles.append({"o": "out", "i": "in"}.get(word, "along"))
            return tuple(roles)
        return ("along",) * len(axes)


def _member_role(tensor: str, dim: int, spec: Spec) -> str:
    role_of = {(m.tensor, m.dim): m.role for g in spec.groups.values() for m in g.members if m.tensor == tensor}
    return role_of.get((tensor, dim), "along")


def _has_groups(axes: tuple[Axis, ...], spec: Spec) -> bool:
    return any(leaf in spec.groups for axis in axes for leaf in leaves(axis))
