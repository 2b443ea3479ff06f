"""Mixtures of experts: a top-k picks experts of each row, rows are sorted by expert, and multiplied by the matrix of theirs.

The integers that a top-k returns are positions of the axis that it runs over. Such a value has this axis in `Value.picks` as long
as ops only move it; ops that look the integers up, as an index does, unify the axis with the one that they look up.
"""

from __future__ import annotations

from typing import NamedTuple

from ..axes import Term
from .base import EXPERTS, Axes, Call, Value, rule
from .shape import freeze_all

MOVES = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze expand permute transpose t slice select split chunk unbind cat "
    "clone contiguous alias detach lift_fresh_copy to _to_copy sort index index_select gather".split()
)
"""Ops whose result has the integers of their first tensor."""
READS = frozenset("index index_select gather take_along_dim scatter scatter_add scatter_reduce one_hot histc".split())
"""Ops that look up integers, or count them."""
SHAPES = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_full new_empty".split()
)
"""Ops that read only the shape of their argument."""


class Last(NamedTuple):
    """The last position of an axis, as a number of the program."""

    axis: Term


def follow_picks(call: Call) -> None:
    """Pass picked positions on to the result, and freeze axes whose positions are used in another way than looked up."""
    op = call.op.split(".")[1] if "." in call.op else call.op
    values = call.tensors()
    for n, v in enumerate(values):
        if v.picks is None or op in SHAPES:
            continue
        if n == 0 and op in MOVES:
            call.picks.setdefault(0, v.picks)
        elif op not in READS:
            call.freeze(v.picks, "its positions are picked and used as numbers")


@rule("aten.histc")
def count(call: Call) -> Axes | list[Axes]:
    """Count how often each expert is picked; other histograms freeze all, since their values depend on data."""
    x: Value = call["self"]
    experts, bins = x.picks, call["bins"]
    if experts is None:
        return freeze_all(call, "its positions depend on data")
    in_bins = (bins, call["min"], call["max"]) == (call.alg.size(experts), 0, call.alg.size(experts) - 1)
    if not (call.alg.lenient and in_bins):
        call.freeze(experts, "its positions are counted in other bins")
        return freeze_all(call, "its positions depend on data")
    call.mark([experts], EXPERTS)
    call.resize("bins", experts)
    call.resize("max", Last(experts))
    return (experts,)


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
