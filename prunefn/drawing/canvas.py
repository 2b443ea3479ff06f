"""The common parts of all pictures: colours, figures without pyplot's state, reproducible files, panels on one pair of axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._extras import needs
from ..files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    *("#4C72B0", "#DD8452", "#55A868", "#8172B3", "#C44E52", "#937860"),
    *("#64B5CD", "#B8860B", "#D67BB3", "#1B5E20", "#444444", "#999999"),
)
"""Colours of the methods, in their order."""
KEPT, GONE = COLOURS[0], COLOURS[1]
"""Colours of kept and of removed units."""
DENSE = "#BFBFBF"
INK = "#333333"
GRID = "#E8E8E8"
DPI = 150
MOST_PIXELS = 60_000
"""Maximal pixels of a side: Agg draws fewer than 2¹⁶."""


def canvas(width: float, height: float, *, constrained: bool = True) -> Figure:
    """Return an empty figure for Agg; width and height in inches."""
    with needs("plot", "a picture"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    if constrained:
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG atomically; its content does not depend on the time."""
    dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
    atomic.write(path, lambda file: figure.savefig(file, dpi=dpi, format="png", metadata={"Software": None}))


def head(axes: Axes, title: str) -> None:
    """Put a title at the left, and remove the frame except for the two axes."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def rows(axes: Axes, names: Sequence[str], label: str) -> None:
    """Set up one row for each name, from the top; `label` states the quantity and unit of the horizontal axis."""
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one invisible pair of axes, in inches from the top left.

    Drawing a hundred panels on it takes a second; a hundred pairs of axes would take a minute.
    """
    figure = canvas(width, height, constrained=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


class Panel(NamedTuple):
    """A rectangle on a figure of `blank`, in inches: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float

    @property
    def bottom(self) -> float:
        """Vertical position of the lower edge, on which bars stand."""
        return self.y + self.h


def grid(n: int, across: int, cell: tuple[float, float], panel: Panel) -> Iterator[Panel]:
    """Yield n panels in rows.

    Args:
        n: number of panels.
        across: number of panels in a row.
        cell: width and height of the cell of each panel, its text included.
        panel: position of the first panel, and size of each.

    >>> [p[:2] for p in grid(3, 2, (2.0, 1.0), Panel(0.5, 0.25, 1.5, 0.5))]
    [(0.5, 0.25), (2.5, 0.25), (0.5, 1.25)]
    """
    for i in range(n):
        down, right = divmod(i, across)
        yield panel._replace(x=panel.x + right * cell[0], y=panel.y + down * cell[1])


def words(axes: Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    """Write text whose top left is at (x, y)."""
    axes.text(x, y, text, **{"fontsize": size, "color": INK, "va": "top", **style})


def number(value: float) -> str:
    """Return a number with three digits, as short as possible.

    >>> number(0.000123), number(1234.5), number(0.5), number(0.0)
    ('1.23e-4', '1.23e3', '0.5', '0')
    """
    text = f"{value:.3g}"
    if "e" not in text and value and not 1e-2 <= abs(value) < 1e3:
        text = f"{value:.2e}"
    mantissa, e, power = text.partition("e")
    return f"{mantissa}{e}{int(power)}" if e else text
