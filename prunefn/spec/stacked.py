"""Contractions inside experts: products with weights that are stacked along the experts, and which token each row is of.

A row of their input belongs to one token and one expert. Either rows are sorted by expert, as grouped products take them, or all
experts have a row of each token, and gates say which of them count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from .axis import Axis, Fixed, leaves, size
from .data import SpecData
from .parts import EXPERTS, Site
from .program import Instruction, Ref
from .routing import MUL, Route, routes_of

ONE = Fixed(1)
GROUPED = ("transformers.grouped_mm_fallback", "aten._grouped_mm")
EINSUM, PRODUCTS = "aten.einsum", ("aten.bmm", "aten.matmul")
TRANSPOSES, INDEX, ADD = ("aten.transpose.int", "aten.permute", "aten.t."), "aten.index.Tensor", "aten.add.Tensor"
SAME = ("aten.to.", "aten._to_copy", "aten.clone", "aten.contiguous", "aten.alias", "aten.detach")
"""Ops whose result has the numbers of their argument, in the same order."""
RESHAPES = ("aten.reshape", "aten.unsqueeze", "aten.squeeze", "aten.expand", *SAME)
STREAM = "residual"
"""Kind of groups that run through all layers; what enters the experts from there has no statistics of its own for each expert."""


class Stacked(NamedTuple):
    """A contraction with weights that are stacked along the experts."""

    name: str
    weight: str
    """Parameter."""
    pattern: str
    """einops pattern from the weight to [experts, out, in, 1]."""
    axis: Axis
    """The axis that is summed over."""
    out: Axis
    experts: Axis
    value: tuple[str, int]
    """Value [rows, in] sorted by expert, or [tokens…, experts, in] in any order, and the dim that is summed over, from the right."""
    call: str
    """Instruction."""
    gates: str
    """Value with the factors of the experts' outputs: [tokens · chosen], or [tokens…, experts, 1] in the order of `value`."""
    tokens: tuple[str, int]
    """Value [tokens…, experts] with the scores of the router, and its dim of the experts: the axes of the tokens."""
    order: str = ""
    """Value [rows]: position of each row in [tokens · chosen]; empty if all experts have a row of each token."""
    ids: str = ""
    """Value [tokens…, chosen]: the experts of each token."""
    bias: str | None = None
    """Parameter [experts, out] that is added to each expert's outputs."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the values that say what each row is."""
        return tuple(dict.fromkeys(v for v in (self.value[0], self.gates, self.tokens[0], self.order, self.ids) if v))

    def site(self, expert: int) -> Site:
        """Return the contraction of one expert as a site."""
        name, reads = f"{self.name}[{expert}]", (self.value,)
        whole = Site(
            name,
            self.axis,
            reads,
            (self.call,),
            self.weight,
            self.pattern,
            ONE,
            self.out,
            bias=self.bias,
            norm=None,
            slot="",
        )
        return whole._replace(expert=expert)


@lru_cache(maxsize=16)
def stacked_of(spec: SpecData) -> tuple[Stacked, ...]:
    """Return the contractions inside experts whose inputs are computed there, in the order of the program."""
    if not any(g.kind == EXPERTS for g in spec.groups.values()):
        return ()
    return tuple(_Finder(spec).find())


@lru_cache(maxsize=16)
def expert_sites(spec: SpecData) -> Mapping[str, Site]:
    """Return the contractions of each expert, by name: that of the stacked weight with the expert's position, `down_proj[3]`."""
    sites = (s.site(e) for s in stacked_of(spec) for e in range(size(s.experts, spec.sizes)))
    return {s.name: s for s in sites}


def site_named(spec: SpecData, name: str) -> Site:
    """Return a site of the spec, or the contraction of an expert."""
    return spec.sites[name] if name in spec.sites else expert_sites(spec)[name]


class _Letters(NamedTuple):
    """The dims of a product's operands by letters: g experts, i inputs, o outputs, others tokens."""

    x: str
    w: str
    out: str


