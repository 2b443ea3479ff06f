"""Draw points as an SVG for a page: every point is named where the pointer rests or the focus is; no script, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 680.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 664.0, 54.0, 364.0
"""Edges of the plot; the name of the point in hand is above it."""
CHAR = 6.8
"""Width of a character of a label."""
RADIUS, REACH = 5.0, 11.0
"""Radius of a point, and of what the pointer has to hit."""
STAR = 13.0
"""Distance of a label from the middle of a star."""
NAMED = 3
"""Maximal number of names of points at one place."""


class Dot(NamedTuple):
    """A point."""

    x: float
    y: float
    name: str
    """Shown where the pointer rests, with `note`."""
    note: str = ""
    tone: str = ""
    """Class of its colour: `met`, `missed`, `dense`, `other`."""
    label: str = ""
    """Always shown beside it, if there is room."""
    link: str = ""
    """Address that it leads to."""


class Line(NamedTuple):
    """Joined points."""

    points: Sequence[tuple[float, float]]
    tone: str = ""


class Plot(NamedTuple):
    """What is drawn, in the units of the axes."""

    across: str
    """Name and unit of the horizontal axis."""
    up: str
    dots: Sequence[Dot]
    lines: Sequence[Line] = ()
    region: tuple[float | None, float] | None = None
    """(most, least): a shaded region of all points that are not further to the right and not lower."""
    region_name: str = ""


class Frame(NamedTuple):
    """The ranges of the axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point in pixels."""
        (a, b), (c, d) = self.x, self.y
        return LEFT + (RIGHT - LEFT) * (x - a) / (b - a), BOTTOM - (BOTTOM - TOP) * (y - c) / (d - c)


def scatter(plot: Plot) -> str:
    """Return the SVG, for a page that defines `--ink`, `--soft`, `--line`, `--paper`, `--accent`, `--good`, and shows `.tip` of a
    point in hand.

    >>> svg = scatter(Plot("MACs", "top-1", [Dot(1, 2, "a<b", link="a/report.html"), Dot(2, 3, "c")], region=(1.5, 2.5)))
    >>> svg.count('class="point'), svg.count('class="goal"'), "a&lt;b" in svg
    (2, 1, True)
    """
    frame = _frame(plot)
    parts = [*_grid(plot, frame), *_region(plot, frame)]
    for line in plot.lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(*p) for p in line.points))
        parts.append(f'<polyline class="line {line.tone}" points="{path}"/>')
    dots = _together(plot.dots)
    parts += _labels(dots, frame, plot.region_name if plot.region is not None else "")
    parts += [_point(group, frame) for group in dots]
    size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}"'
    return f'<svg class="chart" role="img" {size}><title>{_text(f"{plot.up} against {plot.across}")}</title>{"".join(parts)}</svg>'


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a range, at most so many.

    >>> ticks(78.2, 90.1), ticks(0, 1, 3), ticks(5, 5)
    ([80.0, 82.0, 84.0, 86.0, 88.0, 90.0], [0.0, 0.5, 1.0], [5.0])
    """
    if high <= low:
        return [float(low)]
    power = 10.0 ** floor(log10((high - low) / most))
    step = next(s * power for s in (1, 2, 5, 10, 20) if (high - low) / (s * power) < most)
    first, last = -int(-low / step // 1), floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _frame(plot: Plot) -> Frame:
    """Return ranges with all points, lines and a part of the region in them, and a margin."""
    places = [(d.x, d.y) for d in plot.dots] + [p for line in plot.lines for p in line.points]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    if plot.region is not None:
        most, least = plot.region
        xs += [] if most is None else [most - 0.15 * max(max(xs) - min(xs), abs(most - min(xs))), most]
        ys += [least, least + 0.15 * max(max(ys) - min(ys), abs(least - max(ys)))]
    return Frame(_range(xs), _range(ys))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest value, with a margin."""
    low, high = min(values), max(values)
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _grid(plot: Plot, frame: Frame) -> Iterator[str]:
    """Yield the lines and numbers of the axes, and their names."""
    for value in ticks(*frame.x):
        x, _ = frame.at(value, frame.y[0])
        yield f'<path class="rule" d="M{x:.1f} {TOP:g}V{BOTTOM:g}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 18:g}" text-anchor="middle">{value:g}</text>'
    for value in ticks(*frame.y):
        _, y = frame.at(frame.x[0], value)
        yield f'<path class="rule" d="M{LEFT:g} {y:.1f}H{RIGHT:g}"/>'
        yield f'<text class="tick" x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    middle = (TOP + BOTTOM) / 2
    yield f'<text class="axis" x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 14:g}" text-anchor="middle">{_text(plot.across)}</text>'
    yield f'<text class="axis" transform="translate(16 {middle:g}) rotate(-90)" text-anchor="middle">{_text(plot.up)}</text>'


def _region(plot: Plot, frame: Frame) -> Iterator[str]:
    """Yield the shaded region with its name."""
    if plot.region is None:
        return
    most, least = plot.region
    x, y = frame.at(frame.x[1] if most is None else most, least)
    yield f'<rect class="goal" x="{LEFT:g}" y="{TOP:g}" width="{x - LEFT:.1f}" height="{y - TOP:.1f}"/>'
    yield f'<text class="goal-name" x="{LEFT + 6:g}" y="{TOP + 15:g}">{_text(plot.region_name)}</text>'


def _together(dots: Sequence[Dot]) -> list[list[Dot]]:
    """Return the points by place, the more important ones last, which are drawn over the others."""
    by_place: dict[tuple[float, float], list[Dot]] = {}
    order = {"other": 0, "missed": 1, "met": 2, "dense": 3}
    for dot in sorted(dots, key=lambda d: order.get(d.tone, 1)):
        by_place.setdefault((dot.x, dot.y), []).append(dot)
    return list(by_place.values())


def _labels(groups: Sequence[Sequence[Dot]], frame: Frame, region_name: str) -> Iterator[str]:
    """Yield the labels that find a place: right, left, above or below of their points, and on no other label."""
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in (frame.at(g[0].x, g[0].y) for g in groups)]
    taken.append((LEFT, TOP, LEFT + 6 + CHAR * len(region_name), TOP + 18))
    for group in reversed(groups):
        label = next((d.label for d in group if d.label), "")
        x, y = frame.at(group[0].x, group[0].y)
        width = CHAR * len(label)
        gap = STAR if group[-1].tone == "dense" else 9
        places = ((x + gap, y + 4), (x - gap - width, y + 4), (x - width / 2, y - 10), (x - width / 2, y + 20))
        for left, base in places if label else ():
            box = (left, base - 11, left + width, base + 3)
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= TOP and box[3] <= BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield f'<text class="label" x="{left:.1f}" y="{base:.1f}">{_text(label)}</text>'
                break


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Return whether two boxes (left, top, right, bottom) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _point(group: Sequence[Dot], frame: Frame) -> str:
    """Return the points of one place, with what is shown where the pointer rests."""
    last = group[-1]
    x, y = frame.at(last.x, last.y)
    names = "; ".join(d.name for d in group[::-1][:NAMED]) + (
        f"; … {len(group) - NAMED} more" if len(group) > NAMED else ""
    )
    lines = f'<text x="{LEFT:g}" y="18" class="name">{_text(names)}</text><text x="{LEFT:g}" y="37">{_text(last.note)}</text>'
    tip = f'<g class="tip">{lines}</g>'
    shape = _star(x, y) if last.tone == "dense" else f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS:g}"/>'
    body = f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="{REACH:g}"/>{shape}{tip}'
    title = f"<title>{_text(f'{names}: {last.note}')}</title>"
    if last.link:
        return f'<a class="point {last.tone}" href="{escape(last.link)}">{title}{body}</a>'
    return f'<g class="point {last.tone}" tabindex="0">{title}{body}</g>'


def _star(x: float, y: float) -> str:
    """Return a star, for the dense network."""
    corners = ((0, -9), (2.1, -2.9), (8.6, -2.8), (3.4, 1.1), (5.3, 7.3), (0, 3.6))
    whole = [*corners, *((-dx, dy) for dx, dy in corners[-2:0:-1])]
    return f'<polygon class="dot" points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in whole)}"/>'


def _text(text: str) -> str:
    return escape(text, quote=False)
