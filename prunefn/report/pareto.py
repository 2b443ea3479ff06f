"""Draw accuracy against MACs: many networks as points, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display.units import scale_word
from ..drawing.canvas import COLOURS, DENSE, GRID, INK, canvas, head, save
from ..errors import PruneError
from .goal import Dense, Goal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED = 30
"""Maximal number of networks that are named; those of the front first."""
MET = "#2E7D46"
"""Colour of the goal."""
Point = tuple[str, int | float, int | float]
"""(name, MACs, top-1 from 0 to 1)"""


def pareto_front(points: Sequence[Point]) -> list[bool]:
    """Return for each point whether it is on the Pareto front.

    A point is on the front if no other point has at most its MACs and at least its accuracy, and differs in one of them. Points
    with equal MACs and equal accuracy are on the front together.

    >>> pareto_front([("a", 10, 0.9), ("b", 5, 0.8), ("c", 7, 0.8), ("d", 5, 0.8)])
    [True, True, False, True]
    """
    front = [False] * len(points)
    best, cost = float("-inf"), float("-inf")  # highest accuracy so far, and the MACs at which it was reached
    for i in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][2])):
        _, macs, top1 = points[i]
        front[i] = top1 > best or (top1 == best and macs == cost)
        if top1 > best:
            best, cost = top1, macs
    return front


def pareto(
    points: Sequence[Point],
    path: Path | str,
    *,
    title: str = "Accuracy against MACs",
    dense: Dense | None = None,
    goal: Goal | None = None,
) -> None:
    """Draw all points, with their numbers and their names beside the picture; those on the front are joined, the others pale.

    Args:
        points: (name, MACs, top-1 from 0 to 1) of each network.
        path: path of the PNG.
        title: title of the picture.
        dense: the dense network, a star.
        goal: what is to be met, a shaded region; needs `dense`.

    Raises:
        PruneError: there are no points, or a goal without `dense`.
    """
    if not points:
        raise PruneError("there are no points to draw; give (name, MACs, top-1 from 0 to 1) for each network")
    if goal is not None and dense is None:
        raise PruneError(f"the goal ({goal}) is relative to the dense network; give dense=Dense(macs, top1)")
    front = pareto_front(points)
    best = sorted((p for p, on in zip(points, front, strict=True) if on), key=lambda p: (p[1], p[0]))
    others = sorted((p for p, on in zip(points, front, strict=True) if not on), key=lambda p: (p[1], -p[2], p[0]))
    unit, word = scale_word(max(p[1] for p in (*points, *([("", dense.macs, 0.0)] if dense else ()))))
    listed = [*best, *others][:LISTED]
    figure = canvas(9.0, max(4.4, 1.4 + 0.17 * len(listed)))
    axes = figure.add_subplot(1, 1, 1)
    if others:
        axes.plot([p[1] / unit for p in others], [100 * p[2] for p in others], "o", color=DENSE, markersize=5)
    axes.plot([p[1] / unit for p in best], [100 * p[2] for p in best], "o-", color=COLOURS[0], linewidth=1.5)
    axes.margins(0.06, 0.08)
    if dense is not None:
        mark_dense(axes, dense, goal, unit)
    _number(axes, [(macs / unit, 100 * top1) for _, macs, top1 in listed])
    label = f" ({word})" if word else ""
    names = [f"the front: MACs{label}, top-1"] + [f"{i + 1}  {_named(p, unit)}" for i, p in enumerate(listed)]
    names[len(best) + 1 : len(best) + 1] = ["pale:"] * (len(best) < len(listed))
    names += [f"… {len(points) - len(listed)} more"] * (len(points) > len(listed))
    names += (
        [] if goal is None else [f"shaded: {part}" if not i else part for i, part in enumerate(str(goal).split(", "))]
    )
    axes.text(1.03, 1.0, "\n".join(names), transform=axes.transAxes, va="top", fontsize=7.5, linespacing=1.5, color=INK)
    axes.set_xlabel(f"MACs per sample{label}")
    axes.set_ylabel("top-1 on held-out data (%)")
    axes.grid(color=GRID)
    head(axes, title)
    save(figure, path)


def mark_dense(axes: Axes, dense: Dense, goal: Goal | None, unit: float) -> None:
    """Draw the dense network as a star, and the goal as a shaded region to the left of it.

    Args:
        axes: MACs / unit across, top-1 in percent upwards.
        dense: the dense network.
        goal: the goal; None: no region.
        unit: of the horizontal axis.
    """
    at = (dense.macs / unit, 100 * dense.top1)
    axes.plot(*at, "*", color="black", markersize=12, zorder=5)
    axes.annotate("dense", at, (0, -12), textcoords="offset points", ha="center", fontsize=7.5, color=INK)
    if goal is None:
        return
    most, least = goal.corner(dense)
    axes.plot(most / unit, 100 * least, ",", color=MET)  # the corner is within the axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left, top = min(left, most / unit - 0.1 * (right - left)), max(top, 100 * least + 0.1 * (top - bottom))
    axes.fill_between([left, most / unit], 100 * least, top, color=MET, alpha=0.12, linewidth=0, zorder=0)
    axes.annotate("goal", (left, top), (4, -4), textcoords="offset points", va="top", fontsize=7.5, color=MET)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _number(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Write the numbers of the points, alternately above and below, because neighbours may be close."""
    numbers_at: dict[tuple[float, float], list[str]] = {}
    for i, at in enumerate(points):
        numbers_at.setdefault(at, []).append(str(i + 1))
    for i, (at, numbers) in enumerate(numbers_at.items()):
        alignment: dict[str, Any] = {"ha": "left", "va": "top"} if i % 2 else {"ha": "right", "va": "bottom"}
        offset = (3, -3) if i % 2 else (-3, 3)
        axes.annotate(", ".join(numbers), at, offset, textcoords="offset points", fontsize=7.5, color=INK, **alignment)


def _named(point: Point, unit: float) -> str:
    """Return a point in words."""
    name, macs, top1 = point
    return f"{name}: {macs / unit:.4g}, {top1:.2%}"
