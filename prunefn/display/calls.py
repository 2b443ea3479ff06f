"""Choices as the calls that make them: `mac_aware(normalized(magnitude(p=2.0)), alpha=0.9)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from keyword import iskeyword
from typing import Any

OPERANDS = ("criterion", "a", "b")
"""Arguments that stand without their names."""
SHORT = 60
"""Longest text of a single argument."""


def choice_text(name: str, *functions: Callable[..., Any] | None, **fields: Any) -> str:
    """Return a choice of a menu as a call, from its name and what its functions were made with.

    Args:
        name: of the choice; a composition in brackets after it is dropped, as the arguments show it.
        functions: of the choice; the keywords of those that are `functools.partial` are its arguments.
        fields: further arguments; those that are None are left out.

    >>> choice_text("magnitude", partial(sum, p=2.0, bias=False))
    'magnitude(p=2.0, bias=False)'
    >>> choice_text("macs", None, keep=0.5)
    'macs(keep=0.5)'
    """
    arguments: dict[str, Any] = {}
    for function in functions:
        arguments |= getattr(function, "keywords", {})
    arguments |= fields
    base = name.partition("(")[0]
    return call(
        f"{base}_" if iskeyword(base) else base, {k: v for k, v in arguments.items() if v is not None}, OPERANDS
    )


def call(name: str, arguments: Mapping[str, Any], operands: Sequence[str] = ()) -> str:
    """Return a call as text; arguments that show nothing worth reading (tensors, long values) are left out.

    Args:
        operands: arguments that stand without their names.

    >>> call("pipeline", {"ratio": 0.5, "key": len, "others": object()})
    'pipeline(ratio=0.5, key=len)'
    """
    texts = {k: argument_text(v) for k, v in arguments.items()}
    return f"{name}({', '.join(text if k in operands else f'{k}={text}' for k, text in texts.items() if text)})"


def argument_text(value: Any) -> str:
    """Return an argument as text: a choice by its own text, a function by its name; "" for what shows nothing worth reading.

    >>> argument_text(len), argument_text([0.5, 0.25]), argument_text("blocks.*")
    ('len', '[0.5, 0.25]', "'blocks.*'")
    """
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
    if type(value) in (list, tuple):
        parts = [argument_text(v) for v in value]
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")")
        return f"{left}{', '.join(parts)}{right}" if all(parts) else ""
    if type(value) is dict:
        parts = [f"{k!r}: {argument_text(v)}" for k, v in value.items()]
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, partial):
        return argument_text(value.func)
    if getattr(value, "is_choice", False):
        return repr(value)
    name = getattr(value, "__name__", "")
    return name.lstrip("_") if isinstance(name, str) else ""


def noted(notes: Iterable[str]) -> str:
    """Return notes as the end of a repr.

    >>> noted(["few samples", "no labels"])
    '; note: few samples; note: no labels'
    """
    return "".join(f"; note: {n}" for n in notes)
