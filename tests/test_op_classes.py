"""Every op of torch that takes and returns tensors is in a class: it has a rule, is written out, or is frozen on purpose."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from functools import cache

import torch

from prunefn.tracing.composites import definition
from prunefn.tracing.rules import NO_RULE, find, why_no_rule
from prunefn.tracing.rules.aliases import ALIASES
from prunefn.tracing.rules.frozen import REASONS

from .op_toys.search import overloads

NEWEST = (2, 14)
"""The newest torch whose ops are known."""
ADDED = 40
"""Most ops that a later torch may add without a class."""


@cache
def ops() -> dict[str, list[torch._ops.OpOverload]]:
    """Name → overloads with tensors in and out that write to none of them."""
    registered = {str(n) for n in torch._C._dispatch_get_all_op_names()}
    names = sorted({n.removeprefix("aten::").partition(".")[0] for n in registered if n.startswith("aten::")})
    found = {n: [op for op in overloads(f"aten.{n}") if op.name() in registered and takes_tensors(op)] for n in names}
    return {n: found[n] for n in names if found[n]}


def takes_tensors(op: torch._ops.OpOverload) -> bool:
    return any("Tensor" in str(a.type) for a in op._schema.arguments)


def class_of(op: torch._ops.OpOverload) -> str:
    if op._schema.name.removeprefix("aten::") in ALIASES:
        return "alias"
    if find(op, {}) is not None:
        return "rule"
    if definition(op, {}) is not None:
        return "written out"
    return "none" if why_no_rule(str(op)) == NO_RULE else "frozen on purpose"


def test_every_op_is_in_a_class() -> None:
    classes = {str(op): class_of(op) for found in ops().values() for op in found}
    count, none = Counter(classes.values()), [op for op, c in classes.items() if c == "none"]
    version = tuple(int(n) for n in torch.__version__.split(".")[:2])
    assert len(none) <= (ADDED if version > NEWEST else 0), none
    assert count["rule"] > 700 and count["written out"] > 200 and count["alias"] > 60, count


def test_every_reason_is_of_some_op_that_needs_it() -> None:
    """On the newest torch, each glob names an op without a rule."""
    without = [n for n, found in ops().items() if any(class_of(op) == "frozen on purpose" for op in found)]
    version = tuple(int(n) for n in torch.__version__.split(".")[:2])
    unneeded = [g for globs in REASONS.values() for g in globs.split() if not any(fnmatchcase(n, g) for n in without)]
    assert version != NEWEST or not unneeded
