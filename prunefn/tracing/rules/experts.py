"""Mixtures of experts: rows are sorted by expert, and the rows of each expert are multiplied by its matrix."""

from __future__ import annotations

from .base import Axes, Call, rule


@rule("transformers.grouped_mm_fallback", "aten._grouped_mm")
def grouped(call: Call) -> Axes:
    """Map x [rows, in], weight [experts, in, out] and the end of each expert's rows [experts] to [rows, out].

    torch's own op also accepts operands with the axis of experts on neither side, or only on the other side. These are not MoE
    layers, so all their axes are frozen.
    """
    x, w, ends, *_ = call.tensors()
    if (len(x.axes), len(w.axes), len(ends.axes)) != (2, 3, 1) or call["bias"] is not None:
        return _freeze_call(call)
    rows, inner = x.axes
    experts, k, out = w.axes
    call.freeze(rows, "it is sorted by expert")
    call.unify(inner, k)
    call.unify(experts, ends.axes[0])
    call.contract(macs=(rows, inner, out), x=x, dim=-1, weight=w, out=out)
    return (rows, out)


def _freeze_call(call: Call) -> Axes:
    for v in call.tensors():
        call.freeze(v.axes, "it is a grouped product of another layout")
    return call.frozen(call.shape, "it is a grouped product of another layout")
