"""The axis algebra by itself: golden equations, and random programs against brute force on element ids."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunefn.spec.axis import (
    Axis,
    Concat,
    Fixed,
    Leaf,
    Product,
    concat,
    einops_form,
    keep,
    leaves,
    positions,
    product,
    size,
    unit_of,
)
from prunefn.tracing import rules
from prunefn.tracing.axes import ONE, Algebra, Plus, Term, Times, Var
from prunefn.tracing.rules.base import Axes, Call, Reason, Value

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
    assert keep(SIDE, {"a": bits("01")}, {"a": 2, "b": 3}).equal(bits("011111101"))
    assert keep(SIDE, {}, {"a": 2, "b": 3}).equal(bits("1" * 9))


def test_keep_of_a_nest() -> None:
    nest = Product((Concat((Leaf("a"), Fixed(1))), Leaf("d")))
    assert keep(nest, {"a": bits("10"), "d": bits("01")}, {"a": 2, "d": 2}).equal(bits("010001"))


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
    assert (
        einops_form(Concat(tuple(Leaf(f"c{i}") for i in range(20))), {})
        == "(c0 + c1 + c2 + c3 + … 14 more … + c18 + c19)"
    )


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
            return (
                Fixed(self.alg.size(v)) if self.alg.reason(v) else Leaf(self.names.setdefault(v, f"x{len(self.names)}"))
            )

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


@pytest.mark.parametrize("form", [Times, Plus])
def test_pieces_of_a_broken_leaf_inherit_its_reason_and_its_marks(b: Board, form: type[Times] | type[Plus]) -> None:
    x, y = b.leaf("x", 6), b.leaf("y", 2)
    b.alg.freeze(x, "frozen")
    b.alg.mark(x, "marked")
    left = form((x, y))
    right = Times((b.leaf("p", 2), b.leaf("q", 6))) if form is Times else Plus((b.leaf("p", 2), b.leaf("q", 6)))
    b.alg.unify(left, right)
    for v in b.alg.vars(x):
        assert b.alg.reason(v) == "frozen" and "marked" in b.alg.marks(v)
    assert len(list(b.alg.vars(x))) == 2
    assert b.why(right) == ({None, "frozen"})


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
    b.alg.unify(
        Plus((y, b.leaf("z", 4))), Plus((b.leaf("w", 4), y))
    )  # y, z = w, y: all three are the same two positions
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
    assert len(set(b.alg.vars(whole))) == 1000  # the second part is cut after its first position, which is no leaf


# ---- random programs against brute force


class Elements:
    """What each element of a tensor of ids stands for.

    A source element stands for itself. The sum of two stands for both. A copy stands for its original, but it may be
    removed alone, as padding may.
    """

    def __init__(self) -> None:
        self.sources: list[frozenset[int]] = [frozenset()]
        self.alone: list[bool] = [True]
        self.known: dict[Any, int] = {"padding": 0}

    def id(self, key: Any, sources: frozenset[int], alone: bool) -> int:
        if key not in self.known:
            self.known[key] = len(self.sources)
            self.sources.append(sources)
            self.alone.append(alone)
        return self.known[key]

    def source(self, shape: tuple[int, ...]) -> Tensor:
        n = len(self.sources)
        return torch.tensor([self.id(i, frozenset([i]), False) for i in range(n, n + prod(shape))]).reshape(shape)

    def meet(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        flat = [self.id((i, j), self.sources[i] | self.sources[j], self.alone[i] or self.alone[j])
                for i, j in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]  # fmt: skip
        return torch.tensor(flat).reshape(x.shape)

    def copied(self, x: Tensor) -> Tensor:
        return torch.tensor([self.id(("copy", i), self.sources[i], True) for i in x.flatten().tolist()]).reshape(
            x.shape
        )


class Traced(NamedTuple):
    axes: Axes
    ids: Tensor


class Step(NamedTuple):
    op: str
    args: dict[str, Any]
    """Tensors are given by their number."""
    resized: dict[str, Any]


class Sketch:
    """A program that grows step by step, on axes by the rules and on ids by torch."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self.alg, self.elements = Algebra(), Elements()
        self.values = [Traced(tuple(self.alg.leaf(n) for n in s), self.elements.source(s)) for s in shapes]
        self.sources = len(shapes)
        self.steps: list[Step] = []

    def add(self, op: str, /, **args: Any) -> None:
        """Run one op on the values of the given numbers (`self`, `other`, `src`, `tensors`)."""
        results = self.run(op, args, [v.ids for v in self.values])
        shown = {k: self.value(v) if k in TENSORS else v for k, v in args.items()}
        call = Call(self.alg, op, f"n{len(self.steps)}", shown, [tuple(r.shape) for r in results], Reason("", op))
        rule = rules.find(operator(op), {})
        assert rule is not None
        out = rule(call)
        for axes, ids in zip([out] if isinstance(out, tuple) else out, results, strict=True):
            assert tuple(self.alg.size(a) for a in axes) == tuple(ids.shape), op
            self.values.append(Traced(axes, ids))
        self.steps.append(Step(op, args, call.resized))

    def value(self, i: Any) -> Any:
        return [self.value(j) for j in i] if isinstance(i, list) else Value(f"v{i}", self.values[i].axes, True)

    def run(self, op: str, args: dict[str, Any], values: list[Tensor]) -> list[Tensor]:
        args = {
            k: ([values[i] for i in v] if isinstance(v, list) else values[v]) if k in TENSORS else v
            for k, v in args.items()
        }
        if op == "aten.add.Tensor":
            return [self.elements.meet(args["self"], args["other"])]
        if op in COPIES:
            args["self"] = self.elements.copied(args["self"])
        out = operator(op)(**args)
        return [out] if isinstance(out, Tensor) else list(out)


