"""Draw histograms of scores: a small panel for each group, with kept units, removed units and the threshold between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..drawing.canvas import DENSE, GONE, INK, KEPT, Panel, blank, grid, number, save, words
from ..errors import MaskError
from ..spec.layout import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 32
WIDE = 100.0
"""If the largest positive score is more than this many times the smallest, the axis is logarithmic."""
DEEP = 1e-7
"""A logarithmic axis begins at no less than this share of the largest score; lower scores (dead units) are in the first bin."""
ACROSS = 4
CELL = (2.45, 1.32)
PANEL = Panel(0.2, 0.85, 2.1, 0.72)


class Histogram(NamedTuple):
    """A histogram of the scores of a group."""

    edges: Sequence[float]
    """Edges of the bins [bins + 1]."""
    kept: Sequence[int]
    """Kept units in each bin; units below the first edge, on a logarithmic axis, are in the first bin."""
    removed: Sequence[int]
    """Removed units in each bin."""
    log: bool
    """Whether the edges are equidistant on a logarithmic axis."""
    line: tuple[float, float] | None
    """(largest score of a removed unit, smallest score of a kept one); None if all units are kept."""
    below: int = 0
    """Number of units below the first edge."""


def histogram(scores: Tensor, mask: Tensor | None = None, bins: int = BINS) -> Histogram:
    """Count the scores of a group; every unit is in one bin.

    Args:
        scores: float [units].
        mask: bool [units], True = kept; None: all units are kept.
        bins: number of bins, from the smallest score (on a logarithmic axis, the smallest that is at least 1e-7 of the largest)
            to the largest.

    Raises:
        MaskError: the mask has another number of units, or keeps none.

    >>> import torch
    >>> h = histogram(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([False, True, True, True]), bins=4)
    >>> h.edges, h.kept, h.removed, h.line
    ([1.0, 3.0, 5.0, 7.0, 9.0], [1, 1, 0, 1], [1, 0, 0, 0], (1.0, 2.0))
    """
    values = scores.detach().double().cpu().numpy()
    keep = np.ones(len(values), bool) if mask is None else mask.cpu().numpy()
    if len(keep) != len(values) or not (keep.any() or len(keep) == 1):
        raise MaskError(f"there are {len(values)} scores, and the mask keeps {keep.sum()} of {len(keep)} units")
    positive = values[values > 0]
    log = bool(len(positive) and values.min() >= 0 and positive.max() > WIDE * positive.min())
    low, high = (positive[positive >= DEEP * positive.max()].min() if log else values.min()), values.max()
    below = int((values < low).sum())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    inside = np.clip(values, edges[0], edges[-1])
    kept, removed = (np.histogram(inside[units], edges)[0].tolist() for units in (keep, ~keep))
    line = None if keep.all() or not keep.any() else (float(values[~keep].max()), float(values[keep].min()))
    return Histogram(edges.tolist(), kept, removed, log, line, below)


def scores(
    scores: Mapping[str, Tensor],
    mask: Mapping[str, Tensor],
    path: Path | str,
    *,
    title: str = "Scores of the units of each group",
) -> None:
    """Draw the histograms of all groups, one small panel each; readable for a hundred groups.

    Groups of one unit (whole layers and branches) share a panel. Removed units have another colour. The dashed line is halfway
    between the largest removed and the smallest kept score. If the scores of removed and kept units overlap (limits, rounding
    to multiples), the range of the overlap is shaded.

    Args:
        scores: group → float [units].
        mask: group → bool [units], True = kept; all units of other groups are kept.
        path: path of the PNG.
        title: title of the picture.

    Raises:
        MaskError: as for `histogram`.
    """
    scores, mask = _blocks_together(scores, mask)
    histograms = {g: histogram(s, mask.get(g)) for g, s in scores.items()}
    across = min(ACROSS, max(len(histograms), 2))
    figure, axes = blank(0.3 + CELL[0] * across, 0.72 + CELL[1] * max(-(-len(histograms) // across), 1))
    words(axes, PANEL.x, 0.1, title, 11.0, weight="bold")
    _draw_legend(axes)
    for (name, h), panel in zip(histograms.items(), grid(len(histograms), across, CELL, PANEL), strict=True):
        _draw_panel(axes, panel, name, h)
    save(figure, path)


def _blocks_together(
    scores: Mapping[str, Tensor], mask: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return scores and masks in which groups of one unit are one group."""
    ones = [g for g, s in scores.items() if len(s) == 1]
    if len(ones) < 2:
        return dict(scores), dict(mask)
    kept = [mask[g] if g in mask else torch.ones(1, dtype=torch.bool) for g in ones]
    together = f"{len(ones)} whole blocks"
    merged = {
        together: torch.cat([scores[g].cpu() for g in ones]),
        **{g: s for g, s in scores.items() if g not in ones},
    }
    return merged, {**mask, together: torch.cat([m.cpu() for m in kept])}


def _draw_legend(axes: Axes) -> None:
    """Draw the colours and the meaning of the axes."""
    from matplotlib.patches import Rectangle

    x = PANEL.x
    for colour, text, step in ((KEPT, "kept", 0.55), (GONE, "removed", 0.75)):
        axes.add_patch(Rectangle((x, 0.36), 0.12, 0.1, facecolor=colour))
        words(axes, x + 0.17, 0.41, text, 7.5, va="center_baseline")
        x += step
    words(axes, x, 0.41, "across: score, from – to; up: units in a bin", 7.5, va="center_baseline")


def _draw_panel(axes: Axes, at: Panel, name: str, h: Histogram) -> None:
    """Draw the histogram of a group."""
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
        _draw_threshold(axes, at, h)
    kept = sum(h.kept)
    kept_text = f"{kept} of {kept + sum(h.removed)}"
    words(axes, at.x, at.y - 0.18, cut(name, at.w - 0.07 * len(kept_text), 7.5), 7.5, weight="bold")
    words(axes, at.x + at.w, at.y - 0.18, kept_text, 7.0, ha="right")
    words(axes, at.x, at.bottom + 0.03, "≤ " * bool(h.below) + number(h.edges[0]), 6.0)
    words(axes, at.x + at.w, at.bottom + 0.03, number(h.edges[-1]) + (" (log)" if h.log else ""), 6.0, ha="right")
    words(axes, at.x - 0.03, at.y, str(most), 6.0, ha="right", rotation=90)


def _draw_threshold(axes: Axes, at: Panel, h: Histogram) -> None:
    """Draw the threshold between removed and kept scores, and the range in which they overlap."""
    assert h.line is not None
    removed, kept = (at.x + at.w * place(value, h) for value in h.line)
    if removed > kept:
        axes.fill_between([kept, removed], at.y, at.bottom, color=INK, alpha=0.12, linewidth=0)
    middle = (removed + kept) / 2
    axes.plot([middle] * 2, [at.y - 0.02, at.bottom], color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    words(axes, middle, at.bottom + 0.14, number((h.line[0] + h.line[1]) / 2), 6.0, ha="center", weight="bold")


def place(value: float, h: Histogram) -> float:
    """Return the position of a score between the first edge (0) and the last (1).

    >>> place(10.0, Histogram([1.0, 10.0, 100.0], [1, 1], [0, 0], True, None))
    0.5
    """
    low, high = h.edges[0], h.edges[-1]
    value = min(max(value, low), high)
    ends = np.log([low, high, value]) if h.log else np.array([low, high, value])
    return float((ends[2] - ends[0]) / (ends[1] - ends[0]))
