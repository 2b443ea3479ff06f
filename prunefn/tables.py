"""Tables of strings, as Markdown, as CSV or for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
