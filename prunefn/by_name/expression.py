"""Values in words: what one writes in Python, `mac_aware(magnitude(1), 0.9)`, as text in a config or on the command line.

Nothing is executed: the text is parsed, and names are looked up among the functions that a room has for it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from functools import reduce
from operator import and_, or_
from typing import Any

from ..errors import PruneError, nearest

Room = Mapping[str, Callable[..., Any]]
"""What names mean."""


def value_of(text: str, room: Room, what: str) -> Any:
    """The value that a text stands for. A bare name is called without arguments.

    Args:
        text: a name (`global` is `global_`), or a call with numbers, strings, True, False, None, lists and other calls as
            arguments; values that compose may be joined by `&`, `|` and `~`.
        room: what names mean.
        what: is read, for messages.

    Raises:
        PruneError: the text cannot be read, or says a name that is not known; what a function says to its arguments.

    >>> from prunefn import criteria
    >>> room = {n: getattr(criteria, n) for n in criteria.__all__}
    >>> value_of("mac_aware(magnitude(1.0), alpha=0.5)", room, "criterion").name
    'mac_aware(magnitude)'
    >>> value_of("lampe", room, "criterion")
    Traceback (most recent call last):
    prunefn.errors.PruneError: criterion 'lampe': there is no 'lampe'; did you mean 'lamp' or 'flap'?
    """
    try:
        tree = ast.parse(re.sub(r"\bglobal\b", "global_", text.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        why = error.msg if isinstance(error, SyntaxError) else str(error) or "it is nested too deeply"
        raise PruneError(
            f"{what} {text[:200]!r} cannot be read: {why}; write it as a call, such as name(0.5)"
        ) from None
    try:
        return _value(tree, room, call=True)
    except (PruneError, TypeError, ValueError, RecursionError) as error:
        raise PruneError(f"{what} {text!r}: {error}") from None


def _value(node: ast.expr, room: Room, *, call: bool = False) -> Any:
    if isinstance(node, ast.Name | ast.Attribute):
        return _named(ast.unparse(node), room)()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        make = _named(ast.unparse(node.func), room)
        if any(k.arg is None for k in node.keywords):
            raise PruneError("** is not read here")
        return make(*(_value(a, room) for a in node.args), **{str(k.arg): _value(k.value, room) for k in node.keywords})
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        join = and_ if isinstance(node.op, ast.BitAnd) else or_
        return reduce(join, (_value(n, room, call=True) for n in (node.left, node.right)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_value(node.operand, room, call=True)
    if call:
        raise PruneError(f"this is no name and no call; there are {', '.join(sorted(room))}")
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise PruneError(f"{ast.unparse(node)!r} is neither a number, a string nor a call") from None


def _named(name: str, room: Room) -> Callable[..., Any]:
    if name not in room:
        raise PruneError(f"there is no {name!r}{nearest(name, sorted(room))}")
    return room[name]
