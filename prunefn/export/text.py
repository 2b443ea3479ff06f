"""Python source text as `ruff format` would leave it: literals, operators, lines of limited length."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

WIDTH = 88
"""Characters of a line."""
INDENT = "    "


class Group(NamedTuple):
    """Items between brackets, which can be written on several lines."""

    open: str
    items: tuple[Text, ...]
    close: str


class Infix(NamedTuple):
    """Two operands of an operator, which can be written on two lines."""

    left: str
    sign: str
    right: str


Text = str | Group | Infix


class Code(str):
    """Source text where a value could be."""

    __slots__ = ()


def flat(text: Text) -> str:
    """Return a text on one line.

    >>> flat(Group("f(", ("x", Group("size=[", ("2", "3"), "]")), ")"))
    'f(x, size=[2, 3])'
    """
    if isinstance(text, Infix):
        return f"{text.left} {text.sign} {text.right}"
    return text if isinstance(text, str) else f"{text.open}{', '.join(map(flat, text.items))}{text.close}"


def lines(text: Text, depth: int, before: str = "", after: str = "") -> list[str]:
    """Return the lines of a statement.

    Args:
        text: the last part of the statement.
        depth: levels of indentation.
        before: the part of the statement before it, such as `x = `.
        after: the part after it.

    >>> lines(Group("f(", ("first" * 9, "second" * 9), ")"), 0, "x = ")[1]
    '    firstfirstfirstfirstfirstfirstfirstfirstfirst,'
    """
    space = INDENT * depth
    line = f"{space}{before}{flat(text)}{after}"
    if len(line) <= WIDTH:
        return [line]
    head = f"{space}{before}{text.open if isinstance(text, Group) else flat(text)}"
    if before.endswith(("= ", "return ")) and (not isinstance(text, Group) or len(head) > WIDTH):
        return [f"{space}{before}(", *lines(text, depth + 1), f"{space}){after}"]
    if isinstance(text, Infix):
        return [f"{space}{before}{text.left}", f"{space}{text.sign} {text.right}{after}"]
    if isinstance(text, str):
        return [line]
    inner = f"{space}{INDENT}{', '.join(map(flat, text.items))}"
    if len(inner) <= WIDTH:
        body = [inner]
    elif len(text.items) == 1:
        body = lines(text.items[0], depth + 1)
    else:
        body = [line for item in text.items for line in lines(item, depth + 1, after=",")]
    return [head, *body, f"{space}{text.close}{after}"]


def call(function: str, args: Sequence[Text], kwargs: Sequence[tuple[str, Text]] = ()) -> Group:
    """Return a call."""
    return Group(f"{function}(", (*args, *(assigned(f"{n}=", v) for n, v in kwargs)), ")")


def assigned(name: str, text: Text) -> Text:
    """Return a text with a prefix."""
    return text._replace(open=f"{name}{text.open}") if isinstance(text, Group) else f"{name}{flat(text)}"


def is_name(text: str) -> bool:
    """Return whether a text can be the name of an attribute or variable."""
    return text.isidentifier() and not keyword.iskeyword(text)


def quoted(text: str) -> str:
    """Return a string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def literal(value: Any) -> Text:
    """Return the source of a plain value.

    >>> flat(literal([1, 2.5, None, float("inf"), torch.int64, "mean"]))
    '[1, 2.5, None, float("inf"), torch.int64, "mean"]'
    """
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, list | tuple):
        return Group("[", tuple(map(literal, value)), "]")
    if isinstance(value, torch.device):
        return f"torch.device({quoted(str(value))})"
    return "..." if value is ... else repr(value)


# ---- operators


OPERATORS = {
    "pow": ("**", 80), "mul": ("*", 60), "truediv": ("/", 60), "floordiv": ("//", 60), "mod": ("%", 60), "matmul": ("@", 60),
    "add": ("+", 50), "sub": ("-", 50), "and_": ("&", 40), "xor": ("^", 35), "or_": ("|", 30),
    "eq": ("==", 20), "ne": ("!=", 20), "lt": ("<", 20), "le": ("<=", 20), "gt": (">", 20), "ge": (">=", 20),
}  # fmt: skip
"""Function of `operator` → (sign, how strongly it binds)."""
UNARY = {"neg": "-", "invert": "~"}
STRONG = 100
"""How strongly a name or a call binds."""


class Bound(NamedTuple):
    """An expression, and how strongly its last operator binds."""

    text: Text
    strength: int = STRONG


def infix(name: str, operands: Sequence[Bound]) -> Bound:
    """Return the expression of a function of `operator`.

    >>> flat(infix("mul", [infix("add", [Bound("a"), Bound("2")]), Bound("b")]).text)
    '(a + 2) * b'
    >>> infix("pow", [Bound("a"), Bound("2")]).text
    'a**2'
    """
    if name in UNARY:
        return Bound(f"{UNARY[name]}{_inside(operands[0], 70)}", 70)
    sign, strength = OPERATORS[name]
    is_comparison = strength == 20
    left = _inside(operands[0], strength + (name == "pow" or is_comparison))
    right = _inside(operands[1], strength + (name != "pow"))
    tight = name == "pow" and is_simple(left) and is_simple(right)
    return Bound(f"{left}{sign}{right}" if tight else Infix(left, sign, right), strength)


def _inside(operand: Bound, strength: int) -> str:
    return flat(operand.text) if operand.strength >= strength else f"({flat(operand.text)})"


def is_simple(text: str) -> bool:
    """Return whether operators hug a text: a number, or names with dots."""
    return re.fullmatch(r"-?[\w.]*", text) is not None


def sliced(start: str, stop: str, step: str) -> str:
    """Return a slice; absent parts are empty.

    >>> sliced("", "n", ""), sliced("", "n + 1", ""), sliced("1", "", "2")
    (':n', ': n + 1', '1::2')
    """
    parts = [start, stop, step] if step else [start, stop]
    if all(map(is_simple, parts)):
        return ":".join(parts)
    return " : ".join(parts).strip().replace(" :  : ", " :: ")
