"""Contractions: linear, matrix products, einsum, attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any

import torch

from ...spec.parts import IN_OUT, OUT_IN
from ..axes import ONE, Term, Times
from .base import SEQUENCE, Axes, Call, Value, replaced, rule
from .shape import freeze_all


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
    "aten._addmm_activation",
)
def contraction(call: Call) -> Axes:
    """Contract by `linear` or by a matrix product."""
    return linear(call) if call.op.startswith("aten.linear.") else matmul(call)


def linear(call: Call) -> Axes:
    """Map x [..., in], weight [out, in], bias [out] to [..., out]."""
    x, w, b = call["input"], call["weight"], call["bias"]
    call.layer = True
    inner = call.unify(x.axes[-1], w.axes[-1])
    out = w.axes[0] if len(w.axes) == 2 else ONE
    axes = (*x.axes[:-1], out) if len(w.axes) == 2 else x.axes[:-1]
    one_per_unit = b is None or len(b.axes) < 2
    if b is not None:  # torch adds a bias of any rank
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
    """Multiply a [..., m, k] by b [..., k, n], and perhaps add a tensor."""
    values = call.tensors()
    extra, (a, b) = (values[0] if len(values) == 3 else None), values[-2:]
    left, right = a.axes if len(a.axes) > 1 else (ONE, *a.axes), b.axes if len(b.axes) > 1 else (*b.axes, ONE)
    inner = call.unify(left[-1], right[-2])
    batch = _broadcast_batch(call, left[:-2], right[:-2])
    full = (*batch, left[-2], right[-1])
    axes = tuple(
        x
        for x, is_vector_dim in zip(full, (*[False] * len(batch), len(a.axes) == 1, len(b.axes) == 1), strict=True)
        if not is_vector_dim
    )
    if call.op.startswith("aten.addbmm"):
        axes = full[-2:]
    if extra is not None:
        axes = call.broadcast([Value("", axes, True), extra])
    _mark_attention(call, a, b, batch, [inner])
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


def _broadcast_batch(call: Call, left: Axes, right: Axes) -> Axes:
    """Return the leading dims of a matrix product, broadcast against each other."""
    rank, size = max(len(left), len(right)), call.alg.size
    left, right = (ONE,) * (rank - len(left)) + left, (ONE,) * (rank - len(right)) + right
    return tuple(
        a if size(b) == 1 else b if size(a) == 1 else call.unify(a, b) for a, b in zip(left, right, strict=True)
    )


def _mark_attention(call: Call, a: Value, b: Value, batch: Sequence[Term], inner: Sequence[Term]) -> None:
    """Mark the dims of a product of two activations: batch dims as heads, dims that are summed over as head_dim."""
    if a.active and b.active:
        call.mark(batch, "heads")
        call.mark(inner, "head_dim")
        if not (a.zero or b.zero):
            call.mark(
                inner, "mixed:product"
            )  # a removed unit may contribute to the sum, since neither factor is zero there


@rule("aten.einsum")
def einsum(call: Call) -> Axes:
    """Unify the axes of equal letters, and sum over letters that are not in the output."""
    values: list[Value] = call["tensors"]
    terms, _, target = str(call["equation"]).replace(" ", "").partition("->")
    inputs = terms.split(",")
    dots = max(
        (len(v.axes) - len(t.replace("...", "")) for t, v in zip(inputs, values, strict=True) if "..." in t), default=0
    )
    names = [_dim_names(t, len(v.axes) - len(t.replace("...", "")), dots) for t, v in zip(inputs, values, strict=True)]
    if "->" not in call["equation"]:
        letters = sorted({c for n in names for c in n if len(c) == 1 and sum(m.count(c) for m in names) == 1})
        output = [f"...{i}" for i in range(dots)] + letters
    else:
        output = _dim_names(target, dots, dots)
    axis: dict[str, Term] = {}
    for v, letters in zip(values, names, strict=True):
        for a, c in zip(v.axes, letters, strict=True):
            axis[c] = a if axis.get(c, ONE) == ONE else axis[c] if a == ONE else call.unify(axis[c], a)
    summed_alone = [c for c in axis if c not in output and sum(c in n for n in names) == 1]
    call.mark([axis[c] for c in summed_alone], f"mixed:{call.op}")
    if len(values) == 2:
        common = set(names[0]) & set(names[1])
        _mark_attention(
            call, values[0], values[1], [axis[c] for c in common & set(output)], [axis[c] for c in common - set(output)]
        )
    for macs in _pairwise_products(names, output, call["path"]):
        layer = _layer_fields(names, output, values, axis) if len(values) == 2 else {}
        call.contract(macs=tuple(axis[c] for c in macs), **layer)
    return tuple(axis[c] for c in output)


def _pairwise_products(names: list[list[str]], output: list[str], path: Sequence[int] | None) -> Iterator[list[str]]:
    """Yield the letters of each pairwise product that sums; torch contracts two operands at a time, along `path` or from the left."""
    operands, path = list(names), list(path or [0, 1] * (len(names) - 1))
    for i, j in zip(path[::2], path[1::2], strict=True):
        a, b = operands[i], operands[j]
        operands = [n for k, n in enumerate(operands) if k not in (i, j)]
        still_needed = {*output, *(c for n in operands for c in n)}
        summed = (set(a) & set(b)) - still_needed
        result = [c for c in dict.fromkeys([*a, *b]) if c in still_needed]
        operands.append(result)
        if summed:
            yield [*result, *sorted(summed)]


def _layer_fields(
    names: list[list[str]], output: list[str], values: list[Value], axis: dict[str, Term]
) -> dict[str, Any]:
    """Return the fields of a product with a parameter as a layer; with letters [in, out] it is a linear layer."""
    if values[0].active == values[1].active:
        return {}
    i = int(values[0].active)
    w, x = names[i], names[1 - i]
    summed = [c for c in w if c in x and c not in output]
    out = [c for c in w if c not in x and c in output]
    fields: dict[str, Any] = {"x": values[1 - i], "weight": values[i], "out": Times(tuple(axis[c] for c in out))}
    others_in_output = set(x) - set(summed) <= set(output) and len(set(x)) == len(x)  # another sum would scale a shift
    if len(summed) == len(out) == 1 and len(w) == 2 and others_in_output:
        dim = x.index(summed[0]) - len(x)
        if output.index(out[0]) - len(output) == dim:
            fields |= {"dim": dim, "pattern": IN_OUT if w[0] == summed[0] else OUT_IN}
    return fields


def _dim_names(term: str, used: int, dots: int) -> list[str]:
    """Return one name per dim; the ellipsis represents `used` of the `dots` broadcast dims."""
    head, ellipsis, tail = term.partition("...")
    return [*head, *([f"...{i}" for i in range(dots - used, dots)] if ellipsis else []), *tail]


@rule("aten.scaled_dot_product_attention")
def attention(call: Call) -> Axes:
    """Map q [..., l, e], k [..., s, e], v [..., s, f] to [..., l, f]; the scale stays that of the traced width."""
    return _attended(call)


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def attention_kernel(call: Call) -> list[Axes]:
    """Compute attention by the kernel of a backend; its other results, for the backward pass, freeze all if something reads them."""
    if not call.unused.issuperset(range(1, len(call.shapes))):
        return freeze_all(call, "its result for the backward pass is read")
    if "flash" in call.op:  # these kernels take one width
        call.unify(call["query"].axes[-1], call["value"].axes[-1])
    return [_attended(call), *(call.frozen(s, "it is for the backward pass") for s in call.shapes[1:])]


def _attended(call: Call) -> Axes:
    call.layer = True
    q, k, v, mask = (
        call["query"],
        call["key"],
        call["value"],
        call["attn_mask"] if call["attn_mask"] is not None else call["attn_bias"],
    )
    inner = call.unify(q.axes[-1], k.axes[-1])
    source = call.unify(k.axes[-2], v.axes[-2])
    call.hold([source, q.axes[-2]], "attention runs over it", mixed=True)
    call.mark([source, q.axes[-2]], SEQUENCE)
    heads = _broadcast_batch(call, k.axes[:-2], v.axes[:-2])
    if call["enable_gqa"] and call.alg.size(q.axes[-3]) != (n := call.alg.size(heads[-1])):
        shared, _ = call.alg.split(q.axes[-3], [n, call.alg.size(q.axes[-3]) // n])
        call.unify(shared, heads[-1])
        batch = (*_broadcast_batch(call, q.axes[:-3], heads[:-1]), q.axes[-3])
    else:
        batch = _broadcast_batch(call, q.axes[:-2], heads)
    scores = (*batch, q.axes[-2], source)
    if mask is not None:
        call.broadcast([Value("", scores, True), mask], [call.alg.size(a) for a in scores])
    if call["scale"] is None:
        call.resize("scale", 1 / sqrt(call.alg.size(inner)))  # bit-identical to torch's default scale
    call.mark(batch, "heads")
    call.mark([inner, v.axes[-1]], "head_dim")
    if not (q.zero or k.zero):
        call.mark([inner], "mixed:product")
    call.contract(macs=(*scores, inner))
    call.contract(macs=(*scores, v.axes[-1]))
    return (*batch, q.axes[-2], v.axes[-1])


@rule("aten.outer", "aten.ger")
def outer(call: Call) -> Axes:
    """Map vectors a [m], b [n] to [m, n]."""
    a, b = call.tensors()
    return (a.axes[0], b.axes[0])


@rule("aten.addr")
def addr(call: Call) -> Axes:
    """Add the outer product of vectors [m], [n] to a tensor that broadcasts to [m, n]."""
    product = Value("", (call["vec1"].axes[0], call["vec2"].axes[0]), True)
    return call.broadcast([product, call["self"]])


@rule("aten.bilinear")
def bilinear(call: Call) -> Axes:
    """Map x₁ [..., i], x₂ [..., j], weight [o, i, j] to [..., o]."""
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
    """Sum the elementwise product of two tensors over a dim."""
    a, b = call["x"], call["y"]
    shape = torch.broadcast_shapes(*([call.alg.size(t) for t in v.axes] for v in (a, b)))
    full = call.broadcast([a, b], shape)
    d = (-1 if call["dim"] is None else call["dim"]) % len(full)
    rest = (*full[:d], *full[d + 1 :])
    _mark_attention(call, a, b, rest, [full[d]])
    call.contract(macs=full)
    return rest
