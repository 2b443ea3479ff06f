"""The axis algebra by itself: golden equations, and random programs against brute force on element ids."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product as pairs
from math import prod
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunefn.trace import rules
from prunefn.trace.axes import ONE, Algebra, Plus, Term, Times, Var
from prunefn.trace.expr import Axis, Concat, Fixed, Leaf, Product, concat, einops_form, keep, leaves, positions, product, size, unit_of
from prunefn.trace.rules.base import Axes, Call, Reason, Value
from prunefn.trace.rules.base import TABLE

# ---- goldens: expressions


def bits(text: str) -> Tensor:
    return torch.tensor([c == "1" for c in text])


QKV = Product((Fixed(3), Leaf("h"), Leaf("d")))
SIDE = Concat((Leaf("a"), Fixed(2), Leaf("b"), Leaf("a")))


def test_keep_of_a_product_needs_every_factor() -> None:
    mask = {"h": bits("10"), "d": bits("101")}
    assert keep(QKV, mask, {"h": 2, "d": 3}).equal(bits("101000" * 3))
    assert keep(QKV, {"d": bits("011")}, {"h": 2, "d": 3}).equal(bits("011" * 6))


def test_keep_of_a_concat_is_part_by_part() -> None:
    assert keep(SIDE, {"a": bits("01")}, {"a": 2, "b": 3}).equal(bits("01" "11" "111" "01"))
    assert keep(SIDE, {}, {"a": 2, "b": 3}).equal(bits("1" * 9))


def test_keep_of_a_nest() -> None:
    nest = Product((Concat((Leaf("a"), Fixed(1))), Leaf("d")))
    assert keep(nest, {"a": bits("10"), "d": bits("01")}, {"a": 2, "d": 2}).equal(bits("01" "00" "01"))


def test_positions_and_units() -> None:
    sizes = {"h": 2, "d": 3, "a": 2, "b": 3}
    assert positions(QKV, "h", sizes)[1].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    assert positions(QKV, "d", sizes)[2].tolist() == [2, 5, 8, 11, 14, 17]
    assert positions(SIDE, "a", sizes).tolist() == [[0, 7], [1, 8]]
    assert unit_of(SIDE, "b", sizes).tolist() == [-1, -1, -1, -1, 0, 1, 2, -1, -1]


def test_einops_form() -> None:
    names = {"h": "heads", "d": "head_dim"}
    assert einops_form(QKV, names) == "(3 heads head_dim)"
    assert einops_form(SIDE, names) == "(a + 2 + b + a)"
    assert einops_form(Product((Concat((Leaf("h"), Fixed(1))), Leaf("d"))), names) == "((heads + 1) head_dim)"
    assert einops_form(Concat(tuple(Leaf(f"c{i}") for i in range(20))), {}) == "(c0 + c1 + c2 + c3 + … 14 more … + c18 + c19)"


def test_simplest_forms() -> None:
    assert product([Fixed(1), Leaf("a"), Product((Fixed(2), Fixed(3)))]) == Product((Leaf("a"), Fixed(6)))
    assert product([Fixed(1)]) == Fixed(1) == product([])
    assert concat([Fixed(0), Leaf("a"), Concat((Fixed(2), Fixed(3)))]) == Concat((Leaf("a"), Fixed(5)))
    assert concat([]) == Fixed(0)
    assert list(leaves(SIDE)) == ["a", "b", "a"]
    assert size(SIDE, {"a": 2, "b": 3}) == 9


# ---- goldens: the four operations


class Board:
    """An algebra whose leaves have names, and print in einops notation."""

    def __init__(self) -> None:
        self.alg = Algebra()
        self.names: dict[Var, str] = {}

    def leaf(self, name: str, n: int, reason: object = None) -> Term:
        v = self.alg.leaf(n, reason)
        assert isinstance(v, Var)
        self.names[v] = name
        return v

    def resolve(self, a: Term) -> Axis:
        """Unnamed leaves are named in order of appearance; frozen ones are Fixed."""

        def name(v: Var) -> Axis:
            return Fixed(self.alg.size(v)) if self.alg.reason(v) else Leaf(self.names.setdefault(v, f"x{len(self.names)}"))

        return self.alg.resolve(a, name, {})

    def show(self, a: Term) -> str:
        return einops_form(self.resolve(a), {})

    def same(self, a: Term, b: Term) -> bool:
        """Both have the same leaves at the same positions."""
        left, right = self.resolve(a), self.resolve(b)
        sizes = {name: self.alg.size(v) for v, name in self.names.items()}
        return all(unit_of(left, x, sizes).equal(unit_of(right, x, sizes)) for x in {*leaves(left), *leaves(right)})

    def why(self, a: Term) -> set[Any]:
        return {self.alg.reason(v) for v in self.alg.vars(a)}


@pytest.fixture
def b() -> Board:
    return Board()


def test_leaf_meets_leaf(b: Board) -> None:
    x, y, z = b.leaf("x", 4), b.leaf("y", 4), b.leaf("z", 4)
    b.alg.unify(x, y)
    b.alg.unify(y, z)
    assert b.show(x) == b.show(y) == b.show(z) == "z"
    assert b.alg.find(x) == b.alg.find(z) == z


def test_leaf_meets_product_either_way(b: Board) -> None:
    x, y, h, d = b.leaf("x", 6), b.leaf("y", 6), b.leaf("h", 2), b.leaf("d", 3)
    b.alg.unify(x, Times((h, d)))
    b.alg.unify(Times((h, d)), y)
    assert b.show(x) == b.show(y) == "(h d)"


def test_product_meets_product_from_the_left(b: Board) -> None:
    left, right = Times((b.leaf("a", 12), b.leaf("c", 2))), Times((b.leaf("p", 3), b.leaf("q", 8)))
    b.alg.unify(left, right)
    assert b.show(left) == b.show(right)
    assert len(list(b.alg.vars(left))) == 3
    assert [b.alg.size(v) for v in b.alg.vars(left)] == [3, 4, 2]
    assert b.why(left) == {None}


def test_product_that_does_not_factor_freezes_what_is_left_with_the_reason(b: Board) -> None:
    g = b.leaf("g", 5)
    left, right = Times((g, b.leaf("a", 4), b.leaf("c", 9))), Times((b.leaf("p", 5), b.leaf("q", 6), b.leaf("r", 6)))
    b.alg.unify(left, right, "because")
    assert b.show(left) == "(p 36)" and b.show(right) == "(p 36)"
    assert b.why(left) == {None, "because"}


def test_concat_meets_concat(b: Board) -> None:
    left, right = Plus((b.leaf("a", 5), b.leaf("c", 3))), Plus((b.leaf("p", 2), b.leaf("q", 6)))
    b.alg.unify(left, right)
    assert [b.alg.size(v) for v in b.alg.vars(left)] == [2, 3, 3]
    assert b.show(left) == b.show(right)
    assert b.why(left) == {None}


def test_product_meets_concat_at_a_multiple(b: Board) -> None:
    left, right = Times((b.leaf("h", 4), b.leaf("d", 3))), Plus((b.leaf("p", 3), b.leaf("q", 9)))
    b.alg.unify(left, right)
    assert b.same(left, right)
    assert [b.alg.size(v) for v in b.alg.vars(right)] == [3, 3, 3]  # d, then (rest of h, d)
    first, lead, again = b.alg.vars(right)
    assert first == again != lead
    assert b.why(left) == {None}


def test_product_meets_concat_off_a_multiple_freezes(b: Board) -> None:
    left, right = Times((b.leaf("h", 4), b.leaf("d", 3))), Plus((b.leaf("p", 4), b.leaf("q", 8)))
    b.alg.unify(left, right, "off")
    assert b.show(left) == b.show(right) == "12"
    assert b.why(left) == b.why(right) == {"off"}


def test_a_concat_inside_a_product_splits_where_all_parts_divide(b: Board) -> None:
    inside = Plus((b.leaf("a", 4), b.leaf("c", 6)))
    left, right = Times((inside, b.leaf("d", 3))), Times((b.leaf("p", 5), b.leaf("q", 2), b.leaf("r", 3)))
    b.alg.unify(left, right)
    assert b.same(left, right)
    assert b.show(right).startswith("((") and sorted(b.alg.size(v) for v in set(b.alg.vars(left))) == [2, 2, 3, 3]
    assert b.why(left) == {None}


def test_unequal_sizes_freeze_both(b: Board) -> None:
    x, y = b.leaf("x", 4), b.leaf("y", 6)
    b.alg.unify(x, y, "sizes")
    assert (b.show(x), b.show(y), b.why(x), b.why(y)) == ("4", "6", {"sizes"}, {"sizes"})


def test_split_and_cut_return_their_pieces(b: Board) -> None:
    x, y = b.leaf("x", 24), b.leaf("y", 10)
    three, h, d = b.alg.split(x, [3, 2, 4])
    first, one, rest = b.alg.cut(y, [6, 1, 3])
    assert [b.alg.size(a) for a in (three, h, d, first, one, rest)] == [3, 2, 4, 6, 1, 3]
    assert one == ONE
    b.alg.freeze(three, "taken apart")
    assert b.show(x) == f"(3 {b.show(h)} {b.show(d)})"
    assert b.show(y) == f"({b.show(first)} + 1 + {b.show(rest)})"
    assert not b.alg.is_frozen(x) and b.alg.is_frozen(three) and b.alg.is_frozen(one)


def test_cut_twice_at_different_places_shares_leaves(b: Board) -> None:
    x = b.leaf("x", 10)
    p, q = b.alg.cut(x, [4, 6])
    r, s = b.alg.cut(x, [7, 3])
    assert [b.alg.size(v) for v in b.alg.vars(x)] == [4, 3, 3]
    assert b.show(r) == f"({b.show(p)} + {b.show(q).strip('()').split(' + ')[0]})"
    assert b.show(s) == b.show(q).strip("()").split(" + ")[1]


def test_freezing_is_inherited_and_the_first_reason_wins(b: Board) -> None:
    x, y = b.leaf("x", 8), b.leaf("y", 8)
    b.alg.freeze(x, "first")
    b.alg.freeze(x, "second")
    p, q = b.alg.split(x, [2, 4])
    b.alg.unify(x, y)
    assert b.why(p) == b.why(q) == b.why(y) == {"first"}
    z, h = b.leaf("z", 6), b.leaf("h", 2)
    b.alg.freeze(h, "h only")
    b.alg.unify(z, Times((h, b.leaf("d", 3))))
    assert b.show(z) == "(2 d)"


def test_freezing_one_side_of_a_meeting_freezes_the_other(b: Board) -> None:
    x, y = b.leaf("x", 4, "given"), b.leaf("y", 4)
    b.alg.unify(y, x)
    assert b.why(y) == {"given"}
    c, d = b.leaf("c", 4), b.leaf("d", 4, "given")
    b.alg.unify(d, c)
    assert b.why(c) == {"given"}


def test_marks_survive_binding_splitting_and_cutting(b: Board) -> None:
    x, y = b.leaf("x", 8), b.leaf("y", 8)
    b.alg.mark(x, "one")
    b.alg.mark(y, "two")
    b.alg.unify(x, y)
    p, q = b.alg.split(y, [2, 4])
    r, s = b.alg.cut(q, [1, 3])
    assert r == ONE
    for a in (p, s):
        assert [b.alg.marks(v) for v in b.alg.vars(a)] == [{"one", "two"}]


def test_an_axis_is_itself_times_one(b: Board) -> None:
    x, y = b.leaf("x", 4), b.leaf("y", 4)
    b.alg.unify(x, Times((ONE, x)))
    b.alg.unify(Times((y, ONE)), Plus((y,)))
    assert b.why(x) == b.why(y) == {None}


def test_an_axis_inside_itself_freezes_instead_of_looping(b: Board) -> None:
    x, y = b.leaf("x", 6), b.leaf("y", 2)
    b.alg.unify(x, Plus((x, b.alg.leaf(0))), "inside itself")
    assert b.why(x) == {"inside itself"}
    b.alg.unify(Plus((y, b.leaf("z", 4))), Plus((b.leaf("w", 4), y)))  # y, z = w, y: all three are the same two positions
    assert len(set(b.alg.vars(y))) == 1 and b.why(y) == {None}


def test_concat_of_one_leaf_twice_and_a_shift_of_it(b: Board) -> None:
    x, y = b.leaf("x", 3), b.leaf("y", 6)
    b.alg.unify(y, Plus((x, x)))
    assert b.show(y) == "(x + x)"
    p, _ = b.alg.cut(y, [1, 5])
    assert p == ONE
    assert b.show(y) == b.show(Plus((x, x)))


def test_size_one_is_never_prunable(b: Board) -> None:
    assert b.alg.leaf(1) == ONE and b.alg.is_frozen(ONE) and b.alg.size(ONE) == 1
    x = b.leaf("x", 4)
    assert b.alg.split(x, [1, 4, 1])[0] == ONE
    assert b.show(x) in ("x", "x1") and b.why(x) == {None}


def test_a_chain_of_a_thousand_meetings(b: Board) -> None:
    stream = b.leaf("x0", 4)
    first = stream
    for i in range(1, 3000):
        new = b.leaf(f"x{i}", 4)
        b.alg.unify(stream, new)
        stream = new
    assert b.show(first) == "x2999"


def test_a_concat_of_a_thousand_parts(b: Board) -> None:
    parts = [b.leaf(f"c{i}", 2 + i % 3) for i in range(1000)]
    whole, total = b.leaf("whole", sum(2 + i % 3 for i in range(1000))), Plus(tuple(parts))
    b.alg.unify(whole, total)
    left, right = b.alg.cut(whole, [b.alg.size(parts[0]) + 1, b.alg.size(whole) - b.alg.size(parts[0]) - 1])
    again = Plus(tuple(b.alg.leaf(b.alg.size(p)) for p in parts))
    b.alg.unify(again, whole)
    resolved = b.resolve(whole)
    assert isinstance(resolved, Concat)
    assert resolved == b.resolve(again) == concat([b.resolve(left), b.resolve(right)])
    assert b.why(whole) == {None}
    assert len(set(b.alg.vars(whole))) == 1001  # one part was cut in two, one of them in turn of size one
