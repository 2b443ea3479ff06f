"""Ops that work on each element by itself: dims meet from the right."""

from __future__ import annotations

from ..axes import ONE
from .base import Axes, Call, Value, replaced, rule


def pointwise(call: Call) -> Axes:
    """Any op with torch's pointwise tag, and those that lack it in POINTWISE."""
    return call.broadcast(call.tensors())


@rule("aten.add", "aten.sub", "aten.rsub", "aten._add_relu")
def add(call: Call) -> Axes:
    """An addition of two values from different contractions makes a residual stream of the dims that meet."""
    axes = call.broadcast(call.tensors())
    active = [v for v in call.tensors() if v.active]
    if len(active) == 2 and active[0].sources != active[1].sources and all(v.sources for v in active):
        call.residual = True
        a, b = (v.axes[::-1] for v in active)
        call.mark([x for x, y in zip(a, b, strict=False) if ONE not in (x, y)], "residual")
    return axes


@rule(
    "aten.elu",
    "aten.hardswish",
    "aten.hardsigmoid",
    "aten.hardtanh",
    "aten.leaky_relu",
    "aten.celu",
    "aten.selu",
    "aten.relu6",
    "aten.mish",
    "aten.softplus",
    "aten.logsigmoid",
    "aten.threshold",
    "aten.clone",
    "aten.alias",
    "aten.detach",
    "aten.contiguous",
    "aten._to_copy",
    "aten.dropout",
    "aten.feature_dropout",
    "aten.alpha_dropout",
    "aten.native_dropout",
    "aten.lift_fresh_copy",
    "aten.lift_fresh",
    "aten.clamp",
    "aten.clamp_min",
    "aten.clamp_max",
    "aten.where",
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.empty_like",
    "aten.rand_like",
    "aten.randn_like",
    "aten.bernoulli",
    "aten.fill",
    "aten.zero",
    "aten.masked_fill",
    "aten.float",
    "aten.half",
    "aten.square",
    "aten.floor_divide",
    "aten.positive",
    "aten.rrelu",
    "aten.hardshrink",
    "aten.softshrink",
    "aten._conj",
    "aten.resolve_conj",
    "aten.rrelu_with_noise",
    "aten.silu",
    "aten.gelu",
    "aten.nan_to_num",
    "aten.isnan",
    "aten.isinf",
    "aten.__and__",
    "aten.__or__",
    "aten.__xor__",
    "aten.one_minus",
    "aten.log_sigmoid_forward",
    "aten.real",
    "aten.imag",
    "aten.expand_copy",
)
def untagged(call: Call) -> Axes | list[Axes]:
    """Pointwise ops without the tag; every output has the shape of the broadcast inputs."""
    axes = call.broadcast(call.tensors())
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]


@rule("aten.to", "aten.type_as")
def cast(call: Call) -> Axes:
    """Another tensor gives no more than its dtype."""
    return call["self"].axes


@rule("aten.copy")
def copy(call: Call) -> Axes:
    """The source is written over the first tensor: both have its dims."""
    return call.broadcast([call["self"], call["src"]], call.shape)


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(call: Call) -> Axes:
    """One slope per channel (dim 1), or one for all."""
    x, w = call["self"], call["weight"]
    if len(w.axes) == len(x.axes) and len(w.axes) > 1:
        return call.broadcast([x, w])
    if w.axes and w.axes[0] is not ONE and call.alg.size(w.axes[0]) > 1:
        call.unify(x.axes[min(1, len(x.axes) - 1)], w.axes[0])
    return x.axes


@rule("aten.glu")
def glu(call: Call) -> Axes:
    """The first half of a dim times the sigmoid of the second."""
    x: Value = call["self"]
    (d,) = call.dims(x, -1 if call["dim"] is None else call["dim"])
    n = call.alg.size(x.axes[d]) // 2
    a, b = call.alg.cut(x.axes[d], [n, n])
    return replaced(x.axes, {d: call.unify(a, b)})


@rule("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten._safe_softmax")
def softmax(call: Call) -> Axes:
    """Its outputs sum to one over the dim: removing a unit changes all the others."""
    x = call["self"]
    call.freeze([x.axes[d] for d in call.dims(x, call["dim"])], "softmax runs over it")
    return x.axes


@rule("aten.cumsum", "aten.cumprod", "aten.logcumsumexp", "aten.flip", "aten.roll")
def scanned(call: Call) -> Axes:
    """Positions matter along the dim."""
    x = call["self"]
    dims = next((call[k] for k in ("dims", "dim") if call[k] is not None), None)
    call.freeze([x.axes[d] for d in call.dims(x, dims)], f"{call.op.removeprefix('aten.').split('.')[0]} runs along it")
    return x.axes


@rule("aten.cummax", "aten.cummin", "aten.sort")
def scanned_pair(call: Call) -> list[Axes]:
    """Values and indices along a dim where positions matter."""
    x = call["self"]
    call.freeze(
        [x.axes[d] for d in call.dims(x, -1 if call["dim"] is None else call["dim"])], "its positions are ordered"
    )
    return [x.axes, x.axes]


@rule("aten.diff")
def diff(call: Call) -> Axes:
    """Neighbours along a dim are subtracted from each other; the result is shorter."""
    x = call["self"]
    (d,) = call.dims(x, -1 if call["dim"] is None else call["dim"])
    for v in call.tensors():
        call.freeze(v.axes[d], "neighbours along it are compared")
    return replaced(x.axes, {d: call.frozen([call.shape[d]], "neighbours along it are compared")[0]})
