"""The axis algebra: a union-find over axis expressions, with four operations.

* `unify(a, b)`  two dims that meet in an op are the same axis;
* `split(a, sizes)`  an axis is a product of given sizes (`reshape`);
* `cut(a, sizes)`  an axis is a concatenation of given sizes (`split`, `slice`);
* `freeze(a, reason)`  an axis may not be pruned; `hold` says so until somebody asks for the axis.

`split` and `cut` are `unify` with fresh leaves. If splitting and cutting leaves cannot satisfy an equation, the rest of both
sides is frozen: a frozen axis keeps all its positions, which satisfies every equation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from operator import itemgetter
from typing import Any

from ..spec import axis


@dataclass(frozen=True, slots=True)
class Var:
    """An unknown axis of an `Algebra`, by number."""

    id: int


@dataclass(frozen=True, slots=True)
class Times:
    """A row-major product of axes."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Plus:
    """A concatenation of axes."""

    parts: tuple[Term, ...]


Term = Var | Times | Plus
ONE = Times(())
"""The axis of size 1: it broadcasts, and it is never pruned."""


def _first(*reasons: tuple[int, object] | None) -> tuple[int, object] | None:
    """Return the earliest of some reasons; None if there is none."""
    return min((r for r in reasons if r is not None), key=itemgetter(0), default=None)


