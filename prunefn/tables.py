"""Tables of strings, as Markdown, as CSV or for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .display import html
from .files import atomic

if TYPE_CHECKING:
    import rich.table


class Table(NamedTuple):
    """A title with formatted cells; the first column is text, the others are numbers, aligned to the right.

    A column's name may have several lines, for the terminal.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.table(self.columns, self.rows, self.title)


def text(table: Table) -> str:
    """Return the table as plain text, as `print` shows it.

    >>> print(Table("costs", ("method", "MACs"), (("dense", "12"), ("pruned", "7"))))
    costs
    <BLANKLINE>
    method  MACs
    ──────  ────
    dense     12
    pruned     7
    """
    heads = [c.split("\n") for c in table.columns]
    height = max(map(len, heads), default=1)
    lines = [[*[""] * (height - len(h)), *h] for h in heads]  # column → its lines, at the bottom
    widths = [max(map(len, (*h, *(row[i] for row in table.rows)))) for i, h in enumerate(lines)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    rule = "  ".join("─" * w for w in widths)
    out = [*map(line, zip(*lines, strict=True)), rule, *map(line, table.rows)]
    return "\n".join([table.title, "", *out] if table.title else out)


def markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown, without its title.

    >>> print(markdown(Table("costs", ("method", "MACs"), (("dense", "12"), ("a|b", "7")))))
    | method | MACs |
    | :--- | ---: |
    | dense | 12 |
    | a\\|b | 7 |
    """
    align = [":---", *["---:"] * (len(table.columns) - 1)]
    return "\n".join(_line(cells) for cells in (table.columns, align, *table.rows))


def _line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def aligned(table: Table) -> str:
    """Return the table in columns of equal width for monospaced text, without its title.

    >>> print(aligned(Table("costs", ("method", "MACs"), (("dense", "12"), ("pruned", "7")))))
    method  MACs
    dense     12
    pruned     7
    """
    lines = [[c.replace("\n", " ") for c in cells] for cells in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = range(len(widths))
    return "\n".join(
        "  ".join([cells[first].ljust(widths[first]), *(cells[i].rjust(widths[i]) for i in others)]) for cells in lines
    )


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file; it gets its name only when it is complete."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic.write_text(path, text.getvalue())


def terminal(table: Table) -> rich.table.Table:
    """Return the table for `rich.print`."""
    import rich.box
    import rich.table

    out = rich.table.Table(title=table.title, title_justify="left", title_style="bold", box=rich.box.SIMPLE)
    out.padding = (0, 1, 0, 0)
    for i, column in enumerate(table.columns):
        out.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in table.rows:
        out.add_row(*row)
    return out
