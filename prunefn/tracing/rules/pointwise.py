"""Ops that act on each element separately; dims are matched from the right."""

from __future__ import annotations

from ..axes import ONE
from .base import EXPERTS, SEQUENCE, Axes, Call, Value, replaced, rule

KEEPS_ZERO = frozenset(
    f"aten.{op}"
    for op in (
        "relu relu6 gelu silu tanh neg abs leaky_relu elu celu selu hardswish mish sqrt sin tan sinh asinh atan erf sign square "
        "div clone alias detach contiguous _to_copy dropout feature_dropout alpha_dropout native_dropout lift_fresh_copy "
        "lift_fresh positive hardshrink softshrink nan_to_num real imag _conj resolve_conj prelu _prelu_kernel "
        "expand_copy zeros_like add sub _add_relu rrelu floor ceil round trunc expm1 log1p glu cumsum flip roll "
        "to type_as isnan isinf complex polar conj conj_physical resolve_neg "
        "alias_copy detach_copy lift _lazy_clone _neg_view_copy"
    ).split()
)
"""Pointwise ops that map zero to zero."""
ADDITIONS = ("aten.add", "aten.sub", "aten._add_relu", "aten.complex", "aten.polar")


def keeps_zero(call: Call) -> bool:
    """Return whether a pointwise op returns zero wherever the tensors that contain an axis are zero."""
    bare, inputs = call.op.rpartition(".")[0], call.tensors()
    if bare in ("aten.mul", "aten.__and__"):
        return any(v.zero for v in inputs)
    if bare == "aten.div":
        return inputs[0].zero
    if bare == "aten.pow":
        return inputs[0].zero and isinstance(call["exponent"], (int, float)) and call["exponent"] > 0
    if bare in ("aten.clamp", "aten.hardtanh"):
        low, high = (
            call[k] if call[k] is not None else 0
            for k in (("min", "max") if "clamp" in bare else ("min_val", "max_val"))
        )
        return isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= 0 <= high and inputs[0].zero
    if bare not in KEEPS_ZERO or not all(v.zero for v in inputs):
        return False
    return bare not in ADDITIONS or (len(inputs) == 2 and not any(_is_broadcast(call, v) for v in inputs))


def _is_broadcast(call: Call, v: Value) -> bool:
    """Return whether a value is broadcast over an axis that may be pruned."""
    shape = [call.alg.size(a) for a in v.axes]
    padded_shape = [1] * (len(call.shape) - len(shape)) + shape
    broadcast_dims = [d for d, (n, m) in enumerate(zip(padded_shape, call.shape, strict=True)) if n == 1 and m != 1]
    others = [w for w in call.tensors() if w is not v and len(w.axes) == len(call.shape)]
    return any(not call.alg.is_frozen(w.axes[d]) for d in broadcast_dims for w in others)


def pointwise(call: Call) -> Axes | list[Axes]:
    """Broadcast the inputs of any op with torch's pointwise tag; every output has their shape."""
    axes = call.broadcast(call.tensors())
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]


@rule(
    "aten.rsub",
    "aten._add_relu",
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
    "aten.square",
    "aten.floor_divide",
    "aten.true_divide",
    "aten.positive",
    "aten.rrelu",
    "aten._prelu_kernel",
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
    "aten.log_sigmoid_forward",
    "aten.real",
    "aten.imag",
    "aten.complex",
    "aten.polar",
    "aten.conj",
    "aten._conj_copy",
    "aten.resolve_neg",
    "aten._neg_view",
    "aten._neg_view_copy",
    "aten.alias_copy",
    "aten.detach_copy",
    "aten.lift",
    "aten._lazy_clone",
    "aten.rrelu_with_noise_functional",
    "aten.normal",
    "aten.normal_functional",
    "aten.uniform",
    "aten.exponential",
    "aten.geometric",
    "aten.cauchy",
    "aten.log_normal",
    "aten.randint_like",
    "aten.poisson",
    "aten.binomial",
    "aten._standard_gamma",
)
def untagged(call: Call) -> Axes | list[Axes]:
    """Broadcast the inputs of pointwise ops that lack torch's tag."""
    return pointwise(call)


@rule("aten.to", "aten.type_as")
def cast(call: Call) -> Axes:
    """Return the axes of the first tensor; another tensor provides only its dtype."""
    return call["self"].axes


@rule("aten.copy")
def copy(call: Call) -> Axes:
    """Unify the source with the tensor that it overwrites."""
    return call.broadcast([call["self"], call["src"]], call.shape)


@rule("aten.prelu")
def prelu(call: Call) -> Axes:
    """Unify the slopes with the channels (dim 1), unless there is one slope for all."""
    x, w = call["self"], call["weight"]
    if w.axes and w.axes[0] is not ONE and call.alg.size(w.axes[0]) > 1:
        call.unify(x.axes[min(1, len(x.axes) - 1)], w.axes[0])
    return x.axes


@rule("aten.glu")
def glu(call: Call) -> Axes:
    """Unify the two halves of a dim: the first is multiplied by the sigmoid of the second."""
    x: Value = call["self"]
    (d,) = call.dims(x, -1 if call["dim"] is None else call["dim"])
    n = call.alg.size(x.axes[d]) // 2
    a, b = call.alg.cut(x.axes[d], [n, n])
    return replaced(x.axes, {d: call.unify(a, b)})


@rule("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten._safe_softmax")
def softmax(call: Call) -> Axes:
    """Hold the dim over which outputs sum to one, since removing a unit changes all others."""
    x = call["self"]
    summed = [x.axes[d] for d in call.dims(x, call["dim"])]
    call.hold(summed, "softmax runs over it", mixed=True)
    call.mark(summed, SEQUENCE)
    return x.axes


@rule("aten.cumsum", "aten.cumprod", "aten.logcumsumexp", "aten._logcumsumexp", "aten.flip", "aten.roll")
def scanned(call: Call) -> Axes:
    """Freeze the dims along which the order of positions matters."""
    x = call["self"]
    dims = next((call[k] for k in ("dims", "dim") if call[k] is not None), None)
    axes, text = [x.axes[d] for d in call.dims(x, dims)], f"{call.op.removeprefix('aten.').split('.')[0]} runs along it"
    if all(EXPERTS in call.alg.marks(v) for a in axes for v in call.alg.vars(a)):  # counts of each expert's tokens
        call.hold(axes, text)
    else:
        call.freeze(axes, text)
    return x.axes


@rule("aten.cummax", "aten.cummin", "aten.sort")
def scanned_pair(call: Call) -> list[Axes]:
    """Freeze the dim along which positions are ordered, for values and indices."""
    x = call["self"]
    call.freeze(
        [x.axes[d] for d in call.dims(x, -1 if call["dim"] is None else call["dim"])], "its positions are ordered"
    )
    return [x.axes, x.axes]


@rule("aten.diff")
def diff(call: Call) -> Axes:
    """Freeze the dim along which neighbours are subtracted; the result is shorter."""
    x = call["self"]
    (d,) = call.dims(x, -1 if call["dim"] is None else call["dim"])
    for v in call.tensors():
        call.freeze(v.axes[d], "neighbours along it are compared")
    others = [v._replace(axes=replaced(v.axes, {d: ONE})) for v in call.tensors()]
    axes = call.broadcast(others, replaced(call.shape, {d: 1}))
    return replaced(axes, {d: call.frozen([call.shape[d]], "neighbours along it are compared")[0]})