class Algebra:
    """A solver of equations between axes; each is solved when it is stated.

    >>> alg = Algebra()
    >>> qkv, heads, dim = alg.leaf(48), alg.leaf(2), alg.leaf(8)
    >>> three, h, d = alg.split(qkv, [3, 2, 8])
    >>> alg.unify(h, heads); alg.unify(d, dim); alg.freeze(three, "unbind")
    >>> alg.is_frozen(three), alg.is_frozen(qkv), alg.is_frozen(heads)
    (True, False, False)
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        """Whether axes that are only held count as free, until `settle` freezes those that nobody asked for."""
        self._held: list[tuple[int, object] | None] = []
        self._size: list[int] = []
        self._bound: list[Term | None] = []
        self._reason: list[tuple[int, object] | None] = []  # (time, reason): the first reason is kept
        self._marks: list[frozenset[Hashable]] = []
        self._time = count()

    @property
    def count(self) -> int:
        """Number of leaves, bound ones included."""
        return len(self._size)

    # ---- create and read axes

    def leaf(self, size: int, reason: object | None = None) -> Term:
        """Return a fresh axis of `size` positions; frozen if a reason is given."""
        if size == 1:
            return ONE
        self._size.append(size)
        self._bound.append(None)
        self._reason.append(None if reason is None else (next(self._time), reason))
        self._held.append(None)
        self._marks.append(frozenset())
        return Var(len(self._size) - 1)

    def find(self, a: Term) -> Term:
        """Return the term that an axis is currently bound to, at the top level."""
        while isinstance(a, Var) and (bound := self._bound[a.id]) is not None:
            if isinstance(bound, Var) and self._bound[bound.id] is not None:
                self._bound[a.id] = self._bound[bound.id]  # path compression
            a = bound
        return a

    def size(self, a: Term) -> int:
        """Return the number of positions."""
        match a:
            case Var(i):
                return self._size[i]
            case Times(factors):
                return prod(self.size(f) for f in factors)
            case Plus(parts):
                return sum(self.size(p) for p in parts)

    def sympy(self, a: Term, size_of: Mapping[Var, Any]) -> Any:
        """Return the number of positions as an expression; leaves without one have their number."""
        match a := self.find(a):
            case Var():
                return size_of.get(a, self._size[a.id])
            case Times(factors):
                return prod(self.sympy(f, size_of) for f in factors)
            case Plus(parts):
                return sum(self.sympy(p, size_of) for p in parts)

    def vars(self, a: Term) -> Iterator[Var]:
        """Yield the unbound leaves of an axis, from left to right, with repetitions."""
        stack = [a]  # no recursion: a leaf that is cut repeatedly nests deeply
        while stack:
            match self.find(stack.pop()):
                case Var() as v:
                    yield v
                case Times(children) | Plus(children):
                    stack.extend(reversed(children))

    def reason(self, a: Var) -> object | None:
        """Return why a leaf is frozen; None if it is not."""
        reason = self._reason[a.id]
        return None if reason is None else reason[1]

    def marks(self, a: Var) -> frozenset[Hashable]:
        """Return the marks of a leaf."""
        return self._marks[a.id]

    def is_frozen(self, a: Term) -> bool:
        """Return whether no unit of the axis can be pruned."""
        return all(self._reason[v.id] is not None for v in self.vars(a))

    def is_pinned(self, a: Term) -> bool:
        """Return whether every leaf of the axis is frozen or held."""
        return all(self._reason[v.id] is not None or self._held[v.id] is not None for v in self.vars(a))

    # ---- the four operations

    def freeze(self, a: Term, reason: object) -> None:
        """State that no unit of `a` may be pruned; the first reason is kept."""
        for v in self.vars(a):
            if self._reason[v.id] is None:
                self._reason[v.id] = (next(self._time), reason)

    def hold(self, a: Term, reason: object) -> None:
        """State that no unit of `a` may be pruned unless somebody asks for it; `freeze` it if the algebra is not lenient."""
        if not self.lenient:
            self.freeze(a, reason)
            return
        for v in self.vars(a):
            if self._held[v.id] is None:
                self._held[v.id] = (next(self._time), reason)

    def is_held(self, a: Var) -> bool:
        """Return whether a leaf is held, and nothing else freezes it."""
        return self._held[a.id] is not None and self._reason[a.id] is None

    def settle(self, released: Collection[Var]) -> None:
        """Freeze all that is held, except the released leaves."""
        for v in (Var(i) for i, bound in enumerate(self._bound) if bound is None):
            if v not in released:
                self._reason[v.id] = _first(self._reason[v.id], self._held[v.id])

    def mark(self, a: Term, mark: Hashable) -> None:
        """Mark every leaf of `a`; marks survive binding, splitting and cutting."""
        for v in self.vars(a):
            self._marks[v.id] |= {mark}

    def split(self, a: Term, sizes: Sequence[int]) -> list[Term]:
        """Write `a` as a product of `sizes`, and return the factors."""
        fresh = [self.leaf(n) for n in sizes]
        self.unify(a, Times(tuple(fresh)))
        return fresh

    def cut(self, a: Term, sizes: Sequence[int]) -> list[Term]:
        """Write `a` as a concatenation of `sizes`, and return the parts."""
        fresh = [self.leaf(n) for n in sizes]
        self.unify(a, Plus(tuple(fresh)))
        return fresh

    def unify(self, a: Term, b: Term, reason: object = "the sizes do not factor alike") -> None:
        """Make two axes the same; if the algebra cannot, freeze the rest of both with `reason`."""
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        if self.size(a) != self.size(b):
            self._freeze_terms([a, b], reason)
        elif isinstance(a, Var) or isinstance(b, Var):
            self._bind(a, b, reason)
        else:
            pa, pb = self.parts(a), self.parts(b)
            if len(pa) > 1 or len(pb) > 1:
                self._unify_sequences(pa, pb, self.parts, self._cut_off, reason)
            elif isinstance(pa[0], Var) or isinstance(pb[0], Var):  # a concat of one part
                self.unify(pa[0], pb[0], reason)
            else:
                self._unify_sequences(self.factors(pa[0]), self.factors(pb[0]), self.factors, self._split_off, reason)

    # ---- normal forms

    def factors(self, a: Term) -> list[Term]:
        """Return the factors of `a`; none is itself a product or of size 1."""
        return self._flatten(a, Times)

    def parts(self, a: Term) -> list[Term]:
        """Return the parts of `a`; none is itself a concatenation, or a product whose first factor is one."""
        out, stack = list[Term](), [a]
        while stack:
            match self._product(stack.pop()):
                case Plus(parts):
                    stack.extend(reversed(parts))
                case Times((lead, *rest)) if isinstance(lead, Plus):
                    stack.extend(self._product(p, *rest) for p in reversed(lead.parts))
                case part:
                    out.append(part)
        return out

    def _flatten(self, a: Term, form: type[Times] | type[Plus]) -> list[Term]:
        """Return the children of nested terms of one form, from left to right."""
        out, stack = list[Term](), [a]
        while stack:
            a = self.find(stack.pop())
            if isinstance(a, form):
                stack.extend(reversed(a.factors if isinstance(a, Times) else a.parts))
            else:
                out.append(a)
        return out

    def _product(self, *terms: Term) -> Term:
        factors = [f for t in terms for f in self.factors(t)]
        return factors[0] if len(factors) == 1 else Times(tuple(factors))

    # ---- solving

    def _bind(self, a: Term, b: Term, reason: object) -> None:
        if not isinstance(a, Var):
            a, b = b, a
        assert isinstance(a, Var)
        leaves = list(self.vars(b))
        if a in leaves:  # the axis inside itself: the sizes agree, so all else has size 1 or is empty
            if leaves != [a]:
                self._freeze_terms([b], reason)
            return
        self._bound[a.id] = b
        for v in self.vars(b):
            self._marks[v.id] |= self._marks[a.id]
            self._reason[v.id] = _first(self._reason[a.id], self._reason[v.id])
            self._held[v.id] = _first(self._held[a.id], self._held[v.id])

    def _unify_sequences(
        self,
        left: list[Term],
        right: list[Term],
        expand: Callable[[Term], list[Term]],
        take: Callable[[Term, int], tuple[Term, Term] | None],
        reason: object,
    ) -> None:
        """Unify two sequences of pieces from the left, and break the larger of each pair at the size of the smaller."""
        left, right = left[::-1], right[::-1]
        while left and right:
            for stack in (left, right):  # a piece may have been bound meanwhile
                piece = stack.pop()
                stack.extend(expand(piece)[::-1])
            if not (left and right):
                break
            x, y = left.pop(), right.pop()
            nx, ny = self.size(x), self.size(y)
            if nx != ny:
                large, stack = (x, left) if nx > ny else (y, right)
                broken = take(large, min(nx, ny))
                if broken is None:
                    self._freeze_terms([x, y, *left, *right], reason)
                    return
                stack.append(broken[1])
                x, y = (broken[0], y) if nx > ny else (x, broken[0])
            self.unify(x, y, reason)

    def _cut_off(self, part: Term, n: int) -> tuple[Term, Term] | None:
        """Return the first `n` positions of a part, and the rest; None if it cannot be cut there."""
        if isinstance(part, Var):
            return self._divide(part, n, self._size[part.id] - n, Plus)
        factors = self.factors(part)
        rest = prod(self.size(f) for f in factors[1:])
        if n % rest or (head := self._cut_off(factors[0], n // rest)) is None:
            return None
        return self._product(head[0], *factors[1:]), self._product(head[1], *factors[1:])

    def _split_off(self, factor: Term, n: int) -> tuple[Term, Term] | None:
        """Return a factor as an outer part of size `n` and an inner part; None if it cannot be split so."""
        total = self.size(factor)
        if total % n:
            return None
        if isinstance(factor, Var):
            return self._divide(factor, n, total // n, Times)
        outer, inner = [], self.leaf(total // n)
        for p in self.parts(factor):  # a concat: every part must be a multiple of the inner size
            if (m := self.size(p)) % (total // n):
                return None
            lead = self.leaf(m * n // total)
            self.unify(p, Times((lead, inner)))
            outer.append(lead)
        return Plus(tuple(outer)), inner

    def _divide(self, v: Var, first: int, second: int, form: type[Plus] | type[Times]) -> tuple[Term, Term]:
        pair = self.leaf(first), self.leaf(second)
        self._bind(v, form(pair), None)
        return pair

    def _freeze_terms(self, terms: Sequence[Term], reason: object) -> None:
        for t in terms:
            self.freeze(t, reason)

    # ---- the result

    def resolve(self, a: Term, name: Callable[[Var], axis.Axis], cache: dict[Var, axis.Axis]) -> axis.Axis:
        """Return the axis as an immutable expression; `name` maps an unbound leaf to its axis."""
        match a:
            case Var():
                if a not in cache:
                    bound = self.find(a)
                    cache[a] = name(a) if bound == a else self.resolve(bound, name, cache)
                return cache[a]
            case Times():
                return axis.product([self.resolve(f, name, cache) for f in self._flatten(a, Times)])
            case Plus():
                return axis.concat([self.resolve(p, name, cache) for p in self._flatten(a, Plus)])
