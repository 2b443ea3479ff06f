"""Doctests as blocks of code: in any text, and as an extension of griffe, which reads docstrings for the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from griffe import Extension
except ImportError:  # of the extra `docs`; the tests of the texts do without it
    Extension = object

if TYPE_CHECKING:
    from griffe import Object


class Doctests(Extension):
    """Fence the doctests of every docstring."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Return a text whose doctests are blocks of code in Markdown."""
    out: list[str] = []
    indent = None  # of the block of code that is open
    for line in text.split("\n"):
        starts = line.lstrip().startswith(">>> ")
        if starts and indent is None:
            indent = line[: len(line) - len(line.lstrip())]
            out.append(f"{indent}```pycon")
        elif indent is not None and not line.strip():
            out.append(f"{indent}```")
            indent = None
        out.append(line)
    if indent is not None:
        out.append(f"{indent}```")
    return "\n".join(out)
