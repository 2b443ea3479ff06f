"""Pages of HTML: a title, a line on top, sections with pictures and tables; no script, no other file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from .._extras import needs
from ..files.atomic import write_text
from .cells import Table


class Section(NamedTuple):
    """A part of the page; everything except the heading is optional."""

    heading: str
    pictures: Sequence[tuple[str, str]] = ()
    """(name, data URI); all after the first are folded."""
    svg: str = ""
    table: Table | None = None
    note: str = ""
    """What the pointer shows on the SVG."""
    bars: Sequence[tuple[str, int, int]] = ()
    """(group, units kept, units)"""
    text: str = ""
    folded: bool = False

    @property
    def id(self) -> str:
        """The anchor for links within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")


def render(
    path: Path,
    *,
    title: str,
    verdict: str,
    sections: Sequence[Section],
    cards: Sequence[tuple[str, str, str]] = (),
    up: str = "",
    others: Mapping[str, str] = {},
) -> None:
    """Write a page.

    Args:
        path: file of the page.
        title: its heading.
        verdict: the line on top.
        sections: its parts, in order.
        cards: (name, value, note) of numbers below the line.
        up: address of the page above it.
        others: name → address of pages beside it.
    """
    verdict = verdict.replace(" %", "\u00a0%")
    text = _template().render(title=title, verdict=verdict, cards=cards, sections=sections, up=up, others=dict(others))
    write_text(path, text)


@cache
def _template() -> Any:
    """Return the template of a page."""
    with needs("train", "report.html"):
        from jinja2 import Environment
    source = files("prunefn.report").joinpath("page.html").read_text("utf-8")
    return Environment(autoescape=True).from_string(source)
