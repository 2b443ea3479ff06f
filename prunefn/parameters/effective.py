"""Effective tensors: what the program's ops use as weights, which is a parameter or a value computed from parameters.

Under weight norm, spectral norm, `nn.utils.prune`, any other parametrization, weight standardisation or a sum of branches, the
parameter is not the weight. Scores are of effective tensors, so that two ways to write the same function score alike; and zeros
are set where they make the effective tensor zero.
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
    """A tensor that the program uses, with groups in some of its dims."""

    name: str
    """A parameter, or a value of the program (`%name`) that is computed from parameters."""
    axes: tuple[Axis, ...]
    roles: tuple[str, ...]
    """`out`, `in` or `along` for each dim, as of a `Member`."""
    bias: bool
    sources: tuple[str, ...]
    """The parameters that it is computed from; of a parameter, itself."""

    @property
    def computed(self) -> bool:
        """Whether it is not a parameter."""
        return self.name.startswith("%")

    def dims(self, group: str) -> list[int]:
        """The dims in which a group occurs."""
        return [d for d, axis in enumerate(self.axes) if group in leaves(axis)]


@lru_cache(maxsize=64)
def effective(spec: Spec) -> tuple[Effective, ...]:
    """The effective tensors with groups, in program order; tied ones once.

    A parameter that only enters the computation of others is none; so a group within such a computation (the ranks of factors
    that are multiplied to a weight) occurs in no effective tensor.
    """
    found = _Reading(spec)
    computed = {v: found.sources(v) for v in found.used if v.startswith("%") and _has_groups(found.axes(v), spec)}
    inner = {p for sources in computed.values() for p in sources} - set(found.used)
    order = {t: n for n, t in enumerate(dict.fromkeys(spec.tied.get(t, t) for t in spec.axes))}
    out: list[tuple[float, Effective]] = []
    for tensor in order:
        axes = spec.axes[tensor]
        if tensor in spec.parameters and tensor not in inner and _has_groups(axes, spec):
            roles = tuple(_member_role(tensor, d, spec) for d in range(len(axes)))
            out.append((order[tensor], Effective(tensor, axes, roles, tensor.endswith("bias"), (tensor,))))
    for value, sources in computed.items():
        at, bias = (
            min(order[p] for p in sources) + 0.5,
            value in found.biases or all(p.endswith("bias") for p in sources),
        )
        out.append((at, Effective(value, found.axes(value), found.roles(value), bias, sources)))
    return tuple(e for _, e in sorted(out, key=lambda x: x[0]))


@lru_cache(maxsize=64)
def computed_weights(spec: Spec, convolutions: bool = False) -> FrozenDict[str, tuple[str, ...]]:
    """The contractions (or convolutions) whose weight is no parameter: module → the parameters that it is computed from."""
    found = _Reading(spec)
    computed = [(v, *use) for v, uses in found.read.items() if v.startswith("%") for use in uses]
    read = [(module, v) for v, _, words, module in computed if len(words) > 2 or not convolutions]
    return FrozenDict({module: found.sources(v) for module, v in read})


def reader(params: Mapping[str, Tensor], *, spec: Spec) -> Callable[[str], Tensor]:
    """Name of an effective tensor → its value, with the gradient of the parameters that it is computed from.

    Of params that are gathered one by one, a value is computed when it is asked for; else all are computed at once.
    """
    if isinstance(params, Gathering):
        whole = dict(params.params)
        return lambda name: value_of(whole, name, spec=spec)
    known = {**params, **computed_values(dict(params), spec=spec)}
    return known.__getitem__


def computed_values(params: Params, *, spec: Spec) -> dict[str, Tensor]:
    """The effective tensors that are no parameters: `%name` → value."""
    names = tuple(e.name for e in effective(spec) if e.computed)
    if not names:
        return {}

    def emit(_: fx.Graph, env: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(env[n] for n in names)

    run = compiled(spec, params, ("effective",), emit, only=names)
    return dict(zip(names, run(params, [None] * len(spec.program.inputs)), strict=True))


@lru_cache(maxsize=16)
def exposed(spec: Spec) -> Spec:
    """The spec whose program takes its computed effective tensors as tensors of their own, by their names (`%name`)."""
    new = {e.name: e.axes for e in effective(spec) if e.computed}
    if not new:
        return spec
    kept = tuple(i for i in spec.program.instructions if f"%{i.name}" not in new)
    program = spec.program._replace(instructions=kept, tensors=(*spec.program.tensors, *new))
    return replace(spec, program=program, axes=FrozenDict({**spec.axes, **new}))


class _Reading:
    """What the ops on activations read, traced back to parameters and to values computed from them."""

    def __init__(self, spec: Spec) -> None:
        self.spec, active = spec, spec.program.activations()
        self.roots: dict[str, tuple[str, ...]] = {t: (spec.tied.get(t, t),) for t in spec.axes}
        self.made_of: dict[str, frozenset[str]] = {t: frozenset({spec.tied.get(t, t)}) for t in spec.parameters}
        self.used: dict[str, None] = {}
        self.biases: set[str] = set()
        self.read: dict[str, list[tuple[str, tuple[str, ...], str]]] = {}
        """Root → (value that a contraction reads, the words of its pattern, the contraction's module)"""
        for i in spec.program.instructions:
            names = i.reads()
            if f"%{i.name}" in active:
                self._use(i, [n for n in names if n in self.roots])
            else:
                self._compute(i, names)

    def _use(self, i: Instruction, names: list[str]) -> None:
        self.used |= dict.fromkeys(r for n in names for r in self.roots[n])
        bias = i.arguments().get("bias") if i.name in self.spec.program.layers else None
        if isinstance(bias, Ref) and bias.name in self.roots:
            self.biases |= set(self.roots[bias.name])
        for layout in self.spec.layouts.get(i.name, ()):
            words = tuple(layout.pattern.partition("->")[0].replace("(g o)", "o").replace("(g i)", "i").split())
            for root in self.roots.get(layout.weight, ()):
                self.read.setdefault(root, []).append((layout.weight, words, i.module))

    def _compute(self, i: Instruction, names: list[str]) -> None:
        value, op = f"%{i.name}", family(i.op)
        self.made_of[value] = frozenset().union(*(self.made_of.get(n, frozenset()) for n in names))
        several = op == "operator.getitem" and any(n.startswith("%") and self.roots.get(n) == (n,) for n in names)
        if op in MOVES and not several:
            self.roots[value] = tuple(dict.fromkeys(r for n in names for r in self.roots.get(n, ())))
        else:
            self.roots[value] = (value,) if self.made_of[value] else ()

    def axes(self, value: str) -> tuple[Axis, ...]:
        return self.spec.axes.get(value) or self.spec.program.axes.get(value) or ()

    def sources(self, value: str) -> tuple[str, ...]:
        return tuple(t for t in self.spec.axes if t in self.made_of[value])

    def roles(self, value: str) -> tuple[str, ...]:
        """A dim is summed over if the contraction that reads it sums over its groups; where a group is on both sides, by place."""
        axes = self.axes(value)
        for read, words, _ in self.read.get(value, ()):
            seen = {
                w: {g for a, word in zip(self.axes(read), words, strict=True) if word == w for g in leaves(a)}
                for w in "oi"
            }
            places = words if read == value else tuple(reversed(words))
            roles = []
            for d, axis in enumerate(axes):
                own = set(leaves(axis))
                sides = [w for w in "oi" if own and own <= seen[w]]
                word = sides[0] if len(sides) == 1 else places[d] if len(sides) == 2 and d < len(places) else ""
                roles.append({"o": "out", "i": "in"}.get(word, "along"))
            return tuple(roles)
        return ("along",) * len(axes)


def _member_role(tensor: str, dim: int, spec: Spec) -> str:
    at = {(m.tensor, m.dim): m.role for g in spec.groups.values() for m in g.members if m.tensor == tensor}
    return at.get((tensor, dim), "along")


def _has_groups(axes: tuple[Axis, ...], spec: Spec) -> bool:
    return any(leaf in spec.groups for axis in axes for leaf in leaves(axis))
