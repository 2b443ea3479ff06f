"""One small rule per op or family of ops; the table is keyed by op name, with or without overload.

A rule is a function from a `Call` to the axes of the op's outputs: `Call` says how to write one of your own for `trace(…, rules=)`.

A rule for everybody stands beside its kin in one of these files, under `@rule("aten.name")`; tests/test_op_toys.py makes toys of
the op from its schema (`python -m tests.op_toys.search name`) and checks the laws on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tag
from torch._ops import HigherOrderOperator, OpOverload

from ...errors import TraceError, nearest
from ...spec.program import HIGHER_ORDER
from . import (  # noqa: F401  (each module registers its rules)
    contract,
    convolution,
    create,
    detection,
    experts,
    indexing,
    linalg,
    losses,
    norm,
    pointwise,
    quantize,
    recurrent,
    reduce,
    shape,
    slicing,
    spatial,
    spectral,
)
from .aliases import canonical, named, use_canonical
from .base import CHOSEN, EXPERTS, SEQUENCE, TABLE, Axes, Call, Contraction, Lookup, Reason, Rule, TermLayout, Value
from .create import SizeOf
from .experts import Last, follow_picks
from .frozen import NO_RULE, ON_PURPOSE, why_no_rule
from .quantize import is_zero_point
from .shape import freeze_all

__all__ = [
    "CHOSEN",
    "EXPERTS",
    "NO_RULE",
    "ON_PURPOSE",
    "SEQUENCE",
    "Axes",
    "Call",
    "Contraction",
    "Last",
    "Lookup",
    "Reason",
    "Rule",
    "SizeOf",
    "TermLayout",
    "Value",
    "checked",
    "find",
    "follow_picks",
    "freeze_all",
    "is_zero_point",
    "keeps_zero",
    "repeated_dims",
    "use_canonical",
    "why_no_rule",
]


EXPANDS = ("aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.expand_copy")
EMPTY = ("aten.segment_reduce",)
"""Ops whose result need not be zero where no values are reduced."""
KEEPS = ("aten.clone", "aten.alias", "aten.detach", "aten.contiguous", "aten.to", "aten._to_copy", "aten.type_as")
"""Ops that return the values of their first tensor, whose other tensors say a size or a dtype."""


def checked(extra: Mapping[str, Rule]) -> dict[str, Rule]:
    """Return the user's rules by the names that torch prints: `mylib::op` becomes `mylib.op`.

    Raises:
        TraceError: torch has no op of this name.
    """
    rule_of = {named(name.replace("::", ".")): rule for name, rule in extra.items()}
    for user_name, name in zip(extra, rule_of, strict=False):
        namespace, _, op = name.partition(".")
        packet, _, overload = op.partition(".")
        torch_op = getattr(getattr(torch.ops, namespace), packet, None) if packet else None
        if torch_op is None or (overload and overload not in getattr(torch_op, "overloads", tuple)()):
            ops = [f"{n}.{o}" for n in {namespace, "aten"} for o in dir(getattr(torch.ops, n))]
            raise TraceError(
                f"rules={{{user_name!r}: …}}: torch has no op of this name{nearest(name, [*TABLE, *ops])}; "
                "a name is 'library.op' or 'library.op.overload', and the library must be imported"
            )
    return rule_of


def find(op: Any, extra: Mapping[str, Rule]) -> Rule | None:
    """Return the rule of an op: the user's, else the table's, else by torch's tag that of pointwise ops; None if there is none."""
    if isinstance(op, HigherOrderOperator):
        return extra.get(f"{HIGHER_ORDER}{op.name()}")
    if not isinstance(op, OpOverload):
        return None
    full = str(op := canonical(op))
    bare = full.rsplit(".", 1)[0]
    for name in (full, bare):
        if match := extra.get(name) or TABLE.get(name):
            return match
    if Tag.pointwise in op.tags:
        plain = bare.removesuffix("_")
        return TABLE.get(plain, pointwise.pointwise)
    return TABLE.get(bare.removesuffix("_")) if bare.endswith("_") else None


def keeps_zero(op: Any, call: Call) -> bool:
    """Return whether the result is zero for a unit whose parameters are all zero."""
    inputs, bare = call.tensors(), call.op.rpartition(".")[0]
    if call.contractions and any(c.weight is not None and not c.weight.active for c in call.contractions):
        return True
    if not inputs:
        return bare in ("aten.zeros", "aten.new_zeros")
    module = getattr(find(op, {}), "__module__", "")
    if module == norm.__name__:
        return True
    if module in (linalg.__name__, losses.__name__) or bare in EMPTY:
        return False
    return pointwise.keeps_zero(call) if module == pointwise.__name__ else all(v.zero for v in inputs)


def repeated_dims(op: Any, call: Call) -> frozenset[int]:
    """Return the dims of an elementwise op's result, counted from the right, along which all of its values are equal."""
    tags = getattr(op, "tags", ())
    inputs, bare = call.tensors(), call.op.rpartition(".")[0]
    if bare in EXPANDS or bare in KEEPS:
        inputs = inputs[:1]
    elif Tag.pointwise not in tags or Tag.nondeterministic_seeded in tags:
        return frozenset()
    return frozenset(d for d in range(-len(call.shape), 0) if inputs and all(v.repeats(d) for v in inputs))
