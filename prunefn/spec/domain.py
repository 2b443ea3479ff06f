"""The input sizes that a program accepts: guards that the export relied on, and limits observed by running it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx

from ..frozen_dict import FrozenDict

Expr = int | str | tuple[Any, ...]
"""An int, the name of a size, or (operator, operand, …); plain data that pickles and that torch.compile can trace."""

INFIX: dict[str, Callable[[Any, Any], Any]] = {
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FOLDS: dict[str, Callable[..., Any]] = {"+": sum, "*": prod, "min": min, "max": max, "and": all, "or": any}
PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
}

SYMPY = {
    "Add": "+",
    "Mul": "*",
    "Pow": "**",
    "Mod": "%",
    "PythonMod": "%",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "Equality": "==",
    "Unequality": "!=",
    "LessThan": "<=",
    "GreaterThan": ">=",
    "StrictLessThan": "<",
    "StrictGreaterThan": ">",
    "Min": "min",
    "Max": "max",
    "And": "and",
    "Or": "or",
}


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

    def nearest(self, n: int) -> dict[str, int]:
        """Return all sizes, each as near to `n` as the program accepts, and at least `n` if it accepts such a size.

        >>> even = Guard(("==", ("%", "batch", 2), 0))
        >>> Domain(FrozenDict({"batch": 4, "nodes": 7}), FrozenDict({"nodes": Limit(7, 7, "")}), (even,)).nearest(3)
        {'batch': 4, 'nodes': 7}
        """
        for candidate in range(n, n + 2 * max(self.traced.values(), default=0) + 2):
            sizes = {name: self._clamp(name, candidate) for name in self.traced}
            if not refusal(sizes, self.limits.items(), self.guards):
                return sizes
        return dict(self.traced)  # the export ran at these sizes, so they satisfy its guards

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


def value(expr: Expr, sizes: Mapping[str, int]) -> Any:
    """Evaluate an expression.

    >>> value(("==", ("%", ("+", "batch", 1), 2), 0), {"batch": 5})
    True
    """
    if isinstance(expr, str):
        return sizes[expr]
    if isinstance(expr, int):
        return expr
    op, *operands = expr
    values = [value(e, sizes) for e in operands]
    return INFIX[op](*values) if op in INFIX else FOLDS[op](values)


def names(expr: Expr) -> Iterable[str]:
    """Yield the names of the sizes that an expression reads."""
    if isinstance(expr, str):
        yield expr
    elif isinstance(expr, tuple):
        for e in expr[1:]:
            yield from names(e)


def written(expr: Expr) -> str:
    """Return an expression in Python's notation.

    >>> written(("==", ("%", ("+", "batch", 1), 2), 0))
    '(batch + 1) % 2 == 0'
    """
    if not isinstance(expr, tuple):
        return str(expr)
    op, *operands = expr
    if op in ("min", "max"):
        return f"{op}({', '.join(map(written, operands))})"
    return f" {op} ".join(
        f"({written(e)})" if isinstance(e, tuple) and e[0] in ("+", "and", "or") else written(e) for e in operands
    )


def emitted(expr: Expr, sizes: Mapping[str, fx.Node], graph: fx.Graph) -> Any:
    """Return the node of a graph that evaluates an expression; `sizes` holds the node of each size."""
    if isinstance(expr, str):
        return sizes[expr]
    if isinstance(expr, int):
        return expr
    op, *operands = expr
    function = INFIX.get(op) or PAIRS[op]
    return reduce(lambda a, b: graph.call_function(function, (a, b)), [emitted(e, sizes, graph) for e in operands])


# ---- from torch.export


class Unreadable(Exception):
    """Raised for a guard whose form cannot be expressed as `Expr`."""


def guards_of(env: Any, known: Mapping[sympy.Symbol, str]) -> tuple[tuple[Guard, ...], dict[str, str]]:
    """Return the guards of an export's shape environment, expressed in names of axes.

    torch also guards against sizes 0 and 1 wherever it checks whether something broadcasts or is contiguous. Those guards are
    left out: they say nothing about the model, and `prove` runs the program at size 1.

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
        if not expr.free_symbols or not expr.free_symbols <= known.keys() or (not from_model and _excludes_one(expr)):
            continue
        try:
            converted = _to_expr(expr, known)
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


def _excludes_one(expr: Any) -> bool:
    """Return whether a guard only excludes the sizes 0 or 1."""
    if not isinstance(expr, sympy.core.relational.Relational):
        return False
    numbers = [int(a) for a in expr.args if isinstance(a, sympy.Integer)]
    if isinstance(expr, sympy.Ne):
        return numbers in ([0], [1])
    return not isinstance(expr, sympy.Eq) and bool(numbers) and numbers[0] in (0, 1, 2) and not _bounds_from_above(expr)


def _bounds_from_above(expr: Any) -> bool:
    """Return whether a comparison with a number on one side bounds the other side from above."""
    less = isinstance(expr, sympy.StrictLessThan | sympy.LessThan)
    return less == isinstance(expr.args[1], sympy.Integer)


def _to_expr(expr: Any, name_of: Mapping[sympy.Symbol, str]) -> Expr:
    if isinstance(expr, sympy.Symbol):
        return name_of[expr]
    if isinstance(expr, sympy.Integer | int):
        return int(expr)
    op = SYMPY.get(type(expr).__name__)
    if op is None or (op == "**" and not isinstance(expr.args[1], sympy.Integer)):
        raise Unreadable
    return (op, *(_to_expr(a, name_of) for a in expr.args))


def shape_environment(values: Iterable[Any]) -> Any:
    """Return the shape environment behind an export's tensors; None if there is none."""
    modes = (getattr(v, "fake_mode", None) for v in values if isinstance(v, torch.Tensor))
    return next((m.shape_env for m in modes if m is not None and m.shape_env is not None), None)
