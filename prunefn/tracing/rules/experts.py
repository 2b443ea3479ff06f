"""Mixtures of experts: rows are sorted by expert, and each run of them meets the matrix of its own."""

from __future__ import annotations

from .base import Axes, Call, rule


@rule("transformers.grouped_mm_fallback", "aten._grouped_mm")
def grouped(call: Call) -> Axes:
    """x [rows, in], weight [experts, in, out], where the rows of each expert end [experts] → [rows, out].

    torch's own op takes matrices with an axis of experts on neither or only on the other side, too: those are not MoE
    layers, and nothing of them is pruned.
    """
    x, w, ends, *_ = call.tensors()
    if (len(x.axes), len(w.axes), len(ends.axes)) != (2, 3, 1) or call["bias"] is not None:
        return _frozen(call)
    rows, inner = x.axes
    experts, k, out = w.axes
    call.freeze(rows, "it is sorted by expert")
    call.unify(inner, k)
    call.unify(experts, ends.axes[0])
    call.contract(macs=(rows, inner, out), x=x, dim=-1, weight=w, out=out)
    return (rows, out)


def _frozen(call: Call) -> Axes:
    for v in call.tensors():
        call.freeze(v.axes, "it is a grouped product of another layout")
    return call.frozen(call.shape, "it is a grouped product of another layout")
