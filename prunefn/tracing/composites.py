"""Ops without a rule that torch defines by other ops: they are replaced by these, which have rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import default_decompositions

from . import rules
from .rules import Rule

IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd
KEPT = ("aten.sym_", "aten.item", "aten._assert", "prim.")
"""Ops that are no computation on tensors."""


def definition(op: Any, extra: Mapping[str, Rule]) -> Callable[..., Any] | None:
    """Return the function by which torch defines an op without a rule; None if it has a rule, or nothing but a kernel."""
    if not isinstance(op, OpOverload) or str(op).startswith(KEPT) or op._schema.is_mutable or rules.find(op, extra):
        return None
    kernel = op.py_kernels.get(IMPLICIT)
    if kernel is not None and not isinstance(kernel, torch._C.DispatchKey):
        return kernel
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), IMPLICIT):
        return lambda *args, **kwargs: op._op_dk(IMPLICIT, *args, **kwargs)
    return _core_definitions().get(op)


@cache
def _core_definitions() -> dict[Any, Callable[..., Any]]:
    """Return torch's own decompositions of ops that have kernels, which takes a second."""
    return dict(default_decompositions().items())


def composites(graph: fx.Graph, extra: Mapping[str, Rule]) -> dict[Any, Callable[..., Any]]:
    """Return the ops of a graph that have no rule, but a definition → their definitions."""
    ops = dict.fromkeys(n.target for n in graph.nodes if n.op == "call_function")
    return {op: function for op in ops if (function := definition(op, extra)) is not None}
