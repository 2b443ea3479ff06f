"""Draw heat maps side by side: one row for each name, one column for each setting, the number in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, isfinite, log10
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..drawing.canvas import GONE, INK, KEPT, canvas, rows, save
from ..errors import PruneError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 3.0
"""Magnitudes below the largest one by more than these powers of ten have the colour of zero."""
DARK = 0.6
"""Cells darker than this, have white numbers."""
DEEP_BLUE, DEEP_ORANGE = "#1F3A63", "#7A3B12"
"""Colours of the largest magnitudes."""
CELL, ROW = 0.62, 0.21
"""Width of a column and height of a row, in inches."""
CHAR = 0.062
"""Width of a character of a row's name, in inches."""


class HeatMap(NamedTuple):
    """The numbers of one heat map."""

    title: str
    values: Sequence[Sequence[float | None]]
    """[rows][columns]; None: an empty cell."""
    form: str = ".3g"
    """Format of the numbers in the cells."""
    worse: int = 1
    """Sign of the values that are orange; those of the other sign are blue."""
    log: bool = True
    """Whether the colour follows the logarithm of the magnitude."""


def heat_maps(
    names: Sequence[str], columns: Sequence[str], maps: Sequence[HeatMap], path: Path | str, *, label: str
) -> None:
    """Draw heat maps with common rows; the colour of a cell is its magnitude within its map.

    Args:
        names: names of the rows, from the top.
        columns: names of the columns.
        maps: from left to right.
        path: path of the PNG.
        label: what the columns are.

    Raises:
        PruneError: there are no rows or no maps.
    """
    if not names or not maps:
        raise PruneError("there is nothing to draw: give the name and the values of a row, in at least one heat map")
    longest = max(map(len, names))
    width = max(CELL * len(columns), CHAR * 1.15 * max(len(m.title) for m in maps))
    figure = canvas(0.6 + CHAR * longest + (width + 0.25) * len(maps), 1.2 + ROW * len(names))
    for i, heat in enumerate(maps):
        axes = figure.add_subplot(1, len(maps), i + 1)
        _draw(axes, heat)
        rows(axes, names if i == 0 else [""] * len(names), label)
        axes.set_xticks(range(len(columns)), columns, fontsize=7)
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(heat.title, loc="left", fontsize=8.5, fontweight="bold", color=INK)
    save(figure, path)


def _draw(axes: Axes, heat: HeatMap) -> None:
    """Draw the cells of one heat map with their numbers."""
    from matplotlib.colors import LinearSegmentedColormap

    depths = heat.worse * depths_of(heat.values, log=heat.log)
    colours = LinearSegmentedColormap.from_list("depth", [DEEP_BLUE, KEPT, "white", GONE, DEEP_ORANGE])
    axes.imshow(depths, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    for i, line in enumerate(heat.values):
        for j, value in enumerate(line):
            if value is not None:
                colour = "white" if abs(depths[i, j]) > DARK else INK
                axes.text(j, i, format(value, heat.form), ha="center", va="center", fontsize=6.5, color=colour)


def depths_of(values: Sequence[Sequence[float | None]], *, log: bool = True) -> np.ndarray:
    """Return the depth of the colour of each cell, from -1 to 1, with the sign of its value; 0: zero, or no value.

    >>> depths_of([[1.0, -0.1], [0.0, None]]).round(2).tolist()
    [[1.0, -0.67], [0.0, 0.0]]
    >>> depths_of([[1.0, -0.1]], log=False).tolist()
    [[1.0, -0.1]]
    """
    sizes = [abs(v) for line in values for v in line if v is not None and isfinite(v)]
    largest = max(sizes, default=0.0)

    def depth(value: float | None) -> float:
        if value is None or value == 0:
            return 0.0
        if not isfinite(value):
            return 1.0
        share = abs(value) / largest
        return copysign(max(0.0, 1 + log10(share) / DECADES) if log else share, value)

    return np.array([[depth(v) for v in line] for line in values])