class _Finder:
    """A program, indexed for the search."""

    def __init__(self, spec: SpecData) -> None:
        self.spec, self.axes = spec, spec.program.axes
        self.by_name = {f"%{i.name}": i for i in spec.program.instructions}
        self.users: dict[str, list[Instruction]] = {}
        for i in spec.program.instructions:
            for name in dict.fromkeys(i.reads()):
                self.users.setdefault(name, []).append(i)
        self.routes = {r.axis: r for r in routes_of(spec).values()}

    def find(self) -> Iterator[Stacked]:
        for i in self.spec.program.instructions:
            if (found := self._product(i)) is not None and (stacked := self._stacked(i, *found)) is not None:
                yield stacked

    def _product(self, i: Instruction) -> tuple[str, str, _Letters] | None:
        """Return the input and the weight of a product that may be stacked, and the letters of its dims."""
        if i.op.startswith(GROUPED):
            x, w = i.args[0].name, i.args[1].name
            return (x, w, _Letters("ri", "gio", "ro")) if len(self.axes.get(x, ())) == 2 else None
        if i.op.startswith(EINSUM) and len(i.args[1]) == 2:
            terms, _, out = i.args[0].replace(" ", "").partition("->")
            return _by_equation(*terms.split(","), out, *(a.name for a in i.args[1]))
        if i.op.startswith(PRODUCTS) and all(isinstance(a, Ref) for a in i.args[:2]):
            x, w = (a.name for a in i.args[:2])
            more = "abc"[: len(self.axes.get(x, ())) - 3]
            return (x, w, _Letters(f"{more}gti", "gio", f"{more}gto")) if len(self.axes.get(x, ())) >= 3 else None
        return None

    def _stacked(self, i: Instruction, x: str, w: str, letters: _Letters) -> Stacked | None:
        if (found := self._parameter(w)) is None or x not in self.axes:
            return None
        weight, order = found
        if sorted(order) != [0, 1, 2] or len(letters.w) != 3:
            return None
        left = " ".join(letters.w[order.index(d)] for d in range(3))
        dims = {c: self.spec.axes[weight][order[letters.w.index(c)]] for c in "gio"}
        kinds = {self.spec.groups[g].kind for g in leaves(dims["i"]) if g in self.spec.groups}
        route = self.routes.get(dims["g"])
        if route is None or not kinds or STREAM in kinds:
            return None
        dim = letters.x.index("i") - len(letters.x)
        whole = Stacked(
            weight.removesuffix(".weight"),
            weight,
            f"{left} -> g o i 1",
            dims["i"],
            dims["o"],
            dims["g"],
            (x, dim),
            i.name,
            "",
            (route.choice.scores, route.choice.dim),
        )
        return self._with_gates(whole, letters, route)

    def _parameter(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """Return the parameter that a value is, and its dim at each dim of the value; None if it has other uses."""
        if name in self.spec.parameters:
            return (name, tuple(range(len(self.spec.axes[name])))) if len(self.users[name]) == 1 else None
        i = self.by_name.get(name)
        if i is None or not i.op.startswith((*TRANSPOSES, *SAME)) or len(self.users[name]) != 1:
            return None
        if (source := self._parameter(i.args[0].name)) is None:
            return None
        weight, order = source
        if i.op.startswith(SAME):
            return source
        if i.op.startswith("aten.permute"):
            return weight, tuple(order[d] for d in i.args[1])
        a, b = i.args[1:3] if len(i.args) > 2 else (0, 1)
        swapped = list(order)
        swapped[a], swapped[b] = order[b], order[a]
        return weight, tuple(swapped)

    # ---- gates

    def _with_gates(self, s: Stacked, letters: _Letters, route: Route) -> Stacked | None:
        """Return the contraction with the gates that its outputs are multiplied by, and a bias that is added before."""
        value, rank = f"%{s.call}", len(letters.out)
        for _ in range(4):  # conversions and a bias at most
            users = self.users.get(value, [])
            if len(users) != 1:
                return None
            (i,) = users
            others = [r for r in i.reads() if r != value]
            if i.op == MUL and len(others) == 1:
                return self._gated(s, others[0], rank, route)
            if i.op.startswith(EINSUM) and len(others) == 1:
                return self._gated_by_einsum(s, i, value, others[0])
            if i.op == ADD and len(others) == 1 and (bias := self._bias(others[0], s)):
                s = s._replace(bias=bias)
            elif not i.op.startswith(SAME):
                return None
            value = f"%{i.name}"
        return None

    def _gated(self, s: Stacked, gates: str, rank: int, route: Route) -> Stacked | None:
        axes = self.axes.get(gates, ())
        if len(axes) != rank or axes[s.value[1]] != ONE:
            return None
        if s.experts in self.axes[s.value[0]]:
            return s._replace(gates=gates) if self._is_dense(s) and s.experts in axes else None
        source = self._before(gates, RESHAPES)
        i = self.by_name.get(source)
        if i is None or i.op != INDEX or len(i.args[1]) != 1 or not route.choice.ids or route.choice.single:
            return None
        order = self._before(i.args[1][0].name, SAME)
        return s._replace(gates=i.args[0].name, order=order, ids=route.choice.ids)

    def _gated_by_einsum(self, s: Stacked, i: Instruction, value: str, gates: str) -> Stacked | None:
        """Return the contraction whose outputs an einsum multiplies by [tokens…, experts], and sums over experts."""
        terms, _, out = i.args[0].replace(" ", "").partition("->")
        names = [a.name for a in i.args[1]]
        mine, other = (terms.split(",")[names.index(n)] for n in (value, gates))
        at = len(mine) + s.value[1]
        channel, expert = mine[at], mine[self.axes[value].index(s.experts)] if s.experts in self.axes[value] else ""
        is_plain = other == mine.replace(channel, "") and expert and out == mine.replace(expert, "")
        return s._replace(gates=gates) if is_plain and self._is_dense(s) else None

    def _is_dense(self, s: Stacked) -> bool:
        """Return whether all experts have a row of each token, in the order of the router's tokens, and outputs in that of inputs."""
        (value, dim), (scores, at) = s.value, s.tokens
        inputs, outputs = list(self.axes[value]), list(self.axes.get(f"%{s.call}", ()))
        inputs[dim] = s.out
        tokens = [a for d, a in enumerate(self.axes[value]) if d != len(inputs) + dim and a != s.experts]
        return inputs == outputs and tokens == [
            a for d, a in enumerate(self.axes[scores]) if d != len(self.axes[scores]) + at
        ]

    def _bias(self, name: str, s: Stacked) -> str:
        """Return the parameter [experts, out] that a value looks up, or is."""
        source = self._before(name, RESHAPES)
        i = self.by_name.get(source)
        source = i.args[0].name if i is not None and i.op == INDEX else source
        return source if self.spec.axes.get(source) == (s.experts, s.out) and source in self.spec.parameters else ""

    def _before(self, name: str, ops: Sequence[str]) -> str:
        """Return the value that some ops were applied to."""
        while (i := self.by_name.get(name)) is not None and i.op.startswith(tuple(ops)):
            first: Any = i.args[0]
            name = first.name
        return name


def _by_equation(x: str, w: str, out: str, *names: str) -> tuple[str, str, _Letters] | None:
    """Return the operands of an einsum as input and weight, with its letters; None if no experts run along the weight."""
    for a, b, (first, second) in ((x, w, names), (w, x, names[::-1])):
        g, i, o = set(a) & set(b) & set(out), set(b) & set(a) - set(out), set(b) & set(out) - set(a)
        is_stack = len(b) == 3 and len(g) == len(i) == len(o) == 1 and len(set(a)) == len(a) and "." not in a + b
        if is_stack and set(out) == (set(a) | o) - i:
            renamed = str.maketrans(
                {g.pop(): "g", i.pop(): "i", o.pop(): "o"} | {c: c.upper() for c in a + b + out if c not in b}
            )
            return first, second, _Letters(*(t.translate(renamed) for t in (a, b, out)))
    return None
