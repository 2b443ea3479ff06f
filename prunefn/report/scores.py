"""Histograms of scores: a small panel for each group, with what is kept, what goes, and where the line between them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from ..drawing.canvas import DENSE, GONE, INK, KEPT, Panel, blank, grid, number, save, words
from ..errors import MaskError
from ..spec.layout import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 32
WIDE = 100.0
"""Scores above zero whose largest is more than so many times their smallest stand on a logarithmic axis."""
DEEP = 1e-7
"""It begins at no less than so many times the largest: what is below (dead units) is in the first bin."""
ACROSS = 4
CELL = (2.45, 1.32)
PANEL = Panel(0.2, 0.85, 2.1, 0.72)


class Histogram(NamedTuple):
    """The scores of a group."""

    edges: Sequence[float]
    """[bins + 1]"""
    kept: Sequence[int]
    """Units in each bin; those below the first edge, on a logarithmic axis, are in the first bin."""
    removed: Sequence[int]
    log: bool
    """Whether the edges are even on a logarithmic axis."""
    line: tuple[float, float] | None
    """(largest score of a removed unit, smallest of a kept one); None: all units are kept."""
    below: int = 0
    """Units below the first edge."""


def histogram(scores: Tensor, mask: Tensor | None = None, bins: int = BINS) -> Histogram:
    """Count the scores of a group; every unit is in one bin.

    Args:
        scores: float [units].
        mask: bool [units], True = kept; None: all are.
        bins: how many, from the smallest score (on a logarithmic axis: the smallest above 1e-7 of the largest) to the largest.

    Raises:
        MaskError: the mask has another number of units, or keeps none.

    >>> import torch
    >>> found = histogram(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([False, True, True, True]), bins=4)
    >>> found.edges, found.kept, found.removed, found.line
    ([1.0, 3.0, 5.0, 7.0, 9.0], [1, 1, 0, 1], [1, 0, 0, 0], (1.0, 2.0))
    """
    values = scores.detach().double().cpu().numpy()
    keep = np.ones(len(values), bool) if mask is None else mask.cpu().numpy()
    if len(keep) != len(values) or not keep.any():
        raise MaskError(f"there are {len(values)} scores, and the mask keeps {keep.sum()} of {len(keep)} units")
    above = values[values > 0]
    log = bool(len(above) and values.min() >= 0 and above.max() > WIDE * above.min())
    low, high = (above[above >= DEEP * above.max()].min() if log else values.min()), values.max()
    below = int((values < low).sum())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    inside = np.clip(values, edges[0], edges[-1])
    kept, removed = (np.histogram(inside[which], edges)[0].tolist() for which in (keep, ~keep))
    line = None if keep.all() else (float(values[~keep].max()), float(values[keep].min()))
    return Histogram(edges.tolist(), kept, removed, log, line, below)


def scores(
    scores: Mapping[str, Tensor],
    mask: Mapping[str, Tensor],
    path: Path | str,
    *,
    title: str = "Scores of the units of each group",
) -> None:
    """Draw the histograms of all groups, one small panel each; readable at a hundred.

    Removed units have another colour. The dashed line is halfway between the largest removed and the smallest kept score;
    where those overlap (limits, rounding to multiples), the shaded range is where they do.

    Args:
        scores: group → float [units].
        mask: group → bool [units], True = kept; a group that is not in it is kept whole.
        path: of the PNG.
        title: stands above.

    Raises:
        MaskError: as for `histogram`.
    """
    found = {g: histogram(s, mask.get(g)) for g, s in scores.items()}
    across = min(ACROSS, max(len(found), 2))
    figure, axes = blank(0.3 + CELL[0] * across, 0.72 + CELL[1] * max(-(-len(found) // across), 1))
    words(axes, PANEL.x, 0.1, title, 11.0, weight="bold")
    _legend(axes)
    for (name, h), panel in zip(found.items(), grid(len(found), across, CELL, PANEL), strict=True):
        _panel(axes, panel, name, h)
    save(figure, path)


def _legend(axes: Axes) -> None:
    from matplotlib.patches import Rectangle

    x = PANEL.x
    for colour, text, step in ((KEPT, "kept", 0.55), (GONE, "removed", 0.75)):
        axes.add_patch(Rectangle((x, 0.36), 0.12, 0.1, facecolor=colour))
        words(axes, x + 0.17, 0.41, text, 7.5, va="center_baseline")
        x += step
    words(axes, x, 0.41, "across: score, from – to; up: units in a bin", 7.5, va="center_baseline")


def _panel(axes: Axes, at: Panel, name: str, h: Histogram) -> None:
    from matplotlib.collections import PolyCollection

    most = max(1, *(k + r for k, r in zip(h.kept, h.removed, strict=True)))
    width = at.w / len(h.kept)
    for counts, below, colour in ((h.removed, [0] * len(h.kept), GONE), (h.kept, h.removed, KEPT)):
        boxes = []
        for i, (n, under) in enumerate(zip(counts, below, strict=True)):
            x, low, high = at.x + i * width, at.bottom - at.h * under / most, at.bottom - at.h * (under + n) / most
            if n:
                boxes.append([(x, low), (x + 0.92 * width, low), (x + 0.92 * width, high), (x, high)])
        axes.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0))
    axes.plot([at.x, at.x + at.w], [at.bottom] * 2, color=DENSE, linewidth=0.8)
    if h.line is not None:
        _line(axes, at, h)
    units, gone = sum(h.kept) + sum(h.removed), sum(h.removed)
    left = f"{units - gone} of {units}"
    words(axes, at.x, at.y - 0.18, cut(name, at.w - 0.07 * len(left), 7.5), 7.5, weight="bold")
    words(axes, at.x + at.w, at.y - 0.18, left, 7.0, ha="right")
    words(axes, at.x, at.bottom + 0.03, "≤ " * bool(h.below) + number(h.edges[0]), 6.0)
    words(axes, at.x + at.w, at.bottom + 0.03, number(h.edges[-1]) + (" (log)" if h.log else ""), 6.0, ha="right")
    words(axes, at.x - 0.03, at.y, str(most), 6.0, ha="right", rotation=90)


def _line(axes: Axes, at: Panel, h: Histogram) -> None:
    assert h.line is not None
    removed, kept = (at.x + at.w * place(value, h) for value in h.line)
    if removed > kept:
        axes.fill_between([kept, removed], at.y, at.bottom, color=INK, alpha=0.12, linewidth=0)
    middle = (removed + kept) / 2
    axes.plot([middle] * 2, [at.y - 0.02, at.bottom], color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    words(axes, middle, at.bottom + 0.14, number((h.line[0] + h.line[1]) / 2), 6.0, ha="center", weight="bold")


def place(value: float, h: Histogram) -> float:
    """Where a score is between the first edge (0) and the last (1).

    >>> place(10.0, Histogram([1.0, 10.0, 100.0], [1, 1], [0, 0], True, None))
    0.5
    """
    low, high = h.edges[0], h.edges[-1]
    value = min(max(value, low), high)
    ends = np.log([low, high, value]) if h.log else np.array([low, high, value])
    return float((ends[2] - ends[0]) / (ends[1] - ends[0]))
