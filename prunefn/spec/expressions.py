"""Integer expressions in sizes of the inputs, as plain data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from math import prod
from typing import Any

import sympy
from torch import fx

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
    if op == "+":  # numbers come last, with their sign
        operands = sorted(operands, key=lambda e: isinstance(e, int))
        return " + ".join(map(written, operands)).replace("+ -", "- ")
    compares = op in ("==", "!=", "<=", ">=", "<", ">", "and", "or")
    inside = ("and", "or") if compares else ("+", "and", "or", "*", "//", "%")
    return f" {op} ".join(
        f"({written(e)})" if isinstance(e, tuple) and e[0] in inside else written(e) for e in operands
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


def substituted(expr: Expr, values: Mapping[str, int]) -> Expr:
    """Return an expression with some sizes replaced by numbers; an int if no size is left.

    >>> substituted(("+", ("*", 4, "batch"), "length"), {"batch": 1})
    ('+', 4, 'length')
    >>> substituted(("*", 4, "batch"), {"batch": 1})
    4
    """
    if isinstance(expr, str):
        return values.get(expr, expr)
    if isinstance(expr, int):
        return expr
    if all(name in values for name in names(expr)):
        return int(value(expr, values))
    op, *operands = expr
    return (op, *(substituted(e, values) for e in operands))


# ---- from sympy


class Unreadable(Exception):
    """Raised for an expression that cannot be expressed as `Expr`."""


def from_sympy(expr: Any, name_of: Mapping[sympy.Symbol, str]) -> Expr:
    """Return a sympy expression of torch.export as plain data.

    Args:
        expr: of sizes.
        name_of: symbol → name of the size.

    Raises:
        Unreadable: it has a function or a symbol without a name here.
    """
    if isinstance(expr, sympy.Symbol):
        if expr not in name_of:
            raise Unreadable
        return name_of[expr]
    if isinstance(expr, sympy.Integer | int):
        return int(expr)
    op = SYMPY.get(type(expr).__name__)
    if op is None or (op == "**" and not isinstance(expr.args[1], sympy.Integer)):
        raise Unreadable
    return (op, *(from_sympy(a, name_of) for a in expr.args))
