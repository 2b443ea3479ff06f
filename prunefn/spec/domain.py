"""The input sizes that a program accepts: guards that the export relied on, and limits observed by running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sympy
import torch
from torch.utils._sympy.functions import Max

from ..frozen_dict import FrozenDict
from .expressions import Expr, Unreadable, from_sympy, names, value, written


class Guard(NamedTuple):
    """A condition on sizes; the program represents the model only where it holds."""

    expr: Expr
    source: str = ""
    """Place in the source where the model relies on the guard."""

    def __str__(self) -> str:
        return written(self.expr) + (f" ({self.source})" if self.source else "")


class Limit(NamedTuple):
    """The sizes of one axis for which the program was observed to agree with the model."""

    low: int
    high: int | None
    """None: no upper bound."""
    reason: str

    def __str__(self) -> str:
        sizes = f"{self.low} only" if self.low == self.high else f"{self.low} or more"
        return f"{sizes}: {self.reason}"


class Domain(NamedTuple):
    """The sizes that a program accepts."""

    traced: FrozenDict[str, int] = FrozenDict()
    """Axis whose size may change from call to call → its size in the traced call."""
    limits: FrozenDict[str, Limit] = FrozenDict()
    guards: tuple[Guard, ...] = ()
    batch: frozenset[str] = frozenset()
    """Axes whose positions are samples; all other axes belong to each sample."""
    fixed: FrozenDict[str, str] = FrozenDict()
    """Dim of an input that was asked to vary, but that the export fixed → its size and the reason."""

    def nearest(self, n: int, at: Mapping[str, int]) -> dict[str, int]:
        """Return all sizes: batches as near to `n` as the program accepts, and at least `n` if it accepts such a size.

        Args:
            n: number of samples.
            at: sizes of the other axes.

        >>> even = Guard(("==", ("%", "batch", 2), 0))
        >>> domain = Domain(FrozenDict({"batch": 4, "nodes": 7}), guards=(even,), batch=frozenset({"batch"}))
        >>> domain.nearest(3, {"nodes": 9})
        {'batch': 4, 'nodes': 9}
        """
        others = {**self.traced, **at}
        for candidate in range(n, n + 2 * max(self.traced.values(), default=0) + 2):
            sizes = others | {name: self._clamp(name, candidate) for name in self.traced if name in self.batch}
            if not refusal(sizes, self.limits.items(), self.guards):
                return sizes
        return others  # the export ran at the traced sizes, so they satisfy its guards

    def at_traced(self, reasons: Mapping[str, str]) -> Domain:
        """Return the domain in which these axes keep their traced sizes; the reasons are for messages."""
        limits = {name: Limit(self.traced[name], self.traced[name], reason) for name, reason in reasons.items()}
        return self._replace(limits=FrozenDict({**self.limits, **limits}))

    def _clamp(self, name: str, n: int) -> int:
        limit = self.limits.get(name)
        return n if limit is None else max(limit.low, n if limit.high is None else min(n, limit.high))


def refusal(sizes: Mapping[str, int], limits: Iterable[tuple[str, Limit]], guards: Iterable[Guard]) -> str:
    """Return why the program does not represent the model at these sizes; an empty text if it does.

    >>> refusal({"batch": 5}, [], [Guard(("<=", "batch", 4), "net.py:7")])
    'batch = 5, but the program holds where batch <= 4 (net.py:7)'
    """
    for name, limit in limits:
        if name in sizes and (sizes[name] < limit.low or (limit.high is not None and sizes[name] > limit.high)):
            return f"{name} = {sizes[name]}, but the program holds for {limit}"
    for guard in guards:
        if not value(guard.expr, sizes):
            assigned = ", ".join(f"{n} = {sizes[n]}" for n in dict.fromkeys(names(guard.expr)))
            return f"{assigned}, but the program holds where {guard}"
    return ""


# ---- from torch.export


def guards_of(env: Any, known: Mapping[sympy.Symbol, str]) -> tuple[tuple[Guard, ...], dict[str, str]]:
    """Return the guards of an export's shape environment, expressed in names of axes.

    torch also guards against sizes 0 and 1 wherever it checks whether something broadcasts, and guards how results lie in
    memory. Those guards are left out: they say nothing about the model, and `prove` runs the program at size 1.

    Args:
        env: a `torch.fx.experimental.symbolic_shapes.ShapeEnv`.
        known: symbol → name of the axis whose size it is. Guards on other symbols (sizes that depend on data) are left out.

    Returns:
        (guards, name → guard that cannot be expressed; this size must not change).
    """
    guard_of: dict[Expr, Guard] = {}
    unreadable: dict[str, str] = {}
    for guard in env.guards:
        path, line = _source_of(guard.sloc)
        from_model = "/torch/" not in path
        expr = env.simplify(guard.expr) if guard.expr.free_symbols - known.keys() else guard.expr
        if not expr.free_symbols or not expr.free_symbols <= known.keys() or (not from_model and _is_of_memory(expr)):
            continue
        try:
            converted = from_sympy(expr, known)
        except Unreadable:
            unreadable.update({known[s]: str(expr) for s in expr.free_symbols})
            continue
        where = f"{path.rpartition('site-packages/')[2]}:{line}" if from_model else ""
        if converted not in guard_of or (where and not guard_of[converted].source):
            guard_of[converted] = Guard(converted, where)
    return tuple(guard_of.values()), unreadable


def _source_of(sloc: Any) -> tuple[str, int]:
    """Return the file and the line where torch added a guard."""
    frame: Any = getattr(sloc, "framework_loc", None)
    return (frame.filename, frame.lineno) if hasattr(frame, "filename") else ("/torch/", 0)


def _is_of_memory(expr: Any) -> bool:
    """Return whether a guard of torch only excludes the sizes 0 or 1, or only says how a result lies in memory.

    Such are inequalities (a size of one broadcasts) and comparisons of strides, which torch writes with Max.
    """
    if not isinstance(expr, sympy.core.relational.Relational) or isinstance(expr, sympy.Eq):
        return False
    numbers = [int(a) for a in expr.args if isinstance(a, sympy.Integer)]
    excludes_small = bool(numbers) and numbers[0] in (-1, 0, 1, 2) and not _bounds_from_above(expr)
    return isinstance(expr, sympy.Ne) or expr.has(Max) or excludes_small


def _bounds_from_above(expr: Any) -> bool:
    """Return whether a comparison with a number on one side bounds the other side from above."""
    less = isinstance(expr, sympy.StrictLessThan | sympy.LessThan)
    return less == isinstance(expr.args[1], sympy.Integer)


def shape_environment(values: Iterable[Any]) -> Any:
    """Return the shape environment behind an export's tensors; None if there is none."""
    modes = (getattr(v, "fake_mode", None) for v in values if isinstance(v, torch.Tensor))
    return next((m.shape_env for m in modes if m is not None and m.shape_env is not None), None)
