"""One small rule per op or family of ops; the table is keyed by op name, with or without overload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tag
from torch._ops import OpOverload

from ...errors import TraceError, nearest
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
    spectral,
)
from .base import TABLE, Axes, Call, Contraction, Layout, Reason, Rule, Value
from .create import SizeOf
from .shape import freeze_all

__all__ = [
    "Axes",
    "Call",
    "Contraction",
    "Layout",
    "Reason",
    "Rule",
    "SizeOf",
    "Value",
    "checked",
    "find",
    "freeze_all",
    "keeps_zero",
    "no_rule",
]


def checked(extra: Mapping[str, Rule]) -> dict[str, Rule]:
    """The user's rules by names as torch prints them: `mylib::op` becomes `mylib.op`.

    Raises:
        TraceError: torch knows no op of this name.
    """
    found = {name.replace("::", "."): rule for name, rule in extra.items()}
    for given, name in zip(extra, found, strict=False):
        namespace, _, op = name.partition(".")
        packet, _, overload = op.partition(".")
        known = getattr(getattr(torch.ops, namespace), packet, None) if packet else None
        if known is None or (overload and overload not in known.overloads()):
            ops = [f"{n}.{o}" for n in {namespace, "aten"} for o in dir(getattr(torch.ops, n))]
            raise TraceError(
                f"rules={{{given!r}: …}}: torch has no op of this name{nearest(name, [*TABLE, *ops])}; "
                "a name is 'library.op' or 'library.op.overload', and the library must be imported"
            )
    return found


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
