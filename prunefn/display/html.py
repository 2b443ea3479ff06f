"""HTML of values for notebooks: tables that take the colours of the page, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .units import quantity

MOST_ROWS = 60
"""Rows of a table; the rest is counted below it."""
CELL = "padding:.2em .7em"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", note: str = "") -> str:
    """Return an HTML table; the first column is text, the others are aligned to the right.

    Args:
        columns: headings; an empty list for none.
        rows: cells as text.
        title, note: above and below the table.

    >>> table(["group", "kept"], [["a<b", "3"]]).count("a&lt;b")
    1
    """
    head = "".join(_cell("th", c.replace("\n", " "), i) for i, c in enumerate(columns))
    lines = ["".join(_cell("td", c, i) for i, c in enumerate(row)) for row in rows[:MOST_ROWS]]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    more = f"… {len(rows) - MOST_ROWS} more rows" if len(rows) > MOST_ROWS else ""
    parts = [_line(title), '<table style="border-collapse:collapse">']
    parts += [f"<thead><tr>{head}</tr></thead>"] if head else []
    parts += [f"<tbody>{body}</tbody></table>", _line(more), _line(note)]
    return f'<div style="overflow-x:auto">{"".join(parts)}</div>'


def effects(
    before: Sequence[int], after: Sequence[int], removed: Mapping[str, tuple[int, int]], notes: Sequence[str]
) -> str:
    """Return the table of a pruning.

    Args:
        before, after: MACs, parameters, activations.
        removed: group → units removed, units.
        notes: below the table.
    """
    rows = [
        [name, quantity(dense, ""), quantity(small, ""), f"{small / dense:.1%}" if dense else "–"]
        for name, dense, small in zip(("MACs", "params", "activations"), before, after, strict=True)
    ]
    rows += [[name, str(n), str(n - lost), f"{1 - lost / n:.1%}"] for name, (lost, n) in removed.items()]
    text = "; ".join(f"note: {n}" for n in notes)
    return table(["", "before", "after", "kept"], rows, "costs of one sample; units of each group", text)


def _cell(tag: str, text: str, column: int) -> str:
    """Return a cell; numbers stand at the right."""
    side = "right" if column else "left"
    return f'<{tag} style="{CELL};text-align:{side}">{escape(text)}</{tag}>'


def _line(text: str) -> str:
    return f'<div style="padding:.3em .7em">{escape(text)}</div>' if text else ""
