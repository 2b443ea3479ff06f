"""Draw accuracy against MACs: many networks as points, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..display.units import scale_word
from ..drawing.canvas import COLOURS, DENSE, GRID, INK, canvas, head, save
from ..errors import PruneError

LISTED = 30
"""Maximal number of networks of the front that are named."""
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


def pareto(points: Sequence[Point], path: Path | str, *, title: str = "Accuracy against MACs") -> None:
    """Draw all points; those on the front are joined, numbered and named beside the picture, the others are pale.

    Args:
        points: (name, MACs, top-1 from 0 to 1) of each network.
        path: path of the PNG.
        title: title of the picture.

    Raises:
        PruneError: there are no points.
    """
    if not points:
        raise PruneError("there are no points to draw; give (name, MACs, top-1 from 0 to 1) for each network")
    front = pareto_front(points)
    best = sorted((p for p, on in zip(points, front, strict=True) if on), key=lambda p: (p[1], p[0]))
    others = [p for p, on in zip(points, front, strict=True) if not on]
    unit, word = scale_word(max(p[1] for p in points))
    listed = best[:LISTED]
    figure = canvas(9.0, max(4.4, 1.2 + 0.17 * len(listed)))
    axes = figure.add_subplot(1, 1, 1)
    if others:
        axes.plot([p[1] / unit for p in others], [100 * p[2] for p in others], "o", color=DENSE, markersize=5)
    axes.plot([p[1] / unit for p in best], [100 * p[2] for p in best], "o-", color=COLOURS[0], linewidth=1.5)
    numbers_at: dict[tuple[float, float], list[str]] = {}
    for i, (_, macs, top1) in enumerate(listed):
        numbers_at.setdefault((macs / unit, 100 * top1), []).append(str(i + 1))
    for i, (at, numbers) in enumerate(
        numbers_at.items()
    ):  # alternately above and below, because neighbours may be close
        alignment: dict[str, Any] = {"ha": "left", "va": "top"} if i % 2 else {"ha": "right", "va": "bottom"}
        offset = (3, -3) if i % 2 else (-3, 3)
        axes.annotate(", ".join(numbers), at, offset, textcoords="offset points", fontsize=7.5, color=INK, **alignment)
    label = f" ({word})" if word else ""
    names = [f"the front: MACs{label}, top-1"]
    names += [f"{i + 1}  {n}: {m / unit:.4g}, {t:.2%}" for i, (n, m, t) in enumerate(listed)]
    names += [f"… {len(best) - LISTED} more"] * (len(best) > LISTED) + [f"pale: {len(others)} others"] * bool(others)
    axes.text(1.03, 1.0, "\n".join(names), transform=axes.transAxes, va="top", fontsize=7.5, linespacing=1.5, color=INK)
    axes.margins(0.06, 0.08)
    axes.set_xlabel(f"MACs per sample{label}")
    axes.set_ylabel("top-1 on held-out data (%)")
    axes.grid(color=GRID)
    head(axes, title)
    save(figure, path)
