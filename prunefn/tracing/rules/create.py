"""Ops that create tensors from sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..axes import Term
from .base import Axes, Call, rule


class SizeOf(NamedTuple):
    """A symbolic size in the graph, traced back to its axis."""

    axis: Term


@rule(
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.empty",
    "aten.rand",
    "aten.randn",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.new_empty",
    "aten.normal.float_float",
)
def filled(call: Call) -> Axes:
    """Return free axes, since one number fills the tensor (or its values are arbitrary); other ops may pin them."""
    axes = tuple(_axis(call, n, size) for n, size in zip(call.shape, call["size"], strict=True))
    call.resize("size", list(axes))
    return axes


def _axis(call: Call, n: int, size: Any) -> Term:
    return size.axis if isinstance(size, SizeOf) else call.alg.leaf(n)


@rule(
    "aten.arange",
    "aten.linspace",
    "aten.logspace",
    "aten.eye",
    "aten.scalar_tensor",
    "aten.tensor",
    "aten.randperm",
    "aten.randint",
    "aten.tril_indices",
    "aten.triu_indices",
    "aten.hann_window",
)
def numbered(call: Call) -> Axes:
    """Freeze the axes, since the values depend on positions."""
    ends = [v for v in (call["end"], call["n"]) if isinstance(v, SizeOf)]
    if len(ends) == 1 and len(call.shape) == 1 and call["start"] in (None, 0) and call["step"] in (None, 1):
        call.freeze(ends[0].axis, "its positions are numbered")
        return (ends[0].axis,)
    return call.frozen(call.shape, "its positions are numbered")