TENSORS = ("self", "other", "src", "tensors")
COPIES = ("aten.repeat.default", "aten.repeat_interleave.self_int", "aten.expand.default")


def operator(op: str) -> Any:
    _, name, overload = op.split(".")
    return getattr(getattr(torch.ops.aten, name), overload)


# ---- what a random step may be: each draws arguments for a tensor of the given number, or nothing


def divisions(draw: Callable[..., Any], n: int) -> list[int]:
    """Random sizes whose product is n."""
    sizes = []
    while n > 1 and len(sizes) < 3:
        sizes.append(draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0])))
        n //= sizes[-1]
    return [*sizes, n]


def partition(draw: Callable[..., Any], n: int) -> list[int]:
    """Random sizes ≥ 1 whose sum is n."""
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=3))) if n > 1 else []
    return [b - a for a, b in pairwise([0, *cuts, n])]


def a_reshape(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.reshape.default", self=i, shape=divisions(draw, sketch.values[i].ids.numel()))


def a_permute(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.permute.default", self=i, dims=draw(st.permutations(range(sketch.values[i].ids.ndim))))


def a_split(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sizes = partition(draw, sketch.values[i].ids.shape[d])
    sketch.add("aten.split_with_sizes.default", self=i, split_sizes=sizes, dim=d)


def a_slice(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    start, end = sorted(draw(st.sets(st.integers(0, sketch.values[i].ids.shape[d]), min_size=2, max_size=2)))
    sketch.add("aten.slice.Tensor", self=i, dim=d, start=start, end=end)


def a_strided_slice(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    n, step = sketch.values[i].ids.shape[d], draw(st.sampled_from([2, 3]))
    start, end = draw(st.integers(0, min(n - 1, 2))), draw(st.integers(n - 1, n + 2))
    if start < end:
        sketch.add("aten.slice.Tensor", self=i, dim=d, start=start, end=end, step=step)


def fellows(sketch: Sketch, i: int, d: int | None) -> list[int]:
    """Values of the same shape, but for dim d."""

    def shape(v: Traced) -> list[int]:
        return [n for k, n in enumerate(v.ids.shape) if k != d]

    return [
        j
        for j, v in enumerate(sketch.values)
        if v.ids.ndim == sketch.values[i].ids.ndim and shape(v) == shape(sketch.values[i])
    ]


def a_cat(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add(
        "aten.cat.default",
        tensors=[i, *draw(st.lists(st.sampled_from(fellows(sketch, i, d)), min_size=1, max_size=2))],
        dim=d,
    )


def an_add(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.add.Tensor", self=i, other=draw(st.sampled_from(fellows(sketch, i, None))))


def a_broadcast_add(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.slice.Tensor", self=i, dim=d, start=0, end=1)
    sketch.add("aten.add.Tensor", self=i, other=len(sketch.values) - 1)


def a_stack(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.stack.default", tensors=[i, draw(st.sampled_from(fellows(sketch, i, None)))], dim=d)


def an_unbind(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.unbind.int", self=i, dim=d)


def a_repeat(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.repeat.default", self=i, repeats=[2 if k == d else 1 for k in range(sketch.values[i].ids.ndim)])


def a_repeat_interleave(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.repeat_interleave.self_int", self=i, repeats=2, dim=d)


def a_pad(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.constant_pad_nd.default", self=i, pad=[draw(st.integers(0, 2)), draw(st.integers(0, 2))], value=0)


def a_slice_scatter(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    start, end = sorted(draw(st.sets(st.integers(0, sketch.values[i].ids.shape[d]), min_size=2, max_size=2)))
    like = list(sketch.values[i].ids.shape)
    like[d] = end - start
    fitting = [j for j, v in enumerate(sketch.values) if list(v.ids.shape) == like]
    if fitting:
        sketch.add(
            "aten.slice_scatter.default", self=i, src=draw(st.sampled_from(fitting)), dim=d, start=start, end=end
        )


def a_roll(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    sketch.add("aten.roll.default", self=i, shifts=[1], dims=[d])


def a_channel_shuffle(draw: Callable[..., Any], sketch: Sketch, i: int, d: int) -> None:
    shape = sketch.values[i].ids.shape
    if len(shape) >= 3 and shape[1] % 2 == 0:
        sketch.add("aten.channel_shuffle.default", self=i, groups=2)


CORE = (a_reshape, a_permute, a_cat, a_split, a_slice, an_add)
ALL = (
    *CORE,
    a_broadcast_add,
    a_stack,
    an_unbind,
    a_strided_slice,
    a_repeat,
    a_repeat_interleave,
    a_pad,
    a_slice_scatter,
    a_roll,
    a_channel_shuffle,
)
SIZES = st.sampled_from([1, 2, 3, 4, 6])


def grow(draw: Callable[..., Any], choices: tuple[Callable[..., None], ...], steps: int) -> Sketch:
    """A random program; the choice of a step depends on the shapes so far."""
    shape = draw(st.lists(SIZES, min_size=2, max_size=3))
    same = draw(st.booleans())  # sources of one shape can be added
    sketch = Sketch([tuple(shape), tuple(shape if same else draw(st.lists(SIZES, min_size=2, max_size=3)))])
    for _ in range(draw(st.integers(1, steps))):
        small = [j for j, v in enumerate(sketch.values) if v.ids.ndim and v.ids.numel() <= 256]
        i = draw(st.sampled_from(small[-6:]))  # mostly what was made last
        draw(st.sampled_from(choices))(draw, sketch, i, draw(st.integers(0, sketch.values[i].ids.ndim - 1)))
    return sketch


# ---- the check


class Solved(NamedTuple):
    axes: list[tuple[Axis, ...]]
    sizes: dict[str, int]
    axis_of: Callable[[Term], Axis]


def solve(sketch: Sketch) -> Solved:
    """Groups are the free leaves of the sources, as in a network those of its parameters."""
    alg = sketch.alg
    free = {
        v: f"g{v.id}"
        for s in sketch.values[: sketch.sources]
        for a in s.axes
        for v in alg.vars(a)
        if alg.reason(v) is None
    }
    cache: dict[Var, Axis] = {}

    def axis_of(a: Term) -> Axis:
        return alg.resolve(a, lambda v: Leaf(free[v]) if v in free else Fixed(alg.size(v)), cache)

    return Solved(
        [tuple(map(axis_of, v.axes)) for v in sketch.values], {name: alg.size(v) for v, name in free.items()}, axis_of
    )


def kept_positions(axes: tuple[Axis, ...], mask: dict[str, Tensor], sizes: dict[str, int]) -> Tensor:
    out = torch.ones((), dtype=torch.bool)
    for a in axes:
        out = out[..., None] & keep(a, mask, sizes)
    return out


def prune(ids: Tensor, axes: tuple[Axis, ...], mask: dict[str, Tensor], sizes: dict[str, int]) -> Tensor:
    for d, a in enumerate(axes):
        ids = ids.index_select(d, keep(a, mask, sizes).nonzero()[:, 0])
    return ids


def random_mask(sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = {g: torch.rand(n, generator=generator) < 0.6 for g, n in sizes.items()}
    for g, n in sizes.items():
        mask[g][int(torch.randint(n, (), generator=generator))] = True
    return mask


def check_elements(sketch: Sketch, solved: Solved, mask: dict[str, Tensor]) -> None:
    """An element is kept iff all the source elements that it stands for are."""
    kept = {0}
    for s, axes in zip(sketch.values[: sketch.sources], solved.axes, strict=False):
        kept |= set(s.ids[kept_positions(axes, mask, solved.sizes)].tolist())
    for v, axes in zip(sketch.values, solved.axes, strict=True):
        present = kept_positions(axes, mask, solved.sizes)
        for i, there in zip(v.ids.flatten().tolist(), present.flatten().tolist(), strict=True):
            wanted = sketch.elements.sources[i] <= kept
            assert wanted or not there, "an element is kept whose source was removed"
            assert there or not wanted or sketch.elements.alone[i], "an element is removed whose sources were all kept"


def check_meetings(sketch: Sketch, solved: Solved, mask: dict[str, Tensor]) -> None:
    """Elements that are added are kept on both sides or on none."""
    for step in sketch.steps:
        if step.op == "aten.add.Tensor":
            left, right = (kept_positions(solved.axes[step.args[k]], mask, solved.sizes) for k in ("self", "other"))
            if left.shape == right.shape:
                assert left.equal(right)


def check_sizes(solved: Solved, mask: dict[str, Tensor]) -> None:
    after = {g: int(m.sum()) for g, m in mask.items()}
    for axes in solved.axes:
        for a in axes:
            assert size(a, after) == int(keep(a, mask, solved.sizes).sum())


def check_rerun(sketch: Sketch, solved: Solved, mask: dict[str, Tensor]) -> None:
    """The program at the new sizes, run on the kept sources, gives the kept part of every value."""
    after = {g: int(m.sum()) for g, m in mask.items()}
    wanted = [prune(v.ids, axes, mask, solved.sizes) for v, axes in zip(sketch.values, solved.axes, strict=True)]
    values = wanted[: sketch.sources]

    def resized(term: Any) -> Any:
        return (
            [resized(t) for t in term]
            if isinstance(term, list)
            else term
            if isinstance(term, int)
            else size(solved.axis_of(term), after)
        )

    for step in sketch.steps:
        values = values + sketch.run(step.op, {**step.args, **{k: resized(t) for k, t in step.resized.items()}}, values)
    for got, want in zip(values, wanted, strict=True):
        assert got.equal(want)


def check(sketch: Sketch, seed: int) -> int:
    """All the laws for one random mask; returns the number of units that it removes."""
    solved = solve(sketch)
    mask = random_mask(solved.sizes, seed)
    check_elements(sketch, solved, mask)
    check_meetings(sketch, solved, mask)
    check_sizes(solved, mask)
    check_rerun(sketch, solved, mask)
    return sum(int((~m).sum()) for m in mask.values())


LAWS = settings(max_examples=80)


@pytest.mark.parametrize("choices", [CORE, ALL], ids=["core", "all"])
def test_random_programs(choices: tuple[Callable[..., None], ...]) -> None:
    removed = []

    @LAWS
    @given(data=st.data(), seed=st.integers(0, 2**16))
    def law(data: st.DataObject, seed: int) -> None:
        removed.append(check(grow(data.draw, choices, 6), seed))

    law()
    assert sum(n > 0 for n in removed) > len(removed) // 2, "most programs must leave something to prune"


@LAWS
@given(data=st.data())
def test_reshapes_of_powers_of_two_freeze_nothing(data: st.DataObject) -> None:
    sketch = Sketch([tuple(data.draw(st.lists(st.sampled_from([2, 4, 8]), min_size=2, max_size=3)))])
    for i in range(data.draw(st.integers(1, 5))):
        data.draw(st.sampled_from([a_reshape, a_permute]))(data.draw, sketch, i, 0)
    assert not any(sketch.alg.reason(v) for a in sketch.values[0].axes for v in sketch.alg.vars(a))
    assert check(sketch, data.draw(st.integers(0, 2**16))) >= 0
