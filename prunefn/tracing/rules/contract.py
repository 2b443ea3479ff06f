"""Contractions: linear, matrix products, einsum, attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any

import torch

from ...spec.parts import IN_OUT, OUT_IN
from ..axes import ONE, Term, Times
from .base import Axes, Call, Value, replaced, rule


@rule(
    "aten.linear",
    "aten.addmm",
    "aten.mm",
    "aten.bmm",
    "aten.baddbmm",
    "aten.matmul",
    "aten.mv",
    "aten.addmv",
    "aten.dot",
    "aten.vdot",
    "aten.addbmm",
)
def contraction(call: Call) -> Axes:
    """`linear` and the family of matrix products."""
    return linear(call) if call.op.startswith("aten.linear.") else matmul(call)


def linear(call: Call) -> Axes:
    """x [..., in], weight [out, in], bias [out] → [..., out]."""
    x, w, b = call["input"], call["weight"], call["bias"]
    call.layer = True
    inner = call.unify(x.axes[-1], w.axes[-1])
    out = w.axes[0] if len(w.axes) == 2 else ONE
    axes = (*x.axes[:-1], out) if len(w.axes) == 2 else x.axes[:-1]
    one_per_unit = b is None or len(b.axes) < 2
    if b is not None:  # torch adds it, whatever its rank
        axes = call.broadcast([Value("", axes, True), b])
    call.contract(
        macs=(*axes, inner),
        x=x,
        dim=-1,
        weight=w,
        pattern=OUT_IN if len(w.axes) == 2 else "",
        bias=b if one_per_unit else None,
        bias_arg="bias" if one_per_unit else "",
        out=out,
    )
    return axes


def matmul(call: Call) -> Axes:
    """a [..., m, k] times b [..., k, n], with or without something that is added."""
    values = call.tensors()
    extra, (a, b) = (values[0] if len(values) == 3 else None), values[-2:]
    left, right = a.axes if len(a.axes) > 1 else (ONE, *a.axes), b.axes if len(b.axes) > 1 else (*b.axes, ONE)
    inner = call.unify(left[-1], right[-2])
    batch = _batch(call, left[:-2], right[:-2])
    full = (*batch, left[-2], right[-1])
    axes = tuple(
        x for x, gone in zip(full, (*[False] * len(batch), len(a.axes) == 1, len(b.axes) == 1), strict=True) if not gone
    )
    if call.op.startswith("aten.addbmm"):
        axes = full[-2:]
    if extra is not None:
        axes = call.broadcast([Value("", axes, True), extra])
    _attention_marks(call, a, b, batch, [inner])
    weight, x, dim = (b, a, -1) if a.active else (a, b, max(-2, -len(b.axes)))
    simple = len(weight.axes) == 2 and not weight.active and call["alpha"] in (None, 1)
    pattern = "" if not simple else IN_OUT if dim == -1 else OUT_IN
    for factor, layout in ((b, IN_OUT), (a, OUT_IN)):
        if len(factor.axes) == 2 and not factor.active:
            call.lay_out(factor, layout)
    is_bias = extra is not None and len(extra.axes) == 1 and dim == -1 and call["beta"] in (None, 1)
    out = right[-1] if weight is b else left[-2]
    call.contract(
        macs=(*full, inner), x=x, dim=dim, weight=weight, pattern=pattern, bias=extra if is_bias else None, out=out
    )
    return axes


def _batch(call: Call, left: Axes, right: Axes) -> Axes:
    """Leading dims of a matrix product, broadcast against each other."""
    rank, size = max(len(left), len(right)), call.alg.size
    left, right = (ONE,) * (rank - len(left)) + left, (ONE,) * (rank - len(right)) + right
    return tuple(
        a if size(b) == 1 else b if size(a) == 1 else call.unify(a, b) for a, b in zip(left, right, strict=True)
    )


def _attention_marks(call: Call, a: Value, b: Value, batch: Sequence[Term], inner: Sequence[Term]) -> None:
    """Two activations that are multiplied: dims that run along are heads, dims that are summed over are head_dim."""
    if a.active and b.active:
        call.mark(batch, "heads")
        call.mark(inner, "head_dim")
        if not (a.zero or b.zero):
            call.mark(inner, "mixed:product")  # a unit of zeros adds to the sum all the same


@rule("aten.einsum")
def einsum(call: Call) -> Axes:
    """Letters that meet are one axis; letters that do not reach the output are summed over."""
    values: list[Value] = call["tensors"]
    terms, _, target = str(call["equation"]).replace(" ", "").partition("->")
    inputs = terms.split(",")
    dots = max(
        (len(v.axes) - len(t.replace("...", "")) for t, v in zip(inputs, values, strict=True) if "..." in t), default=0
    )
    names = [_letters(t, len(v.axes) - len(t.replace("...", "")), dots) for t, v in zip(inputs, values, strict=True)]
    if "->" not in call["equation"]:
        letters = sorted({c for n in names for c in n if len(c) == 1 and sum(m.count(c) for m in names) == 1})
        output = [f"...{i}" for i in range(dots)] + letters
    else:
        output = _letters(target, dots, dots)
    axis: dict[str, Term] = {}
    for v, letters in zip(values, names, strict=True):
        for a, c in zip(v.axes, letters, strict=True):
            axis[c] = a if axis.get(c, ONE) == ONE else axis[c] if a == ONE else call.unify(axis[c], a)
    alone = [c for c in axis if c not in output and sum(c in n for n in names) == 1]
    call.mark([axis[c] for c in alone], f"mixed:{call.op}")
    if len(values) == 2:
        common = set(names[0]) & set(names[1])
        _attention_marks(
            call, values[0], values[1], [axis[c] for c in common & set(output)], [axis[c] for c in common - set(output)]
        )
    for macs in _pairwise(names, output, call["path"]):
        layer = _as_layer(names, output, values, axis) if len(values) == 2 else {}
        call.contract(macs=tuple(axis[c] for c in macs), **layer)
    return tuple(axis[c] for c in output)


def _pairwise(names: list[list[str]], output: list[str], path: Sequence[int] | None) -> Iterator[list[str]]:
    """torch contracts two operands at a time, from the left or along a path: the letters of each product that sums."""
    rest, path = list(names), list(path or [0, 1] * (len(names) - 1))
    for i, j in zip(path[::2], path[1::2], strict=True):
        a, b = rest[i], rest[j]
        rest = [n for k, n in enumerate(rest) if k not in (i, j)]
        wanted = {*output, *(c for n in rest for c in n)}
        summed = (set(a) & set(b)) - wanted
        result = [c for c in dict.fromkeys([*a, *b]) if c in wanted]
        rest.append(result)
        if summed:
            yield [*result, *sorted(summed)]


def _as_layer(names: list[list[str]], output: list[str], values: list[Value], axis: dict[str, Term]) -> dict[str, Any]:
    """A product with a parameter, as a layer: with [in, out] letters it is a linear one."""
    if values[0].active == values[1].active:
        return {}
    i = int(values[0].active)
    w, x = names[i], names[1 - i]
    summed = [c for c in w if c in x and c not in output]
    out = [c for c in w if c not in x and c in output]
    known: dict[str, Any] = {"x": values[1 - i], "weight": values[i], "out": Times(tuple(axis[c] for c in out))}
    along = set(x) - set(summed) <= set(output) and len(set(x)) == len(x)  # what else is summed would scale a shift
    if len(summed) == len(out) == 1 and len(w) == 2 and along:
        dim = x.index(summed[0]) - len(x)
        if output.index(out[0]) - len(output) == dim:
            known |= {"dim": dim, "pattern": IN_OUT if w[0] == summed[0] else OUT_IN}
    return known


def _letters(term: str, used: int, dots: int) -> list[str]:
    """One name per dim; the ellipsis stands for `used` of the `dots` broadcast dims."""
    head, ellipsis, tail = term.partition("...")
    return [*head, *([f"...{i}" for i in range(dots - used, dots)] if ellipsis else []), *tail]


@rule("aten.scaled_dot_product_attention")
def attention(call: Call) -> Axes:
    """q [..., l, e], k [..., s, e], v [..., s, f] → [..., l, f]. The scale is that of the traced width, for good."""
    call.layer = True
    q, k, v, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    inner = call.unify(q.axes[-1], k.axes[-1])
    source = call.unify(k.axes[-2], v.axes[-2])
    call.freeze([source, q.axes[-2]], "attention runs over it")
    heads = _batch(call, k.axes[:-2], v.axes[:-2])
    if call["enable_gqa"] and call.alg.size(q.axes[-3]) != (n := call.alg.size(heads[-1])):
        shared, _ = call.alg.split(q.axes[-3], [n, call.alg.size(q.axes[-3]) // n])
        call.unify(shared, heads[-1])
        batch = (*_batch(call, q.axes[:-3], heads[:-1]), q.axes[-3])
    else:
        batch = _batch(call, q.axes[:-2], heads)
    scores = (*batch, q.axes[-2], source)
    if mask is not None:
        call.broadcast([Value("", scores, True), mask], [call.alg.size(a) for a in scores])
    if call["scale"] is None:
        call.resize("scale", 1 / sqrt(call.alg.size(inner)))  # to the bit, what torch computes
    call.mark(batch, "heads")
    call.mark([inner, v.axes[-1]], "head_dim")
    if not (q.zero or k.zero):
        call.mark([inner], "mixed:product")
    call.contract(macs=(*scores, inner))
    call.contract(macs=(*scores, v.axes[-1]))
    return (*batch, q.axes[-2], v.axes[-1])


@rule("aten.outer", "aten.ger")
def outer(call: Call) -> Axes:
    a, b = call.tensors()
    return (a.axes[0], b.axes[0])


@rule("aten.bilinear")
def bilinear(call: Call) -> Axes:
    """x₁ [..., i], x₂ [..., j], weight [o, i, j] → [..., o]."""
    a, b, w = call["input1"], call["input2"], call["weight"]
    call.unify(a.axes[-1], w.axes[1])
    call.unify(b.axes[-1], w.axes[2])
    lead = call.broadcast(
        [v._replace(axes=replaced(v.axes, {len(v.axes) - 1: ONE})) for v in (a, b)], [*call.shape[:-1], 1]
    )
    call.contract(macs=(*lead, *w.axes))
    out = Value("", (*lead[:-1], w.axes[0]), True)
    return call.broadcast([out] if call["bias"] is None else [out, call["bias"]])


@rule("aten.linalg_vecdot")
def vecdot(call: Call) -> Axes:
    """Products of two tensors of one shape, summed over a dim."""
    a, b = call["x"], call["y"]
    shape = torch.broadcast_shapes(*([call.alg.size(t) for t in v.axes] for v in (a, b)))
    full = call.broadcast([a, b], shape)
    d = (-1 if call["dim"] is None else call["dim"]) % len(full)
    rest = (*full[:d], *full[d + 1 :])
    _attention_marks(call, a, b, rest, [full[d]])
    call.contract(macs=full)
    return rest
