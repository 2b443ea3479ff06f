"""All pictures of pruned networks: data in, a PNG out, without pyplot's global state.

This file draws the units kept and the accuracy; the others are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..display.units import scale_word
from ..drawing.canvas import COLOURS as COLOURS
from ..drawing.canvas import DENSE as DENSE
from ..drawing.canvas import DPI as DPI
from ..drawing.canvas import GRID, head, rows
from ..drawing.canvas import INK as INK
from ..drawing.canvas import canvas as canvas
from ..drawing.canvas import save as save
from .heat_maps import heat_maps as heat_maps
from .layers import layers as layers
from .norms import norms as norms
from .pareto import pareto as pareto
from .pareto import pareto_front as pareto_front
from .residuals import residuals as residuals
from .scores import scores as scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")
MANY = 6
"""With more lines than this, the legend is beside the picture."""


class Kept(NamedTuple):
    """The units of each group, before and after pruning."""

    title: str
    before: Mapping[str, int]
    """Group → units of the dense network."""
    after: Mapping[str, Mapping[str, int]]
    """Method → group → units that are left."""


class Curves(NamedTuple):
    """The accuracy of several methods at several costs."""

    title: str
    dense: tuple[float, float]
    """(MACs, top-1 from 0 to 1)"""
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Method → points, each (MACs, top-1 from 0 to 1)."""
    chance: float = 0.0
    """Top-1 of guessing."""


def kept(panels: Sequence[Kept], path: Path | str) -> None:
    """Draw bars of the units in each group, dense and after each method, with the number of units on each bar.

    Args:
        panels: the panels, from top to bottom.
        path: path of the PNG.
    """
    bars = max(len(p.before) * (len(p.after) + 1) for p in panels)
    figure = canvas(max(7.0, 1.5 + 0.42 * bars), 3.1 * len(panels))
    for axes, panel in zip(_stacked_axes(figure, len(panels)), panels, strict=True):
        _bars(axes, panel)
    save(figure, path)


def widths(before: Mapping[str, int], after: Mapping[str, int], path: Path | str) -> None:
    """Draw bars of the units of each group, grey before, coloured after, with one row a group; readable for a hundred groups.

    Args:
        before, after: group → units.
        path: path of the PNG.
    """
    names = list(before)
    figure = canvas(8.0, 1.1 + 0.2 * len(names))
    axes = figure.add_subplot(1, 1, 1)
    at = range(len(names))
    axes.barh(at, [before[n] for n in names], 0.8, color=DENSE, label="before")
    axes.barh(at, [after[n] for n in names], 0.8, color=COLOURS[0], label="after")
    for i, n in enumerate(names):
        axes.text(before[n], i, f" {after[n]} of {before[n]}", va="center", fontsize=7, color=INK)
    rows(axes, names, "units")
    axes.set_xlim(0, 1.15 * max(before.values()))
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=2, loc="outside upper right")
    save(figure, path)


def _bars(axes: Axes, panel: Kept) -> None:
    """Draw the bars of one panel of `kept`."""
    series = {"dense": panel.before, **panel.after}
    width = 0.84 / len(series)
    names = list(panel.before)
    for i, (method, units) in enumerate(series.items()):
        at = [g + (i - (len(series) - 1) / 2) * width for g in range(len(names))]
        percent = [100 * units[n] / panel.before[n] for n in names]
        colour = DENSE if not i else COLOURS[(i - 1) % len(COLOURS)]
        bars = axes.bar(at, percent, width * 0.92, color=colour, label=method)
        axes.bar_label(bars, [str(units[n]) for n in names], padding=2, fontsize=8, color=INK)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(0, 116)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("units kept (% of the group)")
    axes.grid(axis="y", color=GRID)
    head(axes, panel.title)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def accuracy(panels: Sequence[Curves], path: Path | str) -> None:
    """Draw top-1 against MACs: a line for each method, a star for the dense network, a dotted line for guessing.

    The axis of top-1 starts below the worst point, not always at zero.

    Args:
        panels: the panels, side by side; more than three are in rows of two.
        path: path of the PNG.
    """
    across = len(panels) if len(panels) <= 3 else 2
    down = -(-len(panels) // across)
    shared_legend = max(len(p.lines) for p in panels) > MANY
    figure = canvas(5.4 * across + 2.6 * shared_legend, 4.4 * down)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, i + 1)
        _lines(axes, panel)
        if not shared_legend:
            axes.legend(framealpha=1, edgecolor="white", fontsize=9, loc="lower right")
    if shared_legend:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        location: Any = "outside center right"
        figure.legend(handles, labels, loc=location, frameon=False, fontsize=9)
    save(figure, path)


def _lines(axes: Axes, panel: Curves) -> None:
    """Draw one panel of `accuracy`."""
    macs, top1 = panel.dense
    unit, word = scale_word(macs)
    for i, (method, points) in enumerate(panel.lines.items()):
        x, y = zip(*sorted([*points, panel.dense]), strict=True)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        scaled = [v / unit for v in x], [100 * v for v in y]
        axes.plot(*scaled, label=method, color=colour, marker=marker, markersize=5, linewidth=1.7)
    axes.plot([macs / unit], [100 * top1], "*", color="black", markersize=13, label="dense", linestyle="none", zorder=5)
    worst = min(y for points in panel.lines.values() for _, y in points)
    lowest = max(0, 10 * int(10 * worst - 0.5))
    if panel.chance and 100 * panel.chance > lowest:
        axes.axhline(100 * panel.chance, color="#888888", linestyle=":", linewidth=1.2, label="guessing")
    axes.set_ylim(lowest, 100 + 0.04 * (100 - lowest))
    axes.set_xlabel(f"MACs per image ({word})" if word else "MACs per image")
    axes.set_ylabel("top-1 on held-out images (%)")
    axes.grid(color=GRID)
    share = axes.secondary_xaxis("top", functions=_scales(100 * unit / macs))
    share.set_xlabel("MACs kept (% of dense)", fontsize=9)
    share.tick_params(labelsize=8)
    head(axes, panel.title)


def _scales(factor: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return the functions that convert to another unit and back."""
    return (lambda v: v * factor), (lambda v: v / factor)


def _stacked_axes(figure: Figure, n: int) -> list[Axes]:
    """Return n pairs of axes, from top to bottom."""
    return [figure.add_subplot(n, 1, i + 1) for i in range(n)]
