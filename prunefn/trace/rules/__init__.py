"""One small rule per op or family of ops; the table is keyed by op name, with or without overload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tag
from torch._ops import OpOverload

from . import (  # noqa: F401  (each enters its rules)
    contract,
    convolution,
    create,
    detection,
    experts,
    indexing,
    norm,
    pointwise,
    recurrent,
    reduce,
    shape,
    slicing,
    spatial,
)
from .base import TABLE, Axes, Call, Contraction, Geometry, Reason, Rule, Value
from .create import SizeOf
from .shape import freeze_all

__all__ = [
    "Axes",
    "Call",
    "Contraction",
    "Geometry",
    "Reason",
    "Rule",
    "SizeOf",
    "Value",
    "find",
    "keeps_zero",
    "no_rule",
]


def find(op: OpOverload, extra: Mapping[str, Rule]) -> Rule | None:
    """The rule of an op: the user's, then the table's, then that of pointwise ops by torch's tag; None if there is none."""
    full = str(op)
    bare = full.rsplit(".", 1)[0]
    for name in (full, bare):
        if found := extra.get(name) or TABLE.get(name):
            return found
    if Tag.pointwise in op.tags:
        plain = bare.removesuffix("_")
        return TABLE.get(plain, pointwise.pointwise)
    return TABLE.get(bare.removesuffix("_")) if bare.endswith("_") else None


def keeps_zero(op: Any, call: Call) -> bool:
    """Whether the result is zero for a unit all of whose parameters are zero."""
    inputs, bare = call.tensors(), call.op.rpartition(".")[0]
    if call.contractions and any(c.weight is not None and not c.weight.active for c in call.contractions):
        return True
    if not inputs:
        return bare in ("aten.zeros", "aten.new_zeros")
    module = (find(op, {}) or no_rule).__module__
    if module == norm.__name__:
        return True
    return pointwise.keeps_zero(call) if module == pointwise.__name__ else all(v.zero for v in inputs)


def no_rule(call: Call) -> list[Axes]:
    """Freezes all that it touches, and says so."""
    return freeze_all(call, "no rule")
